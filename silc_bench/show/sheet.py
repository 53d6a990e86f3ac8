"""A sheet of pictures in rows and groups of columns, with titles, a legend and a note -> PNG.

Flow: ``figure([("", 1), ("model", 2)], [[panel, panel, panel], ...], ["ring", "star"], path)``.
Names may hold anything: `silc_bench.show.sheet` wraps, cuts and replaces.

Sizes are pixels.

Names in pictures: what Pillow's own font can draw of them, in so many lines of so many pixels.

No other font is looked for, so that equal figures are equal files on every machine.
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
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Panel:
    """One picture, uint8 [h, w, 3] of any size: enlarged pixel by pixel, or reduced, until its
    longer side is CELL.
    """

    pixels: np.ndarray
    title: str = ""
    detail: str = ""  # one line more, in softer ink
    color: Color | None = None  # of the class it shows, before the title

    @property
    def lines(self) -> list[str]:
        """Title and detail as they are drawn above the picture."""
        title = wrapped(self.title, CELL - INDENT * (self.color is not None), TITLE_LINES)
        return title + wrapped(self.detail, CELL, 1)


def panel_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture in its panel: the longer side is CELL, the other one at least
    1.
    """
    longer = max(height, width)
    return max(1, round(height * CELL / longer)), max(1, round(width * CELL / longer))


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
    headings = [wrapped(text, _span(count), HEADING_LINES) for text, count in groups]
    first = MARGIN + _height(headings)
    tops, bottom = _rows(rows, first)
    names = [f"{number} {name}" for number, name in enumerate(legend, 1)]
    step = min(
        inner,
        INDENT + 3 * GAP + math.ceil(max((width_of(drawable(name)) for name in names), default=0)),
    )
    per_line = inner // step
    num_lines = math.ceil(len(names) / per_line)
    notes = wrapped(note, inner, NOTE_LINES)
    end = bottom + (num_lines + has_heat) * STEP
    sheet = Image.new(
        "RGB", (inner + 2 * MARGIN, end + (GAP + len(notes) * LINE if notes else 0) + MARGIN), PAPER
    )
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


def _columns(groups: Sequence[tuple[str, int]]) -> tuple[list[int], int]:
    """Left edge of each column, and the width without margins."""
    lefts, left = [], MARGIN
    for _, count in groups:
        lefts += [left + index * (CELL + GAP) for index in range(count)]
        left += _span(count) + GROUP_GAP
    return lefts, left - GROUP_GAP - MARGIN


def _span(columns: int) -> int:
    return columns * (CELL + GAP) - GAP


def _height(texts: Sequence[Sequence[str]]) -> int:
    """Of texts that stand side by side, with a gap below; 0 where all are empty."""
    most = max((len(lines) for lines in texts), default=0)
    return most * LINE + GAP * (most > 0)


def _rows(rows: Sequence[Sequence[Panel | None]], top: int) -> tuple[list[int], int]:
    """Where the pictures of each row begin, below their titles, and where the last row ends."""
    tops = []
    for row in rows:
        panels = [panel for panel in row if panel is not None]
        tops.append(top + _height([panel.lines for panel in panels]))
        top = tops[-1] + max(panel_size(*panel.pixels.shape[:2])[0] for panel in panels) + 2 * GAP
    return tops, top


def _draw_headings(
    sheet: Image.Image,
    groups: Sequence[tuple[str, int]],
    headings: Sequence[Sequence[str]],
    lefts: Sequence[int],
    bottom: int,
) -> None:
    """Each group's heading, underlined as far as its columns go."""
    draw, column = ImageDraw.Draw(sheet), 0
    for (_, count), lines in zip(groups, headings, strict=True):
        left = lefts[column]
        for number, line in enumerate(lines):
            draw.text((left, MARGIN + number * LINE), line, INK, font())
        if lines:
            draw.line((left, bottom - GAP + 3, left + _span(count) - 1, bottom - GAP + 3), FAINT, 2)
        column += count


