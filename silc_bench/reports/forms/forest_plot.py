"""A forest plot: a line for each difference and its 95 % interval, against zero (no torch).

``draw(rows, title, path)`` -> PNG. Numbers in, image out: what is drawn is computed elsewhere.

Drawn with Pillow, which decodes our images anyway: matplotlib would be a dependency for this one
drawing, and its bytes change with its version. The leaderboard's page has the same axis in SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from silc_bench.reports.tables import axis
from silc_bench.system.files import atomic_path

# pixels, for dense screens
FONT_SIZE, ROW, MARGIN, GAP = 26, 52, 40, 36
PLOT, DOT, THIN, THICK = 920, 8, 2, 4
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
    font = ImageFont.load_default(FONT_SIZE)
    left = MARGIN + max(font.getlength(row.label) for row in rows) + GAP
    right = left + PLOT
    note_end = right + GAP + max(font.getlength(row.note) for row in rows)
    width = max(note_end, MARGIN + font.getlength(title)) + MARGIN

    top = MARGIN + ROW
    bottom = top + ROW * len(rows)
    sheet = Image.new("RGB", (math.ceil(width), bottom + ROW + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    ends: list[float] = []
    for row in rows:
        if row.value is not None:
            ends += [row.value - row.margin, row.value + row.margin]
    low, high, ticks = axis(ends, most_ticks=5)

    def x(points: float) -> float:
        return left + PLOT * (points - low) / (high - low)

    def write(x: float, y: float, text: str, anchor: str) -> None:
        pen.text((x, y), text, INK, font, anchor=anchor)

    write(MARGIN, MARGIN + ROW / 2, title, "lm")
    for tick, label in ticks:
        pen.line((x(tick), top, x(tick), bottom), FAINT if tick else INK, THIN)
        write(x(tick), bottom + ROW / 2, label, "mm")

    for index, row in enumerate(rows):
        y = top + ROW * (index + 0.5)
        write(MARGIN, y, row.label, "lm")
        if row.value is not None:
            tone = TONES[row.tone]
            pen.line((x(row.value - row.margin), y, x(row.value + row.margin), y), tone, THICK)
            pen.circle((x(row.value), y), DOT, tone)
            write(right + GAP, y, row.note, "lm")

    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
