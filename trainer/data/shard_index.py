"""Where the samples of shards lie: each shard is looked through once, and its index is kept.

Flow: ``expand(pattern)`` -> shards -> ``index_all(shards, filters, mirror)`` -> a ShardIndex each.
An index that an earlier run, or another rank of this one, has kept is read; the other shards are
looked through by several processes. A sample costs about 0.1 ms to find and 48 bytes to keep, so a
billion pairs are looked through in a day of one core, once.

An index is a file a shard, in a folder beside the copies of remote shards: ``kept_at(shard,
filters, folder)`` -> its place -> ``load`` or ``keep``. A shard is known by its path, size and time
of change, or by its URL, size and ETag. The filters belong to it, since they decide what is left
out. ``listing`` serves ``silc-bench cache ls | prune``, and nothing else removes any. A run reads
an index once, when it starts, whole: the shard of one that is removed, at whatever moment, is
looked through again, so nothing here is ever locked.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from silc_bench.datasets.files import remote, shards
from silc_bench.datasets.files.shards import IMAGE_EXTENSIONS, Damage
from silc_bench.errors import RunError, UserError
from silc_bench.later import np
from silc_bench.system import archives
from silc_bench.system.cache import IN_USE, Listed
from silc_bench.system.files import atomic_path
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

# Names of our own files: an index, and one that is being written.
_OURS = re.compile(r"[0-9a-f]{24}\.npz|\.[0-9a-f]{24}\.npz\.[0-9a-f]{8}\.tmp")


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
    all_shards: Sequence[Shard], filters: Filters, mirror: remote.Mirror
) -> list[ShardIndex]:
    """The index of each shard.

    Every rank calls it. Of the new shards each rank looks through its own part.

    Raises:
        UserError: one that is no shard, or cannot be read.
        RunError: a remote one that cannot be fetched.
    """
    # These bring torch, which the processes that look through shards do without.
    from silc_bench.system.processes import concatenated, num_ranks, rank
    from silc_bench.system.terminal import warn

    is_first = rank() == 0
    places = [kept_at(shard, filters, mirror.folder) for shard in all_shards]
    with_places = list(zip(all_shards, places, strict=True))
    own = with_places[rank() :: num_ranks()]
    new = [(shard, place) for shard, place in own if not is_kept(place)]

    indexes: dict[Path, ShardIndex] = {}
    errors: list[UserError | RunError] = []
    try:
        indexes |= _look_through(new, filters, mirror, is_shown=is_first)
    except (UserError, RunError) as error:
        errors.append(error)

    # An error of one rank is raised on all of them: else the others would wait for it.
    if errors := concatenated(errors):
        raise errors[0]

    if is_first and not all(map(is_kept, indexes)):
        folder = folder_of(mirror.folder)
        warn(f"cannot write to {folder}: the next start looks through all shards again")

    loaded = {place: load(place) for place in places if place not in indexes}
    indexes |= {place: index for place, index in loaded.items() if index is not None}

    # What ranks on other machines found is not there where they have another disk, or cannot write.
    missing = [(shard, place) for shard, place in with_places if place not in indexes]
    indexes |= _look_through(missing, filters, mirror, is_shown=is_first)
    return [indexes[place] for place in places]


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
    from silc_bench.system.limits import num_cores
    from silc_bench.system.processes import num_local_ranks

    processes = min(MOST_PROCESSES, num_cores() // num_local_ranks())
    if len(local) < MANY or processes < 2:
        yield from (_look_at(shard, place, filters, mirror) for shard, place in local)
        return

    # A fork would copy locks that another thread holds. Ctrl-C is this process's to answer.
    context = multiprocessing.get_context("spawn")
    ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(processes, context, signal.signal, ignore_ctrl_c) as pool:
        futures = [pool.submit(_look_at, shard, place, filters, mirror) for shard, place in local]
        try:
            yield from (future.result() for future in futures)
        except BrokenProcessPool as error:
            problem = "a process that looks through them was killed, mostly for want of memory"
            fix = (
                "start again, because what was found is kept (in a script of your own, what it"
                ' runs belongs under `if __name__ == "__main__":`)'
            )
            raise RunError(problem, about="shards", fix=fix) from error
        finally:
            pool.shutdown(cancel_futures=True)


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
    name = hashlib.sha256(f"{version}\n{conditions}\n{SCHEMA_VERSION}".encode()).hexdigest()[:24]
    return folder_of(shards_folder) / f"{name}.npz"


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

    # The time of change says when it was last of use. It is set seldom, since a write for each rank
    # and shard is much for a shared disk.
    with suppress(OSError):  # removed meanwhile, or another user's
        if time.time() - place.stat().st_mtime > IN_USE:
            os.utime(place)
    return index


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
            if path.suffix == ".npz" or time.time() - status.st_mtime > IN_USE:
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
        return str(archives.header_of(SCHEMA_VERSION, place)["shard"]).rpartition("/")[0]
    except archives.DAMAGE:
        return ""
