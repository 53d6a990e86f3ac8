"""Generated places as datasets: ``Places("val", 1000).image(17)``.

``Places`` names the place of each image, and every pixel has a label: a thing, a ground or a sky.
``PlacesThings`` names the main thing, and its masks hold things alone, over a background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType
from typing import Self

from silc_bench.datasets.generated.drawn_set import DrawnSet, hash_of
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
from silc_bench.later import np


class Places(DrawnSet):
    """The label is the place."""

    name = "places"
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
        super().__init__(split, num_samples, size, seed, limit)
        self.world = world or World()

        # a wrong split or seed is refused now, not at the first image
        scene(self.world, seed, split, num_samples - 1)
        arguments = [*self._arguments(), asdict(self.world)]
        self.fingerprint = hash_of([self.name, VERSION, *arguments])

    def _unlimited(self) -> Self:
        return type(self)(self.split, self.num_samples, self.size, self.seed, world=self.world)

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

    def _label(self, scene: Scene) -> int:
        return PLACE_NAMES.index(scene.place)

    def _scene(self, index: int) -> Scene:
        return scene(self.world, self.seed, self.split, self._indices[index])

    def _drawn(self, index: int) -> Drawn:
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
        labels = self._drawn(index)[1]
        return np.where(labels < len(KIND_NAMES), labels + 1, 0).astype(np.uint8)

    def _label(self, scene: Scene) -> int:
        return KIND_NAMES.index(scene.items[0].kind)


@kept
def _rendered(size: int, world: World, seed: int, split: str, index: int) -> Drawn:
    return render(scene(world, seed, split, index), size)
