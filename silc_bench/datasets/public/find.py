"""Where the named sets lie under a data root: which folder names mean which set, and which parts of
it hold a split.

``find("imagenet1k", "test", Path("/data"))`` -> ``Site(/data/ILSVRC2012/val, "folders")``. A folder
is a set's when its name, without punctuation and without clip_benchmark's prefixes ``wds_`` and
``vtab-``, is one of the set's names; the data root itself may be that folder. Nothing is opened:
readers do that, and say what is wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from silc_bench.datasets.files.folders import PICTURE_EXTENSIONS, by_number, is_stray, subfolders
from silc_bench.datasets.public import mask_sets
from silc_bench.datasets.public.mask_sets import MaskLayout, MaskSet
from silc_bench.errors import DataError, unknown_name


class NotFoundError(DataError):
    """No place holds the split; other faults mean that it is there and wrong."""


@dataclass(frozen=True)
class Site:
    path: Path
    # folders: of classes; flat: pictures; shards: tars in a folder; tar: one file; pickles; json:
    # captions; masks
    kind: str
    base: Path  # the set's folder, beside which lists and names may lie
    layout: MaskLayout | None = None  # of pictures and masks


@dataclass(frozen=True)
class Known:
    names: tuple[str, ...]  # of its folder, without punctuation
    folders: dict[
        str, tuple[str, ...]
    ]  # by split, tried in this order; "" is the set's folder itself
    needed: str  # the layouts, for messages; {split} stands for the split's folder
    tars: tuple[str, ...] = ()  # of its pictures, beside it under the data root
    lists: tuple[str, ...] = ()  # files that name the pictures of a retrieval set
    masks: MaskSet | None = None  # a set of pictures with masks


_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_CIFAR_SPLITS = {"train": ("train",), "test": ("test", "val")}
_WDS = "test/*.tar (webdataset: .jpg and .cls)"
SETS = {
    "imagenet1k": Known(
        (
            "imagenet1k",
            "imagenet",
            "ilsvrc2012",
            "ilsvrc",
            "imagenet2012",
            "in1k",
            "imagenetobjectlocalizationchallenge",
        ),
        {
            "train": ("train", *(f"{folder}/train" for folder in _KAGGLE)),
            "test": (
                "val",
                "validation",
                "ILSVRC2012_img_val",
                *(f"{folder}/val" for folder in _KAGGLE),
                "test",
            ),
        },
        "imagenet1k/val/<wnid>/*.JPEG, Kaggle's ILSVRC/Data/CLS-LOC/val/*.JPEG with LOC_val_solution.csv,"
        f" ILSVRC2012_img_val.tar with its devkit, or imagenet1k/{_WDS};"
        " for training imagenet1k/train/<wnid>/*.JPEG or train/*.tar",
        ("ilsvrc2012imgval",),
    ),
    "imagenet_v2": Known(
        ("imagenetv2", "imagenetv2matchedfrequency", "imagenetv2matchedfrequencyformatval"),
        {
            "test": (
                "imagenetv2-matched-frequency-format-val",
                "ImageNetV2-matched-frequency",
                "test",
                "val",
                "",
            )
        },
        f"imagenet_v2/<0..999>/*.jpeg (matched frequency), or imagenet_v2/{_WDS}",
    ),
    "imagenet_a": Known(
        ("imageneta",),
        {"test": ("imagenet-a", "test", "val", "")},
        f"imagenet-a/<wnid>/*.jpg, imagenet-a.tar, or imagenet-a/{_WDS}",
    ),
    "imagenet_r": Known(
        ("imagenetr",),
        {"test": ("imagenet-r", "test", "val", "")},
        f"imagenet-r/<wnid>/*.jpg, imagenet-r.tar, or imagenet-r/{_WDS}",
    ),
    "imagenet_sketch": Known(
        ("imagenetsketch", "sketch"),
        {"test": ("sketch", "test", "val", "")},
        f"imagenet-sketch/<wnid>/*.JPEG, or imagenet-sketch/{_WDS}",
    ),
    "objectnet": Known(
        ("objectnet", "objectnet10"),
        {"test": ("objectnet-1.0/images", "images", "test")},
        f"objectnet-1.0/images/<folder>/*.png with objectnet-1.0/mappings/*.json, or objectnet/{_WDS}",
    ),
    "cifar10": Known(
        ("cifar10", "cifar10batchespy"),
        {split: (*folders, "cifar-10-batches-py", "") for split, folders in _CIFAR_SPLITS.items()},
        "cifar10/{split}/*.tar (webdataset: .png and .cls), cifar10/{split}/<class name>/*.png, or cifar-10-batches-py/",
    ),
    "cifar100": Known(
        ("cifar100", "cifar100python"),
        {split: (*folders, "cifar-100-python", "") for split, folders in _CIFAR_SPLITS.items()},
        "cifar100/{split}/*.tar (webdataset: .png and .cls), cifar100/{split}/<class name>/*.png, or cifar-100-python/",
    ),
    "coco": Known(
        ("coco", "mscoco", "coco2014", "mscococaptions", "cococaptions", "mscoco2014"),
        {"test": ("test",)},
        "coco/dataset_coco.json (Karpathy's split) with coco/val2014/*.jpg, or coco/test/*.tar (webdataset: .jpg and .txt)",
        lists=("dataset_coco.json",),
    ),
    "flickr30k": Known(
        ("flickr30k",),
        {"test": ("test",)},
        "flickr30k/dataset_flickr30k.json (Karpathy's split) with flickr30k/flickr30k-images/*.jpg, or flickr30k/test/*.tar"
        " (webdataset: .jpg and .txt)",
        lists=("dataset_flickr30k.json",),
    ),
}
SETS |= {
    name: Known(
        known.names,
        {split: (one[0].listed or one[0].masks,) for split, one in known.splits.items()},
        known.needed,
        masks=known,
    )
    for name, known in mask_sets.SETS.items()
}
LIST_FOLDERS = ("", "annotations", "karpathy", "caption_datasets")
_SPLIT_WORDS = {
    "train": r"(^|[-_.])train([-_.\d]|$)",
    "test": r"(^|[-_.])(val|validation|test)([-_.\d]|$)",
}


def find(name: str, split: str, data_root: Path | None, is_the_set: bool = False) -> Site:
    """The one place that holds a split. ``is_the_set``: the root was given as this set's folder,
    whatever its name.

    Raises:
        NotFoundError: no place does; says where it looked, which layouts fit, and which archive
        waits to be unpacked. DataError: several do.
        UserError: an unknown set or split.
    """
    if name not in SETS:
        raise unknown_name("dataset", name, SETS)
    known = SETS[name]
    if split not in known.folders:
        raise unknown_name(f"split of {name}", split, known.folders)
    needed = known.needed.replace("{split}", split)
    if data_root is None:
        raise NotFoundError(f"{name} is read from files", f"give --data-root DIR with {needed}")
    root = Path(data_root)
    found = list(_sites(name, split, root, is_the_set))
    if len(found) > 1:
        places = " and ".join(str(site.path) for site in found)
        raise DataError(
            f"{name} {split} is there {len(found)} times: {places}",
            "give --data-root the folder of the one you mean",
        )
    if not found:
        first = known.folders[split][0]
        looked = dict.fromkeys(
            base / first for base in (root / name, *_bases(name, root, is_the_set))
        )
        where = " and ".join(map(str, looked))
        hint = _hint(known, _bases(name, root, is_the_set))
        raise NotFoundError(
            f"no {name} {split} data: looked in {where}",
            _unpack(name, root) or hint or f"needed: {needed}",
        )
    return found[0]


def _sites(name: str, split: str, root: Path, is_the_set: bool) -> Iterator[Site]:
    if SETS[name].masks is not None:
        sites = (_masks(SETS[name].masks, split, base) for base in _bases(name, root, is_the_set))  # type: ignore[arg-type]
        yield from {site.path.resolve(): site for site in sites if site is not None}.values()
        return
    if is_the_set and root.suffix == ".tar" and root.is_file():
        yield Site(root, "tar", root.parent)
        return
    known = SETS[name]
    for base in _bases(name, root, is_the_set):
        site = next(
            (site for folder in known.folders[split] if (site := _recognise(base, folder, known))),
            None,
        )
        site = _listed(base, root, known) or site or _split_shards(base, split, known)
        if site is not None:
            yield site
    if root.is_dir():
        for path in sorted(root.glob("*.tar")):
            if split == "test" and _plain(path.stem) in (*known.names, *known.tars):
                yield Site(path, "tar", root)


def _bases(name: str, root: Path, is_the_set: bool) -> list[Path]:
    """Folders that are the set's, by their name."""
    if not root.is_dir():
        return []
    known = SETS[name]
    bases = [root] if is_the_set or _plain(root.resolve().name) in known.names else []
    for parent in (root, root / "wds", root / "vtab", root / "wds/vtab"):
        if parent.is_dir():
            bases += [
                parent / child for child in subfolders(parent) if _plain(child) in known.names
            ]
    return bases


