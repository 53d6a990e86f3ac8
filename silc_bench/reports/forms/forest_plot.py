"""A forest plot: a line for each difference and its 95 % interval, against zero (no torch).

``draw(rows, title, path)`` -> PNG, SVG or PDF, as the path ends. Numbers in, image out: what is
drawn is computed elsewhere, and equal rows give equal bytes.

The layout is one, and a pen for each kind of file draws it. PNG is drawn with Pillow, which decodes
our images anyway: matplotlib would be a dependency for this one drawing, and its bytes change with
its version. For a paper take the PDF (fpdf2 writes it and embeds the font) or the SVG. The font of
PNG and PDF is the one inside Pillow, which has the letters of ASCII: others are written as <U+6A21>
there, and as they are in the SVG.
"""

from __future__ import annotations

import html
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

from silc_bench.reports.tables import axis
from silc_bench.system.files import atomic_path
from silc_bench.system.terminal_table import short_names, shortened, visible, width_of, written_out

# pixels, for dense screens
FONT_SIZE, ROW, MARGIN, GAP = 26, 52, 40, 36
PLOT, DOT, THIN, THICK = 920, 8, 2, 4
MOST_LETTERS = 64  # of a label; longer ones lose their middle
INK, FAINT, PAPER = (32, 33, 36), (218, 220, 224), (255, 255, 255)
# Okabe and Ito's, which colour-blind readers can tell apart, and grey
TONES = {
    "better": (0, 114, 178),
    "worse": (213, 94, 0),
    "no difference": (120, 120, 120),
}
POINTS = 0.5  # of a PDF to a pixel: text of 13 points, to be scaled with the figure
IN_FONT = frozenset(map(chr, range(32, 127))) | {"±", "…"}
# A PDF states when it was made; a fixed day lets equal rows give equal bytes.
SOME_DAY = datetime(2000, 1, 1, tzinfo=UTC)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """A difference in points with half its interval; a heading has no value."""

    label: str
    value: float | None = None
    margin: float = 0.0
    tone: str = "no difference"
    note: str = ""  # right of the plot


class Pen(Protocol):
    """Draws on one sheet; places and widths are pixels from the upper left corner."""

    def line(self, ends: tuple[float, float, float, float], color: Color, width: int) -> None: ...

    def dot(self, x: float, y: float, color: Color) -> None: ...

    def text(self, x: float, y: float, text: str, is_centred: bool = False) -> None:
        """``y`` is the middle of the line of text, ``x`` its beginning or its middle."""

    def save(self, path: Path) -> None: ...


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """An image of all ``rows`` from top to bottom, written whole or not at all.

    Raises:
        ModuleNotFoundError: a PDF is asked for, and fpdf2 is not installed.
    """
    kind = Path(path).suffix
    spelled = written_out if kind == ".svg" else _in_font

    # labels, then the plot, then notes; the width follows from the longest of each
    labels = [spelled(row.label) for row in rows]
    shorts = short_names(labels, MOST_LETTERS)
    labels = [shorts[label] for label in labels]
    title = shortened(spelled(title), 2 * MOST_LETTERS)
    left = MARGIN + max(map(_length, labels)) + GAP
    right = left + PLOT
    note_end = right + GAP + max(_length(row.note) for row in rows)
    width = max(note_end, MARGIN + _length(title)) + MARGIN

    top = MARGIN + ROW
    bottom = top + ROW * len(rows)
    pen = PENS[kind](math.ceil(width), bottom + ROW + MARGIN)
    ends: list[float] = []
    for row in rows:
        if row.value is not None:
            ends += [row.value - row.margin, row.value + row.margin]
    low, high, ticks = axis(ends, most_ticks=5)

    def x(points: float) -> float:
        return left + PLOT * (points - low) / (high - low)

    pen.text(MARGIN, MARGIN + ROW / 2, title)
    for tick, label in ticks:
        pen.line((x(tick), top, x(tick), bottom), FAINT if tick else INK, THIN)
        pen.text(x(tick), bottom + ROW / 2, label, is_centred=True)

    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + ROW * (index + 0.5)
        pen.text(MARGIN, y, label)
        if row.value is not None:
            tone = TONES[row.tone]
            pen.line((x(row.value - row.margin), y, x(row.value + row.margin), y), tone, THICK)
            pen.dot(x(row.value), y, tone)
            if row.note:
                pen.text(right + GAP, y, row.note)

    with atomic_path(path) as temporary:
        pen.save(temporary)


