"""A sheet of images in rows and groups of columns, with titles, a legend and a note -> PNG.

Flow: ``figure([("", 1), ("model", 2)], [[panel, panel, panel], ...], ["ring", "star"], path)``.

Names may hold anything: ``wrapped`` and ``drawable`` wrap, cut and replace, so that each becomes so
many lines of so many pixels, of letters that Pillow's own font has. No other font is looked for, so
that equal figures are equal files on every machine.

Sizes are pixels.
"""

from __future__ import annotations

import math
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from silc_bench.show.colors import HEAT, INK, PALETTE, PAPER, heat_colors
from silc_bench.system.files import atomic_path

CELL, GAP, GROUP_GAP, MARGIN, SWATCH = 192, 8, 28, 16, 13
INDENT = SWATCH + 6  # from a swatch to its name
LINE = 17  # pixels from line to line
STEP = LINE + 3  # from line to line of the legend
TITLE_LINES, HEADING_LINES, NOTE_LINES = 2, 2, 8
SOFT, FAINT = (95, 99, 104), (218, 220, 224)
HEAT_WORDS = "cosine of patch and class, from the map's least to its largest"
DRAWN = frozenset(string.digits + string.ascii_letters + string.punctuation + " ")  # by the font
CUT = "..."
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Panel:
    """One image, uint8 [h, w, 3] of any size, until its longer side is CELL.

    A smaller one is enlarged pixel by pixel, a larger one reduced.
    """

    pixels: np.ndarray
    title: str = ""
    detail: str = ""  # one line more, in softer ink
    color: Color | None = None  # of the class it shows, before the title

    @property
    def lines(self) -> list[str]:
        """Title and detail as they are drawn above the image."""
        room = CELL if self.color is None else CELL - INDENT
        return wrapped(self.title, room, TITLE_LINES) + wrapped(self.detail, CELL, 1)


def figure(
    groups: Sequence[tuple[str, int]],
    rows: Sequence[Sequence[Panel | None]],
    legend: Sequence[str],
    path: Path,
    note: str = "",
    has_heat: bool = False,
) -> tuple[int, int]:
    """Draw the sheet into a PNG; its width and height.

    Args:
        groups: heading and number of columns of each group.
        rows: a panel or a gap for each column; a row is as high as its panels.
        legend: names of classes 0, 1, ... in PALETTE's colours, numbered from 1.
        note: one paragraph below everything.
        has_heat: some panels are similarities, whose colours the legend then explains.
    """
    lefts, inner = _columns(groups)
    assert all(len(row) == len(lefts) for row in rows), "a row has a panel or a gap for each column"

    # From top to bottom: headings, rows of panels, ...
    headings = [wrapped(text, _span(count), HEADING_LINES) for text, count in groups]
    first = MARGIN + _height(headings)
    tops, bottom = _rows(rows, first)

    # ... the legend, in columns as wide as its widest name, ...
    names = [f"{number} {name}" for number, name in enumerate(legend, 1)]
    widest = max((width_of(drawable(name)) for name in names), default=0)
    step = min(inner, INDENT + 3 * GAP + math.ceil(widest))
    per_line = inner // step
    num_lines = math.ceil(len(names) / per_line)
    end = bottom + (num_lines + has_heat) * STEP

    # ... and the note. The size of the sheet follows from all of them.
    notes = wrapped(note, inner, NOTE_LINES)
    note_height = GAP + len(notes) * LINE if notes else 0
    size = (inner + 2 * MARGIN, end + note_height + MARGIN)
    sheet = Image.new("RGB", size, PAPER)

    _draw_headings(sheet, groups, headings, lefts, first)
    for row, top in zip(rows, tops, strict=True):
        for panel, left in zip(row, lefts, strict=True):
            if panel is not None:
                _draw_panel(sheet, panel, left, top)
    _draw_legend(sheet, names, bottom, per_line, step)
    if has_heat:
        _draw_heat(sheet, bottom + num_lines * STEP)
    for number, line in enumerate(notes):
        ImageDraw.Draw(sheet).text((MARGIN, end + GAP + number * LINE), line, SOFT, font())

    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return sheet.size


def panel_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of an image in its panel: the longer side is CELL, the other at least 1."""
    longer = max(height, width)
    return max(1, round(height * CELL / longer)), max(1, round(width * CELL / longer))


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, at the one size that is used."""
    return ImageFont.load_default(13)


def width_of(text: str) -> float:
    """Pixels from the left end of a drawable text to its right end."""
    return font().getlength(text)


def drawable(text: str) -> str:
    """One line of letters that the font has.

    Accents are taken off, marks that show nothing left out, all else is "?".
    """
    letters = []
    for letter in " ".join(text.split()):
        # NFKD parts a letter from its accents; Mn are accents, Cf and Cc show nothing
        parts = [
            part
            for part in unicodedata.normalize("NFKD", letter)
            if unicodedata.category(part) not in ("Mn", "Cf", "Cc")
        ]
        letters.append("".join(parts) if set(parts) <= DRAWN else "?")
    return "".join(letters)


