"""Where the samples of shards lie: each shard is looked through once, and its index is kept.

Flow: ``expand(pattern)`` -> shards -> ``index_all(shards, filters, mirror)`` -> a ShardIndex each.
An index that an earlier run, or another rank of this one, has kept is read; the other shards are
looked through by several processes. A sample costs about 0.1 ms to find and 48 bytes to keep, so a
billion pairs are looked through in a day of one core, once.

What a run reads is one Table of all samples, 24 bytes each: ``table_of(shards, filters, mirror,
owners)``. Of many samples it is a file too, made once of the indexes and mapped into the memory of
every process of a machine, which so share its pages. The sum of each shard's rows stands in it and
is compared when the shard is first read.

An index is a file a shard, in a folder beside the copies of remote shards: ``kept_at(shard,
filters, folder)`` -> its place -> ``load`` or ``keep``. A shard is known by its path, size and time
of change, or by its URL, size and ETag. The filters belong to it, since they decide what is left
out. ``listing`` serves ``silc-bench cache ls | prune``, and nothing else removes any. A run reads
an index once, when it starts, whole: the shard of one that is removed, at whatever moment, is
looked through again. Only the writing of a table is locked, so that one process of a machine does
it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
import time
import zlib
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from silc_bench.datasets.files import remote, shards
from silc_bench.datasets.files.shards import IMAGE_EXTENSIONS, Damage
from silc_bench.errors import DataError, RunError, UserError
from silc_bench.later import np
from silc_bench.system import archives
from silc_bench.system.cache import IN_USE, Listed
from silc_bench.system.files import atomic_path
from silc_bench.system.limits import num_cores
from silc_bench.system.processes import concatenated, num_local_ranks, num_ranks, rank
from silc_bench.trainer.data.samples import (
    Filters,
    UnreadableError,
    captions_of,
    columns_of,
    one_sample,
)

ABSENT = (0, -1)  # the place of a member that is not there
MANY = 16  # new shards, from which on processes look through them
MOST_PROCESSES = 16

T = TypeVar("T")
SCHEMA_VERSION = "shard-index/5"
MAX_BYTES = 1 << 34  # of an index, 48 a sample

# Names of our own files: an index or a table, and one that is being written.
_OURS = re.compile(r"[0-9a-f]{24}\.(npz|rows)|\.[0-9a-f]{24}\.(npz|rows)\.[0-9a-f]{8}\.tmp")

TABLE_VERSION = "shard-table/1"
SMALL = 2**16  # samples, up to which a table is made anew at each start, in memory
BLOCK = 512  # bytes: a member of a tar begins at a multiple of it
NO_MEMBER = 2**32 - 1  # in place of a size
SENT_AT_ONCE = 64  # indexes that ranks tell each other


@dataclass(frozen=True)
class Shard:
    name: str  # its path, or its URL
    stamp: remote.Stamp | None = None  # which version is meant, behind a URL

    def read(self, mirror: remote.Mirror, look: Callable[[Path], T]) -> T:
        """What ``look`` makes of the file, or of a copy where it lies behind a URL."""
        if self.stamp is None:
            return look(Path(self.name))
        return mirror.read(self.name, self.stamp, look)


@dataclass(frozen=True)
class ShardIndex:
    rows: np.ndarray  # int64 [num_samples, 6]: offset and size in bytes of image, text, JSON
    damage: Damage
    left_out: Counter[str]  # by the filters, by reason


def expand(pattern: str) -> list[Shard]:
    """Local shards first, then remote ones. Raises UserError where a pattern finds nothing."""
    parts = pattern.split()
    urls = [url for part in parts if remote.is_remote(part) for url in remote.expand(part)]
    remote_shards = [*map(Shard, urls, remote.stamps_of(urls))]

    # Without a URL the pattern stays whole: a path may have a space.
    local = " ".join(part for part in parts if not remote.is_remote(part)) if urls else pattern
    paths = [] if urls and not local else shards.expand(local)
    return [*(Shard(str(path)) for path in paths), *remote_shards]


def index_all(
    all_shards: Sequence[Shard],
    filters: Filters,
    mirror: remote.Mirror,
    owners: Sequence[int] | None = None,
) -> Iterator[ShardIndex]:
    """The index of each shard.

    Every rank calls it. Of the new shards each rank looks through its own part, and tells what it
    found to ranks that do not see its files.

    Args:
        owners: the rank that looks through each shard; by default they take turns.

    Raises:
        UserError: one that is no shard, or cannot be read.
        RunError: a remote one that cannot be fetched.
    """
    # rich, which the processes that look through shards do without
    from silc_bench.system.terminal import warn

    is_first = rank() == 0
    places = [kept_at(shard, filters, mirror.folder) for shard in all_shards]
    with_places = list(zip(all_shards, places, strict=True))
    owners = owners or [number % num_ranks() for number in range(len(places))]
    own = [pair for pair, owner in zip(with_places, owners, strict=True) if owner == rank()]
    new = [(shard, place) for shard, place in own if not is_kept(place)]

    # Only what could not be kept: all of them, in each process, may be more than fits into memory.
    indexes: dict[Path, ShardIndex] = {}
    errors: list[UserError | RunError] = []
    try:
        indexes |= _not_kept(_look_through(new, filters, mirror, is_shown=is_first))
    except (UserError, RunError) as error:
        errors.append(error)

    # An error of one rank is raised on all of them: else the others would wait for it.
    if errors := concatenated(errors):
        raise errors[0]

    if is_first and indexes:
        folder = folder_of(mirror.folder)
        warn(f"cannot write to {folder}: the next start looks through all shards again")

    # What ranks on other machines found is not there where they have another disk, or cannot write.
    # They tell it, because to look again would be to fetch a remote shard again.
    lacking = [place.name for place in places if place not in indexes and not is_kept(place)]
    asked = sorted(set(concatenated(lacking)))
    own_places = {place.name: (shard, place) for shard, place in own}
    all_places = {place.name: (shard, place) for shard, place in with_places}
    for first in range(0, len(asked), SENT_AT_ONCE):
        names = asked[first : first + SENT_AT_ONCE]
        places_here = [own_places[name][1] for name in names if name in own_places]
        found = [(place.name, indexes.get(place) or load(place)) for place in places_here]
        for name, index in concatenated([pair for pair in found if pair[1] is not None]):
            if name in all_places and index is not None:
                shard, place = all_places[name]
                keep(index, shard, place)
                indexes |= _not_kept([(place, index)])

    missing = [
        (shard, place)
        for shard, place in with_places
        if place not in indexes and not is_kept(place)
    ]
    indexes |= _not_kept(_look_through(missing, filters, mirror, is_shown=is_first))
    return (
        indexes.get(place) or load(place) or _look_at(shard, place, filters, mirror)
        for shard, place in with_places
    )


def _not_kept(found: Iterable[tuple[Path, ShardIndex]]) -> Iterator[tuple[Path, ShardIndex]]:
    return ((place, index) for place, index in found if not is_kept(place))


def _look_through(
    new: Sequence[tuple[Shard, Path]], filters: Filters, mirror: remote.Mirror, is_shown: bool
) -> Iterator[tuple[Path, ShardIndex]]:
    """(place, index) of each shard, while a bar or a note shows people what takes the time."""
    # The command line's terminal, which the processes below do without.
    from silc_bench.system.terminal import notes, progress_bar, say

    if len(new) >= MANY and is_shown and not notes.is_terminal:
        say(f"looking through {len(new):,} new shards; what is found is kept for the next start")

    local = [(shard, place) for shard, place in new if shard.stamp is None]
    others = [(shard, place) for shard, place in new if shard.stamp is not None]
    has_bar = is_shown and notes.is_terminal and len(new) > 1
    with progress_bar(has_bar, "looking through new shards", len(new)) as advance:
        for (_, place), index in zip(local, _in_processes(local, filters, mirror), strict=True):
            yield place, index
            advance(1)

        # Remote shards are fetched one by one: the network takes the time, and not a core.
        for shard, place in others:
            yield place, _look_at(shard, place, filters, mirror)
            advance(1)


def _in_processes(
    local: Sequence[tuple[Shard, Path]], filters: Filters, mirror: remote.Mirror
) -> Iterator[ShardIndex]:
    """The index of each local shard, in order; by processes where there are many shards."""
    processes = min(MOST_PROCESSES, num_cores() // num_local_ranks())
    if len(local) < MANY or processes < 2:
        yield from (_look_at(shard, place, filters, mirror) for shard, place in local)
        return

    # A fork would copy locks that another thread holds.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
        futures = deque(
            pool.submit(_look_at, shard, place, filters, mirror) for shard, place in local
        )
        try:
            while futures:
                yield futures.popleft().result()  # no longer ours, or all of them would stay
        except BrokenProcessPool as error:
            problem = "a process that looks through them was killed, mostly for want of memory"
            fix = (
                "start again, because what was found is kept (in a script of your own, what it"
                ' runs belongs under `if __name__ == "__main__":`)'
            )
            raise RunError(problem, about="shards", fix=fix) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ctrl-C is for the process that started this one, and so is its death.

    Else this one would wait for ever for more to do, because it holds both ends of their pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---- all samples ----


class Table:
    """Where the members of all samples lie, 24 bytes a sample.

    ``rows``: uint32 [num_samples, 6], block and size in bytes of image, text, JSON; sorted by
    shard. ``starts``: int64 [number of shards + 1], the first sample of each.
    """

    def __init__(self, rows: np.ndarray, notes: dict[str, Any], path: Path | None = None) -> None:
        self.rows = rows
        self.path = path  # of the file that it is mapped from
        self.starts = np.array(notes["starts"], np.int64)
        self.damage = Damage(notes["damage"], notes["first"])
        self.left_out = Counter[str](notes["left_out"])
        self.digest: str = notes["digest"]  # of all rows
        self._sums: list[int] = notes["sums"]
        self._compared: set[int] = set()
        self._notes = notes

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Callable[..., Table], tuple[Any, ...]]:
        # A worker maps the file too, and gets no copy of the rows.
        if self.path is not None:
            return _mapped, (self.path,)
        return Table, (self.rows, self._notes)

    def shard_of(self, index: int) -> int:
        return bisect_right(self._notes["starts"], index) - 1

    def member(self, index: int, column: int) -> shards.Place | None:
        """Offset and size in bytes of a member (0 image, 1 text, 2 JSON); None: it has none."""
        block, size = self.rows[index, 2 * column : 2 * column + 2].tolist()
        return None if size == NO_MEMBER else (block * BLOCK, size)

    def check(self, shard: int) -> None:
        """DataError where the rows of a shard are not those that were written; once a shard."""
        if shard in self._compared:
            return
        rows = self.rows[self.starts[shard] : self.starts[shard + 1]]
        if zlib.crc32(rows.data) != self._sums[shard]:
            problem = "it is damaged: the sum of its rows is not the one that was written"
            raise DataError(problem, about=self.path or "index", fix="remove it, and start again")
        self._compared.add(shard)

    def wide(self) -> Iterator[np.ndarray]:
        """int64 [count, 7] of each shard: its number; offset and size of image, text, JSON."""
        for shard in range(len(self.starts) - 1):
            rows = self.rows[self.starts[shard] : self.starts[shard + 1]].astype(np.int64)
            rows[:, ::2] *= BLOCK
            sizes = rows[:, 1::2]
            sizes[sizes == NO_MEMBER] = -1
            yield np.column_stack([np.full(len(rows), shard), rows])


def table_of(
    all_shards: Sequence[Shard],
    filters: Filters,
    mirror: remote.Mirror,
    owners: Sequence[int] | None = None,
) -> Table:
    """The table of all samples of the shards, in their order. Every rank calls it.

    Raises:
        UserError, RunError: as ``index_all``.
        DataError: a shard that is too large for it.
    """
    from silc_bench.system.terminal import warn

    places = [kept_at(shard, filters, mirror.folder) for shard in all_shards]
    names = "\n".join([TABLE_VERSION, *(place.name for place in places)])
    name = hashlib.sha256(names.encode()).hexdigest()[:24]
    path = folder_of(mirror.folder) / f"{name}.rows"

    table = _kept_table(path)
    if not concatenated([path.name] if table is None else []):
        assert table is not None
        return table

    indexes = index_all(all_shards, filters, mirror, owners)
    if table is not None:
        return table
    try:
        num_bytes = sum(place.stat().st_size for place in places)
    except OSError:  # not kept, because nothing can be written
        num_bytes = 0
    if num_bytes <= SMALL * 6 * 8:
        return _in_memory(all_shards, indexes)

    # The processes of a machine share the folder: one of them writes, and the others wait.
    try:
        with open(path.with_name(f".{path.stem}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _kept_table(path) is None:
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    _write(file.write, all_shards, indexes)
        return _mapped(path)
    except OSError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            warn(
                f"cannot keep a table in {path.parent} ({error.strerror}): each process of this"
                f" machine keeps a table of all pairs, {num_bytes / 2e6:,.0f} MB, in its own memory"
            )

        # A part of them is read already, so all are loaded anew.
        return _in_memory(all_shards, index_each(all_shards, places, filters, mirror))


def index_each(
    all_shards: Sequence[Shard],
    places: Sequence[Path],
    filters: Filters,
    mirror: remote.Mirror,
) -> Iterator[ShardIndex]:
    """The index of each shard, as it is kept, or looked through."""
    for shard, place in zip(all_shards, places, strict=True):
        yield load(place) or _look_at(shard, place, filters, mirror)


def _in_memory(all_shards: Sequence[Shard], indexes: Iterable[ShardIndex]) -> Table:
    content = bytearray()
    notes = _write(content.extend, all_shards, indexes, has_notes=False)
    return Table(np.frombuffer(content, np.uint32).reshape(-1, 6), notes)


def _write(
    write: Callable[[bytes], object],
    all_shards: Sequence[Shard],
    indexes: Iterable[ShardIndex],
    has_notes: bool = True,
) -> dict[str, Any]:
    """Write a table: its rows, its notes as JSON, their length and sum. Returns the notes."""
    starts, sums, digest = [0], [], hashlib.blake2b(digest_size=8)
    damage, left_out = Damage(), Counter[str]()
    for shard, index in zip(all_shards, indexes, strict=True):
        rows = _narrow(index.rows, shard).tobytes()
        write(rows)
        starts.append(starts[-1] + len(index.rows))
        sums.append(zlib.crc32(rows))
        digest.update(rows)
        damage.merge(index.damage)
        left_out += index.left_out

    folder = all_shards[0].name if all_shards[0].stamp else str(Path(all_shards[0].name).resolve())
    notes = {
        "version": TABLE_VERSION,
        "starts": starts,
        "sums": sums,
        "digest": digest.hexdigest(),
        "damage": damage.counts,
        "first": damage.first,
        "left_out": left_out,
        "shard": folder,
    }
    if has_notes:
        content = json.dumps(notes).encode()
        write(content)
        write(np.array([len(content), zlib.crc32(content)], "<u8").tobytes())
    return notes


def _narrow(rows: np.ndarray, shard: Shard) -> np.ndarray:
    """int64 [count, 6] in bytes -> uint32 [count, 6], offsets in blocks."""
    offsets, sizes = rows[:, ::2], rows[:, 1::2]
    if (offsets % BLOCK).any() or (offsets // BLOCK >= 2**32).any() or (sizes >= NO_MEMBER).any():
        problem = "it is larger than 2 TiB, or a member of it than 4 GiB"
        raise DataError(problem, about=shard.name, fix="pack it anew, as several shards")
    narrow = np.empty(rows.shape, "<u4")
    narrow[:, ::2] = offsets // BLOCK
    narrow[:, 1::2] = np.where(sizes < 0, NO_MEMBER, sizes)
    return narrow


def _notes_of(path: Path) -> dict[str, Any]:
    """The notes of a table; ValueError or OSError where it is none, or not whole."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 16))
        tail = file.read(16)
        if len(tail) < 16:
            raise ValueError("too short")
        length, total = np.frombuffer(tail, "<u8").tolist()
        if length > size - 16:
            raise ValueError("its notes are longer than it is")
        file.seek(size - 16 - length)
        content = file.read(length)
    if zlib.crc32(content) != total:
        raise ValueError("its notes are damaged")
    notes: dict[str, Any] = json.loads(content)
    if notes["version"] != TABLE_VERSION or notes["starts"][-1] * 24 != size - 16 - length:
        raise ValueError("it is another's")
    return notes


