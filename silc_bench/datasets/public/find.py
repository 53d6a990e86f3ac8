"""What a public dataset is, and where its splits lie under a data root.

``find(SETS["imagenet1k"], "test", Path("/data"))`` -> ``Site(/data/ILSVRC2012/val, "folders")``. A
folder is a set's when its name, without punctuation and without clip_benchmark's prefixes ``wds_``
and ``vtab-``, is one of the set's names; the data root itself may be that folder. Nothing is
opened: readers do that, and say what is wrong.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from silc_bench.datasets.files.folders import FILE_EXTENSIONS, is_stray, subfolders
from silc_bench.datasets.image_set import ImageSplit
from silc_bench.datasets.layouts import read_names, shards_in
from silc_bench.errors import DataError, unknown_name


class NotFoundError(DataError):
    """No place holds the split; other faults mean that it is there and wrong."""


@dataclass(frozen=True)
class Expected:
    """What a whole split has."""

    images: int
    classes: int = 0
    per_class: int = 0  # images of each class, 0 where that differs
    captions: int = 0  # of each image
    content: str = ""  # fingerprint of a set that is known by its content alone
    also: int = 0  # images, where the set goes round in two sizes
    # images and fingerprint of a published part that is scored as it is
    part: tuple[int, str] = (0, "")


@dataclass(frozen=True)
class MaskLayout:
    """One way in which images and masks lie in their set's folder.

    A mask is named like its image, but for the ends; {split} stands for a split's folder.
    """

    images: tuple[str, ...]  # folders in which its images may lie
    masks: str  # folder of its masks, or the file that they are drawn from
    mask_end: str = ".png"
    image_end: str = ".jpg"
    listed: str = ""  # the file that lists the split's images; else it is all in the folder
    values: str = "labels"  # how masks are numbered; "ids": as the set was published
    skipped: str = ""  # end of files that converters lay beside its masks
    not_beside: str = ""  # a folder that only another set has

    def of(self, folder: str) -> MaskLayout:
        """That of a split's folder."""
        return replace(
            self,
            images=tuple(name.format(split=folder) for name in self.images),
            masks=self.masks.format(split=folder),
            listed=self.listed.format(split=folder),
        )


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
class PublicSet:
    """All that is known of one public dataset.

    Attributes:
        names: of its folder or archive, without punctuation, beside its own name.
        splits: what each of them has; a dictionary, so that a test can have a small set.
        needed: the layouts, for messages; {split} stands for the split's folder.
        read: images of a split at a place; it raises DataError for what is not the set.
        folders: of each split, tried in this order; "" is the set's folder itself. With masks one.
        families: of the tasks that measure it.
        prompts: name of those that ask for its classes.
        lists: files that name the images of a retrieval set.
        layouts: of a set with masks; the first that is there counts.
        inner: folders in the set's in which all of that may lie.
    """

    name: str
    names: tuple[str, ...]
    splits: dict[str, Expected]
    needed: str
    read: Callable[[PublicSet, str, Site], ImageSplit]
    folders: Mapping[str, tuple[str, ...]]
    families: tuple[str, ...] = ()
    prompts: str = ""
    lists: tuple[str, ...] = ()
    layouts: tuple[MaskLayout, ...] = ()
    inner: tuple[str, ...] = ("",)

    def is_called(self, name: str) -> bool:
        """Whether a folder of that name is the set's: "wds_vtab-CIFAR_100" is CIFAR-100's."""
        return _plain(name) in (_plain(self.name), *self.names)


def checked_order(
    title: str, names: tuple[str, ...], sha256: str, about: object, fix: str
) -> tuple[str, ...]:
    """The same names of labels, once it is sure that they are the right ones, in their order.

    Args:
        sha256: of the lines, one a label.

    Raises:
        DataError: they are not the list that the labels were numbered by.
    """
    if hashlib.sha256("\n".join(names).encode()).hexdigest() != sha256:
        problem = f"its {len(names)} names are not the {title} that labels are numbered by"
        raise DataError(problem, about=about, fix=fix)
    return names


