"""Picture-text pairs by position: generated scenes, or the samples of webdataset shards in shuffled epochs.

Flow: ``reader.text(p)`` and ``reader.picture(p)`` give entry p of an endless stream, a pure function of (seed, p), in any
order and in any process; ``trainer.data`` makes batches of them.

Shapes: S = decode_size pixels, the longest side a picture may have; a picture is [h, w, 3].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from silc_bench.datasets import shapes, shards
from silc_bench.errors import UserError
from trainer.config import DataConfig


class UnreadableError(ValueError):
    """An entry that has to be left out. ``cause`` is the same for all of a kind, to count by."""

    def __init__(self, cause: str, where: str) -> None:
        super().__init__(cause, where)
        self.cause, self.where = cause, where


class Reader(Protocol):
    """Entries by position. It is copied to worker processes, so it holds no open files."""

    @property
    def num_samples(self) -> int | None: ...

    def describe(self) -> str: ...

    def text(self, position: int) -> str: ...

    def picture(self, position: int) -> np.ndarray:
        """uint8 [h, w, 3], no side longer than S. UnreadableError, as for ``text``, leaves the entry out."""
        ...


class ShapesReader:
    """Entry p is scene p of the split "train", with one of its five captions."""

    num_samples = None

    def __init__(self, config: DataConfig) -> None:
        self._seed, self._size = config.seed, config.decode_size

    def describe(self) -> str:
        return f"shapes (generated, endless, seed {self._seed})"

    def text(self, position: int) -> str:
        captions = shapes.captions(_scene(self._seed, position))
        return captions[int(_random_words(self._seed, position, 1)[0] % len(captions))]

    def picture(self, position: int) -> np.ndarray:
        return shapes.render(_scene(self._seed, position), self._size)[0]


@lru_cache(maxsize=1)  # text and picture of an entry are asked for one after the other
def _scene(seed: int, position: int) -> shapes.Scene:
    return shapes.scene(seed, "train", position)


@dataclass(frozen=True)
class ShardsReader:
    """Entries are epochs of all samples, each epoch in an order of its own."""

    paths: list[Path]
    places: np.ndarray  # int64 [num_samples, 5]: shard; offset and size in bytes of the picture, then of the text
    seed: int
    decode_size: int

    @classmethod
    def open(cls, config: DataConfig, damage: shards.Damage) -> ShardsReader:
        """Index every shard; what is damaged or incomplete there is added to ``damage`` once."""
        paths = shards.expand(config.source)
        places = []
        for number, path in enumerate(paths):
            index = shards.index_shard(path)
            damage.merge(index.damage)
            for sample in index.samples:
                picture = next((sample.members[e] for e in shards.IMAGE_EXTENSIONS if e in sample.members), None)
                text = sample.members.get("txt")
                if picture is None:
                    damage.add("sample without a picture", f"{path}:{sample.key}")
                elif text is None:
                    damage.add("sample without a text", f"{path}:{sample.key}")
                else:
                    places.append((number, *picture, *text))
        if not places:
            wanted = ", ".join(f".{extension}" for extension in shards.IMAGE_EXTENSIONS)
            raise UserError(f"{config.source} holds no pair of a picture ({wanted}) and a .txt: {damage.summary()}")
        return cls(paths, np.array(places, np.int64), config.seed, config.decode_size)

    @property
    def num_samples(self) -> int:
        return len(self.places)

    def describe(self) -> str:
        return f"{self.num_samples:,} pairs in {len(self.paths):,} shards"

    def text(self, position: int) -> str:
        path, _, place = self._find(position)
        try:
            text = shards.read_member(path, place).decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UnreadableError("text that is not UTF-8", f"{path} at byte {place[0]:,}") from error
        if not text:
            raise UnreadableError("empty text", f"{path} at byte {place[0]:,}")
        return text

    def picture(self, position: int) -> np.ndarray:
        path, place, _ = self._find(position)
        try:
            image = shards.decode_image(shards.read_member(path, place))
        except shards.DamagedImageError as error:
            raise UnreadableError(error.cause, f"{path} at byte {place[0]:,}") from error
        image.thumbnail((self.decode_size, self.decode_size))  # keeps the aspect and never enlarges: views do that
        return np.asarray(image)

    def _find(self, position: int) -> tuple[Path, shards.Place, shards.Place]:
        epoch, place = divmod(position, self.num_samples)
        shard, *places = self.places[_epoch_order(self.seed, epoch, self.num_samples)[place]].tolist()
        return self.paths[shard], (places[0], places[1]), (places[2], places[3])


@lru_cache(maxsize=2)  # a range of positions may lie across two epochs
def _epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """int64 [num_samples]: a permutation, the same on every machine."""
    return np.argsort(_random_words(seed, epoch, num_samples), kind="stable")


def _random_words(seed: int, counter: int, count: int) -> np.ndarray:
    """uint64 [count]. Raw Philox words stay the same in every release of numpy, its distributions may not."""
    return np.random.Philox(key=(seed, 0), counter=(0, 0, 0, counter)).random_raw(count)