def _mapped(path: Path) -> Table:
    notes = _notes_of(path)
    shape = (notes["starts"][-1], 6)
    # A row of a memmap, which is of numpy's class for it, takes eight times as long.
    return Table(np.asarray(np.memmap(path, "<u4", "r", shape=shape)), notes, path)


def _kept_table(path: Path) -> Table | None:
    """The table at ``path``; None where it is not there, or not whole."""
    try:
        table = _mapped(path)
    except archives.DAMAGE:
        return None
    _note_use(path)
    return table


# ---- one shard ----


def _look_at(shard: Shard, place: Path, filters: Filters, mirror: remote.Mirror) -> ShardIndex:
    """Find its samples, and keep what was found at ``place``."""
    index = shard.read(mirror, lambda path: _named(_index(path, filters), path, shard.name))
    keep(index, shard, place)
    return index


def _named(index: ShardIndex, path: Path, name: str) -> ShardIndex:
    """With the URL of a shard, which its user knows, and not the place of its copy."""
    first = {cause: where.replace(str(path), name) for cause, where in index.damage.first.items()}
    return replace(index, damage=replace(index.damage, first=first))


def _index(path: Path, filters: Filters) -> ShardIndex:
    shard = shards.index_shard(path)
    rows = []
    left_out = Counter[str]()
    for sample in shard.samples:
        members = sample.members
        text = members.get("txt", ABSENT)
        columns = members.get("json", ABSENT)
        where = f"{path}:{sample.key}"

        lost = _lost_by_dots(sample)
        if lost:
            shard.damage.add(DOTTED, f"{where}.{lost[0]}", len(lost))
        if sample.image is None and not lost:
            unread = f", for .{sample.unread} is not read" if sample.unread else ""
            shard.damage.add(f"sample without an image{unread}", where)
        elif sample.image is None:
            continue
        elif text == columns == ABSENT:
            shard.damage.add("sample without a text", where)
        elif reason := _reason(path, (sample.image, text, columns), filters, where):
            left_out[reason] += 1
        else:
            rows.append((*sample.image, *text, *columns))

    # The shape holds even for no row at all.
    return ShardIndex(np.array(rows, np.int64).reshape(-1, 6), shard.damage, left_out)


