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

from silc_bench.datasets.files.images import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from silc_bench.datasets.files.shards import FETCH_OR_PACK, Place, check_whole, list_members
from silc_bench.errors import DataError
from silc_bench.system.terminal import counted

FILE_EXTENSIONS = IMAGE_EXTENSIONS
TRAIN, TEST = ("train",), ("test", "val", "validation")  # folders of splits, in any case
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
    other: list[str] = field(default_factory=list)  # files that are no images, or are not read
    loops: list[str] = field(default_factory=list)  # links to a folder that holds them

    def pass_over(self, stray: str) -> None:
        # macOS writes a "._" file beside each: one line counts them all
        self.stray["._*" if stray.startswith("._") else stray] += 1

    @property
    def unread(self) -> list[str]:
        """Images of formats that are not read."""
        return [name for name in self.other if ending_of(name) in UNREAD_EXTENSIONS]

    def notes(self) -> list[str]:
        """What was passed over, for people."""
        lines = []
        if self.stray:
            kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.stray.items()))
            lines.append(f"skipped stray files of the system: {kinds}")

        # images that are not read are missing from their class; other files belong to none
        unread = self.unread
        others = [name for name in self.other if ending_of(name) not in UNREAD_EXTENSIONS]
        if unread:
            endings = Counter(ending_of(name) for name in unread)
            counts = ", ".join(f"{count} .{ending}" for ending, count in sorted(endings.items()))
            lines.append(
                f"skipped {counted(len(unread), 'image')} of formats that are not read ({counts}),"
                f" the first: {unread[0]}"
            )
        if others:
            files = counted(len(others), "file that is no image", "files that are no images")
            lines.append(f"skipped {files}, such as {others[0]}")
        if self.loops:
            links = counted(len(self.loops), "link")
            lines.append(f"skipped {links} to a folder around it, the first: {self.loops[0]}")
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
        if ending_of(file.name) in FILE_EXTENSIONS:
            result.files.append(file)
        else:
            result.other.append(file.name)
    result.folders.sort()
    return result


def is_stray(name: str) -> bool:
    """Whether a name is one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in (*_STRAY_FILES, *_STRAY_FOLDERS)


def ending_of(name: str | Path) -> str:
    """In lower case, without its dot; "" where there is none."""
    return Path(name).suffix.lower().lstrip(".")


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

    Their names may be written in capitals.

    Raises:
        DataError: a train folder alone, others beside the two, or two spellings of one.
    """
    names = subfolders(path)
    spelled: dict[str, str] = {}  # as it is written, by its name in lower case
    for name in names:
        if name.lower() not in (*TRAIN, *TEST):
            continue
        if name.lower() in spelled:
            problem = f"the folder holds {spelled[name.lower()]} and {name}"
            raise DataError(problem, about=path, fix="keep one of them")
        spelled[name.lower()] = name

    test = next((spelled[name] for name in TEST if name in spelled), None)
    if not spelled:
        return {"test": path}

    others = set(names) - set(spelled.values())
    if test is None or (others and not may_hold_others):
        own = " and ".join(sorted(spelled.values()))
        problem = f"the folder holds {own} and {', '.join(sorted(others)) or 'nothing else'}"
        fix = "put the images to be scored into test/ and those to learn from into train/"
        raise DataError(problem, about=path, fix=fix)

    splits = {"test": path / test}
    if "train" in spelled:
        splits["train"] = path / spelled["train"]
    return splits


def unused_splits(path: Path, used: Iterable[Path]) -> list[str]:
    """Folders beside those that are ``used``, called like a split too."""
    names = {place.name for place in used}
    return [name for name in subfolders(path) if name.lower() in TEST and name not in names]


def walk(path: Path, result: Listing) -> Iterable[File]:
    """Files at any depth, in no order; folders and stray files go into ``result``.

    Raises:
        DataError: a link to a file that is gone.
    """
    for folder, names, files in os.walk(path, followlinks=True):
        # a link to a folder above would be walked through for ever
        for name in [name for name in names if _is_loop(path, Path(folder, name))]:
            result.loops.append(Path(folder, name).relative_to(path).as_posix())
            names.remove(name)

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


def _is_loop(path: Path, folder: Path) -> bool:
    """Whether a folder below ``path`` is a link to a folder on the way to it, or above that."""
    if not folder.is_symlink():
        return False

    # of each folder on the way that is meant: links may lead round through several of them
    real = folder.resolve()
    way = [place for place in folder.parents if place == path or path in place.parents]
    return any(real == place or real in place.parents for place in map(Path.resolve, way))


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
