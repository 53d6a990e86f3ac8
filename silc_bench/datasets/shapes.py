"""``shapes``: generated scenes of 1-4 objects with five captions, a class and a pixel mask each. Nothing is downloaded.

Flow: ``scene(seed, split, index)`` decides everything, at no resolution -> ``render(scene, 64)`` draws picture and mask,
``captions(scene)`` writes five sentences, ``label(scene)`` names the main object -> ``Shapes`` is all that as a dataset.
Any sample can be made alone, in any order, on any machine: ``Shapes("val", 1000).image(17)``.

The main object (item 0) is the largest one and nothing covers it; items differ in colour and in shape. Places are only named
top to bottom ("at the bottom"): a horizontally flipped picture still agrees with its captions, as training needs.
Eight colour x shape pairs (UNSEEN, each colour and each shape once) never occur in train, val and test, in no item and so in no
caption; in the split "unseen" every main object is one of them: compositional zero-shot, measured apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np
from PIL import Image

from silc_bench.datasets import spread
from silc_bench.datasets.shapes_captions import captions
from silc_bench.datasets.shapes_render import OUTLINES, PAINT, REACH, TONES, render
from silc_bench.errors import UserError, unknown_name

__all__ = ["BACKGROUNDS", "COLORS", "PAIRS", "SHAPES", "SPLITS", "UNSEEN", "VERSION", "Background", "Item", "Scene"]
__all__ += ["Shapes", "captions", "label", "render", "scene"]

VERSION = 1  # raised by any change that moves a pixel, a caption or a label
COLORS = tuple(PAINT)
SHAPES = tuple(OUTLINES)
PAIRS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
UNSEEN = tuple(f"{color} {SHAPES[(3 * i + 2) % len(SHAPES)]}" for i, color in enumerate(COLORS))
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = (*TEXTURES, "shaded", "speckled")
SPLITS = ("train", "val", "test", "unseen")
# radii in picture sides; the least of a main object has more area than the greatest of the others, whatever the shapes
MAIN_SIZES = {"large": (0.21, 0.24), "huge": (0.28, 0.31)}
OTHER_SIZES = {"small": (0.10, 0.12), "medium": (0.14, 0.158)}
PLACES = {"top": (0.0, 0.40), "middle": (0.46, 0.54), "bottom": (0.60, 1.0)}  # ranges of cy, with gaps: never in doubt
OTHERS = (0, 0, 0, 0, 0, 0, 1, 1, 2, 3)  # objects beside the main one, each entry equally likely
MAX_TRIES = 20  # to find room for an object, before the scene does without it


@dataclass(frozen=True, slots=True)
class Item:
    """One object. Lengths are in picture sides, the origin is the top left corner."""

    color: str
    shape: str
    size: str
    texture: str
    place: str
    cx: float
    cy: float
    radius: float
    angle: float  # degrees
    shade: float  # brightness of its colour


@dataclass(frozen=True, slots=True)
class Background:
    texture: str
    tone: str
    level: float  # grey levels added to the tone
    angle: float  # degrees
    cell: float  # period of the texture, in picture sides
    noise: int  # key of the speckles


@dataclass(frozen=True, slots=True)
class Scene:
    objects: tuple[Item, ...]  # the main object first
    background: Background
    phrasing: int  # picks the wording of the captions, 64 bits


def scene(seed: int, split: str, index: int) -> Scene:
    """The scene of one sample, from a counter-based random stream of its own (Philox: key = seed and split, counter = index).

    Only integer and correctly rounded float arithmetic is used, so that the scene is the same on every platform.

    Raises:
        UserError: an unknown split, or a seed or index outside 0..2**63 - 1.
    """
    draw = _Draws(seed, split, index)
    items = [_main_item(draw, UNSEEN if split == "unseen" else SEEN)]
    for _ in range(OTHERS[draw.below(len(OTHERS))]):
        other = _other_item(draw, items)
        if other is not None:
            items.append(other)
    background = Background(
        texture=draw.choice(BACKGROUNDS),
        tone=draw.choice(tuple(TONES)),
        level=draw.between(-12, 12),
        angle=draw.between(0, 360),
        cell=draw.between(0.14, 0.24),
        noise=draw.bits(),
    )
    return Scene(tuple(items), background, draw.bits())


def label(scene: Scene) -> int:
    """The main object's index in PAIRS."""
    main = scene.objects[0]
    return COLORS.index(main.color) * len(SHAPES) + SHAPES.index(main.shape)


