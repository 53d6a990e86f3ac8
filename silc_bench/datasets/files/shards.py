"""Webdataset tar shards, read at random: samples are found once, then read in any order.

Flow: ``expand("data/{000..009}.tar")`` -> files -> ``index_shard(file)`` -> samples with the place
of each member -> ``read_member(file, place)`` -> bytes -> ``decode_image``.

Nothing is extracted, and no torch is needed. Reading keeps no file position (``os.pread``), so
the same index serves any number of threads and forked workers.

Damage never passes in silence. It does not stop a training run: what is whole is kept, the rest is
counted in a ``Damage``; only a file that is no tar at all is a UserError. An evaluation refuses
damage (``silc_bench.datasets.layouts``), because a score over a part would bear the whole's name.
"""

from __future__ import annotations

import glob
import io
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from silc_bench.errors import UserError

Place: TypeAlias = tuple[int, int]  # offset and size in bytes
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# tarfile lets nonsense sizes through to read(), which then raises what it likes
BROKEN_TAR = (tarfile.TarError, ValueError, OverflowError, MemoryError)
# what Pillow lets through from its decoders
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error)
MAX_PIXELS = 64_000_000  # an image that claims more is taken for a decompression bomb


class DamagedImageError(ValueError):
    """Bytes that are no usable image.

    ``cause`` is short and the same for all errors of a kind, to count by.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


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
    are separated by spaces or by "::"; a path that exists is never split. A file is listed once.

    Raises:
        UserError: a pattern or a brace alternative that matches no file; a missing shard is never
            passed over.
    """
    if Path(pattern).exists():
        parts = [pattern]
    else:
        parts = [part for part in re.split(r"::|\s+", pattern) if part]
    if not parts:
        raise UserError(
            "no shards named; give a path, a folder or a pattern such as 'data/{000..009}.tar'"
        )

    files: list[Path] = []
    for part in parts:
        for name in alternatives(part):
            files += _matches(name, pattern)
    return list(dict.fromkeys(files))


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


def _matches(name: str, pattern: str) -> list[Path]:
    """Files of one alternative; ``pattern`` is all that the user wrote, for the message."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.tar"))
        looked_for = f"*.tar in the folder {path}"
    elif path.exists():
        return [path]  # also where its name holds a letter that a glob understands
    else:
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        looked_for = str(path.absolute())
    if not files:
        raise UserError(f"no shard found for {pattern!r}: there is no {looked_for}")
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
        raise UserError(f"cannot read the shard {path}: {error.strerror or error}") from error
    except BROKEN_TAR as error:
        raise UserError(f"{path} is not a tar shard: {_what_it_is(path)}") from error


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


def _what_it_is(path: Path) -> str:
    """What lies there in place of a tar, by its first bytes, and what to do about it."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "the file is empty; pack or upload it anew"

    # gzip, bzip2, xz, zstandard
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "it is compressed, and reading at random needs a plain tar; decompress it first"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file with `git lfs pull`"

    # JPEG, PNG, WebP
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF")):
        return f"it is a picture; name its folder ({path.parent}) instead of the pictures in it"
    return f"it starts with {start[:16]!r}; pack or upload it anew"


def read_member(path: Path, place: Place) -> bytes:
    """The bytes of one member. Safe in threads and forked workers.

    Raises:
        UserError: the file is gone or has become shorter since it was indexed.
    """
    offset, size = place

    # opened anew each time: a run over thousands of shards would use up the open files
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(handle, size, offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}") from error

    if len(data) != size:
        raise UserError(
            f"{path} changed while it was in use: {len(data)} of {size} bytes at {offset}"
        )
    return data


# ---- decoding ----


def what_broke(error: Exception) -> str:
    """One of BROKEN_IMAGE in words.

    Pillow names the buffer that it read by its address, which tells nobody which image it was.
    """
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)) or type(error).__name__


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height from an image's header. Raises DamagedImageError where it has none."""
    return _header(data).size


def image_format(data: bytes) -> str:
    """The format ("JPEG") by an image's header.

    Raises:
        DamagedImageError: it has none.
    """
    return _header(data).format or ""


def _header(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except BROKEN_IMAGE as error:
        raise DamagedImageError("corrupt image", what_broke(error)) from error


def decode_image(data: bytes) -> Image.Image:
    """An image as RGB, decoded completely.

    Raises:
        DamagedImageError: not an image, a broken one, one of more than MAX_PIXELS, or one whose
            values do not fit 8 bits.
    """
    try:
        # Pillow opens lazily: the claimed size is known before any pixel takes memory
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise DamagedImageError("oversized image", f"{image.width} x {image.height} pixels")

        # Pillow would cut these values off at 255, which makes another image of them
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            raise DamagedImageError("image of more than 8 bits", f"mode {image.mode}")
        return image.convert("RGB")
    except DamagedImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DamagedImageError("oversized image", str(error)) from error
    except BROKEN_IMAGE as error:
        raise DamagedImageError("corrupt image", what_broke(error)) from error
