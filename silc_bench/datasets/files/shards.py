"""Webdataset tar shards, read at random: samples are found once, then read in any order.

Flow: ``expand("data/{000..009}.tar")`` -> files -> ``index_shard(file)`` -> samples with the place
of each member -> ``read_member(file, place)`` -> bytes, which
`silc_bench.datasets.files.images` decodes.

Nothing is extracted, and no torch is needed. Reading keeps no file position (``os.pread``), so
the same index serves any number of threads and forked workers.

Damage never passes in silence. It does not stop a training run: what is whole is kept, the rest is
counted in a ``Damage``; only a file that is no tar at all is a UserError. An evaluation refuses
damage (``silc_bench.datasets.layouts``), because a score over a part would bear the whole's name.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from silc_bench.datasets.files.images import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from silc_bench.errors import DataError, UserError

Place: TypeAlias = tuple[int, int]  # offset and size in bytes
# tarfile lets nonsense sizes through to read(), which then raises what it likes
BROKEN_TAR = (tarfile.TarError, ValueError, OverflowError, MemoryError)


@dataclass
class Damage:
    """What had to be left out: how often, by cause, with the first example of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, cause: str, where: str, count: int = 1) -> None:
        self.counts[cause] = self.counts.get(cause, 0) + count

        # names in a tar may hold any bytes, and this text is printed and saved as UTF-8
        printable = where.encode("utf-8", "backslashreplace").decode()
        self.first.setdefault(cause, printable)

    def merge(self, other: Damage) -> None:
        for cause, count in other.counts.items():
            self.add(cause, other.first[cause], count)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def summary(self) -> str:
        """One line for people, the most frequent cause first.

        "3 damaged: 2 corrupt image (first: a.tar:000017), 1 truncated member (first: ...)"
        """
        if not self.counts:
            return "no damage"
        causes = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        parts = [f"{count} {cause} (first: {self.first[cause]})" for cause, count in causes]
        return f"{self.total} damaged: " + ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Sample:
    """Members that share a key.

    The key is the path up to the first dot of the file name; the rest, in lower case, is the
    extension.
    """

    key: str
    members: dict[str, Place]  # by extension: "jpg", "txt", "cls"

    @property
    def image(self) -> Place | None:
        """Of its image; None where it has none that we read."""
        return next((self.members[ext] for ext in IMAGE_EXTENSIONS if ext in self.members), None)

    @property
    def unread(self) -> str | None:
        """The ending of an image that it has and that we do not read; None where there is none."""
        return next((ext for ext in self.members if ext in UNREAD_EXTENSIONS), None)


@dataclass(frozen=True)
class ShardIndex:
    """Where each sample of one shard lies."""

    path: Path
    samples: tuple[Sample, ...]  # in the order of the file
    damage: Damage


# ---- finding the files ----

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def expand(pattern: str) -> list[Path]:
    """Shard files named by paths, folders, globs and braces, in that order.

    A folder stands for its ``*.tar``; braces are ``{000..009}`` or ``{a,b}``. Several patterns
    are separated by spaces. What is there is meant as it is written, whatever spaces, braces and
    brackets its name holds: a path is never split, nor is a folder on the way to the files. A file
    is listed once.

    Raises:
        UserError: a pattern or a brace alternative that matches no file; a missing shard is never
            passed over.
    """
    parts = _parts(pattern)
    if not parts:
        fix = "give a path, a folder or a pattern such as 'data/{000..009}.tar'"
        raise UserError("it names no shard", about=repr(pattern), fix=fix)

    paths = (path for part in parts for path in _alternatives(part))
    return list(dict.fromkeys(file for path in paths for file in _files(path)))


MOST_WORDS = 20  # of one pattern that holds spaces


def _parts(pattern: str) -> list[str]:
    """The patterns of several."""
    words = pattern.split()
    if len(words) < 2 or names_shards(pattern):
        return [pattern] if words else []

    # a word that names nothing may be the beginning of a name with spaces
    parts = []
    while words:
        counts = range(1, min(len(words), MOST_WORDS) + 1)
        joined = [" ".join(words[:count]) for count in counts]
        part = next(filter(names_shards, joined), None)

        # of a file that is missing, the folder may still say where its name begins
        if part is None:
            in_folders = (name for name in joined if _there(Path(name)).name.count(" "))
            part = next(in_folders, words[0])
        parts.append(part)
        words = words[len(part.split()) :]
    return parts


