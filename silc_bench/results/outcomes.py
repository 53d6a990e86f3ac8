"""What each sample scored, in a small file beside its record (numpy, no torch).

With it two models can be paired.

Flow: ``pack(scores.outcomes, record)`` -> bytes -> ``save``, always before the record; ``load`` ->
arrays -> ``per_image(outcomes, metric)`` -> counts that add up to the metric. Hits are bitmaps,
ranks and areas the smallest unsigned integers that hold them: 50,000 hits are 6 KB.
`Scores.outcomes` in `silc_bench.task` says which arrays there are.

The arrays must give the metrics that the record states. This binds the two files, whatever happened
between them. The header says which arrays belong to the file (``silc_bench.system.archives``): a
metric whose array is lost is not told without a word.

Shapes: N images, Q captions that ask, S draws of the training shots, C classes, R resamples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from silc_bench.errors import DataError, first_line
from silc_bench.later import np
from silc_bench.metrics import iou
from silc_bench.results.record import Record
from silc_bench.system import archives
from silc_bench.system.files import atomic_path

SCHEMA_VERSION = "outcomes/2"
MAX_BYTES = 1 << 30  # unpacked; ImageNet-1k's hits and labels are 0.1 MB
TOLERANCE = 1e-9  # between a metric of the record and the same from the outcomes

# names of arrays; those of the first line are the same for every model on the same samples
LABELS, ASKED_BY = "labels", "image_retrieval_picture"
_AREAS, _BOUNDARY = "areas", "boundary_areas"
_FOREGROUND, _NAMED = "foreground_areas", "named_areas"
_RANKS = {"text": "text_retrieval_rank", "image": "image_retrieval_rank"}
_RECALL = re.compile(r"(text|image)_retrieval_recall@([1-9]\d*)")
_PATCH_RECALL = re.compile(r"patch_recall@[1-9]\d*")
_OF_AREAS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "mIoU": (_AREAS, iou.mean_iou),
    "pixel_accuracy": (_AREAS, iou.pixel_accuracy),
    "mean_class_accuracy": (_AREAS, iou.mean_class_accuracy),
    "boundary_mIoU": (_BOUNDARY, iou.mean_iou),
    "mIoU_foreground": (_NAMED, iou.mean_iou),
}


@dataclass(frozen=True)
class PerImage:
    """A metric as what each image adds to it."""

    counts: np.ndarray  # [N, ...]
    statistic: Callable[[np.ndarray], np.ndarray]  # sums of counts [R, ...] -> the metric [R]
    hits: np.ndarray | None  # [N, S] bool, where an image is hit or missed and all weigh the same


def path_of(record: Record, results_dir: Path) -> Path:
    """``zeroshot.89abcdef.outcomes.npz`` beside ``zeroshot.89abcdef.json``."""
    return record.path(results_dir).with_suffix(".outcomes.npz")


def pack(outcomes: Mapping[str, np.ndarray], record: Record) -> bytes:
    """The file's content; empty where the task gave no outcomes.

    The same outcomes give the same bytes.

    Raises:
        ValueError: an array is not what its name promises, or the record's metrics do not follow
            from them.
    """
    if not outcomes:
        return b""

    # checked before anything is written: what cannot give the metric again proves nothing later
    problem = _problem(outcomes, record)
    if problem:
        raise ValueError(f"outcomes of {record.task.name}: {problem}")

    # hits take a bit each, integers the smallest type that holds them
    bits = {name: list(array.shape) for name, array in outcomes.items() if array.dtype == bool}
    arrays: dict[str, np.ndarray] = {}
    for name, array in outcomes.items():
        arrays[name] = np.packbits(array) if name in bits else _smallest(array)

    header = {"revision": record.model.revision, "key": record.key, "bits": bits}
    return archives.pack(SCHEMA_VERSION, header, arrays, is_compressed=True)


def save(packed: bytes, record: Record, results_dir: Path) -> None:
    """Write ``pack``'s bytes atomically, before the record.

    Without any, those of an older record in this place are removed.
    """
    path = path_of(record, results_dir)
    if not packed:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)


def load(record: Record, results_dir: Path) -> dict[str, np.ndarray] | None:
    """The arrays as the task gave them (bool, or unsigned integers); None if none were kept.

    Raises:
        UserError: the file is damaged (an array is missing, foreign or altered), or is another
            record's; names the file and what is wrong.
    """
    path = path_of(record, results_dir)
    if not path.exists():
        return None

    # every way in which the file can be wrong ends in one sentence
    try:
        header, arrays = archives.unpack(SCHEMA_VERSION, path.read_bytes(), MAX_BYTES)
        owner = header.get("revision"), header.get("key")
        problem = f"belongs to revision {owner[0]}, key {owner[1]}, not to the record beside it"
        if owner == (record.model.revision, record.key):
            shapes = dict(header["bits"])
            outcomes = {name: _unpacked(array, shapes.get(name)) for name, array in arrays.items()}
            problem = _problem(outcomes, record)
    except archives.DAMAGE as error:
        problem = f"cannot be read ({first_line(error)})"

    if problem:
        fix = f"measure {record.task.name} again with `silc-bench eval --existing overwrite`"
        raise DataError(problem, about=path, fix=fix)
    return outcomes


def per_image(outcomes: Mapping[str, np.ndarray], metric: str) -> PerImage | None:
    """What each image adds to ``metric``; None if the outcomes do not say."""
    # in the order of certainty: a name that is an array, then a name that follows from one
    if metric in outcomes and outcomes[metric].dtype == bool:
        return _of_hits(outcomes[metric].reshape(len(outcomes[metric]), -1))
    if metric == "mean_per_class_recall" and {"acc1", LABELS} <= set(outcomes):
        return _of_weighted_hits(outcomes["acc1"], outcomes[LABELS])

    # areas and counts: the image adds its own, and the metric is one of their sums
    kept, statistic = _OF_AREAS.get(metric, ("", None))
    if kept in outcomes and statistic is not None:
        return PerImage(outcomes[kept], statistic, None)
    if metric in outcomes:
        return PerImage(outcomes[metric], iou.mean_class_rate, None)
    if metric == "foreground_iou" and _FOREGROUND in outcomes:
        both, either = outcomes[_FOREGROUND].T
        return _of_values(both / either, len(both))

    recall = _RECALL.fullmatch(metric)
    if recall is None or _RANKS[recall[1]] not in outcomes:
        return None
    hits = outcomes[_RANKS[recall[1]]] < int(recall[2])
    if recall[1] == "text":
        return _of_hits(hits[:, None])
    return _of_queries(hits, outcomes[ASKED_BY])


def _of_hits(hits: np.ndarray) -> PerImage:
    """The mean over images and draws: hits [N, S]."""
    return _of_values(hits.sum(axis=1), hits.size, hits)


def _of_weighted_hits(hits: np.ndarray, labels: np.ndarray) -> PerImage:
    """The mean over classes of the fraction hit.

    An image weighs less, the more its class has; class sizes are given.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weight = 1 / (len(counts) * counts[inverse])
    return _of_values(hits * weight)


