"""The board as data, and two of its forms: Markdown, CSV (no torch).

A board is made of sections of tables, images and changes. ``leaderboard.build`` makes a Board;
each ``to_*`` is a pure function of it, so equal boards give equal bytes. Terminal and LaTeX have
files of their own in `silc_bench.reports.forms`, and the page in `silc_bench.reports.page`.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from silc_bench.system.terminal import counted

if TYPE_CHECKING:
    import pandas as pd

    from silc_bench.metrics.statistics import Paired

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula

# How a note says which values are marked; each form has its own marks.
BEST, TIED = "**bold**", "`=`"


@dataclass(frozen=True)
class Head:
    """Head of a column: its first line, and smaller ones below."""

    text: str
    details: tuple[str, ...] = ()
    is_numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """One cell of a table; an empty text is a gap."""

    text: str = ""
    detail: str = ""  # small print right after the text: " ±1.2", "@1a2b3c4d"
    is_best: bool = False
    is_tied: bool = False  # with the best
    url: str = ""


@dataclass(frozen=True)
class Change:
    """One metric of two twins, as fractions, and the paired test of them."""

    task: str
    metric: str
    contrastive: float
    silc: float
    paired: Paired | None  # None: the samples of one were not kept

    @property
    def difference(self) -> float:
        """What self-distillation added, as a fraction."""
        return self.silc - self.contrastive

    @property
    def margin(self) -> float:
        """Half the 95 % interval; 0 where it is not known."""
        return self.paired.margin if self.paired else 0.0

    @property
    def verdict(self) -> str:
        """Whether the interval leaves zero out; for this test alone."""
        if self.paired is None:
            return "unknown"
        if abs(self.difference) <= self.margin:
            return "no"
        return "yes, better" if self.difference > 0 else "yes, worse"


@dataclass(frozen=True)
class Table:
    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]
    changes: tuple[Change, ...] = ()  # drawn as a chart beside the table
    note: str = ""  # a sentence below it


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    data_uri: str


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    tables: tuple[Table, ...] = ()
    images: tuple[Figure, ...] = ()
    # published numbers: long, and left to the page where terminal or paper are made
    is_reference: bool = False

    @property
    def is_for_the_page(self) -> bool:
        """Whether it is too long, or not to be drawn with letters."""
        return self.is_reference or bool(self.images)


@dataclass(frozen=True)
class Board:
    sections: tuple[Section, ...]
    # one row per record and metric, published ones included; ``kind`` says which is which
    scores: pd.DataFrame
    page: Callable[[], dict[str, Any]]  # the document of the page, made when it is asked for
    # which files were left out, and why, and what seeds do not share: a sentence each
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        num_models = len(self.scores[["model", "revision"]].drop_duplicates())
        size = f"{counted(len(self.scores), 'score')} of {counted(num_models, 'model')}"
        return f"<Board: {size}; .scores is their frame>"


def row_names(board: Board) -> dict[Cell, str]:
    """{first cell of a row: its name}, with the revision where two rows share the name alone."""
    sections = [section for section in board.sections if not section.is_for_the_page]
    first_cells = [row[0] for section in sections for table in section.tables for row in table.rows]
    details: dict[str, set[str]] = {}
    for cell in first_cells:
        details.setdefault(cell.text, set()).add(cell.detail)

    names = {}
    for cell in first_cells:
        names[cell] = cell.text + (cell.detail if len(details[cell.text]) > 1 else "")
    return names


def to_markdown(board: Board) -> str:
    """The board for a page that renders Markdown; images are counted, not shown."""
    lines = ["# Leaderboard"]
    for section in board.sections:
        lines += ["", f"## {section.title}"]
        if section.note:
            lines += ["", section.note]
        for table in section.tables:
            lines += ["", f"### {escaped(table.title)}", ""]
            heads: list[str] = []
            for head in table.heads:
                heads.append("<br>".join(escaped(text) for text in (head.text, *head.details)))

            # numbers to the right, names to the left
            rulers = ["---:" if head.is_numeric else "---" for head in table.heads]
            lines.append(f"| {' | '.join(heads)} |")
            lines.append(f"|{'|'.join(rulers)}|")
            for row in table.rows:
                lines.append(f"| {' | '.join(_markdown_cell(cell) for cell in row)} |")
            if table.note:
                lines += ["", escaped(table.note)]
        if section.images:
            lines += ["", f"In the HTML page: {len(section.images)}."]
    return "\n".join(lines) + "\n"


def to_csv(board: Board) -> str:
    """Long form, one line per model, task and metric, unrounded.

    ``kind`` separates ranked, limited and published. A text that a spreadsheet would carry out is
    quoted: see ``in_spreadsheet``.
    """
    # of each text once: a column of a hundred thousand rows holds few different ones
    scores = board.scores.copy()
    for name in scores:
        values = scores[name].unique().tolist()
        safe = {value: in_spreadsheet(value) for value in values if isinstance(value, str)}
        if any(value != shown for value, shown in safe.items()):
            scores[name] = scores[name].map(lambda value, safe=safe: safe.get(value, value))
    return scores.to_csv(index=False, lineterminator="\n")


def in_spreadsheet(value: Any) -> Any:
    """A text that begins like a formula gets an apostrophe before it; all else stays as it is.

    A spreadsheet would compute a model's name like "=cmd()" when it opens the file.
    """
    if isinstance(value, str) and value.startswith(FORMULA_SIGNS):
        return f"'{value}"
    return value


def axis(ends: Sequence[float], most_ticks: int) -> tuple[float, float, list[tuple[float, str]]]:
    """An axis that holds ``ends`` and zero: where it begins and ends, and its ticks with labels."""
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = (high - low) or 1.0  # all equal to zero still needs a width
    left, right = low - 0.06 * room, high + 0.06 * room

    # the smallest step of 1, 2 or 5 times a power of ten that is long enough
    shortest = room / most_ticks
    power = 10 ** math.floor(math.log10(shortest))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= shortest)
    ticks = [step * index for index in range(math.ceil(left / step), math.floor(right / step) + 1)]
    return left, right, [(tick, f"{tick:+g}" if tick else "0") for tick in ticks]


def _markdown_cell(cell: Cell) -> str:
    text = escaped(cell.text)
    text = f"**{text}**" if cell.is_best else text
    text = f"[{text}](<{cell.url}>)" if cell.url else text
    return text + escaped(cell.detail) + (" =" if cell.is_tied else "")


@lru_cache(maxsize=100_000)  # thousands of cells hold few different numbers
def escaped(text: str) -> str:
    """Markdown that shows ``text`` as it is: no tags, links, emphasis or table borders.

    An underscore inside a word is safe.
    """
    # HTML first: Markdown lets tags through; a line break would end a row of a table
    text = html.escape(text, quote=False).replace("\n", " ")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
