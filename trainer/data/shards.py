"""Pairs in webdataset shards, on disks or behind URLs: an image with a ``.txt``, a ``.json``, or
both.

Flow: ``ShardsReader.open(pattern, config, damage)`` finds every sample
(``silc_bench.trainer.data.shard_index``) -> ``text(p)`` and ``image(p)`` read one sample each,
straight from its place in the shard. Nothing is unpacked.

Local shards are shuffled as a whole. Remote ones are read in groups of ``shuffle_shards``: an epoch
takes the shards in an order of its own, so many at a time, and shuffles the samples of a group
together; the next group is fetched while one is read.

On N nodes the groups belong to nodes, those of local shards too. Entry p is node p % N's. An epoch
lays the samples out in its order of shards and cuts the row into N parts of equal length, within
one; node k reads part k, in groups of ``shuffle_shards`` shards, each shuffled in itself. So over
all nodes an epoch has each pair once, and a shard is fetched by one node, or by two where a cut
goes through it. An epoch need not be a whole number of batches: a batch may hold the end of one and
the beginning of the next.

Of more than LARGEST_TABLE pairs no process keeps an order: one node reads them as the only part.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence

from silc_bench.datasets.files import remote, shards
from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.system.cache import shards_folder
from silc_bench.system.processes import num_ranks, of_all
from silc_bench.system.terminal import counted
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import (
    LARGEST_TABLE,
    ORDER,
    EpochReader,
    InPieces,
    LastTwo,
    captions_of,
    columns_of,
    digits_of,
    keyed,
    no_pair,
    order_key,
    parse,
    random_words,
    shuffled,
    spread,
)
from silc_bench.trainer.data.shard_index import Shard, Table, expand, table_of

SAMPLED = 16  # pairs whose bytes are part of a fingerprint
MOST_OPEN = 64  # local files that a process keeps open, where a group has fewer shards
IMAGE, TEXT, JSON = range(3)  # columns of a table


class ShardsReader(EpochReader):
    """Entries are epochs of all samples of the shards."""

    def __init__(
        self,
        files: list[Shard],
        table: Table,
        config: DataConfig,
        mirror: remote.Mirror,
        num_nodes: int = 1,
    ) -> None:
        super().__init__(len(table), f"in {counted(len(files), 'shard')}", config, table.left_out)
        self.files = files
        self.table = table
        self.mirror = mirror
        self.num_nodes = num_nodes
        self._is_remote = any(shard.stamp for shard in files)
        self._is_keyed = num_nodes > 1 or len(table) > LARGEST_TABLE
        self._groups = LastTwo(self.groups)
        self._parts = LastTwo(self._part)
        self._open_files = shards.OpenFiles(max(MOST_OPEN, config.shuffle_shards))
        self._read: tuple[int, int] | None = None  # epoch and group of the last entry

    @classmethod
    def open(
        cls, pattern: str, config: DataConfig, damage: shards.Damage, node: tuple[int, int] = (0, 1)
    ) -> ShardsReader:
        """The reader of the shards that ``pattern`` names; every rank opens it.

        What is damaged or incomplete in a shard is added to ``damage`` once.

        Args:
            node: which of how many machines this is.

        Raises:
            UserError: no such shard, one that is none, shards without a single pair, or ranks that
                see different ones.
            RunError: a remote shard that cannot be fetched.
        """
        mirror = remote.Mirror(shards_folder(), int(config.mirror_gb * 2**30))
        files = expand(pattern)
        num_nodes = node[1]
        owners = owners_of(config.seed, files, num_nodes) if num_nodes > 1 else None
        table = table_of(files, parse(config.filters), mirror, owners)
        if num_ranks() > 1:
            _check_equal(pattern, len(files), table)

        damage.merge(table.damage)
        if not len(table):
            raise no_pair(pattern, damage, table.left_out)

        reader = cls(files, table, config, mirror, num_nodes)
        reader._check_room()
        return reader

    # ---- by the number of the sample ----

    def captions(self, index: int) -> list[str]:
        data = self._member(index, JSON)
        columns = None if data is None else columns_of(data, self.where(index, JSON))
        text = self._member(index, TEXT)
        where = self.where(index, JSON if text is None else TEXT)
        return captions_of(text, columns, where, self.skipped)

    def image_bytes(self, index: int) -> bytes:
        data = self._member(index, IMAGE)
        assert data is not None
        return data

    def _member(self, index: int, column: int) -> bytes | None:
        """A member of the sample; None where it has none."""
        number = self.table.shard_of(index)
        self.table.check(number)
        place = self.table.member(index, column)
        if place is None:
            return None
        # An open file of the mirror would keep its room on the disk after the mirror removed it.
        shard = self.files[number]
        read = shards.read_member if shard.stamp else self._open_files.read
        return shard.read(self.mirror, lambda path: read(path, place))

    def where(self, index: int, column: int = IMAGE) -> str:
        """Where a member lies, for people."""
        name = self.files[self.table.shard_of(index)].name
        offset, _ = self.table.member(index, column) or (0, 0)
        return f"{name} at byte {offset:,}"

    def fingerprint(self) -> str:
        """Of the places and sizes of all members.

        Of local shards also of the bytes of SAMPLED pairs: to read all of them at each start would
        take hours.
        """
        parts: list[bytes | InPieces]
        if self.num_samples <= LARGEST_TABLE:
            pieces = (rows.astype("<i8").tobytes() for rows in self.table.wide())
            parts = [InPieces(7 * 8 * self.num_samples, pieces)]
        else:
            # Summed once, when the table was written. The order belongs to it, because it is not
            # that of earlier versions.
            parts = [b"keyed order", self.table.digest.encode()]
        if not self._is_remote:
            sampled = np.linspace(0, self.num_samples - 1, SAMPLED, dtype=np.int64)
            for index in sampled.tolist():
                parts += (self._member(index, column) or b"" for column in (IMAGE, TEXT, JSON))
        return digits_of(parts)

    def chosen(self, count: int) -> np.ndarray:
        # By name, because a pattern may name the same shards in any order. Remote ones are fetched
        # whole, so only as many are taken as hold ``count`` samples; their hashes choose them,
        # because neighbours may be of one subject.
        names = [shard.name for shard in self.files]
        if self._is_remote:
            names = [hashlib.sha256(name.encode()).hexdigest() for name in names]
        order = np.array(sorted(range(len(names)), key=names.__getitem__))

        ends = np.cumsum(np.diff(self.table.starts)[order])
        total = self.num_samples
        if self._is_remote:
            last = np.searchsorted(ends, min(count, total) - 1, "right")
            total = int(ends[last])
        places = spread(total, count)
        numbers = np.searchsorted(ends, places, "right")
        shards_of_places = order[numbers]
        sizes = np.diff(self.table.starts)[shards_of_places]
        return self.table.starts[shards_of_places] + places - (ends[numbers] - sizes)

    # ---- the order ----

    def find(self, position: int) -> tuple[int, int]:
        if self._is_keyed:
            return self._find_keyed(position)
        epoch, index = super().find(position)
        if self._is_remote:
            self._fetch_ahead(epoch, int(self._groups[epoch][self.table.shard_of(index)]))
        return epoch, index

    def order(self, epoch: int) -> np.ndarray:
        # Local shards have no groups: all of them are there at any time.
        groups = None
        if self._is_remote:
            groups = np.repeat(self._groups[epoch], np.diff(self.table.starts))
        return shuffled(self.config.seed, epoch, self.num_samples, groups)

    def groups(self, epoch: int) -> np.ndarray:
        """int64 [number of shards]: which group of the epoch each shard is read in."""
        ranks = np.empty(len(self.files), np.int64)
        order = order_of_shards(self.config.seed, epoch, len(self.files))
        ranks[order] = np.arange(len(self.files))
        return ranks // self.config.shuffle_shards

    def _find_keyed(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample) of an entry, without a table of the order."""
        epoch = position // self.num_samples
        node = position % self.num_nodes
        part = self._parts[epoch * self.num_nodes + node]
        place = position // self.num_nodes - part.first

        group = bisect_right(part.group_ends, place)
        start = part.group_ends[group - 1] if group else 0
        # So that no two nodes shuffle alike; no part has as many groups.
        key = order_key(self.config.seed, epoch, (node << 32) + group)
        place = start + keyed(place - start, part.group_ends[group] - start, key)
        if self._is_remote and self._read != (epoch, group):
            self._read = (epoch, group)
            self._fetch(part.shards_of(group + 1))

        piece = bisect_right(part.ends, place)
        return epoch, part.last_samples[piece] - (part.ends[piece] - 1 - place)

    def _part(self, number: int) -> Part:
        """Of ``epoch * num_nodes + node``."""
        epoch, node = divmod(number, self.num_nodes)
        total, count = self.num_samples, self.num_nodes

        # Of positions below ``position``, how many are entries of each node.
        def before(position: int, node: int) -> int:
            return (position - node + count - 1) // count

        firsts = [before(epoch * total, each) for each in range(count)]
        lengths = [before((epoch + 1) * total, each) - firsts[each] for each in range(count)]
        start = sum(lengths[:node])

        order = order_of_shards(self.config.seed, epoch, len(self.files))
        sizes = np.diff(self.table.starts)[order]
        ends = np.cumsum(sizes)
        stop = start + lengths[node]
        is_ours = (np.minimum(ends, stop) > np.maximum(ends - sizes, start)).nonzero()[0]
        own_ends = np.minimum(ends[is_ours], stop)
        last_samples = self.table.starts[order[is_ours] + 1] - 1 - (ends[is_ours] - own_ends)
        return Part(
            firsts[node],
            order[is_ours].tolist(),
            (own_ends - start).tolist(),
            last_samples.tolist(),
            self.config.shuffle_shards,
        )

    def _fetch_ahead(self, epoch: int, group: int) -> None:
        """Begin to fetch the group after ``group``, once."""
        if self._read == (epoch, group):
            return
        self._read = (epoch, group)
        self._fetch(np.flatnonzero(self._groups[epoch] == group + 1).tolist())

    def _fetch(self, numbers: Sequence[int]) -> None:
        next_shards = (self.files[number] for number in numbers)
        self.mirror.fetch_ahead([(shard.name, shard.stamp) for shard in next_shards if shard.stamp])

    def _check_room(self) -> None:
        """UserError where the mirror cannot hold the group that is read and the one after it."""
        sizes = [shard.stamp.size for shard in self.files if shard.stamp]
        sizes.sort(reverse=True)  # the worst case: the largest shards come together
        needed = sum(sizes[: 2 * self.config.shuffle_shards])
        if needed > self.mirror.limit:
            problem = (
                f"two groups of {self.config.shuffle_shards} shards take {needed / 2**30:.1f} GiB,"
                f" more than {self.config.mirror_gb:g}"
            )
            fix = "raise it, or lower data.shuffle_shards"
            raise UserError(problem, about="data.mirror_gb", fix=fix)


