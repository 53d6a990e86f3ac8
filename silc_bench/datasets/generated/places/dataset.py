"""Generated places as datasets: ``Places("val", 1000).image(17)``.

``Places`` names the place of each image, and every pixel has a label: a thing, a ground or a sky.
``PlacesThings`` names the main thing, and its masks hold things alone, over a background.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

from PIL import Image

from silc_bench.datasets.dataset import spread
from silc_bench.datasets.generated.kept import Drawn, kept
from silc_bench.datasets.generated.places.captions import MAX_CAPTIONS, caption
from silc_bench.datasets.generated.places.drawing import LABELS, render
from silc_bench.datasets.generated.places.scenes import (
    KIND_NAMES,
    PLACE_NAMES,
    VERSION,
    Scene,
    World,
    scene,
)
from silc_bench.errors import UserError
from silc_bench.later import np


class Places:
    """Samples 0..num_samples-1 of a split as an ImageDataset; the label is the place.

    ``limit``: evenly spread ones of them. ``size``: pixels of a side.
    """

    name = "places"
    is_drawn = True
    class_names: tuple[str, ...] = PLACE_NAMES
    mask_names: tuple[str, ...] = LABELS
    has_background = False
    mask_policy: Mapping[str, str] = MappingProxyType(
        {"background": "none: every pixel is a thing, a ground or a sky", "not_scored": "nothing"}
    )

    def __init__(
        self,
        split: str,
        num_samples: int,
        size: int = 64,
        seed: int = 0,
        limit: int | None = None,
        world: World | None = None,
    ) -> None:
        if num_samples < 1:
            raise UserError(
                f"{num_samples} samples are no set", about=self.name, fix="ask for at least one"
            )
        self.world = world or World()

        # a wrong split or seed is refused now, not at the first image
        scene(self.world, seed, split, num_samples - 1)

        self.split = split
        self.num_samples = num_samples
        self.size = size
        self.seed = seed
        self._indices = spread(num_samples, limit)

        # the arguments decide every pixel, so their hash stands for the data
        arguments = [self.name, VERSION, seed, split, num_samples, len(self._indices), size]
        self.fingerprint = _hash([*arguments, asdict(self.world)])

    def __len__(self) -> int:
        return len(self._indices)

    def part(self, indices: Sequence[int]) -> Self:
        """These samples, in this order."""
        if list(indices) == list(range(len(self))):
            return self
        part = type(self)(self.split, self.num_samples, self.size, self.seed, world=self.world)
        part._indices = [self._indices[i] for i in indices]
        part.fingerprint = _hash([self.fingerprint, part._indices])
        return part

    @property
    def is_whole(self) -> bool:
        """Whether no sample was left out for a limit."""
        return len(self._indices) == self.num_samples

    @cached_property
    def labels(self) -> np.ndarray:
        return np.array([self._label(self._scene(i)) for i in range(len(self))], np.int64)

    @cached_property
    def captions(self) -> Sequence[tuple[str, ...]]:
        """Five of each image, none twice for one image, and right ones."""
        return [
            tuple(
                dict.fromkeys(
                    caption(self._scene(i), self.world, number, is_noisy=False)
                    for number in range(MAX_CAPTIONS)
                )
            )
            for i in range(len(self))
        ]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._rendered(index)[0])

    def mask(self, index: int) -> np.ndarray:
        # a copy, because the caller may write into it and the next one would read that
        return self._rendered(index)[1].copy()

    def _label(self, scene: Scene) -> int:
        return PLACE_NAMES.index(scene.place)

    def _scene(self, index: int) -> Scene:
        return scene(self.world, self.seed, self.split, self._indices[index])

    def _rendered(self, index: int) -> Drawn:
        return _rendered(self.size, self.world, self.seed, self.split, self._indices[index])


class PlacesThings(Places):
    """The same images; the label is the main thing, and the masks hold things over a background."""

    name = "places_things"
    class_names = KIND_NAMES
    mask_names = ("background", *KIND_NAMES)
    has_background = True
    mask_policy = MappingProxyType(
        {"background": "label 0: grounds and skies", "not_scored": "nothing"}
    )

    def mask(self, index: int) -> np.ndarray:
        labels = self._rendered(index)[1]
        return np.where(labels < len(KIND_NAMES), labels + 1, 0).astype(np.uint8)

    def _label(self, scene: Scene) -> int:
        return KIND_NAMES.index(scene.items[0].kind)


def _hash(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


@kept
def _rendered(size: int, world: World, seed: int, split: str, index: int) -> Drawn:
    return render(scene(world, seed, split, index), size)