def wrapped(text: str, width: float, lines: int) -> list[str]:
    """``text``, drawable, in at most ``lines`` lines of ``width`` pixels.

    What does not fit is cut and ends in three dots. No text is no line.
    """
    filled = [""]
    for word in drawable(text).split(" "):
        # A word that fits into no line does not begin a new one: it would leave a hole behind.
        if filled[-1] and width_of(f"{filled[-1]} {word}") > width >= width_of(word):
            filled.append("")
        filled[-1] += f" {word}" if filled[-1] else word

        # it goes on in the next line instead
        while width_of(filled[-1]) > width and len(filled) <= lines:
            fits = _fitting(filled[-1], width)
            filled[-1:] = [filled[-1][:fits], filled[-1][fits:]]

        if len(filled) > lines:
            last = filled[lines - 1]
            last = last[: _fitting(last, width - width_of(CUT))]
            return [*filled[: lines - 1], last.rstrip() + CUT]

    return filled if filled[0] else []


def _columns(groups: Sequence[tuple[str, int]]) -> tuple[list[int], int]:
    """Left edge of each column, and the width without margins."""
    lefts = []
    left = MARGIN
    for _, count in groups:
        lefts += [left + index * (CELL + GAP) for index in range(count)]
        left += _span(count) + GROUP_GAP
    return lefts, left - GROUP_GAP - MARGIN


def _span(columns: int) -> int:
    """Width of so many columns side by side."""
    return columns * (CELL + GAP) - GAP


def _height(texts: Sequence[Sequence[str]]) -> int:
    """Of texts that stand side by side, with a gap below; 0 where all are empty."""
    most = max((len(lines) for lines in texts), default=0)
    return most * LINE + GAP * (most > 0)


def _rows(rows: Sequence[Sequence[Panel | None]], top: int) -> tuple[list[int], int]:
    """Where the images of each row begin, below their titles, and where the last row ends."""
    tops = []
    for row in rows:
        panels = [panel for panel in row if panel is not None]
        tops.append(top + _height([panel.lines for panel in panels]))
        highest = max(panel_size(*panel.pixels.shape[:2])[0] for panel in panels)
        top = tops[-1] + highest + 2 * GAP
    return tops, top


def _draw_headings(
    sheet: Image.Image,
    groups: Sequence[tuple[str, int]],
    headings: Sequence[Sequence[str]],
    lefts: Sequence[int],
    bottom: int,
) -> None:
    """Each group's heading, underlined as far as its columns go."""
    draw = ImageDraw.Draw(sheet)
    column = 0
    underline = bottom - GAP + 3
    for (_, count), lines in zip(groups, headings, strict=True):
        left = lefts[column]
        for number, line in enumerate(lines):
            draw.text((left, MARGIN + number * LINE), line, INK, font())
        if lines:
            draw.line((left, underline, left + _span(count) - 1, underline), FAINT, 2)
        column += count


def _draw_panel(sheet: Image.Image, panel: Panel, left: int, top: int) -> None:
    """The image with its left upper corner there, and its lines right above it."""
    draw = ImageDraw.Draw(sheet)
    lines = panel.lines
    start = top - GAP + 3 - len(lines) * LINE

    if panel.color is not None:
        _swatch(draw, left, start + LINE // 2, panel.color)
    for number, line in enumerate(lines):
        # only the title stands behind the swatch
        is_detail = bool(panel.detail) and number == len(lines) - 1
        indent = INDENT * (panel.color is not None and not is_detail)
        ink = SOFT if is_detail else INK
        draw.text((left + indent, start + number * LINE), line, ink, font())

    # Pixels of a small image stay visible as squares; a large one is smoothed.
    height, width = panel_size(*panel.pixels.shape[:2])
    image = Image.fromarray(panel.pixels)
    if image.size != (width, height):
        is_reduced = max(image.size) > CELL
        resampling = Image.Resampling.LANCZOS if is_reduced else Image.Resampling.NEAREST
        image = image.resize((width, height), resampling)
    sheet.paste(image, (left, top))


def _draw_legend(
    sheet: Image.Image, names: Sequence[str], top: int, per_line: int, width: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    for index, name in enumerate(names):
        left = MARGIN + index % per_line * width
        middle = top + index // per_line * STEP + STEP // 2
        _swatch(draw, left, middle, PALETTE[index])
        line = wrapped(name, width - INDENT - GAP, 1)
        draw.text((left + INDENT, middle), line[0], INK, font(), anchor="lm")


def _draw_heat(sheet: Image.Image, top: int) -> None:
    """The colours of a map from its least value to its largest, and what they mean."""
    ramp = heat_colors(np.linspace(0, 1, 12 * len(HEAT))[None].repeat(SWATCH, axis=0))
    sheet.paste(Image.fromarray(ramp), (MARGIN, top + (STEP - SWATCH) // 2))
    place = (MARGIN + ramp.shape[1] + 6, top + STEP // 2)
    ImageDraw.Draw(sheet).text(place, HEAT_WORDS, INK, font(), anchor="lm")


def _swatch(draw: ImageDraw.ImageDraw, left: int, middle: int, color: Color) -> None:
    """A square of a class's colour."""
    box = (left, middle - SWATCH // 2, left + SWATCH - 1, middle + SWATCH // 2)
    draw.rectangle(box, color, FAINT)


def _fitting(text: str, width: float) -> int:
    """How many of the first letters fit; one at least."""
    count = 1
    while count < len(text) and width_of(text[: count + 1]) <= width:
        count += 1
    return count