def _draw_panel(sheet: Image.Image, panel: Panel, left: int, top: int) -> None:
    """The picture with its left upper corner there, and its lines right above it."""
    draw, lines = ImageDraw.Draw(sheet), panel.lines
    start = top - GAP + 3 - len(lines) * LINE
    if panel.color is not None:
        _swatch(draw, left, start + LINE // 2, panel.color)
    for number, line in enumerate(lines):
        is_detail = bool(panel.detail) and number == len(lines) - 1
        indent = INDENT * (panel.color is not None and not is_detail)
        draw.text((left + indent, start + number * LINE), line, SOFT if is_detail else INK, font())
    height, width = panel_size(*panel.pixels.shape[:2])
    picture = Image.fromarray(panel.pixels)
    if picture.size != (width, height):
        is_reduced = max(picture.size) > CELL
        picture = picture.resize(
            (width, height), Image.Resampling.LANCZOS if is_reduced else Image.Resampling.NEAREST
        )
    sheet.paste(picture, (left, top))


def _draw_legend(
    sheet: Image.Image, names: Sequence[str], top: int, per_line: int, width: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    for index, name in enumerate(names):
        left, middle = MARGIN + index % per_line * width, top + index // per_line * STEP + STEP // 2
        _swatch(draw, left, middle, PALETTE[index])
        line = wrapped(name, width - INDENT - GAP, 1)
        draw.text((left + INDENT, middle), line[0], INK, font(), anchor="lm")


def _draw_heat(sheet: Image.Image, top: int) -> None:
    ramp = heat_colors(np.linspace(0, 1, 12 * len(HEAT))[None].repeat(SWATCH, axis=0))
    sheet.paste(Image.fromarray(ramp), (MARGIN, top + (STEP - SWATCH) // 2))
    place = (MARGIN + ramp.shape[1] + 6, top + STEP // 2)
    ImageDraw.Draw(sheet).text(place, HEAT_WORDS, INK, font(), anchor="lm")


def _swatch(draw: ImageDraw.ImageDraw, left: int, middle: int, color: Color) -> None:
    draw.rectangle(
        (left, middle - SWATCH // 2, left + SWATCH - 1, middle + SWATCH // 2), color, FAINT
    )


DRAWN = frozenset(
    string.digits + string.ascii_letters + string.punctuation + " "
)  # letters that the font has
CUT = "..."


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, at the one size that is used."""
    return ImageFont.load_default(13)


def width_of(text: str) -> float:
    """Pixels from the left end of a drawable text to its right end."""
    return font().getlength(text)


def drawable(text: str) -> str:
    """One line of letters that the font has: accents are taken off, marks that show nothing left
    out, all else is "?".
    """
    letters = []
    for letter in " ".join(text.split()):
        parts = [
            part
            for part in unicodedata.normalize("NFKD", letter)
            if unicodedata.category(part) not in ("Mn", "Cf", "Cc")
        ]
        letters.append("".join(parts) if set(parts) <= DRAWN else "?")
    return "".join(letters)


def wrapped(text: str, width: float, lines: int) -> list[str]:
    """``text``, drawable, in at most ``lines`` lines of ``width`` pixels; what does not fit is cut
    and ends in three dots.
    """
    found = [""]
    for word in drawable(text).split(" "):
        if found[-1] and width_of(f"{found[-1]} {word}") > width >= width_of(word):
            found.append("")
        found[-1] += f" {word}" if found[-1] else word
        while (
            width_of(found[-1]) > width and len(found) <= lines
        ):  # a word longer than a line goes on in the next one
            fits = _fitting(found[-1], width)
            found[-1:] = [found[-1][:fits], found[-1][fits:]]
        if len(found) > lines:
            last = found[lines - 1][: _fitting(found[lines - 1], width - width_of(CUT))]
            return [*found[: lines - 1], last.rstrip() + CUT]
    return found if found[0] else []


def _fitting(text: str, width: float) -> int:
    """How many of the first letters fit; one at least."""
    count = 1
    while count < len(text) and width_of(text[: count + 1]) <= width:
        count += 1
    return count
