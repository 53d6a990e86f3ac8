"""Draws the scenes of ``places`` with numpy.

Flow: sky and ground, divided by the horizon -> each thing inside its own bounding box, the main
one last -> grain -> uint8 image and labels. Outlines are signed distances: edges are anti-aliased.
Arrays are planar ([3, H, W] float32) until the last line, because numpy's inner loop over three
channels is slow.
"""

from __future__ import annotations

import math

from silc_bench.datasets.generated.places.scenes import (
    COLORS,
    GROUND_NAMES,
    GROUNDS,
    KIND_NAMES,
    KINDS,
    PLACES,
    SKIES,
    SKY_NAMES,
    Item,
    Layer,
    Part,
    Scene,
)
from silc_bench.datasets.generated.textures import Plane, pixel_centres, texture
from silc_bench.errors import UserError
from silc_bench.later import np

# every pixel has one of these labels: a thing, a ground or a sky
LABELS = (*KIND_NAMES, *GROUND_NAMES, *SKY_NAMES)
VALUES = {name: value for value, name in enumerate(LABELS)}
GROUND_CONTRAST = 24.0  # grey levels between the two sides of a texture
SKY_CONTRAST = 20.0
GRAIN = 9.0  # grey levels either side: the noise of a camera
REACH = 1.25  # no outline is farther from its centre, in radii
DIAGONAL = math.sqrt(0.5)
SMALLEST = 16  # pixels a side, below which textures cannot be told apart


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The image [size, size, 3] uint8 and its labels [size, size] uint8, indices of LABELS.

    Raises:
        UserError: a size below 16 pixels.
    """
    if size < SMALLEST:
        raise UserError(
            f"textures cannot be told apart in {size} pixels a side",
            about="places",
            fix=f"draw at least {SMALLEST} pixels",
        )
    centres = pixel_centres(size)
    canvas, labels = _draw_place(scene, centres)
    for item in reversed(scene.items):
        _draw_item(canvas, labels, item, centres)
    canvas += _grain(scene.grain, size)

    # + 0.5: the cast cuts off, and we want the nearest level
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0)), labels


def _draw_place(scene: Scene, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = len(centres)
    place = PLACES[scene.place]
    x, y = centres[None, :], centres[:, None]

    # the share of each pixel that is ground: the horizon is one pixel wide
    edge = np.float32(scene.horizon) + np.float32(scene.tilt) * (x - np.float32(0.5))
    below = np.clip((y - edge) * size + np.float32(0.5), 0, 1)

    sky = _layer(scene.sky, SKIES[place.sky].texture, SKY_CONTRAST, x, y, size)
    ground = _layer(scene.ground, GROUNDS[place.ground].texture, GROUND_CONTRAST, x, y, size)
    canvas = sky + (ground - sky) * below
    labels = np.where(below >= 0.5, VALUES[place.ground], VALUES[place.sky]).astype(np.uint8)
    return np.ascontiguousarray(canvas), labels


def _layer(layer: Layer, name: str, contrast: float, x: Plane, y: Plane, size: int) -> np.ndarray:
    """[3, S, S]: the tone, with its texture either side of it."""
    a = x / np.float32(layer.cell) + np.float32(layer.phase[0])
    b = y / np.float32(layer.cell) + np.float32(layer.phase[1])
    field = np.float32(contrast) * (_texture(name, a, b, layer.cell * size) - np.float32(0.5))
    tone = np.array(layer.tone, np.float32) + np.float32(layer.level)
    return field + tone[:, None, None]


def _draw_item(canvas: np.ndarray, labels: np.ndarray, item: Item, centres: np.ndarray) -> None:
    """Blend one thing into the canvas, and write its label where it covers half a pixel or more."""
    size = len(centres)
    reach = REACH * item.radius + 1 / size
    rows = slice(max(0, int((item.cy - reach) * size)), int((item.cy + reach) * size) + 1)
    columns = slice(max(0, int((item.cx - reach) * size)), int((item.cx + reach) * size) + 1)

    # positions in radii from its centre; a thing leans as a deck of cards does
    v = ((centres[rows] - np.float32(item.cy)) / np.float32(item.radius))[:, None]
    u = ((centres[columns] - np.float32(item.cx)) / np.float32(item.radius))[None, :]
    u = u + np.float32(item.slope) * v
    if item.is_flipped:
        u = -u

    kind = KINDS[item.kind]
    box, box_labels = canvas[:, rows, columns], labels[rows, columns]
    body = _body(kind.outline, u / np.float32(item.aspect), v)
    top = _top(kind.is_leaning, u, v)
    for part, name, distance in ((item.body, kind.body, body), (item.top, kind.top, top)):
        cover = np.clip(np.float32(0.5) - distance * np.float32(0.5 * item.radius * size), 0, 1)
        box += (_paint(part, name, u, v, item.radius, size) - box) * cover
        box_labels[cover >= 0.5] = VALUES[item.kind]


def _body(outline: str, u: Plane, v: Plane) -> Plane:
    """Below the middle; negative inside, 0 at the edge, about 1 a radius away."""
    if outline == "block":
        return np.maximum(np.abs(u) / 0.8, np.abs(v - 0.35) / 0.55) - 1
    if outline == "column":
        return np.maximum(np.abs(u) / 0.55, np.abs(v - 0.2) / 0.78) - 1
    assert outline == "oval", outline
    return np.sqrt((u / 0.9) ** 2 + ((v - 0.3) / 0.62) ** 2) - 1


def _top(is_leaning: bool, u: Plane, v: Plane) -> Plane:
    x, y = (0.45, -0.35) if is_leaning else (0.0, -0.5)
    return np.sqrt(((u - x) / 0.48) ** 2 + ((v - y) / 0.5) ** 2) - 1


def _paint(part: Part, name: str, u: Plane, v: Plane, radius: float, size: int) -> np.ndarray:
    """[3, h, w]: the colour, and where the texture is a much darker or lighter one."""
    first = np.array(COLORS[part.color], np.float32) * np.float32(part.shade)
    first = (first + np.array(part.tint, np.float32))[:, None, None]
    second = first * np.float32(0.35) if first.sum() > 240 else first + np.float32(130)
    if name == "plain":
        return first

    cells = np.float32(radius / part.cell)
    a = cells * u + np.float32(part.phase[0])
    b = cells * v + np.float32(part.phase[1])
    return first + (second - first) * _texture(name, a, b, part.cell * size)


def _texture(name: str, a: Plane, b: Plane, cell: float) -> Plane:
    """Where the second tone shows, 0..1.

    ``a`` and ``b`` count cells; a cell is ``cell`` pixels.
    """
    if name == "plain":
        return np.zeros((1, 1), np.float32)
    if name == "checks":
        larger = np.float32(0.75)
        return texture("checkered", larger * a, larger * b, cell / 0.75)
    if name == "dots":
        return texture("dotted", a, b, cell)

    # what the stripes run across
    diagonal = np.float32(DIAGONAL)
    across = {
        "columns": lambda: a,
        "rows": lambda: b,
        "rising": lambda: (a + b) * diagonal,
        "falling": lambda: (a - b) * diagonal,
    }
    return texture("striped", across[name](), b, cell)


def _grain(key: int, size: int) -> np.ndarray:
    """[3, S, S] in +-GRAIN, alike at every value."""
    count = 3 * size * size
    words = np.random.Philox(key=key).random_raw(-(-count // 8)).astype("<u8").view(np.uint8)
    noise = words[:count].reshape(3, size, size).astype(np.float32)
    return noise * np.float32(2 * GRAIN / 255) - np.float32(GRAIN)
