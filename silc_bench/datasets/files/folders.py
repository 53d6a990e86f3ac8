"""Images as people keep them: folders, or a tar of folders read in place.

``listing(Path("imagenet-a"))`` or ``listing(Path("imagenet-a.tar"))`` -> files with their place,
and what was passed over: system files such as .DS_Store, and files that are no images. Both kinds
are listed alike.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from silc_bench.datasets.files.shards import (
    FETCH_OR_PACK,
    IMAGE_EXTENSIONS,
    Place,
    check_whole,
    list_members,
)
from silc_bench.errors import DataError

FILE_EXTENSIONS = (*IMAGE_EXTENSIONS, "bmp", "ppm", "pgm", "tif", "tiff")
TRAIN, TEST = ("train",), ("test", "val", "validation")  # folders of splits
_STRAY_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db")
_STRAY_FOLDERS = ("__macosx", "@eadir", "$recycle.bin")


@dataclass(frozen=True, slots=True)
class File:
    """One image and where its bytes lie."""

    name: str  # below the folder or in the tar, with "/"
    path: Path  # the file that holds it
    place: Place

    @property
    def folder(self) -> str:
        """Name of the folder it lies in, "" at the top."""
        return self.name.rpartition("/")[0].rpartition("/")[2]

    @property
    def where(self) -> str:
        """For messages: the file, or tar:member."""
        is_own_file = self.path.name == Path(self.name).name
        return str(self.path) if is_own_file else f"{self.path}:{self.name}"


@dataclass
class Listing:
    """What lies in a folder or a tar."""

    path: Path
    files: list[File] = field(default_factory=list)  # images, sorted by name
    folders: list[str] = field(default_factory=list)  # direct subfolders, also empty ones
    stray: Counter[str] = field(default_factory=Counter)  # system files, by name
    other: list[str] = field(default_factory=list)  # files that are no images

    def pass_over(self, stray: str) -> None:
        # macOS writes a "._" file beside each: one line counts them all
        self.stray["._*" if stray.startswith("._") else stray] += 1

    def notes(self) -> list[str]:
        """What was passed over, for people."""
        lines = []
        if self.stray:
            kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.stray.items()))
            lines.append(f"skipped stray files of the system: {kinds}")

        if self.other:
            count = len(self.other)
            lines.append(f"skipped {count} files that are no images, such as {self.other[0]}")
        return lines


def listing(path: Path) -> Listing:
    """All images below a folder, or in a tar.

    Raises:
        DataError: a damaged or compressed tar, a tar with two members of one name.
    """
    result = Listing(path)
    entries = walk(path, result) if path.is_dir() else _in_tar(path, result)

    # sorted here, as neither file systems nor tars promise an order
    for file in sorted(entries, key=lambda file: file.name):
        if file.name.lower().rpartition(".")[2] in FILE_EXTENSIONS:
            result.files.append(file)
        else:
            result.other.append(file.name)
    result.folders.sort()
    return result


def is_stray(name: str) -> bool:
    """Whether a name is one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in (*_STRAY_FILES, *_STRAY_FOLDERS)


def by_number(name: str | Path) -> list[tuple[int, int, str]]:
    """Sort key under which "9" stands before "10"."""
    parts = re.split(r"(\d+)", str(name))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def subfolders(path: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted, without those of the system."""
    entries = [entry for entry in os.scandir(path) if not is_stray(entry.name)]
    return sorted(entry.name for entry in entries if entry.is_dir())


def split_folders(path: Path, may_hold_others: bool = False) -> dict[str, Path]:
    """Its folders "test" and "train", or itself as "test" where it has neither.

    Raises:
        DataError: a train folder alone, or others beside the two.
    """
    names = subfolders(path)
    test = next((name for name in TEST if name in names), None)
    has_train = "train" in names
    if test is None and not has_train:
        return {"test": path}

    others = set(names) - {*TRAIN, *TEST}
    if test is None or (others and not may_hold_others):
        own = " and ".join(sorted({*TRAIN, *TEST} & set(names)))
        problem = f"the folder holds {own} and {', '.join(sorted(others)) or 'nothing else'}"
        fix = "put the images to be scored into test/ and those to learn from into train/"
        raise DataError(problem, about=path, fix=fix)

    splits = {"test": path / test}
    if has_train:
        splits["train"] = path / "train"
    return splits


def walk(path: Path, result: Listing) -> Iterable[File]:
    """Files at any depth, in no order; folders and stray files go into ``result``.

    Raises:
        DataError: a link to a file that is gone.
    """
    for folder, names, files in os.walk(path, followlinks=True):
        # os.walk enters what is left in the list
        for name in [name for name in names if is_stray(name)]:
            result.pass_over(name)
            names.remove(name)
        if folder == str(path):
            result.folders += names

        for name in files:
            if is_stray(name):
                result.pass_over(name)
                continue
            full = Path(folder, name)
            try:
                size = full.stat().st_size
            except FileNotFoundError as error:  # a link into nowhere
                fix = "restore the file or remove the link"
                problem = "it is a link to a file that is gone"
                raise DataError(problem, about=full, fix=fix) from error
            yield File(full.relative_to(path).as_posix(), full, (0, size))


def _in_tar(path: Path, result: Listing) -> Iterable[File]:
    """Members that are files; stray ones go into ``result``."""
    members, damage = list_members(path)
    check_whole(path, damage)
    seen: set[str] = set()
    for name, place in members:
        name = name.removeprefix("./")  # written by `tar cf x.tar .`
        if stray := next((part for part in name.split("/") if is_stray(part)), None):
            result.pass_over(stray)
            continue

        # unpacked, the second would replace the first; here both would be scored
        if name in seen:
            raise DataError(f"the tar holds {name} twice", about=path, fix=FETCH_OR_PACK)
        seen.add(name)
        yield File(name, path, place)
