"""Files of torch.save, read without executing anything and without believing their sizes.

Flow: the archive (sizes, names, checksums) -> a walk through its pickle in which everything named
is an inert stand-in (``stand_ins``), so that each storage can be compared with the bytes that are
there -> ``torch.load(weights_only=True)``.

Why the walk: torch takes a storage's length from the pickle, and not every version compares it with
the record, so a forged file would be read beyond its end; and some of the names that
``weights_only`` allows take memory or time at will.

``weights_only`` refuses a file that names anything else: the settings of a run
(argparse.Namespace), a NumPy number, a path, a whole module. Where only weights are asked for
(``may_stand_in``), what the walk built is taken instead: its tensors are there, each still in the
file, and the rest stays inert.

Everything here raises what the standard library raises (BadZipFile, UnpicklingError, ValueError
...); callers name the file.
"""

from __future__ import annotations

import functools
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from silc_bench.models.weights.stand_ins import Walk

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of torch.save's format before 1.6
MAX_MEMBERS = 100_000
SMALL = 64 * 2**20  # bytes that any archive may unpack to
MAX_RATIO = 20  # of unpacked to packed beyond that; weights hardly shrink, bf16 kept as fp32 halves


def load_zip(path: Path, may_stand_in: bool = False) -> Any:
    """What torch.save (1.6 and later) wrote to ``path``: tensors on the CPU and plain values.

    Args:
        may_stand_in: where the file names more than torch allows, what ``Walk`` gives is taken, of
            which only the tensors (``stand_ins.Stored``) are what was saved.
    """
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size, may_deflate=False)

        # torch.load looks at no checksum: a flipped bit would become a weight
        broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")

        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise zipfile.BadZipFile("no data.pkl in the archive")

        # Storages lie in data/ beside the pickle, each under the key by which the pickle names it.
        folder = pickles[0].removesuffix("data.pkl") + "data/"
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        byte_order = b"little"
        if folder.replace("data/", "byteorder") in sizes:
            byte_order = archive.read(folder.replace("data/", "byteorder"))
        walk = Walk(io.BytesIO(archive.read(pickles[0])), _members(path, folder))

    content = walk.load()
    for key, (numel, item_size) in walk.storages.items():
        stored = sizes.get(folder + key, 0)
        if stored != numel * item_size:
            raise ValueError(
                f"storage {key!r} claims {numel * item_size:,} bytes, the archive holds {stored:,}"
            )
    if may_stand_in and walk.exceeds_torch:
        if byte_order != b"little":
            raise ValueError(f"its byte order is {byte_order!r}")
        return content
    return _load(path)


def load_legacy(path: Path, may_stand_in: bool = False) -> Any:
    """The same for torch.save's format before 1.6.

    There a file is five pickles, then each storage with its length before it.
    """
    with open(path, "rb") as file:
        magic = Walk(file)
        if magic.load() != LEGACY_MAGIC:
            needs = f" that names {', '.join(sorted(magic.named)[:3])}" if magic.named else ""
            raise pickle.UnpicklingError(f"not written by torch.save: a pickle{needs}")

        Walk(file).load()  # protocol
        Walk(file).load()  # sizes of C's types
        places: dict[str, tuple[int, int]] = {}  # key -> where its bytes begin, and how many
        payload = Walk(file, functools.partial(_part, path, places))
        content = payload.load()
        keys = Walk(file).load()
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(payload.storages):
            raise ValueError("its list of storages is not that of its tensors")

        # Skip from storage to storage: seeking beyond the end raises nothing, so it is compared.
        end = path.stat().st_size
        for key in map(str, keys):
            numel, item_size = payload.storages[key]
            stated = int.from_bytes(file.read(8), "little", signed=True)
            places[key] = (file.tell(), numel * item_size)
            if stated != numel or file.seek(numel * item_size, io.SEEK_CUR) > end:
                raise ValueError(f"storage {key!r} claims {numel:,} values, which are not there")
    return content if may_stand_in and payload.exceeds_torch else _load(path)


def check_archive(archive: zipfile.ZipFile, size: int, may_deflate: bool) -> None:
    """Refuse an archive of ``size`` bytes that claims more than they can account for.

    Nothing is unpacked before.

    Raises:
        BadZipFile: too many or too large members, encrypted or oddly compressed ones, two of one
            name.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise zipfile.BadZipFile(f"{len(members):,} members")

    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if may_deflate else (zipfile.ZIP_STORED,)
    for member in members:
        is_encrypted = member.flag_bits & 1
        if is_encrypted or member.compress_type not in allowed:
            raise zipfile.BadZipFile(
                f"{member.filename} is encrypted, or compressed in a way that no checkpoint is"
            )

    claimed = sum(member.file_size for member in members)
    most = max(SMALL, MAX_RATIO * size) if may_deflate else size
    if claimed > most:
        raise zipfile.BadZipFile(f"it claims to unpack to {claimed:,} bytes: a zip bomb")

    # torch finds members without regard to case, so it could read another one than was checked
    if len({member.filename.lower() for member in members}) != len(members):
        raise zipfile.BadZipFile("two members of one name")


def _members(path: Path, folder: str) -> Callable[[str], bytearray]:
    """The bytes of a storage in an archive, by its key."""
    # opened for the first one: its table of members is long, and most files are read by torch
    archive = functools.cache(lambda: zipfile.ZipFile(path))
    return lambda key: bytearray(archive().read(folder + key))


def _part(path: Path, places: dict[str, tuple[int, int]], key: str) -> bytearray:
    """The bytes of a storage in a file of the old format."""
    begin, size = places[key]
    with open(path, "rb") as file:
        file.seek(begin)
        return bytearray(file.read(size))


def _load(path: Path) -> Any:
    # By the handle: from a path torch may choose another reader by its suffix.
    with open(path, "rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)
