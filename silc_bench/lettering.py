"""Names in pictures: what Pillow's own font can draw of them, in so many lines of so many pixels.

No other font is looked for, so that equal figures are equal files on every machine.
"""

from __future__ import annotations

import string
import unicodedata
from functools import cache

from PIL import ImageFont

LINE = 17  # pixels from line to line
DRAWN = frozenset(string.digits + string.ascii_letters + string.punctuation + " ")  # letters that the font has
CUT = "..."


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, at the one size that is used."""
    return ImageFont.load_default(13)


def width_of(text: str) -> float:
    """Pixels from the left end of a drawable text to its right end."""
    return font().getlength(text)


def drawable(text: str) -> str:
    """One line of letters that the font has: accents are taken off, marks that show nothing left out, all else is "?"."""
    letters = []
    for letter in " ".join(text.split()):
        parts = [part for part in unicodedata.normalize("NFKD", letter) if unicodedata.category(part) not in ("Mn", "Cf", "Cc")]
        letters.append("".join(parts) if set(parts) <= DRAWN else "?")
    return "".join(letters)


def wrapped(text: str, width: float, lines: int) -> list[str]:
    """``text``, drawable, in at most ``lines`` lines of ``width`` pixels; what does not fit is cut and ends in three dots."""
    found = [""]
    for word in drawable(text).split(" "):
        if found[-1] and width_of(f"{found[-1]} {word}") > width >= width_of(word):
            found.append("")
        found[-1] += f" {word}" if found[-1] else word
        while width_of(found[-1]) > width and len(found) <= lines:  # a word longer than a line goes on in the next one
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
