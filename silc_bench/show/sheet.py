"""A sheet of images in rows and groups of columns, with titles, a legend and a note -> PNG.

Flow: ``figure([("", 1), ("model", 2)], [[panel, panel, panel], ...], ["ring", "star"], path)``.
Everything is drawn as a block of its own; blocks stand beside each other in strips, and strips
below each other.

Names may hold anything: ``wrapped`` and ``drawable`` wrap, cut and replace, so that each becomes so
many lines of so many pixels, of letters that Pillow's own font has. No other font is looked for, so
that equal figures are equal files on every machine.

Sizes are pixels.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from silc_bench.later import np
from silc_bench.show.colors import HEAT, INK, PALETTE, PAPER, heat_colors
from silc_bench.system.files import atomic_path

CELL, GAP, GROUP_GAP, MARGIN, SWATCH = 192, 8, 28, 16, 13
LINE = 17  # pixels from line to line
TITLE_LINES, HEADING_LINES, NOTE_LINES = 2, 2, 8
SOFT, FAINT = (95, 99, 104), (218, 220, 224)
HEAT_WORDS = "cosine of patch and class, from the map's least to its largest"
CUT = "..."
Color = tuple[int, ...]
Placed = Iterable[tuple[int, Image.Image]]  # blocks with their left edges


@dataclass(frozen=True)
class Panel:
    """One image, uint8 [h, w, 3] of any size, until its longer side is CELL.

    A smaller one is enlarged pixel by pixel, a larger one reduced.
    """

    pixels: np.ndarray
    title: str = ""
    detail: str = ""  # one line more, in softer ink
    color: Color | None = None  # of the class it shows, before the title

    def text(self) -> Image.Image:
        """Title and detail."""
        return _text(CELL, self.title, TITLE_LINES, _swatch(self.color), self.detail, 1)

    def image(self) -> Image.Image:
        """Pixels of a small image stay visible as squares; a large one is smoothed."""
        height, width = panel_size(*self.pixels.shape[:2])
        is_reduced = max(self.pixels.shape[:2]) > CELL
        resampling = Image.Resampling.LANCZOS if is_reduced else Image.Resampling.NEAREST
        return Image.fromarray(self.pixels).resize((width, height), resampling)


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
    headings = []
    lefts = []
    left = 0
    for heading, count in groups:
        span = count * (CELL + GAP) - GAP
        headings.append((left, _heading(span, heading)))
        lefts += [left + index * (CELL + GAP) for index in range(count)]
        left += span + GROUP_GAP
    width = left - GROUP_GAP

    # titles end where their images begin
    strips = [_strip(width, headings)]
    for row in rows:
        placed = [(left, panel) for left, panel in zip(lefts, row, strict=True) if panel]
        strips.append(_strip(width, ((left, panel.text()) for left, panel in placed), is_low=True))
        strips.append(_strip(width, ((left, panel.image()) for left, panel in placed)))
        strips.append(Image.new("RGB", (width, 2 * GAP), PAPER))

    # a name behind each colour, in the columns of the panels
    names = enumerate(zip(legend, PALETTE, strict=False), 1)
    blocks = [
        _text(CELL, f"{number} {name}", TITLE_LINES, _swatch(color))
        for number, (name, color) in names
    ]
    for first in range(0, len(blocks), len(lefts)):
        strips.append(_strip(width, zip(lefts, blocks[first:], strict=False)))
    if has_heat:
        ramp = heat_colors(np.linspace(0, 1, 12 * len(HEAT))[None].repeat(SWATCH, axis=0))
        strips.append(_text(width, HEAT_WORDS, 1, Image.fromarray(ramp)))
    strips.append(_text(width, "", 0, detail=note, detail_lines=NOTE_LINES))

    height = sum(strip.height for strip in strips)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for strip in strips:
        sheet.paste(strip, (MARGIN, top))
        top += strip.height
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
    # NFKD parts a letter from its accents; Mn are accents, Cf and Cc show nothing
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    shown = (part for part in letters if unicodedata.category(part) not in ("Mn", "Cf", "Cc"))
    return "".join(shown).encode("ascii", "replace").decode()


def wrapped(text: str, width: float, lines: int) -> list[str]:
    """``text``, drawable, in at most ``lines`` lines of ``width`` pixels.

    What does not fit is cut and ends in three dots. No text is no line.
    """
    text = drawable(text)[: lines * int(width)]  # no letter is narrower than a pixel

    # the most letters a line whose lines all fit
    for count in range(int(width) // 3, 0, -1):
        filled = textwrap.wrap(text, count)
        if len(filled) > lines:
            filled = filled[:lines]
            filled[-1] += CUT
        if all(width_of(line) <= width for line in filled):
            return filled
    return []


# ---- blocks ----


def _strip(width: int, placed: Placed, is_low: bool = False) -> Image.Image:
    """Blocks beside each other, aligned at their tops, or at their bottoms."""
    placed = list(placed)
    height = max((block.height for _, block in placed), default=0)
    strip = Image.new("RGB", (width, height), PAPER)
    for left, block in placed:
        strip.paste(block, (left, height - block.height if is_low else 0))
    return strip


def _text(
    width: int,
    title: str,
    title_lines: int,
    swatch: Image.Image | None = None,
    detail: str = "",
    detail_lines: int = 0,
) -> Image.Image:
    """A title in ink behind a swatch, a detail in softer ink, and a gap below."""
    indent = swatch.width + 6 if swatch else 0
    lines = wrapped(title, width - indent, title_lines)
    details = wrapped(detail, width, detail_lines)
    count = len(lines) + len(details)
    block = Image.new("RGB", (width, count * LINE + GAP if count else 0), PAPER)

    draw = ImageDraw.Draw(block)
    if swatch:
        block.paste(swatch, (0, 5))
    for number, line in enumerate(lines):
        draw.text((indent, 3 + number * LINE), line, INK, font())
    for number, line in enumerate(details, len(lines)):
        draw.text((0, 3 + number * LINE), line, SOFT, font())
    return block


def _heading(width: int, text: str) -> Image.Image:
    """A group's heading, underlined as far as its columns go."""
    block = _text(width, text, HEADING_LINES)
    underline = block.height - GAP + 3
    ImageDraw.Draw(block).line((0, underline, width - 1, underline), FAINT, 2)
    return block


def _swatch(color: Color | None) -> Image.Image | None:
    """A square of a class's colour."""
    if color is None:
        return None
    square = Image.new("RGB", (SWATCH, SWATCH), color)
    ImageDraw.Draw(square).rectangle((0, 0, SWATCH - 1, SWATCH - 1), outline=FAINT)
    return square
