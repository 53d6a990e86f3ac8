"""Where the named sets lie under a data root: which folder names mean which set and split.

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

from silc_bench.datasets.files.folders import FILE_EXTENSIONS, by_number, is_stray, subfolders
from silc_bench.datasets.public import mask_sets
from silc_bench.datasets.public.mask_sets import MaskLayout, MaskSet
from silc_bench.errors import DataError, unknown_name


class NotFoundError(DataError):
    """No place holds the split; other faults mean that it is there and wrong."""


@dataclass(frozen=True)
class Site:
    """The place that holds one split.

    Attributes:
        kind: "folders" of classes, "flat" images, "shards" (tars in a folder), "tar" (one file),
            "pickles", "json" (captions) or "masks".
        base: the set's folder, beside which lists and names may lie.
        layout: of images and masks.
    """

    path: Path
    kind: str
    base: Path
    layout: MaskLayout | None = None


@dataclass(frozen=True)
class Known:
    """How a named set may lie.

    Attributes:
        names: of its folder, without punctuation.
        folders: of each split, tried in this order; "" is the set's folder itself.
        needed: the layouts, for messages; {split} stands for the split's folder.
        tars: of its images, beside it under the data root.
        lists: files that name the images of a retrieval set.
        masks: of a set of images with masks.
    """

    names: tuple[str, ...]
    folders: dict[str, tuple[str, ...]]
    needed: str
    tars: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    masks: MaskSet | None = None


_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_CIFAR_SPLITS = {"train": ("train",), "test": ("test", "val")}
_WDS = "test/*.tar (webdataset: .jpg and .cls)"
SETS = {
    "imagenet1k": Known(
        (
            *("imagenet1k", "imagenet", "ilsvrc2012", "ilsvrc"),
            *("imagenet2012", "in1k", "imagenetobjectlocalizationchallenge"),
        ),
        {
            "train": ("train", *(f"{folder}/train" for folder in _KAGGLE)),
            # ILSVRC's own test part has no public labels: where val is there, it is what counts
            "test": (
                *("val", "validation", "ILSVRC2012_img_val"),
                *(f"{folder}/val" for folder in _KAGGLE),
                "test",
            ),
        },
        "imagenet1k/val/<wnid>/*.JPEG, Kaggle's ILSVRC/Data/CLS-LOC/val/*.JPEG with"
        " LOC_val_solution.csv, ILSVRC2012_img_val.tar with its devkit,"
        f" or imagenet1k/{_WDS};"
        " for training imagenet1k/train/<wnid>/*.JPEG or train/*.tar",
        ("ilsvrc2012imgval",),
    ),
    "imagenet_v2": Known(
        ("imagenetv2", "imagenetv2matchedfrequency", "imagenetv2matchedfrequencyformatval"),
        {
            "test": (
                *("imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency"),
                *("test", "val", ""),
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
        "objectnet-1.0/images/<folder>/*.png with objectnet-1.0/mappings/*.json,"
        f" or objectnet/{_WDS}",
    ),
    "cifar10": Known(
        ("cifar10", "cifar10batchespy"),
        {split: (*folders, "cifar-10-batches-py", "") for split, folders in _CIFAR_SPLITS.items()},
        "cifar10/{split}/*.tar (webdataset: .png and .cls),"
        " cifar10/{split}/<class name>/*.png, or cifar-10-batches-py/",
    ),
    "cifar100": Known(
        ("cifar100", "cifar100python"),
        {split: (*folders, "cifar-100-python", "") for split, folders in _CIFAR_SPLITS.items()},
        "cifar100/{split}/*.tar (webdataset: .png and .cls),"
        " cifar100/{split}/<class name>/*.png, or cifar-100-python/",
    ),
    "coco": Known(
        ("coco", "mscoco", "coco2014", "mscococaptions", "cococaptions", "mscoco2014"),
        {"test": ("test",)},
        "coco/dataset_coco.json (Karpathy's split) with coco/val2014/*.jpg,"
        " or coco/test/*.tar (webdataset: .jpg and .txt)",
        lists=("dataset_coco.json",),
    ),
    "flickr30k": Known(
        ("flickr30k",),
        {"test": ("test",)},
        "flickr30k/dataset_flickr30k.json (Karpathy's split) with flickr30k/flickr30k-images/*.jpg,"
        " or flickr30k/test/*.tar (webdataset: .jpg and .txt)",
        lists=("dataset_flickr30k.json",),
    ),
}


def _known_by_masks(masks: MaskSet) -> Known:
    """A set with masks; its folders serve the message that says where was looked."""
    folders: dict[str, tuple[str, ...]] = {}
    for split, layouts in masks.splits.items():
        folders[split] = (layouts[0].listed or layouts[0].masks,)
    return Known(masks.names, folders, masks.needed, masks=masks)


SETS |= {name: _known_by_masks(masks) for name, masks in mask_sets.SETS.items()}
LIST_FOLDERS = ("", "annotations", "karpathy", "caption_datasets")
_SPLIT_WORDS = {
    "train": r"(^|[-_.])train([-_.\d]|$)",
    "test": r"(^|[-_.])(val|validation|test)([-_.\d]|$)",
}


def find(name: str, split: str, data_root: Path | None, is_the_set: bool = False) -> Site:
    """The one place that holds a split.

    ``is_the_set``: the root was given as this set's folder, whatever its name.

    Raises:
        NotFoundError: no place does; says where it looked, which layouts fit, and which archive
            waits to be unpacked.
        DataError: several do.
        UserError: an unknown set or split.
    """
    if name not in SETS:
        raise unknown_name("dataset", name, SETS)
    known = SETS[name]
    if split not in known.folders:
        raise unknown_name(f"split of {name}", split, known.folders)
    needed = known.needed.replace("{split}", split)
    if data_root is None:
        raise NotFoundError(f"{name} is read from files", fix=f"give --data-root DIR with {needed}")

    # two copies of a set may differ, and nobody could say later which one was scored
    root = Path(data_root)
    sites = list(_sites(name, split, root, is_the_set))
    if len(sites) > 1:
        places = " and ".join(str(site.path) for site in sites)
        raise DataError(
            f"{name} {split} is there {len(sites)} times: {places}",
            fix="give --data-root the folder of the one you mean",
        )

    if not sites:
        first = known.folders[split][0]
        bases = _bases(name, root, is_the_set)
        looked = dict.fromkeys(base / first for base in (root / name, *bases))
        where = " and ".join(map(str, looked))
        hint = _hint(known, bases)
        fix = _unpack(name, root) or hint or f"needed: {needed}"
        raise NotFoundError(f"no {name} {split} data: looked in {where}", fix=fix)
    return sites[0]


def _sites(name: str, split: str, root: Path, is_the_set: bool) -> Iterator[Site]:
    """Every place that holds the split."""
    known = SETS[name]
    bases = _bases(name, root, is_the_set)
    if known.masks is not None:
        # two folders of the root may be links to one place
        places: dict[Path, Site] = {}
        for base in bases:
            site = _masks(known.masks, split, base)
            if site is not None:
                places[site.path.resolve()] = site
        yield from places.values()
        return

    if is_the_set and root.suffix == ".tar" and root.is_file():
        yield Site(root, "tar", root.parent)
        return

    # a list of captions says more than the images that it names, so it comes first
    for base in bases:
        candidates = (_recognise(base, folder, known) for folder in known.folders[split])
        site = next((site for site in candidates if site is not None), None)
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
    names = SETS[name].names
    bases = [root] if is_the_set or _plain(root.resolve().name) in names else []

    # clip_benchmark's names, such as wds/vtab/cifar10, taken as paths
    for parent in (root, root / "wds", root / "vtab", root / "wds/vtab"):
        if parent.is_dir():
            bases += [parent / child for child in subfolders(parent) if _plain(child) in names]
    return bases


def _masks(known: MaskSet, split: str, base: Path) -> Site | None:
    """The first layout whose masks are there, and the list of the split where it needs one."""
    for inner in known.inner:
        for layout in known.splits[split]:
            home = base / inner
            path = home / layout.masks

            # the folder may be another set's of the same name, or another form of this one
            if layout.not_beside and (home / layout.not_beside).is_dir():
                continue
            if layout.listed and not (home / layout.listed).is_file():
                continue

            # one mask is enough: whether all are there is counted later
            has_masks = path.is_file()
            if path.is_dir():
                has_masks = next(path.rglob(f"*{layout.mask_end}"), None) is not None
            if has_masks:
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
    """What a folder holds, by the names in it; None where it is not there or empty."""
    path = base / folder
    if not path.is_dir():
        return None

    # CIFAR's python archives hold a file a split: their folder is that of both
    entries = [entry for entry in os.scandir(path) if not is_stray(entry.name)]
    files = {entry.name for entry in entries if entry.is_file()}
    if {"test_batch"} <= files or {"meta", "test"} <= files:
        return Site(path, "pickles", base)
    if not folder and len(known.folders) > 1:
        return None  # its subfolders are splits

    # shards before folders: what was downloaded may lie beside what was made of it
    if any(file.endswith(".tar") for file in files):
        return Site(path, "shards", base)
    if any(entry.is_dir() for entry in entries):
        return Site(path, "folders", base)
    if any(file.lower().rpartition(".")[2] in FILE_EXTENSIONS for file in files):
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
    tars = [path for path in tars if re.search(_SPLIT_WORDS[split], path.stem)]
    return sorted(tars, key=lambda path: by_number(path.name)) or None


def _unpack(name: str, root: Path) -> str | None:
    """The line that unpacks an archive of the set, if there is one."""
    if not root.is_dir():
        return None

    known = SETS[name]
    for path in sorted(root.glob("*")):
        is_zip = path.name.endswith(".zip")
        stem, dot, _ = path.name.partition(".zip" if is_zip else ".tar.")
        if name == "cifar10":
            stem = stem.removesuffix("-python")
        if dot and path.is_file() and _plain(stem) in (*known.names, *known.tars):
            command = f"unzip {path} -d {root}" if is_zip else f"tar xf {path} -C {root}"
            return f"unpack it first: {command}"
    return None


def _plain(name: str) -> str:
    """A name as ``Known.names`` has it: "wds_vtab-CIFAR_100" is "cifar100"."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("wds").removeprefix("vtab")