def names_shards(pattern: str) -> bool:
    """Whether a single pattern, or its first alternative, finds a file."""
    return bool(_matches(next(_alternatives(pattern))))


def alternatives(pattern: str) -> Iterator[str]:
    """Bash's brace expansion, leftmost braces first."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return

    first, last, words = braces.groups()
    if words is not None:
        options = words.split(",")
    else:
        # as in bash: {9..0} counts down, and a leading zero on either side pads all numbers
        low, high = int(first), int(last)
        numbers = range(low, high + 1) if low <= high else range(low, high - 1, -1)
        is_padded = first.startswith("0") or last.startswith("0")
        width = max(len(first), len(last)) if is_padded else 0
        options = [f"{number:0{width}d}" for number in numbers]

    # further braces stand in what follows
    for option in options:
        yield from alternatives(pattern[: braces.start()] + option + pattern[braces.end() :])


def _alternatives(pattern: str) -> Iterator[Path]:
    """The same below the folder that is there; braces in its own name are letters."""
    path = Path(pattern).expanduser()
    base = _there(path)
    if base == path:
        yield path
        return
    for rest in alternatives(str(path.relative_to(base))):
        yield base / rest


def _there(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next((place for place in (path, *path.parents) if place.exists()), Path())


def _matches(path: Path) -> list[Path]:
    """Files of one alternative; none where there is none."""
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    base = _there(path)
    if base == path:
        return [path]

    # brackets of a folder that is there are letters, no choice of them
    pattern = Path(glob.escape(str(base)), path.relative_to(base))
    return sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))


def _files(path: Path) -> list[Path]:
    files = _matches(path)
    if not files:
        where = path / "*.tar" if path.is_dir() else path
        fix = "check the folder and the numbers; a run reads all shards that it is given or none"
        raise UserError("there is no such shard", about=where.absolute(), fix=fix)
    return files


# ---- reading a file ----


def index_shard(path: Path) -> ShardIndex:
    """Find the samples of one tar file, grouped as webdataset groups them.

    Only the headers are read.

    Raises:
        UserError: the file cannot be opened or is not an uncompressed tar at all. Damage further
            on is counted instead.
    """
    members, damage = list_members(path)
    samples: list[Sample] = []
    for name, place in members:
        _add_member(samples, name, place, path, damage)
    return ShardIndex(path, tuple(samples), damage)


def list_members(path: Path) -> tuple[list[tuple[str, Place]], Damage]:
    """Name and place of every whole regular member of a tar file, in order.

    Raises:
        UserError: as ``index_shard`` does.
    """
    damage = Damage()
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = os.fstat(file.fileno()).st_size
            return list(_members(tar, size, path, damage)), damage
    except OSError as error:
        raise cannot_read(path, error) from error
    except BROKEN_TAR as error:
        kind, fix = _what_it_is(path)
        raise UserError(f"it is no tar shard: {kind}", about=path, fix=fix) from error


def cannot_read(path: Path, error: OSError) -> UserError:
    """The error to raise where the system gives no access to a file."""
    fix = "check that the file is there and that you may read it"
    return UserError(f"it cannot be read ({error.strerror or error})", about=path, fix=fix)


def check_whole(path: Path, damage: Damage) -> None:
    """Raise DataError for a damaged tar, in an evaluation."""
    if damage.total:
        problem = f"the tar is damaged, and a part cannot be scored: {damage.summary()}"
        raise DataError(problem, about=path, fix=FETCH_OR_PACK)


def _members(
    tar: tarfile.TarFile, size: int, path: Path, damage: Damage
) -> Iterator[tuple[str, Place]]:
    """Whole regular members of a file of ``size`` bytes; adds to ``damage`` how it ends."""
    is_broken = False
    try:
        for member in tar:
            if member.size < 0:  # tarfile would walk backwards
                is_broken = True
                break
            if member.offset_data + member.size > size:
                damage.add("truncated member", f"{path}:{member.name}")
                return
            if member.isreg() and not member.issparse():
                yield member.name, (member.offset_data, member.size)
    except BROKEN_TAR:
        is_broken = True

    # tarfile stops at a broken header without a word, as if the archive ended there; a whole
    # archive ends with a block of zeros
    assert tar.fileobj is not None
    tar.fileobj.seek(min(max(tar.offset, 0), size))
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if not block:
        damage.add("archive without an end (cut off?)", str(path))
    elif is_broken or block.strip(b"\0"):
        damage.add("unreadable header, rest of the shard lost", f"{path} at byte {tar.offset:,}")


def _add_member(samples: list[Sample], name: str, place: Place, path: Path, damage: Damage) -> None:
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot or re.match(r"__[^/]*__($|/)", name):
        return  # no key (hidden files), or webdataset's own notes

    # members of one sample are neighbours: a key that comes back later is another sample
    key = f"{folder}{slash}{stem}"
    if not samples or samples[-1].key != key:
        samples.append(Sample(key, {}))

    members = samples[-1].members
    extension = extension.lower()
    if extension in members:
        damage.add("second member of the same name", f"{path}:{name}")
        return
    members[extension] = place


FETCH_OR_PACK = "fetch the file again, or pack it anew"
# first bytes of other files, what these are, and what to do
_OTHER_KINDS = (
    (
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),  # gzip, bzip2, xz, zstandard
        "the file is compressed, and reading at random needs a plain tar",
        "decompress it first",
    ),
    ((b"version https://git-lfs",), "it is a Git LFS pointer", "run `git lfs pull`"),
    (
        (b"\xff\xd8\xff", b"\x89PNG", b"RIFF"),  # JPEG, PNG, WebP
        "it is an image",
        "name the folder instead of the images in it",
    ),
)


def _what_it_is(path: Path) -> tuple[str, str]:
    """What lies there in place of a tar, by its first bytes, and what to do about it."""
    with open(path, "rb") as file:
        start = file.read(64)
    for first_bytes, kind, fix in _OTHER_KINDS:
        if start.startswith(first_bytes):
            return kind, fix
    return f"it starts with {start[:16]!r}" if start else "the file is empty", FETCH_OR_PACK


def read_member(path: Path, place: Place) -> bytes:
    """The bytes of one member. Safe in threads and forked workers.

    Raises:
        UserError: the file is gone or has become shorter since it was indexed.
    """
    offset, size = place

    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(handle, size, offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise cannot_read(path, error) from error
    return _whole(data, path, place)


class OpenFiles:
    """``read_member`` of files that stay open: on a shared disk each opening asks its server.

    At most ``limit`` are open, those read last, because a run over thousands of shards would use
    up what a process may open. Safe in threads. A copy for another process begins with none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._handles: OrderedDict[Path, _Handle] = OrderedDict()

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[int]]:
        return OpenFiles, (self._limit,)

    def read(self, path: Path, place: Place) -> bytes:
        """As ``read_member``, with its errors."""
        offset, size = place
        try:
            # A thread that reads holds the handle, so that nobody closes it under the thread.
            handle = self._handles.get(path) or _Handle(path)
            data = os.pread(handle.number, size, offset)
        except OSError as error:
            raise cannot_read(path, error) from error

        self._handles[path] = handle
        try:
            self._handles.move_to_end(path)
            while len(self._handles) > self._limit:
                self._handles.popitem(last=False)
        except KeyError:  # another thread has removed it, to make room
            pass
        return _whole(data, path, place)


class _Handle:
    """An open file, which is closed with the last reference."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):  # not where opening failed
            os.close(self.number)


def _whole(data: bytes, path: Path, place: Place) -> bytes:
    offset, size = place
    if len(data) != size:
        problem = f"it changed while it was in use: {len(data)} of {size} bytes at {offset}"
        raise UserError(problem, about=path, fix="leave it as it is, and start anew")
    return data
