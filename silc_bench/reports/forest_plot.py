"""A forest plot: a line for each difference and its 95 % interval, against zero (no torch).

``draw(rows, title, path)`` -> PNG, drawn with Pillow. Numbers in, image out: what is drawn is
computed elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from silc_bench.system.files import atomic_path

ROW, MARGIN, GAP = 26, 20, 18  # pixels
PLOT, DOT = 460, 4  # pixels
SCALE = 2  # drawn this much larger, for dense screens
INK, FAINT, PAPER = (32, 33, 36), (218, 220, 224), (255, 255, 255)
# Okabe and Ito's, which colour-blind readers can tell apart, and grey
TONES = {
    "better": (0, 114, 178),
    "worse": (213, 94, 0),
    "no difference": (120, 120, 120),
}


@dataclass(frozen=True)
class Row:
    """A difference in points with half its interval; a heading has no value."""

    label: str
    value: float | None = None
    margin: float = 0.0
    tone: str = "no difference"
    note: str = ""  # right of the plot


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """A PNG of all ``rows`` from top to bottom, written whole or not at all."""
    # labels, then the plot, then notes; the width follows from the longest of each
    font = ImageFont.load_default(13 * SCALE)
    label_width = max(font.getlength(row.label) for row in rows) / SCALE
    note_width = max(font.getlength(row.note) for row in rows) / SCALE
    left = MARGIN + label_width + GAP
    width = max(left + PLOT + GAP + note_width, MARGIN + font.getlength(title) / SCALE) + MARGIN

    top = MARGIN + ROW
    bottom = top + ROW * len(rows)
    size = (math.ceil(width * SCALE), math.ceil((bottom + ROW + MARGIN) * SCALE))
    sheet = Image.new("RGB", size, PAPER)
    pen = _Pen(ImageDraw.Draw(sheet), font)
    low, high = _range(rows)

    def x(points: float) -> float:
        return left + PLOT * (points - low) / (high - low)

    pen.text(MARGIN, MARGIN + ROW / 2, title, "lm")
    for tick in _ticks(low, high):
        pen.line((x(tick), top, x(tick), bottom), FAINT if tick else INK)
        pen.text(x(tick), bottom + ROW / 2, f"{tick:+g}" if tick else "0", "mm")

    for index, row in enumerate(rows):
        y = top + ROW * (index + 0.5)
        pen.text(MARGIN, y, row.label, "lm")
        if row.value is None:
            continue
        tone = TONES[row.tone]
        pen.line((x(row.value - row.margin), y, x(row.value + row.margin), y), tone, 2)
        pen.dot(x(row.value), y, tone)
        pen.text(left + PLOT + GAP, y, row.note, "lm")

    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


class _Pen:
    """Draws in the units of the layout."""

    def __init__(
        self, on: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    ) -> None:
        self._on = on
        self._font = font

    def text(self, x: float, y: float, words: str, anchor: str) -> None:
        self._on.text((x * SCALE, y * SCALE), words, INK, self._font, anchor=anchor)

    def line(
        self, ends: tuple[float, float, float, float], color: tuple[int, int, int], width: int = 1
    ) -> None:
        self._on.line([end * SCALE for end in ends], color, width * SCALE)

    def dot(self, x: float, y: float, color: tuple[int, int, int]) -> None:
        ends = (x - DOT, y - DOT, x + DOT, y + DOT)
        self._on.ellipse([end * SCALE for end in ends], color)


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    """Every interval and zero, with some room."""
    ends = [0.0]
    for row in rows:
        if row.value is not None:
            ends += [row.value - row.margin, row.value + row.margin]

    # all equal to zero still needs a width
    room = 0.06 * ((max(ends) - min(ends)) or 1.0)
    return min(ends) - room, max(ends) + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))

    # the smallest step of 1, 2 or 5 times a power of ten that gives five ticks or fewer
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
