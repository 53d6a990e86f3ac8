"""Webdataset shards with labels or captions: ``.jpg .cls`` and ``.jpg .txt``, as clip_benchmark and img2dataset write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from silc_bench.datasets.files import by_number, is_stray
from silc_bench.datasets.picture_set import DataError, Picture
from silc_bench.datasets.shards import IMAGE_EXTENSIONS, Sample, index_shard, read_member
from silc_bench.errors import UserError


def shards_in(folder: Path) -> list[Path]:
    """The ``*.tar`` directly in a folder, "9.tar" before "10.tar".

    Raises:
        DataError: another number of them than the ``nshards.txt`` beside them promises.
    """
    paths = sorted((path for path in folder.glob("*.tar") if not is_stray(path.name)), key=lambda path: by_number(path.name))
    promise = folder / "nshards.txt"
    if paths and promise.exists():
        text = promise.read_text(encoding="utf-8", errors="replace").strip()
        if text != str(len(paths)):
            raise DataError(f"{promise} promises {text[:20]} shards, and {len(paths)} are there", "fetch the missing shards")
    return paths


def read_labelled(paths: Sequence[Path], num_classes: int | None, with_captions: bool = False) -> list[Picture]:
    """Pictures with the label of their ``.cls``, in the order of the shards.

    ``num_classes`` bounds the labels; None leaves them open above.

    Raises:
        UserError: a damaged shard, a sample without picture or label, a label that is none.
    """
    return [_labelled(path, sample, num_classes, with_captions) for path in paths for sample in _samples(path)]


def read_captioned(paths: Sequence[Path]) -> list[Picture]:
    """Pictures with the captions of their ``.txt``, one a line. Raises UserError as ``read_labelled`` does."""
    pictures = []
    for path in paths:
        for sample in _samples(path):
            picture, where = _picture(path, sample, "txt", "caption")
            text = read_member(path, sample.members["txt"]).decode("utf-8", errors="replace")
            captions = tuple(line.strip() for line in text.splitlines() if line.strip())
            if not captions:
                raise DataError(f"{where} has an empty caption", "a sample to be retrieved needs words; remove it")
            pictures.append(Picture(path, picture, where, captions=captions))
    return pictures


def has_member(paths: Sequence[Path], extension: str) -> bool:
    """Whether the first sample has a member of this extension."""
    samples = index_shard(paths[0]).samples
    return bool(samples) and extension in samples[0].members


def read_names(path: Path) -> list[str]:
    """Class names in label order, from classnames.txt (one a line) or .json (a list). Raises UserError for anything else."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path} must hold a list of class names in label order")
    return names


def _samples(path: Path) -> Sequence[Sample]:
    shard = index_shard(path)
    if shard.damage.total:
        raise DataError(f"a damaged shard cannot be scored: {shard.damage.summary()}", f"fetch {path.name} again")
    return shard.samples


def _picture(path: Path, sample: Sample, other: str, other_name: str) -> tuple[tuple[int, int], str]:
    """Place of the picture, and its name for messages."""
    where = f"{path}:{sample.key}"
    picture = next((sample.members[ext] for ext in IMAGE_EXTENSIONS if ext in sample.members), None)
    if picture is None or other not in sample.members:
        has = ", ".join(f".{ext}" for ext in sample.members)
        raise UserError(f"{where} needs a picture ({', '.join(IMAGE_EXTENSIONS)}) and a {other_name} (.{other}); it has {has}")
    return picture, where


def _labelled(path: Path, sample: Sample, num_classes: int | None, with_captions: bool) -> Picture:
    picture, where = _picture(path, sample, "cls", "label")
    text = read_member(path, sample.members["cls"]).strip()
    label = int(text) if text.isdigit() and len(text) < 8 else -1
    if label < 0 or (num_classes is not None and label >= num_classes):
        last = "up" if num_classes is None else f"to {num_classes - 1}"
        raise UserError(f"{where} has the label {text[:20]!r}; a label is a number from 0 {last}")
    captions: tuple[str, ...] = ()
    if with_captions and "txt" in sample.members:
        captions = (read_member(path, sample.members["txt"]).decode("utf-8", errors="replace").strip(),)
    return Picture(path, picture, where, label, captions)