def _masks(known: MaskSet, split: str, base: Path) -> Site | None:
    """The first layout whose masks are there, and the list of the split where it needs one."""
    for inner in known.inner:
        for layout in known.splits[split]:
            home = base / inner
            path = home / layout.masks
            if layout.not_beside and (home / layout.not_beside).is_dir():
                continue
            if layout.listed and not (home / layout.listed).is_file():
                continue
            if path.is_file() or (
                path.is_dir() and next(path.rglob(f"*{layout.mask_end}"), None) is not None
            ):
                return Site(path, "masks", home, layout)
    return None


def _hint(known: Known, bases: list[Path]) -> str | None:
    """The line that makes masks of what lies there instead of them."""
    if known.masks is None:
        return None
    for path, fix in known.masks.hints:
        if any((base / inner / path).is_file() for base in bases for inner in known.masks.inner):
            return fix
    return None


def _recognise(base: Path, folder: str, known: Known) -> Site | None:
    path = base / folder
    if not path.is_dir():
        return None
    entries = [entry for entry in os.scandir(path) if not is_stray(entry.name)]
    files = {entry.name for entry in entries if entry.is_file()}
    is_file_of = {"test_batch"} <= files or {"meta", "test"} <= files
    if is_file_of:
        return Site(path, "pickles", base)
    if not folder and len(known.folders) > 1:
        return None  # its subfolders are splits
    if any(file.endswith(".tar") for file in files):
        return Site(path, "shards", base)
    if any(entry.is_dir() for entry in entries):
        return Site(path, "folders", base)
    if any(file.lower().rpartition(".")[2] in PICTURE_EXTENSIONS for file in files):
        return Site(path, "flat", base)
    return None


