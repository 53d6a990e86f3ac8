"""Tables as plain text that fit a terminal, whatever stands in them (no torch, no numpy).

``fitted(columns, rows, width)`` -> lines of which none is wider than ``width`` cells. Rows go down,
columns across; where they do not all fit, the rest stands in further blocks below, each with the
first column. A number is never broken. A text is broken at spaces and after "/", "_" and ":"; at a
hyphen or inside a word only where that word alone is too wide.

A letter counts one cell, a wide one (CJK, emoji) two, a combining mark none. Terminals that join
several emoji into one show a row of them narrower than we count, never wider.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rich.cells import get_character_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

GAP = 2  # cells between two columns
WIDEST_WORD = 20  # cells; a longer word of a text or a head is broken
SHARE_OF_NAMES = 0.45  # of the width of a terminal, at most; what is longer is shortened
ELLIPSIS = "…"
LEFT_TO_RIGHT = "\u200e"  # an invisible mark, no cell wide
_BREAK = re.compile(r"(?<=[/_:])(?=\S)")  # after a sign that joins words
_HYPHEN = re.compile(r"(?<=[A-Za-z]-)(?=[A-Za-z])")  # "1e-05" has none

Span = tuple[str, str]  # a text, and its style as rich writes it


@dataclass(frozen=True)
class Column:
    """A head with smaller lines below it; numbers stand at the right and are never broken."""

    title: str
    details: tuple[str, ...] = ()
    is_numeric: bool = False


@dataclass(frozen=True)
class Grid:
    """A table for ``console.print``: ``fitted`` to the width that it is printed at."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Sequence[Span]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield fitted(self.columns, self.rows, options.max_width)


class Listing:
    """A table of texts that a command fills row by row, for ``console.print``."""

    def __init__(self, *heads: str, title: str = "") -> None:
        self.columns = [Column(visible(head)) for head in heads]
        self.title = title
        self.rows: list[list[tuple[Span, ...]]] = []

    def add_row(self, *texts: str) -> None:
        """A text for each head; what stands in it is shown as it is."""
        self.rows.append([((visible(text), ""),) for text in texts])

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        if self.title:
            yield Paragraph(visible(self.title), "italic")
        yield Grid(self.columns, self.rows)


@dataclass(frozen=True)
class Paragraph:
    """A text for ``console.print``, broken between words."""

    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = wrapped(self.text, options.max_width)
        yield Text("\n".join(lines), self.style, no_wrap=True, overflow="ignore")


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Sequence[Span]]], width: int) -> Text:
    """The table in as many blocks as it needs.

    Args:
        rows: a cell for each column, and a cell is its spans, from left to right. What stands in
            them is shown as it is, so pass names through ``visible`` first.
        width: in cells.
    """
    blocks = []
    for indices, widths in blocks_of(columns, rows, width):
        block_columns = [columns[index] for index in indices]
        block_rows = [[row[index] for index in indices] for row in rows]
        blocks.append(Text("\n").join(_lines(block_columns, block_rows, widths)))

    table = Text("\n\n").join(blocks)
    table.no_wrap = True
    table.overflow = "ignore"
    return table


def blocks_of(
    columns: Sequence[Column], rows: Sequence[Sequence[Sequence[Span]]], width: int
) -> list[tuple[list[int], list[int]]]:
    """Which columns stand side by side, and how wide each is; arguments as of ``fitted``."""
    everything = list(range(len(columns)))
    natural = [_natural(columns[i], [row[i] for row in rows]) for i in everything]
    least = [_least(columns[i], [row[i] for row in rows], width) for i in everything]

    # names stay on their line: a name that goes on in the next one reads as two; but a name that
    # leaves no room for any other column has to
    least[0] = min(natural[0], max(least[0], room_for_names(columns, rows, width)))
    least[0] = max(1, min(least[0], width - GAP - max(least[1:], default=-GAP)))
    room = width - GAP * (len(columns) - 1)
    if sum(least) <= room:
        return [(everything, _shared(natural, least, room))]

    blocks: list[list[int]] = [[0]]
    used = least[0]
    for index in everything[1:]:
        if len(blocks[-1]) > 1 and used + GAP + least[index] > width:
            blocks.append([0])
            used = least[0]
        blocks[-1].append(index)
        used += GAP + least[index]

    # what is left over in a block makes its texts wider
    sized = []
    for block in blocks:
        room = width - GAP * (len(block) - 1)
        widths = _shared([natural[i] for i in block], [least[i] for i in block], room)
        sized.append((block, widths))
    return sized