DOTTED = "image whose name has a dot before its ending (a sample's name ends at its first dot)"


def _lost_by_dots(sample: shards.Sample) -> list[str]:
    """Endings of images of other samples, which webdataset's rule made members of this one.

    "cat.1.jpg" and "cat.2.jpg" are one sample "cat", with members "1.jpg" and "2.jpg". A mask
    "seg.png" beside a "jpg" is a member that is meant; an image with a text of its own is not.
    """
    lost = []
    for ending in sample.members:
        stem, dot, kind = ending.rpartition(".")
        has_text = bool({f"{stem}.txt", f"{stem}.json"} & sample.members.keys())
        if dot and kind in IMAGE_EXTENSIONS and (has_text or sample.image is None):
            lost.append(ending)
    return lost


def _reason(
    path: Path, places: tuple[shards.Place, ...], filters: Filters, where: str
) -> str | None:
    """Why the filters leave a sample out; None: they do not.

    What cannot be read is no matter of filters: it is counted when it is met.
    """
    if not filters.conditions:
        return None  # the usual case reads no member at all

    image, text, columns = places
    try:
        with one_sample(where):
            data = None if columns == ABSENT else shards.read_member(path, columns)
            row = None if data is None else columns_of(data, where)
            text_bytes = None if text == ABSENT else shards.read_member(path, text)
            captions = captions_of(text_bytes, row, where)
            return filters.reason(captions, row or {}, lambda: shards.read_member(path, image))
    except UnreadableError:
        return None