def _listed(base: Path, root: Path, known: Known) -> Site | None:
    """A file that lists pictures and captions, in the set's folder or under the data root."""
    for parent in (base, root):
        for folder in LIST_FOLDERS:
            for name in known.lists:
                if (parent / folder / name).is_file():
                    return Site(parent / folder / name, "json", base)
    return None


def _split_shards(base: Path, split: str, known: Known) -> Site | None:
    """Shards of all splits in one folder, told apart by a word in their names."""
    site = Site(base, "shards", base)
    return site if len(known.folders) > 1 and split_tars(site, split) else None


def split_tars(site: Site, split: str) -> list[Path] | None:
    """The shards of a split where those of several lie in one folder, else None."""
    if site.path != site.base:
        return None
    tars = [path for path in site.path.glob("*.tar") if not is_stray(path.name)]
    own = [path for path in tars if re.search(_SPLIT_WORDS[split], path.stem)]
    return sorted(own, key=lambda path: by_number(path.name)) or None


def _unpack(name: str, root: Path) -> str | None:
    """The line that unpacks an archive of the set, if there is one."""
    known = SETS[name]
    for path in sorted(root.glob("*")) if root.is_dir() else ():
        stem, dot, _ = path.name.partition(".zip" if path.name.endswith(".zip") else ".tar.")
        plain = _plain(stem.removesuffix("-python") if name == "cifar10" else stem)
        if dot and path.is_file() and plain in (*known.names, *known.tars):
            command = "unzip" if path.suffix == ".zip" else "tar xf"
            target = f"-d {root}" if path.suffix == ".zip" else f"-C {root}"
            return f"unpack it first: {command} {path} {target}"
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("wds").removeprefix("vtab")