def check_names(path: Path, names: Sequence[str], normalise: Callable[[str], str]) -> list[str]:
    """Notes on a list of names that lies beside the data, where it calls some labels otherwise.

    Shards hold numbers only, and such a list says what the numbers mean.

    Raises:
        DataError: it gives a label another label's name, or knows too few names to tell.
    """
    theirs = [normalise(name) for name in read_names(path)]
    ours = [normalise(name) for name in names]
    other = [label for label, name in enumerate(theirs) if ours[label : label + 1] != [name]]
    swapped = next((label for label in other if theirs[label] in ours), None)

    # a name that we do not know may be a wording, but too many of them would hide any order
    problem = ""
    if swapped is not None and swapped < len(ours):
        problem = f"class {swapped} is {theirs[swapped]!r}, and the set's is {ours[swapped]!r}"
    elif len(theirs) != len(ours):
        problem = f"names {len(theirs)} classes, and the set has {len(ours)}"
    elif len(other) > len(ours) // 2:
        problem = f"has {len(other)} of {len(ours)} names that the set does not know"
    if problem:
        fix = "number the labels in the order of the set's own names, and write the shards again"
        raise DataError(problem, about=path, fix=fix)
    return [f"{path.name} words {len(other)} names differently; the set's are used"] * bool(other)


def check_files(paths: Sequence[Path], kind: str, about: object, fix: str) -> None:
    """Raise DataError where files are missing; says how many and which is the first."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        count = f"{len(missing):,} of its {len(paths):,} {kind}"
        raise DataError(f"{count} are missing, such as {missing[0]}", about=about, fix=fix)


# ---- where a split lies ----

LIST_FOLDERS = ("", "annotations", "karpathy", "caption_datasets")
_SPLIT_WORDS = {
    "train": r"(^|[-_.])train([-_.\d]|$)",
    "test": r"(^|[-_.])(val|validation|test)([-_.\d]|$)",
}


def find(known: PublicSet, split: str, data_root: Path | None, is_the_set: bool = False) -> Site:
    """The one place that holds a split.

    Args:
        is_the_set: the root was given as this set's folder, whatever its name.

    Raises:
        NotFoundError: no place does; says where it looked, which layouts fit, and which archive
            waits to be unpacked.
        DataError: several do.
        UserError: an unknown split.
    """
    if split not in known.splits:
        raise unknown_name("split", split, known.splits, known.name)
    needed = known.needed.replace("{split}", split)
    if data_root is None:
        fix = f"give --data-root DIR with {needed}"
        raise NotFoundError("no data root to read it from", about=known.name, fix=fix)

    # two copies of a set may differ, and nobody could say later which one was scored
    root = Path(data_root)
    bases = _bases(known, root, is_the_set)
    sites = list(_sites(known, split, root, bases, is_the_set))
    if len(sites) > 1:
        raise DataError(
            f"is there {len(sites)} times: {' and '.join(str(site.path) for site in sites)}",
            about=f"{known.name} {split}",
            fix="give --data-root the folder of the one you mean",
        )
    if sites:
        return sites[0]

    first = known.folders[split][0]
    if known.layouts:
        layout = known.layouts[0].of(first)
        first = layout.listed or layout.masks
    looked = dict.fromkeys(base / first for base in (root / known.name, *bases))
    raise NotFoundError(
        f"no {known.name} {split} data",
        about=" and ".join(map(str, looked)),
        fix=_unpack(known, root) or f"put it there as {needed}",
    )


def _sites(
    known: PublicSet, split: str, root: Path, bases: list[Path], is_the_set: bool
) -> Iterator[Site]:
    """Every place that holds the split."""
    if known.layouts:
        # two folders of the root may be links to one place
        sites = [site for base in bases if (site := _masks(known, split, base))]
        yield from {site.path.resolve(): site for site in sites}.values()
        return

    if is_the_set and root.suffix == ".tar" and root.is_file():
        yield Site(root, "tar", root.parent)
        return

    # a list of captions says more than the images that it names, so it comes first
    for base in bases:
        site = _listed(known, base, root)
        for folder in known.folders[split]:
            site = site or _recognise(known, base, folder)
        if site is None and len(known.splits) > 1:
            tars = (path.stem for path in base.glob("*.tar") if not is_stray(path.name))
            if any(re.search(_SPLIT_WORDS[split], stem) for stem in tars):
                site = Site(base, "shards", base)
        if site is not None:
            yield site

    if root.is_dir() and split == "test":
        for path in sorted(root.glob("*.tar")):
            if known.is_called(path.stem):
                yield Site(path, "tar", root)


def _bases(known: PublicSet, root: Path, is_the_set: bool) -> list[Path]:
    """Folders that are the set's, by their name."""
    if not root.is_dir():
        return []
    bases = [root] if is_the_set or known.is_called(root.resolve().name) else []

    # clip_benchmark's names, such as wds/vtab/cifar10, taken as paths
    for parent in (root, root / "wds", root / "vtab", root / "wds/vtab"):
        if parent.is_dir():
            bases += [parent / child for child in subfolders(parent) if known.is_called(child)]
    return bases


