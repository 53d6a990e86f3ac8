"""Generated scenes as datasets: ``Shapes("val", 1000).image(17)``.

Masks of ``Shapes`` name the shape of each object, those of ``ShapesColours`` its colour. A shape is
told by its outline, so by an object as a whole; a colour by any of its patches. What a model learns
from small crops can therefore show in the second, and hardly in the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Self

from silc_bench.datasets.generated.drawn_set import DrawnSet, hash_of
from silc_bench.datasets.generated.kept import Drawn, kept
from silc_bench.datasets.generated.shapes.captions import captions
from silc_bench.datasets.generated.shapes.drawing import MASK_VALUES, render
from silc_bench.datasets.generated.shapes.scenes import (
    COLORS,
    PAIRS,
    SHAPES,
    VERSION,
    Scene,
    label,
    scene,
)
from silc_bench.later import np


class Shapes(DrawnSet):
    """The label is a pair of shape and colour."""

    name = "shapes"
    class_names: tuple[str, ...] = PAIRS
    mask_names: tuple[str, ...] = ("background", *SHAPES)
    has_background = True
    _kind: tuple[str, ...] = ()  # begins what the fingerprint is made of
    mask_policy: Mapping[str, str] = MappingProxyType(
        {"background": "label 0", "not_scored": "nothing"}
    )

    def __init__(
        self, split: str, num_samples: int, size: int = 64, seed: int = 0, limit: int | None = None
    ) -> None:
        super().__init__(split, num_samples, size, seed, limit)

        # a wrong split or seed is refused now, not at the first image
        scene(seed, split, num_samples - 1)
        self.fingerprint = hash_of([*self._kind, VERSION, *self._arguments()])

    def _unlimited(self) -> Self:
        return type(self)(self.split, self.num_samples, self.size, self.seed)

    @cached_property
    def labels(self) -> np.ndarray:
        return np.array([label(self._scene(i)) for i in range(len(self))], np.int64)

    @cached_property
    def captions(self) -> Sequence[tuple[str, ...]]:
        return [captions(self._scene(i)) for i in range(len(self))]

    def _drawn(self, index: int) -> Drawn:
        return _rendered(self.size, self.seed, self.split, self._indices[index])

    def _scene(self, index: int) -> Scene:
        return scene(self.seed, self.split, self._indices[index])


class ShapesColours(Shapes):
    """The same images; the label is the main object's colour, and masks name colours."""

    name = "shapes_colours"
    class_names = COLORS
    mask_names = ("background", *COLORS)
    _kind = ("shapes_colours",)

    @cached_property
    def labels(self) -> np.ndarray:
        mains = [self._scene(i).objects[0] for i in range(len(self))]
        return np.array([COLORS.index(main.color) for main in mains], np.int64)

    def mask(self, index: int) -> np.ndarray:
        # no two objects of a scene have the same shape, so a shape tells its colour there
        values = np.zeros(len(self.mask_names), np.uint8)
        for item in self._scene(index).objects:
            values[MASK_VALUES[item.shape]] = 1 + COLORS.index(item.color)
        return values[self._drawn(index)[1]]


@kept
def _rendered(size: int, seed: int, split: str, index: int) -> Drawn:
    return render(scene(seed, split, index), size)