# ---- the files of indexes ----


def folder_of(shards_folder: Path) -> Path:
    return shards_folder / "indexes"


def kept_at(shard: Shard, filters: Filters, shards_folder: Path) -> Path:
    """Where the index of exactly this version of the shard lies, if anywhere."""
    if shard.stamp is None:
        path = Path(shard.name)
        try:
            status = path.stat()
        except OSError as error:
            raise shards.cannot_read(path, error) from error
        version = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ctime_ns}"
    else:
        version = f"{shard.name}\n{shard.stamp.size}\n{shard.stamp.etag}"

    # In their order: the first condition that fails is the reason that is counted.
    conditions = " ".join(f"{c.name}{c.sign}{c.value}" for c in filters.conditions)
    # A path may hold bytes that are no UTF-8, which Python carries as surrogates.
    content = f"{version}\n{conditions}\n{SCHEMA_VERSION}".encode("utf-8", "surrogateescape")
    return folder_of(shards_folder) / f"{hashlib.sha256(content).hexdigest()[:24]}.npz"


def is_kept(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # in a folder that this user may not look into
        return False


def load(place: Path) -> ShardIndex | None:
    """The index at ``place``.

    None where it is not there, not whole, or another shard's: then the shard is looked through
    again.
    """
    try:
        notes, arrays = archives.unpack(SCHEMA_VERSION, place.read_bytes(), MAX_BYTES)
        if notes["place"] != place.name:
            return None  # the file was renamed: it is another shard's
        damage = Damage(notes["damage"], notes["first"])
        index = ShardIndex(arrays["rows"], damage, Counter(notes["left_out"]))
    except archives.DAMAGE:
        return None

    _note_use(place)
    return index


def _note_use(place: Path) -> None:
    # The time of change says when it was last of use. It is set seldom, since a write for each rank
    # and shard is much for a shared disk.
    with suppress(OSError):  # removed meanwhile, or another user's
        if time.time() - place.stat().st_mtime > IN_USE:
            os.utime(place)


def keep(index: ShardIndex, shard: Shard, place: Path) -> None:
    """Write the index as a file that is there whole or not at all."""
    notes = {
        "damage": index.damage.counts,
        "first": index.damage.first,
        "left_out": index.left_out,
        "shard": str(Path(shard.name).resolve()) if shard.stamp is None else shard.name,
        "place": place.name,
    }
    content = archives.pack(SCHEMA_VERSION, notes, {"rows": index.rows})

    # A full or read-only disk costs the next start its time, not this run; index_all says so.
    with suppress(OSError), atomic_path(place) as temporary:
        temporary.write_bytes(content)


def listing(shards_folder: Path) -> list[Listed]:
    """All that is kept, what a killed process left half-written too.

    Files of other programs are left alone.
    """
    indexes = []
    for path in folder_of(shards_folder).glob("*"):
        if not _OURS.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):  # removed, or in its place by now
            status = path.stat()

            # A young file of another name is still being written.
            if path.suffix in (".npz", ".rows") or time.time() - status.st_mtime > IN_USE:
                listed = Listed(path, {"kind": "index"}, status.st_size, status.st_mtime)
                indexes.append(listed)
    return indexes


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
    """The folder or URL; "" where the file is damaged, half-written or of an earlier version."""
    try:
        is_table = place.suffix == ".rows"
        notes = _notes_of(place) if is_table else archives.header_of(SCHEMA_VERSION, place)
        return str(notes["shard"]).rpartition("/")[0]
    except archives.DAMAGE:
        return ""