def room_for_names(
    columns: Sequence[Column], rows: Sequence[Sequence[Sequence[Span]]], width: int
) -> int:
    """The cells that the first column may take; more than ``name_width`` where others leave room.

    Arguments as of ``fitted``; what stands in the first column counts for nothing.
    """
    others = range(1, len(columns))
    needed = sum(GAP + _least(columns[i], [row[i] for row in rows], width) for i in others)
    return max(name_width(width), width - needed)


def name_width(width: int) -> int:
    """The cells that a name may take in a terminal of ``width``."""
    return max(8, int(SHARE_OF_NAMES * width))


def short_names(names: Iterable[str], width: int) -> dict[str, str]:
    """{name: what stands for it in at most ``width`` cells}; no two of them meet.

    A name that is short enough stands for itself. Others lose their middle, because models of one
    family begin alike and end differently; where two would still meet, they are numbered.
    """
    ordered = list(dict.fromkeys(names))
    shorts = {name: name for name in ordered if width_of(name) <= width}
    taken = set(shorts.values())
    for name in ordered:
        number = 1
        short = shorts.get(name) or shortened(name, width)
        while name not in shorts and short in taken:
            number += 1
            mark = f" #{number}"
            short = shortened(name, width - len(mark)) + mark
        shorts[name] = short
        taken.add(short)
    return shorts


def legend(shorts: dict[str, str], width: int) -> Text:
    """What each shortened name stands for, over as many lines as that needs."""
    lines: list[str] = []
    for name, short in shorts.items():
        if name != short:
            lines += hanging(f"{short} = {name}", width)
    return Text("\n".join(lines), "dim", no_wrap=True, overflow="ignore")


def visible(text: str) -> str:
    """``text`` so that a terminal shows all of it, and nothing else happens.

    What has no shape of its own (a line break, a terminal code, a mark that turns the direction or
    joins letters) is written out as <U+202E>: two names that differ in it must not look alike.
    """
    shown = written_out(text)

    # without a mark, Hebrew or Arabic turns the numbers beside it around
    is_right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in shown)
    return f"{LEFT_TO_RIGHT}{shown}{LEFT_TO_RIGHT}" if is_right_to_left else shown


def written_out(text: str) -> str:
    """``text`` with each letter that has no shape of its own as <U+202E>."""
    return "".join(letter if _has_shape(letter) else f"<U+{ord(letter):04X}>" for letter in text)


def _has_shape(letter: str) -> bool:
    return letter.isprintable() and not unicodedata.name(letter, "").startswith(
        "VARIATION SELECTOR"
    )


@lru_cache(maxsize=100_000)
def width_of(text: str) -> int:
    """In cells of a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


def _cells(letter: str) -> int:
    """The most that a terminal may give it: the standard's versions and their tables differ."""
    if unicodedata.east_asian_width(letter) in "WF":
        return 2
    has_place = unicodedata.category(letter) not in ("Mn", "Me", "Cf")
    return max(get_character_cell_size(letter), int(has_place))


def letters_of(text: str) -> list[str]:
    """Each letter with the marks that stand on it and take no cell: what may not be parted."""
    letters: list[str] = []
    for letter in text:
        if letters and width_of(letter) == 0:
            letters[-1] += letter
        else:
            letters.append(letter)
    return letters