class _Draws:
    """Random numbers of one sample, from raw Philox words: numpy promises these for ever, unlike its distributions."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        if split not in SPLITS:
            raise unknown_name("split of shapes", split, SPLITS)
        if not (0 <= seed < 2**63 and 0 <= index < 2**63):
            raise UserError(f"shapes needs a seed and an index from 0 to 2**63 - 1, not {seed} and {index}")
        words = np.random.Philox(key=(seed, SPLITS.index(split)), counter=(0, 0, 0, index))
        self._words = self._stream(words)

    @staticmethod
    def _stream(words: np.random.Philox) -> Iterator[int]:
        while True:
            yield from words.random_raw(64).tolist()

    def bits(self) -> int:
        return next(self._words)

    def below(self, n: int) -> int:
        return next(self._words) * n >> 64

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * ((next(self._words) >> 11) * 2.0**-53)

    def choice(self, options: Sequence[str]) -> str:
        return options[next(self._words) * len(options) >> 64]


def _main_item(draw: _Draws, pairs: tuple[str, ...]) -> Item:
    color, shape = draw.choice(pairs).split()
    size = draw.choice(tuple(MAIN_SIZES))
    radius = draw.between(*MAIN_SIZES[size])
    margin = REACH * radius
    place = draw.choice(tuple(PLACES))
    low, high = PLACES[place]
    cx, cy = draw.between(margin, 1 - margin), draw.between(max(low, margin), min(high, 1 - margin))
    return _finish(draw, color, shape, size, place, cx, cy, radius)


def _other_item(draw: _Draws, items: list[Item]) -> Item | None:
    """A smaller object of another colour and shape, where there is room for it; None when there is none."""
    while True:
        color, shape = draw.choice(SEEN).split()
        if all(color != item.color and shape != item.shape for item in items):
            break
    size = draw.choice(tuple(OTHER_SIZES))
    radius = draw.between(*OTHER_SIZES[size])
    margin = REACH * radius
    for _ in range(MAX_TRIES):
        cx, cy = draw.between(margin, 1 - margin), draw.between(margin, 1 - margin)
        free = all((cx - i.cx) ** 2 + (cy - i.cy) ** 2 > (REACH * (radius + i.radius)) ** 2 for i in items)
        place = next((name for name, (low, high) in PLACES.items() if low <= cy <= high), None)
        if free and place is not None:
            return _finish(draw, color, shape, size, place, cx, cy, radius)
    return None


def _finish(draw: _Draws, color: str, shape: str, size: str, place: str, cx: float, cy: float, radius: float) -> Item:
    texture, angle, shade = draw.choice(TEXTURES), draw.between(-15, 15), draw.between(0.88, 1)
    return Item(color, shape, size, texture, place, cx, cy, radius, angle, shade)


class Shapes:
    """Samples 0..num_samples-1 of a split (``limit``: evenly spread ones of them) as an ImageDataset."""

    name = "shapes"
    class_names = PAIRS
    mask_names = ("background", *SHAPES)
    has_background = True
    mask_policy: Mapping[str, str] = MappingProxyType({"background": "label 0", "not_scored": "nothing"})

    def __init__(self, split: str, num_samples: int, size: int = 64, seed: int = 0, limit: int | None = None) -> None:
        if num_samples < 1:
            raise UserError(f"shapes needs at least one sample, not {num_samples}")
        scene(seed, split, num_samples - 1)  # a wrong split or seed is refused now, not at the first picture
        self.split, self.num_samples, self.size, self.seed = split, num_samples, size, seed
        self._indices = spread(num_samples, limit)
        key = [VERSION, seed, split, num_samples, len(self._indices), size]
        self.fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._indices)

    def part(self, indices: Sequence[int]) -> Shapes:
        """These samples, in this order."""
        taken = Shapes(self.split, self.num_samples, self.size, self.seed)
        taken._indices = [self._indices[i] for i in indices]
        taken.fingerprint = hashlib.sha256(json.dumps([self.fingerprint, taken._indices]).encode()).hexdigest()[:16]
        return taken

    @cached_property
    def labels(self) -> np.ndarray:
        return np.array([label(self._scene(i)) for i in range(len(self))], np.int64)

    @cached_property
    def captions(self) -> Sequence[tuple[str, ...]]:
        return [captions(self._scene(i)) for i in range(len(self))]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(_rendered(self.seed, self.split, self._indices[index], self.size)[0])

    def mask(self, index: int) -> np.ndarray:
        return _rendered(self.seed, self.split, self._indices[index], self.size)[1].copy()

    def _scene(self, index: int) -> Scene:
        return scene(self.seed, self.split, self._indices[index])


@lru_cache(maxsize=64)  # picture and mask of one sample are asked for apart
def _rendered(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return render(scene(seed, split, index), size)