def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType"
    return font


def _length(text: str) -> float:
    """Pixels; letters that our font lacks are as wide as those of a terminal."""
    ours = "".join(letter for letter in text if letter in IN_FONT)
    others = "".join(letter for letter in text if letter not in IN_FONT)
    return _font().getlength(ours) + 0.55 * FONT_SIZE * width_of(others)


def _in_font(text: str) -> str:
    """``text`` with what the font lacks as <U+6A21>."""
    letters = [letter if letter in IN_FONT else f"<U+{ord(letter):04X}>" for letter in text]
    return "".join(letters)


class _Png:
    def __init__(self, width: int, height: int) -> None:
        self.sheet = Image.new("RGB", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.sheet)
        self.font = _font()

    def line(self, ends: tuple[float, float, float, float], color: Color, width: int) -> None:
        self.pen.line(ends, color, width)

    def dot(self, x: float, y: float, color: Color) -> None:
        self.pen.circle((x, y), DOT, color)

    def text(self, x: float, y: float, text: str, is_centred: bool = False) -> None:
        anchor = "mm" if is_centred else "lm"
        self.pen.text((x, y), text, INK, self.font, anchor=anchor)

    def save(self, path: Path) -> None:
        self.sheet.save(path, format="PNG")


class _Svg:
    def __init__(self, width: int, height: int) -> None:
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif"'
            f' font-size="{FONT_SIZE}">',
            f'<rect width="{width}" height="{height}" fill="rgb{PAPER}"/>',
        ]

    def line(self, ends: tuple[float, float, float, float], color: Color, width: int) -> None:
        x1, y1, x2, y2 = ends
        self.lines.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            f' stroke="rgb{color}" stroke-width="{width}"/>'
        )

    def dot(self, x: float, y: float, color: Color) -> None:
        self.lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" fill="rgb{color}"/>')

    def text(self, x: float, y: float, text: str, is_centred: bool = False) -> None:
        # leading spaces indent a label; the baseline lies a third of a letter below the middle
        anchor = ' text-anchor="middle"' if is_centred else ""
        self.lines.append(
            f'<text x="{x:.1f}" y="{y + 0.35 * FONT_SIZE:.1f}" fill="rgb{INK}"{anchor}'
            f' xml:space="preserve">{html.escape(visible(text))}</text>'
        )

    def save(self, path: Path) -> None:
        path.write_text("\n".join((*self.lines, "</svg>", "")), encoding="utf-8")


class _Pdf:
    def __init__(self, width: int, height: int) -> None:
        from fpdf import FPDF

        self.page = FPDF(unit="pt", format=(POINTS * width, POINTS * height))
        self.page.set_creation_date(SOME_DAY)
        self.page.set_auto_page_break(False)
        self.page.add_page()

        # the library reads fonts from files
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "font.ttf"
            file.write_bytes(_font().font_bytes)
            self.page.add_font("plain", fname=file)
        self.page.set_font("plain", size=POINTS * FONT_SIZE)
        self.page.set_text_color(*INK)

    def line(self, ends: tuple[float, float, float, float], color: Color, width: int) -> None:
        self.page.set_draw_color(*color)
        self.page.set_line_width(POINTS * width)
        self.page.line(*(POINTS * end for end in ends))

    def dot(self, x: float, y: float, color: Color) -> None:
        self.page.set_fill_color(*color)
        self.page.circle(POINTS * x, POINTS * y, POINTS * DOT, style="F")

    def text(self, x: float, y: float, text: str, is_centred: bool = False) -> None:
        start = POINTS * x - (self.page.get_string_width(text) / 2 if is_centred else 0)
        self.page.text(start, POINTS * (y + 0.35 * FONT_SIZE), text)

    def save(self, path: Path) -> None:
        self.page.output(str(path))


PENS: dict[str, Callable[[int, int], Pen]] = {".png": _Png, ".svg": _Svg, ".pdf": _Pdf}