def shortened(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells, its middle replaced by "…"."""
    if width_of(text) <= width:
        return text
    letters = letters_of(text)
    room = max(width - width_of(ELLIPSIS), 0)
    head = _as_many(letters, room // 2)
    tail = _as_many(letters[::-1], room - width_of("".join(head)))[::-1]
    return "".join((*head, ELLIPSIS, *tail))


def wrapped(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` cells, at least one; "\\n" begins a new one."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in _pieces(paragraph.lstrip(), width):
            # a space at the end of a line is none
            if line.strip() and width_of((line + piece).rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += piece
        lines.append(line.rstrip())
    return lines


def hanging(text: str, width: int) -> list[str]:
    """As ``wrapped``, with all lines but the first indented: one text is seen to end."""
    head, *rest = wrapped(text, width - GAP)
    return [head, *(" " * GAP + line for line in rest)]


def _pieces(text: str, widest: int) -> list[str]:
    """What may not be broken, each with the spaces after it; words wider than ``widest`` are."""
    pieces: list[str] = []
    for word in re.findall(r"\S+\s*|\s+", text):
        parts = _BREAK.split(word)
        if any(width_of(part.rstrip()) > widest for part in parts):
            parts = [smaller for part in parts for smaller in _HYPHEN.split(part)]
        for part in parts:
            letters = letters_of(part)
            while width_of("".join(letters).rstrip()) > widest:
                head = _as_many(letters, widest) or letters[:1]
                pieces.append("".join(head))
                letters = letters[len(head) :]
            pieces.append("".join(letters))
    return pieces


def _as_many(letters: Sequence[str], room: int) -> list[str]:
    """The first letters that fit."""
    taken: list[str] = []
    for letter in letters:
        room -= width_of(letter)
        if room < 0:
            break
        taken.append(letter)
    return taken


def _plain(cell: Sequence[Span]) -> str:
    return "".join(text for text, _ in cell)


def _natural(column: Column, cells: Sequence[Sequence[Span]]) -> int:
    """The width at which nothing is broken."""
    texts = [column.title, *column.details, *map(_plain, cells)]
    return max(width_of(line) for text in texts for line in text.split("\n"))


def _least(column: Column, cells: Sequence[Sequence[Span]], width: int) -> int:
    """The width at which no word is broken, or none that is not too wide."""
    # two columns fit side by side, whatever words stand in them
    widest = max(1, min(WIDEST_WORD, (width - GAP) // 2))
    texts = [column.title, *column.details]
    bodies: list[str] = []
    for cell in cells:
        # a number, and what is put together from several spans, stays on one line
        is_whole = column.is_numeric or len(cell) > 1
        (bodies if is_whole else texts).append(_plain(cell))
    lines = [line for text in bodies for line in text.split("\n")]
    lines += [piece.rstrip() for text in texts for piece in _words(text, widest)]
    return max(map(width_of, lines), default=0)


def _words(text: str, widest: int) -> list[str]:
    return [piece for line in text.split("\n") for piece in _pieces(line, widest)]


def _shared(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths from ``least`` to ``natural`` that fill the room; the widest column yields first."""
    widths = list(natural)
    excess = sum(widths) - room
    while excess > 0:
        reducible = [i for i in range(len(widths)) if widths[i] > least[i]]
        if not reducible:
            break
        widest = max(reducible, key=lambda i: widths[i])
        widths[widest] -= 1
        excess -= 1
    return widths


def _lines(
    columns: Sequence[Column], rows: Sequence[Sequence[Sequence[Span]]], widths: Sequence[int]
) -> list[Text]:
    """Head, rule and rows of one block."""
    heads: list[list[Sequence[Span]]] = []
    for column, width in zip(columns, widths, strict=True):
        head: list[Sequence[Span]] = [[(line, "bold")] for line in wrapped(column.title, width)]
        for detail in column.details:
            head += [[(line, "dim")] for line in wrapped(detail, width)]
        heads.append(head)

    lines = _side_by_side(columns, heads, widths)
    lines.append(Text("─" * (sum(widths) + GAP * (len(widths) - 1)), "dim"))
    for row in rows:
        cells = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines += _side_by_side(columns, cells, widths)
    return lines


def _broken(cell: Sequence[Span], width: int) -> list[Sequence[Span]]:
    """The lines of a cell."""
    if len(cell) != 1 or (width_of(_plain(cell)) <= width and "\n" not in _plain(cell)):
        return [cell]
    ((text, style),) = cell
    return [[(line, style)] for line in wrapped(text, width)]


def _side_by_side(
    columns: Sequence[Column], cells: Sequence[Sequence[Sequence[Span]]], widths: Sequence[int]
) -> list[Text]:
    """The lines of cells that stand beside each other, numbers at the right of their column."""
    lines = []
    for number in range(max(len(cell) for cell in cells)):
        parts: list[Span] = []
        for column, cell, width in zip(columns, cells, widths, strict=True):
            spans = cell[number] if number < len(cell) else ()
            padding = (" " * (width - width_of(_plain(spans))), "")
            parts.append(("" if column is columns[0] else " " * GAP, ""))
            parts += (padding, *spans) if column.is_numeric else (*spans, padding)
        # rich makes an object of each part, also of one that holds nothing
        line = Text.assemble(*(part for part in parts if part[0]))
        line.rstrip()
        lines.append(line)
    return lines
