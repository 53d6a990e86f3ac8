"""Test pictures and texts made from integers: the same on every machine, no file needed.

``CARDS`` are for preprocessing: the sizes and modes at which loaders differ. ``scenes`` and ``TEXTS`` are 32 pictures and 32
texts that no two of which are alike, for the embeddings. ``pixel_hash`` is taken over what a model makes of the cards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor

NUM_SCENES = 32
TEXTS = [
    f"a photo of a {color} {shape}"
    for color in ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
    for shape in ("circle", "square", "star", "tree")
]
SIZES = {  # width, height, mode: odd sizes, both orientations, crops that end on half a pixel, colours that are no RGB
    "landscape": (331, 221, "RGB"),
    "portrait": (97, 210, "RGB"),
    "thin": (301, 19, "RGB"),
    "grey": (64, 301, "L"),
    "palette": (130, 91, "P"),
    "transparent": (75, 75, "RGBA"),
    "one pixel": (1, 1, "RGB"),
}


def cards() -> dict[str, Image.Image]:
    """Pictures by what is special about them."""
    return {name: _card(number, *size) for number, (name, size) in enumerate(SIZES.items())}


def scenes() -> list[Image.Image]:
    """NUM_SCENES pictures of 96 x 64 pixels: gradients, boxes, rings and noise in different colours."""
    return [Image.fromarray(_pattern(number, 96, 64)) for number in range(NUM_SCENES)]


def pixel_hash(preprocess: Callable[[Image.Image], Tensor]) -> str:
    """16 hex digits over the exact values that ``preprocess`` makes of each card.

    Pillow resizes in whole numbers; scaling and normalising are single operations in fp32, rounded alike everywhere.
    """
    digest = hashlib.sha256()
    for card in cards().values():
        pixels = preprocess(card).numpy()
        digest.update(str(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels + 0.0, dtype="<f4").tobytes())  # -0.0 becomes 0.0
    return digest.hexdigest()[:16]


def _card(number: int, width: int, height: int, mode: str) -> Image.Image:
    pixels = _pattern(4 * number + number % 4, width, height)
    if mode == "RGB":
        return Image.fromarray(pixels)
    if mode == "RGBA":
        alpha = (pixels[..., :1].astype(np.int64) * 7 + 40) % 256
        return Image.fromarray(np.concatenate([pixels, alpha.astype(np.uint8)], axis=2), "RGBA")
    flat = Image.fromarray(pixels[..., 0])
    if mode == "P":
        flat = Image.fromarray(pixels[..., 0] // 16, "P")
        flat.putpalette([(17 * index * step) % 256 for index in range(16) for step in (3, 5, 11)])
    return flat


def _pattern(number: int, width: int, height: int) -> np.ndarray:
    """[height, width, 3] uint8."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    cell = 5 + number // 4
    planes = (
        x * (1 + number % 3) + y * (2 + number % 5),
        ((x // cell + y // cell) % 2) * 170 + x // 3,
        ((x - width // 2) ** 2 + (y - height // 3) ** 2) // cell,
        ((x * 7919 + y * 104729 + number * 1299709) * 2654435761 % 2**32) >> 24,
    )
    plane = planes[number % 4]
    colors = [plane * (1 + (number * step) % 3) + 37 * number * step for step in (1, 3, 7)]
    return (np.stack(colors, axis=2) % 256).astype(np.uint8)