class Part:
    """What a node reads in an epoch: pieces of shards one after the other, in groups.

    ``first``: entries of the node before it. ``shards`` of the pieces; ``ends`` of the pieces,
    counted from the beginning of the part; ``last_samples``: number of the last sample of each.
    """

    def __init__(
        self,
        first: int,
        shards: list[int],
        ends: list[int],
        last_samples: list[int],
        group_size: int,
    ) -> None:
        self.first = first
        self.shards = shards
        self.ends = ends
        self.last_samples = last_samples
        self.group_size = group_size
        self.group_ends = ends[group_size - 1 :: group_size]
        if len(ends) % group_size:
            self.group_ends.append(ends[-1])

    def shards_of(self, group: int) -> list[int]:
        return self.shards[group * self.group_size : (group + 1) * self.group_size]


def order_of_shards(seed: int, epoch: int, count: int) -> np.ndarray:
    """int64 [count]: the shards as an epoch takes them."""
    # inner=1, because the order of the samples is drawn from the words of inner=0.
    return np.argsort(random_words(seed, ORDER, epoch, count, inner=1), kind="stable")


def owners_of(seed: int, files: Sequence[Shard], num_nodes: int) -> list[int]:
    """The rank that looks through each shard, on several nodes.

    It is one of the node that reads the shard in the first epoch, as far as that can be known
    before anybody has counted its samples, by the bytes of remote ones: so it is fetched once for
    both.
    """
    num_local = max(1, num_ranks() // num_nodes)
    sizes = [shard.stamp.size for shard in files if shard.stamp]
    if len(sizes) < len(files) or not sum(sizes):
        sizes = [1] * len(files)
    total, before = sum(sizes), 0
    owners = [0] * len(files)
    for place, number in enumerate(order_of_shards(seed, 0, len(files)).tolist()):
        node = (2 * before + sizes[number]) * num_nodes // (2 * total)  # of its middle
        owners[number] = min(node, num_nodes - 1) * num_local + place % num_local
        before += sizes[number]
    return owners


def _check_equal(pattern: str, num_files: int, table: Table) -> None:
    """UserError on every rank where one of them, on another disk, sees other shards.

    Each computes the order of all pairs by itself: the orders would differ, without a word.
    """
    digests = of_all(int(table.digest, 16) >> 1)  # of 64 bits, of which a number has 63
    counts, pairs = of_all(num_files), of_all(len(table))
    other = next((number for number, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        seen = [f"rank {n}: {counts[n]:,} with {pairs[n]:,} pairs" for n in (0, other)]
        problem = f"not all nodes see the same shards ({'; '.join(seen)})"
        raise UserError(problem, about=pattern, fix="give all nodes the same files, byte for byte")
