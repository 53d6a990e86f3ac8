"""Pairs in webdataset shards, on disks or behind URLs: an image with a ``.txt``, a ``.json``, or
both.

Flow: ``ShardsReader.open(pattern, config, damage)`` finds every sample
(``silc_bench.trainer.data.shard_index``) -> ``text(p)`` and ``image(p)`` read one sample each,
straight from its place in the shard. Nothing is unpacked.

Local shards are shuffled as a whole. Remote ones are read in groups of ``shuffle_shards``: an epoch
takes the shards in an order of its own, so many at a time, and shuffles the samples of a group
together; the next group is fetched while one is read.
"""

from __future__ import annotations

import hashlib
from collections import Counter

from silc_bench.datasets.files import remote, shards
from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.system.cache import shards_folder
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import (
    ORDER,
    EpochReader,
    LastTwo,
    captions_of,
    columns_of,
    digits_of,
    no_pair,
    parse,
    random_words,
    shuffled,
)
from silc_bench.trainer.data.shard_index import Shard, expand, index_all

SAMPLED = 16  # pairs whose bytes are part of a fingerprint


class ShardsReader(EpochReader):
    """Entries are epochs of all samples of the shards."""

    def __init__(
        self,
        files: list[Shard],
        places: np.ndarray,
        config: DataConfig,
        left_out: Counter[str],
        mirror: remote.Mirror,
    ) -> None:
        """
        Args:
            places: int64 [num_samples, 7]: shard; offset and size in bytes of image, text, JSON.
                Sorted by shard.
        """
        count = "1 shard" if len(files) == 1 else f"{len(files):,} shards"
        super().__init__(len(places), f"in {count}", config, left_out)
        self.files = files
        self.places = places
        self.mirror = mirror
        self._is_remote = any(shard.stamp for shard in files)
        self._groups = LastTwo(self.groups)
        self._read: tuple[int, int] | None = None  # epoch and group of the last entry

    @classmethod
    def open(cls, pattern: str, config: DataConfig, damage: shards.Damage) -> ShardsReader:
        """The reader of the shards that ``pattern`` names; every rank opens it.

        What is damaged or incomplete in a shard is added to ``damage`` once.

        Raises:
            UserError: no such shard, one that is none, or shards without a single pair.
            RunError: a remote shard that cannot be fetched.
        """
        mirror = remote.Mirror(shards_folder(), int(config.mirror_gb * 2**30))
        filters = parse(config.filters)
        files = expand(pattern)
        indexes = index_all(files, filters, mirror)

        left_out = Counter[str]()
        for index in indexes:
            damage.merge(index.damage)
            left_out += index.left_out

        # One table of all samples, with the number of its shard before each row.
        numbers = np.repeat(np.arange(len(files)), [len(index.rows) for index in indexes])
        places = np.column_stack([numbers, np.concatenate([index.rows for index in indexes])])
        if not len(places):
            raise no_pair(pattern, damage, left_out)

        reader = cls(files, places, config, left_out, mirror)
        reader._check_room()
        return reader

    # ---- by the number of the sample ----
    #
    # ``column`` of ``places`` says which member of the sample is meant: 1 image, 3 text, 5 JSON.
    # The column after it is the member's size, which is negative where the sample has none.

    def captions(self, index: int) -> list[str]:
        data = self._member(index, 5)
        columns = None if data is None else columns_of(data, self.where(index, 5))
        text = self._member(index, 3)
        where = self.where(index, 5 if text is None else 3)
        return captions_of(text, columns, where, self.skipped)

    def image_bytes(self, index: int) -> bytes:
        data = self._member(index, 1)
        assert data is not None
        return data

    def _member(self, index: int, column: int) -> bytes | None:
        """A member of the sample; None where it has none."""
        offset, size = self.places[index, column : column + 2].tolist()
        if size < 0:
            return None

        shard = self.files[self.places[index, 0]]
        return shard.read(self.mirror, lambda path: shards.read_member(path, (offset, size)))

    def where(self, index: int, column: int = 1) -> str:
        """Where a member lies, for people."""
        name = self.files[self.places[index, 0]].name
        return f"{name} at byte {self.places[index, column]:,}"

    def fingerprint(self) -> str:
        """Of the places and sizes of all members.

        Of local shards also of the bytes of SAMPLED pairs: to read all of them at each start would
        take hours.
        """
        parts = [np.ascontiguousarray(self.places, "<i8").tobytes()]
        if not self._is_remote:
            sampled = np.linspace(0, len(self.places) - 1, SAMPLED, dtype=np.int64)
            for index in sampled.tolist():
                parts += (self._member(index, column) or b"" for column in (1, 3, 5))
        return digits_of(parts)

    # ---- the order ----

    def find(self, position: int) -> tuple[int, int]:
        epoch, index = super().find(position)
        if self._is_remote:
            self._fetch_ahead(epoch, int(self._groups[epoch][self.places[index, 0]]))
        return epoch, index

    def order(self, epoch: int) -> np.ndarray:
        # Local shards have no groups: all of them are there at any time.
        groups = self._groups[epoch][self.places[:, 0]] if self._is_remote else None
        return shuffled(self.config.seed, epoch, len(self.places), groups)

    def in_order(self, count: int) -> np.ndarray:
        # By name, because a pattern may name the same shards in any order. Remote ones are fetched
        # whole, so only as many are taken as hold ``count`` samples; their hashes choose them,
        # because neighbours may be of one subject.
        names = [shard.name for shard in self.files]
        if self._is_remote:
            names = [hashlib.sha256(name.encode()).hexdigest() for name in names]
        ranks = np.empty(len(names), np.int64)
        ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))

        rank_of_sample = ranks[self.places[:, 0]]
        order = np.argsort(rank_of_sample, kind="stable")
        if self._is_remote:
            last = rank_of_sample[order[:count][-1]]
            order = order[rank_of_sample[order] <= last]
        return order

    def groups(self, epoch: int) -> np.ndarray:
        """int64 [number of shards]: which group of the epoch each shard is read in."""
        # inner=1, because the order of the samples is drawn from the words of inner=0.
        words = random_words(self.config.seed, ORDER, epoch, len(self.files), inner=1)
        ranks = np.empty(len(self.files), np.int64)
        ranks[np.argsort(words, kind="stable")] = np.arange(len(self.files))
        return ranks // self.config.shuffle_shards

    def _fetch_ahead(self, epoch: int, group: int) -> None:
        """Begin to fetch the group after ``group``, once."""
        if self._read == (epoch, group):
            return
        self._read = (epoch, group)

        numbers = np.flatnonzero(self._groups[epoch] == group + 1)
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
