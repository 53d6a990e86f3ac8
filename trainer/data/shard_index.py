"""Where the samples of shards lie: each shard is looked through once, by several processes, and
what was found is kept.

Flow: ``expand(word)`` -> shards -> ``index_all(shards, filters, mirror)`` -> a ShardIndex each,
read where an earlier run, or another rank of this one, has kept it
(``silc_bench.trainer.data.shard_index``).

A sample costs about 0.1 ms to find and 48 bytes to keep, so a billion pairs are looked through in a
day of one core, once.

What was found in shards (``silc_bench.trainer.data.shard_index``), kept for the next start: a file
a shard, beside copies of remote ones.

Flow: ``kept_at(shard, filters, folder)`` -> its place -> ``load`` or ``keep``; ``listing`` ->
``silc-bench cache ls | prune``, and nothing else removes any. A shard is known by its path, size
and time of change, or by its URL, size and ETag; the filters belong to it, since they decide what
is left out. A run reads an index once, when it starts, whole: one that is removed, at whatever
moment, is looked through again, so nothing here is ever locked.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from silc_bench.datasets.files import remote, shards
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import RunError, UserError
from silc_bench.system import archives
from silc_bench.system.cache import IN_USE, Listed
from silc_bench.trainer.data.samples import (
    Filters,
    UnreadableError,
    captions_of,
    columns_of,
    with_sizes,
)

ABSENT = (0, -1)  # the place of a member that is not there
MANY = 16  # new shards, from which on processes look through them
MOST_PROCESSES = 16


def expand(word: str) -> list[Shard]:
    """Local shards first, then remote ones. Raises UserError where a pattern finds nothing."""
    words = word.split()
    if not any(map(remote.is_remote, words)):
        return [*shards.expand(word)]
    urls = [url for part in words if remote.is_remote(part) for url in remote.expand(part)]
    local = [path for part in words if not remote.is_remote(part) for path in shards.expand(part)]
    return [*local, *zip(urls, remote.stamps_of(urls), strict=True)]


def index_all(found: Sequence[Shard], filters: Filters, mirror: remote.Mirror) -> list[ShardIndex]:
    """The index of each; every rank calls it, and of the new ones each looks through its own part.

    Raises:
        UserError: one that is no shard, or cannot be read.
        RunError: a remote one that cannot be fetched.
    """
    from silc_bench.system.processes import (
        concatenated,
        num_ranks,
        rank,  # brings torch, which the processes below do without
    )
    from silc_bench.system.terminal import notes

    kept = [kept_at(shard, filters, mirror.folder) for shard in found]
    own = list(zip(found, kept, strict=True))[rank() :: num_ranks()]
    new = [(shard, place) for shard, place in own if not is_kept(place)]
    made: dict[Path, ShardIndex] = {}
    errors: list[UserError | RunError] = []
    try:
        for place, index in _look_through(new, filters, mirror, is_shown=rank() == 0):
            made[place] = index
    except (UserError, RunError) as error:
        errors.append(error)
    if errors := concatenated(errors):  # else the others would wait for this rank
        raise errors[0]
    if rank() == 0 and not all(map(is_kept, made)):
        where = folder_of(mirror.folder)
        notes.print(
            f"cannot write to {where}: the next start looks through all shards again", markup=False
        )
    loaded = {place: load(place) for place in kept if place not in made}
    made |= {place: index for place, index in loaded.items() if index is not None}
    rest = [
        (shard, place) for shard, place in zip(found, kept, strict=True) if place not in made
    ]  # by ranks elsewhere
    made |= _look_through(rest, filters, mirror, is_shown=rank() == 0)
    return [made[place] for place in kept]


def _look_through(
    new: Sequence[tuple[Shard, Path]], filters: Filters, mirror: remote.Mirror, is_shown: bool
) -> Iterator[tuple[Path, ShardIndex]]:
    from silc_bench.system.terminal import (
        notes,
        progress_bar,  # the command line's, which the processes below do without
    )

    if len(new) >= MANY and is_shown and not notes.is_terminal:
        notes.print(
            f"looking through {len(new):,} new shards; what is found is kept for the next start"
        )
    local = [(shard, place) for shard, place in new if isinstance(shard, Path)]
    others = [(shard, place) for shard, place in new if not isinstance(shard, Path)]
    with progress_bar(
        is_shown and notes.is_terminal and len(new) > 1, "looking through new shards", len(new)
    ) as advance:
        for (_, place), index in zip(local, _in_processes(local, filters, mirror), strict=True):
            yield place, index
            advance(1)
        for shard, place in others:  # each is fetched, so that the network is what takes the time
            yield place, _look_at(shard, place, filters, mirror)
            advance(1)


def _in_processes(
    local: Sequence[tuple[Shard, Path]], filters: Filters, mirror: remote.Mirror
) -> Iterator[ShardIndex]:
    from silc_bench.system.processes import num_cores, num_local_ranks

    processes = min(MOST_PROCESSES, num_cores() // num_local_ranks())
    if len(local) < MANY or processes < 2:
        yield from (_look_at(shard, place, filters, mirror) for shard, place in local)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork would copy locks that another thread holds
    with ProcessPoolExecutor(
        processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        futures = [pool.submit(_look_at, shard, place, filters, mirror) for shard, place in local]
        try:
            yield from (future.result() for future in futures)
        except BrokenProcessPool as error:
            raise RunError(
                "a process that looks through shards was killed, most often for want of memory; what was found is kept, so"
                ' start again (in a script of your own, what it runs belongs under `if __name__ == "__main__":`)'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


# ---- one shard ----


def _look_at(shard: Shard, place: Path, filters: Filters, mirror: remote.Mirror) -> ShardIndex:
    """Find its samples, and keep what was found at ``place``."""
    if isinstance(shard, Path):
        index = _index(shard, filters)
    else:
        index = mirror.read(*shard, lambda path: _named(_index(path, filters), path, shard[0]))
    keep(index, shard, place)
    return index


def _named(index: ShardIndex, path: Path, url: str) -> ShardIndex:
    """With the URL of a shard, which its user knows, and not the place of its copy."""
    first = {cause: where.replace(str(path), url) for cause, where in index.damage.first.items()}
    return replace(index, damage=replace(index.damage, first=first))


def _index(path: Path, filters: Filters) -> ShardIndex:
    shard = shards.index_shard(path)
    rows, left_out = [], Counter[str]()
    for sample in shard.samples:
        picture = next(
            (sample.members[e] for e in shards.IMAGE_EXTENSIONS if e in sample.members), None
        )
        text, columns = sample.members.get("txt", ABSENT), sample.members.get("json", ABSENT)
        where = f"{path}:{sample.key}"
        if picture is None:
            shard.damage.add("sample without a picture", where)
        elif text == columns == ABSENT:
            shard.damage.add("sample without a text", where)
        elif reason := _reason(path, (picture, text, columns), filters, where):
            left_out[reason] += 1
        else:
            rows.append((*picture, *text, *columns))
    return ShardIndex(np.array(rows, np.int64).reshape(-1, 6), shard.damage, left_out)


def _reason(
    path: Path, places: tuple[shards.Place, ...], filters: Filters, where: str
) -> str | None:
    """Why the filters leave a sample out. What cannot be read is no matter of filters: it is
    counted when it is met.
    """
    if not filters.conditions:
        return None
    picture, text, columns = places
    try:
        found = None if columns == ABSENT else columns_of(shards.read_member(path, columns), where)
        captions = captions_of(
            None if text == ABSENT else shards.read_member(path, text), found, where
        )
        known = found or {}
        if filters.needs_size:
            known = with_sizes(known, shards.read_member(path, picture), where)
    except UnreadableError:
        return None
    return filters.reason(captions, known)


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
    conditions = " ".join(
        f"{c.name}{c.sign}{c.value}" for c in filters.conditions
    )  # the first that fails is the reason
    name = hashlib.sha256(f"{version}\n{conditions}\n{SCHEMA_VERSION}".encode()).hexdigest()[:24]
    return folder_of(shards_folder) / f"{name}.npz"


def is_kept(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # in a folder that this user may not look into
        return False


def load(place: Path) -> ShardIndex | None:
    """None where it is not there, not whole, or another shard's: then the shard is looked through
    again.
    """
    try:
        notes, arrays = archives.unpack(SCHEMA_VERSION, place.read_bytes(), MAX_BYTES)
        if notes["place"] != place.name:  # it was renamed: another shard's
            return None
        index = ShardIndex(
            arrays["rows"], Damage(notes["damage"], notes["first"]), Counter(notes["left_out"])
        )
    except archives.DAMAGE:
        return None
    with suppress(OSError):  # removed meanwhile, or another user's
        if (
            time.time() - place.stat().st_mtime > IN_USE
        ):  # a write for each rank and shard is much for a shared disk
            os.utime(place)
    return index


def keep(index: ShardIndex, shard: Shard, place: Path) -> None:
    """As a file that is there whole or not at all, but for a power cut, after which ``load`` will
    not take it.
    """
    notes = {"damage": index.damage.counts, "first": index.damage.first, "left_out": index.left_out}
    notes |= {
        "shard": str(shard.resolve()) if isinstance(shard, Path) else shard[0],
        "place": place.name,
    }
    content = archives.pack(SCHEMA_VERSION, notes, {"rows": index.rows})
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, place)
    except (
        OSError
    ):  # a full or read-only disk costs the next start its time, not this run; index_all says so
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def listing(shards_folder: Path) -> list[Listed]:
    """All that is kept, what a killed process left half-written too; files of other programs are
    left alone.
    """
    found = []
    for path in folder_of(shards_folder).glob("*"):
        if not _OURS.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):  # removed, or in its place by now
            status = path.stat()
            if (
                path.suffix == ".npz" or time.time() - status.st_mtime > IN_USE
            ):  # else it is being written
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
