"""Draws the scenes of ``shapes`` with numpy.

Every outline is a signed distance, so each edge is anti-aliased.

Flow: background field -> each item inside its own bounding box, the main one last -> uint8 image
and mask. The tables here are also the vocabulary: what can be drawn can be named. Arrays are
planar ([3, H, W] float32) until the last line, because numpy's inner loop over three channels is
slow. Units: u and v are in radii of the item, distances in the same unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from silc_bench.datasets.generated.shapes.scenes import PAINT, REACH, TONES
from silc_bench.datasets.generated.textures import Plane, pixel_centres, texture
from silc_bench.later import np

if TYPE_CHECKING:
    from silc_bench.datasets.generated.shapes.scenes import Background, Item, Scene

BACKGROUND_CONTRAST = 20.0  # grey levels either side of the tone
ITEM_CELL = 0.1  # period of an item's texture, in image sides: 6.4 pixels at 64

# random values a side, enlarged to the image: speckles keep their size at any resolution
NOISE_GRID = 16


def _circle(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v) - 0.88


def _square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.76


def _triangle(u: Plane, v: Plane) -> Plane:
    slope = math.hypot(0.9, 1.62)  # apex (0, -1), base corners (+-0.9, 0.62)
    return np.maximum((1.62 / slope) * np.abs(u) - (0.9 / slope) * (v + 1), v - 0.62)


def _star(u: Plane, v: Plane, inner: float = 0.5) -> Plane:
    """Five points; ``inner`` is the radius between two of them."""
    # fold the plane into one half-point of 36 degrees, where the outline is one straight edge
    sin, cos = math.sin(math.pi / 5), math.cos(math.pi / 5)
    x, y = np.abs(u), -v
    for side in (cos, -cos):
        over = np.maximum(side * x - sin * y, 0) * 2
        x, y = x - side * over, y + sin * over

    # that edge runs from the tip (0, 1) to the inner corner
    normal = 1 - inner * cos, inner * sin
    return (normal[0] * np.abs(x) + normal[1] * (y - 1)) / math.hypot(*normal)


def _cross(u: Plane, v: Plane) -> Plane:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(a, b) - 0.3, np.maximum(a, b) - 0.95)


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - 0.69) - 0.24


def _heart(u: Plane, v: Plane, half: float = 0.8) -> Plane:
    """A square on its corner with a half disc on each upper side."""
    # moved down a little, so that the heart reaches as far up as down
    a, b = np.abs(u), v - 0.083
    disc = np.sqrt((a - half / 2) ** 2 + (b + half / 2) ** 2) - half * math.sqrt(0.5)
    return np.minimum(disc, (a + np.abs(b) - half) * math.sqrt(0.5))


def _crescent(u: Plane, v: Plane) -> Plane:
    squared = v * v
    disc = np.sqrt(u * u + squared) - 0.95
    bite = 0.65 - np.sqrt((u - 0.45) ** 2 + squared)
    return np.maximum(disc, bite)


# signed distance to the outline, negative inside; the order gives the mask values
OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
}
MASK_VALUES = {shape: value for value, shape in enumerate(OUTLINES, start=1)}


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The image [size, size, 3] uint8 and its mask [size, size] uint8.

    Mask values: 0 is background, 1..8 are the shapes in order.

    Raises:
        ValueError: a size below 16 pixels, where the shapes cannot be told apart.
    """
    if size < 16:
        raise ValueError(f"an image of shapes needs at least 16 pixels a side, not {size}")

    # the main object comes first in the scene and is drawn last, on top of the others
    centres = pixel_centres(size)
    canvas = _draw_background(scene.background, centres)
    mask = np.zeros((size, size), np.uint8)
    for item in reversed(scene.objects):
        _draw_item(canvas, mask, item, centres)

    # + 0.5: the cast cuts off, and we want the nearest level
    image = (canvas + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0)), mask


def _draw_background(background: Background, centres: np.ndarray) -> np.ndarray:
    """[3, S, S]: the tone, and a field in [-1, 1] of small contrast around it."""
    size = len(centres)
    field = _background_field(background, centres)
    tone = np.array(TONES[background.tone], np.float32) + np.float32(background.level)

    # a plain field is [1, 1]: the addition spreads it over the canvas
    canvas = np.empty((3, size, size), np.float32)
    np.add((BACKGROUND_CONTRAST * field), tone[:, None, None], out=canvas)
    return canvas


def _background_field(background: Background, centres: np.ndarray) -> Plane:
    """[S, S] in [-1, 1], or [1, 1] where it is the same everywhere."""
    if background.texture == "plain":
        return np.zeros((1, 1), np.float32)
    if background.texture == "speckled":
        return _speckles(background.noise, len(centres))

    # turned about the middle of the image
    angle = math.radians(background.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    x = centres[None, :] - np.float32(0.5)
    y = centres[:, None] - np.float32(0.5)
    if background.texture == "shaded":
        return (1.6 * cos) * x + (1.6 * sin) * y

    # a and b count cells of the texture
    a = (cos / background.cell) * x + (sin / background.cell) * y
    b = (cos / background.cell) * y - (sin / background.cell) * x
    return 2 * texture(background.texture, a, b, background.cell * len(centres)) - 1


def _speckles(noise: int, size: int) -> Plane:
    # eight bytes a word, little-endian, so that the grid is the same on every machine
    raw = np.random.Philox(key=noise).random_raw(NOISE_GRID**2 // 8).astype("<u8").view(np.uint8)
    grid = Image.fromarray(raw.reshape(NOISE_GRID, NOISE_GRID))
    enlarged = grid.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float32) / np.float32(127.5) - 1


def _draw_item(canvas: np.ndarray, mask: np.ndarray, item: Item, centres: np.ndarray) -> None:
    """Blend one item into the canvas and write its mask where it covers half a pixel or more."""
    # its bounding box: the rest of the canvas is not touched
    size = len(centres)
    reach = REACH * item.radius + 1 / size
    rows = slice(max(0, int((item.cy - reach) * size)), int((item.cy + reach) * size) + 1)
    columns = slice(max(0, int((item.cx - reach) * size)), int((item.cx + reach) * size) + 1)

    # positions in radii from the item's centre, turned by its angle
    x = ((centres[columns] - np.float32(item.cx)) / np.float32(item.radius))[None, :]
    y = ((centres[rows] - np.float32(item.cy)) / np.float32(item.radius))[:, None]
    angle = math.radians(item.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x

    # the share of each pixel that the item covers: the edge is one pixel wide
    cover = np.clip(0.5 - OUTLINES[item.shape](u, v) * (item.radius * size), 0, 1)

    first, second = (
        np.array(paint, np.float32)[:, None, None] * np.float32(item.shade)
        for paint in PAINT[item.color]
    )
    paint = first
    if item.texture != "plain":
        cells = item.radius / ITEM_CELL
        share = texture(item.texture, cells * u, cells * v, ITEM_CELL * size)
        paint = first + (second - first) * share

    box = canvas[:, rows, columns]
    box += (paint - box) * cover
    mask[rows, columns][cover >= 0.5] = MASK_VALUES[item.shape]
