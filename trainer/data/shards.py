"""Pairs in webdataset shards, on disks or behind URLs: an image with a ``.txt``, a ``.json``, or
both.

Flow: ``ShardsReader.open(word, config, damage)`` finds every sample
(``silc_bench.trainer.data.shard_index``) -> ``text(p)`` and ``picture(p)`` read one sample each,
straight from its place in the shard. Nothing is unpacked.

Local shards are shuffled as a whole. Remote ones are read in groups of ``shuffle_shards``: an epoch
takes the shards in an order of its own, so many at a time, and shuffles the samples of a group
together; the next group is fetched while one is read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.datasets.files import remote, shards
from silc_bench.errors import UserError
from silc_bench.system.cache import shards_folder
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import samples as conditions
from silc_bench.trainer.data.samples import (
    ORDER,
    Filters,
    captions_of,
    choose_caption,
    columns_of,
    decoded,
    random_words,
    shuffled,
)
from silc_bench.trainer.data.shard_index import Shard, expand, index_all


@dataclass(frozen=True)
class ShardsReader:
    """Entries are epochs of all samples, each epoch in an order of its own."""

    files: list[Shard]
    # int64 [num_samples, 7]: shard; offset and size in bytes of image, text, JSON. Sorted by shard.
    places: np.ndarray
    config: DataConfig
    filters: Filters
    left_out: Counter[str]  # by the filters, by reason
    mirror: remote.Mirror
    # Per epoch: the samples' order, and where its groups of remote shards end (see ``_order``).
    _orders: dict[int, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, compare=False, repr=False
    )
    # Epoch and group that was read last; a list of one, because the dataclass is frozen.
    _group: list[tuple[int, int]] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def open(cls, word: str, config: DataConfig, damage: shards.Damage) -> ShardsReader:
        """The reader of the shards that ``word`` names; every rank opens it.

        What is damaged or incomplete in a shard is added to ``damage`` once.

        Raises:
            UserError: no such shard, one that is none, or shards without a single pair.
            RunError: a remote shard that cannot be fetched.
        """
        filters = conditions.parse(config.filters)
        mirror = remote.Mirror(shards_folder(), int(config.mirror_gb * 2**30))
        files = expand(word)
        indexes = index_all(files, filters, mirror)

        left_out = Counter[str]()
        for index in indexes:
            damage.merge(index.damage)
            left_out += index.left_out

        # One table of all samples, with the number of its shard before each row.
        numbers = np.repeat(np.arange(len(files)), [len(index.rows) for index in indexes])
        places = np.column_stack([numbers, np.concatenate([index.rows for index in indexes])])

        if not len(places):
            endings = ", ".join(f".{extension}" for extension in shards.IMAGE_EXTENSIONS)
            reasons = f"; filters left out {_by_reason(left_out)}" if left_out else ""
            why = damage.summary() if damage.total or left_out else "no sample at all"
            raise UserError(
                f"{word} holds no pair of a picture ({endings}) and a .txt or .json: {why}{reasons}"
            )

        reader = cls(files, places, config, filters, left_out, mirror)
        reader._check_room()
        return reader

    @property
    def num_samples(self) -> int:
        return len(self.places)

    def describe(self) -> str:
        left_out = f" (filters left out {_by_reason(self.left_out)})" if self.left_out else ""
        files = "1 shard" if len(self.files) == 1 else f"{len(self.files):,} shards"
        return f"{self.num_samples:,} pairs in {files}{left_out}"

    def text(self, position: int) -> str:
        epoch, index = self.find(position)
        captions = self.filters.captions(self.captions(index))
        return choose_caption(captions, self.config.seed, epoch, index)

    def image(self, position: int) -> np.ndarray:
        _, index = self.find(position)
        return decoded(self.read(index, 1), self.config.decode_size, self.where(index))

    # ---- by the number of the sample ----
    #
    # ``column`` of ``places`` says which member of the sample is meant: 1 image, 3 text, 5 JSON.
    # The column after it is the member's size, which is negative where the sample has none.

    def captions(self, index: int) -> list[str]:
        text = self.read(index, 3) if self.places[index, 4] >= 0 else None
        return captions_of(text, self.columns(index), self.where(index, 3))

    def columns(self, index: int) -> dict[str, Any] | None:
        """Its JSON; None where it has none."""
        if self.places[index, 6] < 0:
            return None
        return columns_of(self.read(index, 5), self.where(index, 5))

    def read(self, index: int, column: int) -> bytes:
        """A member of the sample."""
        offset, size = self.places[index, column : column + 2].tolist()
        shard = self.files[self.places[index, 0]]

        def member(path: Path) -> bytes:
            return shards.read_member(path, (offset, size))

        if isinstance(shard, Path):
            return member(shard)
        url, stamp = shard
        return self.mirror.read(url, stamp, member)

    def where(self, index: int, column: int = 1) -> str:
        """Where a member lies, for people."""
        shard = self.files[self.places[index, 0]]
        name = shard if isinstance(shard, Path) else shard[0]
        return f"{name} at byte {self.places[index, column]:,}"

    # ---- the order ----

    def find(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample) of an entry."""
        epoch, place = divmod(position, self.num_samples)
        if epoch not in self._orders:
            # Two are kept, because a range of positions may lie across two epochs.
            for old in sorted(self._orders)[:-1]:
                del self._orders[old]
            self._orders[epoch] = self._order(epoch)

        order, group_ends = self._orders[epoch]
        if len(group_ends):
            group = np.searchsorted(group_ends, place, side="right")
            self._fetch_ahead(epoch, int(group))
        return epoch, int(order[place])

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples' order, and where each group of remote shards ends in it.

        Local shards have no groups: all of them are there at any time.
        """
        seed = self.config.seed
        if all(isinstance(shard, Path) for shard in self.files):
            return shuffled(seed, epoch, self.num_samples), np.zeros(0, np.int64)
        groups = self.groups(epoch)[self.places[:, 0]]
        group_ends = np.cumsum(np.bincount(groups))
        return shuffled(seed, epoch, self.num_samples, groups), group_ends

    def groups(self, epoch: int) -> np.ndarray:
        """int64 [number of shards]: which group of the epoch each shard is read in."""
        # inner=1, because the order of the samples is drawn from the words of inner=0.
        words = random_words(self.config.seed, ORDER, epoch, len(self.files), inner=1)
        ranks = np.empty(len(self.files), np.int64)
        ranks[np.argsort(words, kind="stable")] = np.arange(len(self.files))
        return ranks // self.config.shuffle_shards

    def _fetch_ahead(self, epoch: int, group: int) -> None:
        """Begin to fetch the group after ``group``, once."""
        if self._group == [(epoch, group)]:
            return
        self._group[:] = [(epoch, group)]

        numbers = np.flatnonzero(self.groups(epoch) == group + 1)
        next_shards = (self.files[number] for number in numbers)
        self.mirror.fetch_ahead([shard for shard in next_shards if not isinstance(shard, Path)])

    def _check_room(self) -> None:
        """UserError where the mirror cannot hold the group that is read and the one after it."""
        sizes = [shard[1].size for shard in self.files if not isinstance(shard, Path)]
        sizes.sort(reverse=True)  # the worst case: the largest shards come together
        needed = sum(sizes[: 2 * self.config.shuffle_shards])
        if needed > self.mirror.limit:
            raise UserError(
                f"two groups of {self.config.shuffle_shards} shards take {needed / 2**30:.1f} GiB,"
                f" and data.mirror_gb is {self.config.mirror_gb:g}; raise it, or lower"
                " data.shuffle_shards"
            )


def _by_reason(left_out: Counter[str]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    return f"{left_out.total():,}: {reasons}"