def _of_values(values: np.ndarray, size: int = 1, hits: np.ndarray | None = None) -> PerImage:
    """The sum over images, divided by ``size``: values [N]."""
    return PerImage(values[:, None], lambda sums: sums[..., 0] / size, hits)


def _of_queries(hits: np.ndarray, asked_by: np.ndarray) -> PerImage:
    """Of the captions that ask, [Q] and [Q]: those of one image are drawn together."""
    counts = np.stack([np.bincount(asked_by, weights=hits), np.bincount(asked_by)], axis=1)
    return PerImage(counts, lambda sums: sums[..., 0] / sums[..., 1], None)


def _smallest(array: np.ndarray) -> np.ndarray:
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


def _unpacked(array: np.ndarray, shape: list[int] | None) -> np.ndarray:
    """Bits back to bool of their shape; integers as they are."""
    if shape is None:
        return array
    count = int(np.prod(shape))
    if array.dtype != np.uint8 or array.shape != ((count + 7) // 8,):
        raise ValueError(f"{array.shape} {array.dtype} cannot hold {shape} bits")
    return np.unpackbits(array, count=count).reshape(shape).astype(bool)


def _problem(outcomes: Mapping[str, np.ndarray], record: Record) -> str:
    """What is wrong with these arrays as the outcomes of this record; empty if nothing is."""
    for name, array in outcomes.items():
        wrong = _shape_problem(name, array, record)
        if wrong:
            return f"{name!r} {wrong}, got {array.dtype} {list(array.shape)}"

    if _RANKS["image"] in outcomes:
        asked_by = outcomes.get(ASKED_BY)
        if asked_by is None or asked_by.shape != outcomes[_RANKS["image"]].shape:
            return f"{ASKED_BY!r} must name an image for each {_RANKS['image']!r}"
        if not np.array_equal(np.unique(asked_by), np.arange(record.n)):
            return f"{ASKED_BY!r} must name each of {record.n} images"

    # each metric once more from the outcomes: a file that was mixed up cannot give the same
    for metric, stated in record.metrics.items():
        parts = per_image(outcomes, metric)
        if parts is None:
            continue
        value = float(parts.statistic(parts.counts.sum(axis=0)[None])[0])
        # "not <=" instead of ">": a NaN is a difference too
        if not abs(value - stated) <= TOLERANCE:
            return f"{metric} is {value:.6f} by them and {stated:.6f} by the record"
    return ""


def _shape_problem(name: str, array: np.ndarray, record: Record) -> str:
    """What the array of this name must be and is not; empty if it is."""
    n = record.n
    shapes: dict[str, tuple[int | None, ...]] = {
        **dict.fromkeys((_AREAS, _BOUNDARY, _NAMED), (n, 3, None)),
        **dict.fromkeys((LABELS, _RANKS["text"]), (n,)),
        **dict.fromkeys((_RANKS["image"], ASKED_BY), (None,)),
        _FOREGROUND: (n, 2),
    }
    is_patch_recall = _PATCH_RECALL.fullmatch(name) is not None
    if name not in shapes and name not in record.metrics:
        return "names no metric of the record"

    # every other array is called like the metric that it gives, and holds its hits
    if name not in shapes and not is_patch_recall:
        fits = array.dtype == bool and array.size and (_has(array, (n,)) or _has(array, (n, None)))
        return "" if fits else f"must be bool, [{n}] or [{n}, draws]"

    shape = shapes.get(name, (n, 2, None))
    fits = array.dtype.kind in "iu" and array.min(initial=0) >= 0 and _has(array, shape)
    if fits and is_patch_recall:
        fits = bool((array[:, 0] <= array[:, 1]).all())
    if fits and name == _FOREGROUND:
        fits = bool((array[:, 1] > 0).all())
    sides = ", ".join(str(side or "any") for side in shape)
    return "" if fits else f"must hold counts, [{sides}], no part larger than its whole"


def _has(array: np.ndarray, shape: tuple[int | None, ...]) -> bool:
    """Whether the array has this shape; None: any side."""
    expected = [side or length for side, length in zip(shape, array.shape, strict=False)]
    return array.ndim == len(shape) and list(array.shape) == expected
