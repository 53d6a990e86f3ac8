"""Pairs in webdataset shards, on disks or behind URLs, as they are: a picture with a ``.txt``, a
``.json``, or both.

Flow: ``ShardsReader.open(word, config, damage)`` finds every sample
(``silc_bench.trainer.data.shard_index``) -> ``text(p)`` and ``picture(p)`` read one sample each.

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
    # int64 [num_samples, 7]: shard; offset and size in bytes of picture, text, JSON; sorted by
    # shard
    places: np.ndarray
    config: DataConfig
    filters: Filters
    left_out: Counter[str]  # by the filters, by reason
    mirror: remote.Mirror
    _orders: dict[int, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, compare=False, repr=False
    )
    _group: list[tuple[int, int]] = field(
        default_factory=list, compare=False, repr=False
    )  # epoch and group read last

    @classmethod
    def open(cls, word: str, config: DataConfig, damage: shards.Damage) -> ShardsReader:
        """Every rank opens it; what is damaged or incomplete in a shard is added to ``damage``
        once.

        Raises:
            UserError: no such shard, one that is none, or shards without a single pair.
            RunError: a remote shard that cannot be fetched.
        """
        filters = conditions.parse(config.filters)
        mirror = remote.Mirror(shards_folder(), int(config.mirror_gb * 2**30))
        found = expand(word)
        indexes = index_all(found, filters, mirror)
        left_out = Counter[str]()
        for index in indexes:
            damage.merge(index.damage)
            left_out += index.left_out
        numbers = np.repeat(np.arange(len(found)), [len(index.rows) for index in indexes])
        places = np.column_stack([numbers, np.concatenate([index.rows for index in indexes])])
        if not len(places):
            wanted = ", ".join(f".{extension}" for extension in shards.IMAGE_EXTENSIONS)
            reasons = f"; filters left out {_by_reason(left_out)}" if left_out else ""
            why = damage.summary() if damage.total or left_out else "no sample at all"
            raise UserError(
                f"{word} holds no pair of a picture ({wanted}) and a .txt or .json: {why}{reasons}"
            )
        reader = cls(found, places, config, filters, left_out, mirror)
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

    def picture(self, position: int) -> np.ndarray:
        _, index = self.find(position)
        return decoded(self.read(index, 1), self.config.decode_size, self.where(index))

    # ---- by the number of the sample ----

    def captions(self, index: int) -> list[str]:
        text = self.read(index, 3) if self.places[index, 4] >= 0 else None
        return captions_of(text, self.columns(index), self.where(index, 3))

    def columns(self, index: int) -> dict[str, Any] | None:
        """Its JSON; None where it has none."""
        return (
            columns_of(self.read(index, 5), self.where(index, 5))
            if self.places[index, 6] >= 0
            else None
        )

    def read(self, index: int, column: int) -> bytes:
        """A member of the sample; ``column`` of ``places`` says which: 1 picture, 3 text, 5
        JSON.
        """
        offset, size = self.places[index, column : column + 2].tolist()
        shard = self.files[self.places[index, 0]]

        def member(path: Path) -> bytes:
            return shards.read_member(path, (offset, size))

        if isinstance(shard, Path):
            return member(shard)
        url, stamp = shard
        return self.mirror.read(url, stamp, member)

    def where(self, index: int, column: int = 1) -> str:
        shard = self.files[self.places[index, 0]]
        return f"{shard if isinstance(shard, Path) else shard[0]} at byte {self.places[index, column]:,}"

    # ---- the order ----

    def find(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample) of an entry."""
        epoch, place = divmod(position, self.num_samples)
        if epoch not in self._orders:
            for old in sorted(self._orders)[:-1]:  # a range of positions may lie across two epochs
                del self._orders[old]
            self._orders[epoch] = self._order(epoch)
        order, group_ends = self._orders[epoch]
        if len(group_ends):
            self._fetch_ahead(epoch, int(np.searchsorted(group_ends, place, side="right")))
        return epoch, int(order[place])

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples' order, and where each group of remote shards ends in it; local shards have
        no groups.
        """
        seed = self.config.seed
        if all(isinstance(shard, Path) for shard in self.files):
            return shuffled(seed, epoch, self.num_samples), np.zeros(0, np.int64)
        groups = self.groups(epoch)[self.places[:, 0]]
        return shuffled(seed, epoch, self.num_samples, groups), np.cumsum(np.bincount(groups))

    def groups(self, epoch: int) -> np.ndarray:
        """int64 [number of shards]: which group of the epoch each shard is read in."""
        words = random_words(self.config.seed, ORDER, epoch, len(self.files), inner=1)
        ranks = np.empty(len(self.files), np.int64)
        ranks[np.argsort(words, kind="stable")] = np.arange(len(self.files))
        return ranks // self.config.shuffle_shards

    def _fetch_ahead(self, epoch: int, group: int) -> None:
        if self._group == [(epoch, group)]:
            return
        self._group[:] = [(epoch, group)]
        numbers = np.flatnonzero(self.groups(epoch) == group + 1)
        self.mirror.fetch_ahead(
            [shard for n in numbers if not isinstance(shard := self.files[n], Path)]
        )

    def _check_room(self) -> None:
        sizes = sorted(
            (shard[1].size for shard in self.files if not isinstance(shard, Path)), reverse=True
        )
        needed = sum(sizes[: 2 * self.config.shuffle_shards])
        if needed > self.mirror.limit:
            raise UserError(
                f"two groups of {self.config.shuffle_shards} shards take {needed / 2**30:.1f} GiB, and data.mirror_gb is"
                f" {self.config.mirror_gb:g}; raise it, or lower data.shuffle_shards"
            )


def _by_reason(left_out: Counter[str]) -> str:
    return f"{left_out.total():,}: " + ", ".join(
        f"{count:,} {reason}" for reason, count in left_out.most_common()
    )
