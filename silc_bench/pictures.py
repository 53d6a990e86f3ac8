"""Draws dense features: zero-shot masks beside the truth, and the first principal components of the patch features.

Flow: ``pca_colors`` (features -> colours) and ``class_colors`` (masks -> colours) -> ``figure`` (a grid of them) -> PNG.
Arrays in, picture out: what is drawn is computed elsewhere.

Shapes: N pictures, h x w patches, D embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from silc_bench.atomic import atomic_path
from silc_bench.datasets import IGNORE

CELL, GAP, HEADER, LEGEND, MARGIN = 128, 8, 40, 32, 16  # pixels
INK, PAPER = (32, 33, 36), (255, 255, 255)
# Okabe and Ito's eight colours, told apart with any colour vision; black is replaced by grey
PALETTE = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167), (120, 120, 120)),
)
FADED = 0.25  # strength of a colour where nothing is scored


def class_colors(prediction: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """[H, W] class indices and [H, W] bool -> [H, W, 3] uint8; pixels that are not scored are faded."""
    if (prediction[prediction != IGNORE] >= len(PALETTE)).any():
        raise ValueError(f"{len(PALETTE)} colours cannot tell more classes apart")
    colors = np.array(PALETTE, float)[np.where(prediction == IGNORE, 0, prediction)]
    strength = np.where(scored, 1.0, FADED) * (prediction != IGNORE)
    return np.rint(colors * strength[..., None] + 255.0 * (1 - strength[..., None])).astype(np.uint8)


def pca_colors(features: np.ndarray) -> np.ndarray:
    """[N, h, w, D] -> [N, h, w, 3] uint8: three principal components over all N pictures as red, green and blue.

    Each component is stretched between its 2nd and 98th percentile. Signs are fixed by the largest loading, so that
    equal features give equal colours.
    """
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    top = vectors[:, :-4:-1]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), range(3)])
    parts = flat @ top
    low, high = np.percentile(parts, (2, 98), axis=0)
    stretched = np.clip((parts - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * stretched).astype(np.uint8).reshape(*features.shape[:-1], 3)


def figure(headers: Sequence[str], rows: Sequence[Sequence[np.ndarray]], legend: Sequence[str], path: Path) -> None:
    """A grid of pictures (uint8 [H, W, 3], any size) under their headers, class names in their colours below -> PNG."""
    assert all(len(row) == len(headers) for row in rows), "a row has a cell for each header"
    width = 2 * MARGIN + len(headers) * (CELL + GAP) - GAP
    height = 2 * MARGIN + HEADER + len(rows) * (CELL + GAP) + LEGEND
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, header in enumerate(headers):
        left = MARGIN + column * (CELL + GAP)
        draw.multiline_text((left + CELL / 2, MARGIN), header, INK, font, anchor="ma", align="center", spacing=3)
        for row, cells in enumerate(rows):
            cell = Image.fromarray(cells[column])
            # patches are enlarged smoothly, pictures and masks stay as they are
            filter_ = Image.Resampling.BICUBIC if cell.width < CELL // 4 else Image.Resampling.NEAREST
            sheet.paste(cell.resize((CELL, CELL), filter_), (left, MARGIN + HEADER + row * (CELL + GAP)))
    step = (width - 2 * MARGIN) / max(1, len(legend))
    middle = height - MARGIN - LEGEND // 2
    for index, name in enumerate(legend):
        left = MARGIN + round(index * step)
        draw.rectangle((left, middle - 7, left + 14, middle + 7), PALETTE[index])
        draw.text((left + 20, middle), name, INK, font, anchor="lm")
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
