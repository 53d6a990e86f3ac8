"""``places`` as a source of training: ``places`` or ``places:num_pairs=1024,cooccurrence=0.9``.

Entry p is scene p of the split "train" and one caption of it; with ``num_pairs`` there are so many
pairs, each with one caption for good, shuffled anew in each epoch, as in a set of alt texts. A set
of pairs is drawn once, where it fits into KEPT_BYTES, and each epoch reads it from memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from silc_bench.datasets.generated.places.captions import MAX_CAPTIONS, caption
from silc_bench.datasets.generated.places.drawing import SMALLEST, render
from silc_bench.datasets.generated.places.scenes import Scene, World, scene
from silc_bench.errors import UserError, unknown_name
from silc_bench.later import np
from silc_bench.system.terminal import counted
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import (
    LARGEST_SCENE,
    ORDER,
    SEED_OF_CAPTIONS,
    LastTwo,
    PassedOverError,
    digits_of,
    random_words,
    shuffled,
)

NAME = "places"
KEPT_BYTES = 256 * 2**20  # of images that a reader keeps, where all of its pairs fit
SHARES = ("cooccurrence", "own_color", "caption_noise", "named")


def world_of(word: str) -> World:
    """``places:NAME=VALUE,...`` -> the dials. Raises UserError for unknown names and values."""
    world = World()
    dials = word.removeprefix(NAME).removeprefix(":")
    for item in dials.split(",") if dials else ():
        name, _, value = item.partition("=")
        if name not in (*SHARES, "num_pairs"):
            raise unknown_name("dial", name, (*SHARES, "num_pairs"), about=f"data {word!r}")
        try:
            number = int(value) if name == "num_pairs" else float(value)
        except ValueError:
            number = -1
        if number < 0 or (name in SHARES and number > 1) or (name == "num_pairs" and number < 2):
            rule = "a whole number from 2" if name == "num_pairs" else "a share from 0 to 1"
            raise UserError(
                f"{value!r} is not {rule}", about=f"data {word!r}: {name}", fix=f"give {rule}"
            )
        changes: dict[str, Any] = {name: number}
        world = dataclasses.replace(world, **changes)
    return world


class PlacesReader:
    """UserError for filters, which scenes cannot meet, and for images that are too small."""

    num_nodes = 1

    def __init__(self, word: str, config: DataConfig) -> None:
        self._world = world_of(word)
        if config.filters:
            raise UserError(
                "scenes are generated as they come, without columns",
                about=f"data.filters={config.filters!r}",
                fix="leave the filters out, or places",
            )
        if 0 < config.decode_size < SMALLEST:
            raise UserError(
                "too small for places",
                about=f"data.decode_size={config.decode_size}",
                fix=f"at least {SMALLEST}",
            )
        self._seed = config.seed
        self.num_samples = self._world.num_pairs
        self._orders = LastTwo(self._order)

        # Of a set of pairs, by index. Drawing an image costs about as much as a step of the small
        # towers that learn from these scenes.
        self._texts: dict[int, str] = {}
        self._images: dict[tuple[int, int], np.ndarray] = {}  # and by size

    def describe(self) -> str:
        count = "endless" if self.num_samples is None else counted(self.num_samples, "pair")
        return f"places (generated, {count}, seed {self._seed})"

    def fingerprint(self) -> str:
        return digits_of([repr(self._world).encode()])

    def text(self, position: int) -> str:
        number, index = self._at(position)
        if index not in self._texts:
            scene = _scene(self._world, self._seed, index)
            text = caption(scene, self._world, number, is_noisy=True)
            if not self._is_kept(SMALLEST):
                return text
            self._texts[index] = text
        return self._texts[index]

    def captions_of_data(self, count: int) -> Iterator[str]:
        if self.num_samples is not None:
            count = min(count, self.num_samples)
        for index in range(count):
            number = self._number(SEED_OF_CAPTIONS, index)
            scene = _scene(self._world, SEED_OF_CAPTIONS, index)
            yield caption(scene, self._world, number, is_noisy=True)

    def image(self, position: int, side: int) -> np.ndarray:
        """Read-only, where it is kept."""
        _, index = self._at(position)
        size = min(side, LARGEST_SCENE)
        if (index, size) not in self._images:
            image = render(_scene(self._world, self._seed, index), size)[0]
            if not self._is_kept(size):
                return image
            image.flags.writeable = False
            self._images[index, size] = image
        return self._images[index, size]

    def _is_kept(self, size: int) -> bool:
        """Whether all images of so many pixels a side fit into KEPT_BYTES."""
        return 0 < (self.num_samples or 0) * 3 * size**2 <= KEPT_BYTES

    def passed_over(self) -> list[PassedOverError]:
        return []

    def _order(self, epoch: int) -> np.ndarray:
        assert self.num_samples is not None
        return shuffled(self._seed, epoch, self.num_samples)

    def _at(self, position: int) -> tuple[int, int]:
        """(number of the caption, index of the scene) of an entry."""
        index = position
        if self.num_samples is not None:
            epoch, place = divmod(position, self.num_samples)
            index = int(self._orders[epoch][place])
        return self._number(self._seed, index), index

    def _number(self, seed: int, index: int) -> int:
        """Which caption of a scene is read: of so many pairs each has one for good."""
        if self.num_samples is not None:
            return 0
        return int(random_words(seed, ORDER, index, 1)[0] % MAX_CAPTIONS)


# One scene is enough: text and image of an entry are asked for one after the other.
@lru_cache(maxsize=1)
def _scene(world: World, seed: int, index: int) -> Scene:
    return scene(world, seed, "train", index)