def _masks(known: PublicSet, split: str, base: Path) -> Site | None:
    """The first layout whose masks are there, and the list of the split where it needs one."""
    for inner in known.inner:
        for pattern in known.layouts:
            home = base / inner
            layout = pattern.of(known.folders[split][0])
            path = home / layout.masks

            # the folder may be another set's of the same name, or another form of this one
            if layout.not_beside and (home / layout.not_beside).is_dir():
                continue
            if layout.listed and not (home / layout.listed).is_file():
                continue

            # one mask is enough: whether all are there is counted later
            if path.is_file() or next(path.rglob(f"*{layout.mask_end}"), None) is not None:
                return Site(path, "masks", home, layout)
    return None


def _recognise(known: PublicSet, base: Path, folder: str) -> Site | None:
    """What a folder holds, by the names in it; None where it is not there or empty."""
    path = base / folder
    if not path.is_dir():
        return None

    # CIFAR's python archives hold a file a split: their folder is that of both
    entries = [entry for entry in os.scandir(path) if not is_stray(entry.name)]
    files = {entry.name for entry in entries if entry.is_file()}
    if {"test_batch"} <= files or {"meta", "test"} <= files:
        return Site(path, "pickles", base)
    if not folder and len(known.splits) > 1:
        return None  # its subfolders are splits

    # shards before folders: what was downloaded may lie beside what was made of it
    if any(file.endswith(".tar") for file in files):
        return Site(path, "shards", base)
    if any(entry.is_dir() for entry in entries):
        return Site(path, "folders", base)
    if any(file.lower().rpartition(".")[2] in FILE_EXTENSIONS for file in files):
        return Site(path, "flat", base)
    return None


def _listed(known: PublicSet, base: Path, root: Path) -> Site | None:
    """A file that lists images and captions, in the set's folder or under the data root."""
    for parent in (base, root):
        for folder in LIST_FOLDERS:
            for name in known.lists:
                if (parent / folder / name).is_file():
                    return Site(parent / folder / name, "json", base)
    return None


def tars_of(site: Site, split: str) -> list[Path]:
    """The shards of a split, also where those of several lie in one folder."""
    if site.kind == "tar":
        return [site.path]
    tars = shards_in(site.path)
    if site.path != site.base:
        return tars
    return [path for path in tars if re.search(_SPLIT_WORDS[split], path.stem)] or tars


def _unpack(known: PublicSet, root: Path) -> str | None:
    """The line that unpacks an archive of the set, if there is one."""
    for path in sorted(root.glob("*")):
        is_zip = path.name.endswith(".zip")
        stem, dot, _ = path.name.partition(".zip" if is_zip else ".tar.")
        if dot and known.is_called(stem) and path.is_file():
            command = f"unzip {path} -d {root}" if is_zip else f"tar xf {path} -C {root}"
            return f"unpack it first: {command}"
    return None


def _plain(name: str) -> str:
    """A name as ``PublicSet.names`` has it: "wds_vtab-CIFAR_100" is "cifar100"."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("wds").removeprefix("vtab")
