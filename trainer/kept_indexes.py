"""What was found in shards (``trainer.shard_index``), kept for the next start: a file a shard, beside copies of remote ones.

Flow: ``kept_at(shard, filters, folder)`` -> its place -> ``load`` or ``keep``; ``listing`` -> ``silc-bench cache ls | prune``,
and nothing else removes any. A shard is known by its path, size and time of change, or by its URL, size and ETag; the filters
belong to it, since they decide what is left out. A run reads an index once, when it starts, whole: one that is removed, at
whatever moment, is looked through again, so nothing here is ever locked.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from silc_bench import archives
from silc_bench.datasets import remote
from silc_bench.datasets.shards import Damage
from silc_bench.errors import UserError
from silc_bench.store import IN_USE, Listed
from trainer.filters import Filters

SCHEMA_VERSION = "shard-index/3"
MAX_BYTES = 1 << 34  # 48 a sample
Shard: TypeAlias = Path | tuple[str, remote.Stamp]
_OURS = re.compile(r"[0-9a-f]{24}\.npz|\.[0-9a-f]{24}\.npz\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class ShardIndex:
    rows: np.ndarray  # int64 [num_samples, 6]: offset and size in bytes of picture, text, JSON
    damage: Damage
    left_out: Counter[str]  # by the filters, by reason


def folder_of(shards_folder: Path) -> Path:
    return shards_folder / "indexes"


def kept_at(shard: Shard, filters: Filters, shards_folder: Path) -> Path:
    """Where the index of exactly this version of the shard lies, if anywhere."""
    if isinstance(shard, Path):
        try:
            found = shard.stat()
        except OSError as error:
            raise UserError(f"cannot read the shard {shard}: {error.strerror or error}") from error
        version = f"{shard.resolve()}\n{found.st_size}\n{found.st_mtime_ns}\n{found.st_ctime_ns}"
    else:
        version = f"{shard[0]}\n{shard[1].size}\n{shard[1].etag}"
    conditions = " ".join(f"{c.name}{c.sign}{c.value}" for c in filters.conditions)  # the first that fails is the reason
    name = hashlib.sha256(f"{version}\n{conditions}\n{SCHEMA_VERSION}".encode()).hexdigest()[:24]
    return folder_of(shards_folder) / f"{name}.npz"


def is_kept(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # in a folder that this user may not look into
        return False


def load(place: Path) -> ShardIndex | None:
    """None where it is not there, not whole, or another shard's: then the shard is looked through again."""
    try:
        notes, arrays = archives.unpack(SCHEMA_VERSION, place.read_bytes(), MAX_BYTES)
        if notes["place"] != place.name:  # it was renamed: another shard's
            return None
        index = ShardIndex(arrays["rows"], Damage(notes["damage"], notes["first"]), Counter(notes["left_out"]))
    except archives.DAMAGE:
        return None
    with suppress(OSError):  # removed meanwhile, or another user's
        if time.time() - place.stat().st_mtime > IN_USE:  # a write for each rank and shard is much for a shared disk
            os.utime(place)
    return index


def keep(index: ShardIndex, shard: Shard, place: Path) -> None:
    """As a file that is there whole or not at all, but for a power cut, after which ``load`` will not take it."""
    notes = {"damage": index.damage.counts, "first": index.damage.first, "left_out": index.left_out}
    notes |= {"shard": str(shard.resolve()) if isinstance(shard, Path) else shard[0], "place": place.name}
    content = archives.pack(SCHEMA_VERSION, notes, {"rows": index.rows})
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, place)
    except OSError:  # a full or read-only disk costs the next start its time, not this run; index_all says so
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def listing(shards_folder: Path) -> list[Listed]:
    """All that is kept, what a killed process left half-written too; files of other programs are left alone."""
    found = []
    for path in folder_of(shards_folder).glob("*"):
        if not _OURS.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):  # removed, or in its place by now
            status = path.stat()
            if path.suffix == ".npz" or time.time() - status.st_mtime > IN_USE:  # else it is being written
                found.append(Listed(path, {"kind": "index"}, status.st_size, status.st_mtime))
    return found


def by_source(indexes: list[Listed]) -> list[Listed]:
    """One for all shards of a folder, or of an URL up to its last slash."""
    groups: dict[str, list[Listed]] = {}
    for listed in indexes:
        groups.setdefault(_source_of(listed.path), []).append(listed)
    return [
        Listed(
            group[0].path.parent,
            {"kind": "indexes", "count": len(group), "source": source},
            sum(listed.bytes for listed in group),
            max(listed.used for listed in group),
        )
        for source, group in groups.items()
    ]


def _source_of(place: Path) -> str:
    """ "" where the file does not say: it is damaged, half-written or of an earlier version."""
    try:
        return str(archives.header_of(SCHEMA_VERSION, place)["shard"]).rpartition("/")[0]
    except archives.DAMAGE:
        return ""
