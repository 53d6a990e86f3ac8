"""A board in the terminal: models down, tasks across, in as many blocks as the width needs.

``to_terminal(board)`` -> something for ``console.print``. The layout is that of
`silc_bench.system.terminal_table`: no number is cut, and what is shortened has a legend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from silc_bench.reports.tables import BEST, Board, Cell, Section, Table, row_names
from silc_bench.system.terminal import counted
from silc_bench.system.terminal_table import (
    Column,
    Grid,
    Paragraph,
    Span,
    legend,
    name_width,
    short_names,
    visible,
    width_of,
)


def to_terminal(board: Board) -> RenderableType:
    """Something for ``rich.print``, as wide as the terminal is.

    Published numbers and images are counted and left to the files.
    """
    return _Shown(board)


@dataclass(frozen=True)
class _Shown:
    """The board, laid out when the width is known."""

    board: Board

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        labels = {cell: visible(name) for cell, name in row_names(self.board).items()}
        shorts = short_names(labels.values(), name_width(options.max_width))
        for section in self.board.sections:
            yield from _section(section, labels, shorts)

        # once for the whole board: its tables shorten a name alike
        if any(name != short for name, short in shorts.items()):
            yield Text("\nshortened above:", "dim")
            yield legend(shorts, options.max_width)


def _section(
    section: Section, labels: dict[Cell, str], shorts: dict[str, str]
) -> Iterator[RenderableType]:
    yield Paragraph(f"\n{section.title}", "bold")

    # long, or not to be drawn with letters
    if section.is_for_the_page:
        rows = sum(len(table.rows) for table in section.tables)
        count, noun = (len(section.images), "image") if section.images else (rows, "row")
        size = counted(count, noun)
        hint = f"{size}: see the page that `silc-bench leaderboard --out DIR` writes"
        yield Paragraph(hint, "dim")
        return

    yield Paragraph(section.note.replace(BEST, "`*`"), "dim")
    for table in section.tables:
        yield Paragraph(f"\n{visible(table.title)}", "italic")
        yield _table(table, labels, shorts)
        if table.note:
            yield Paragraph(visible(table.note), "dim")


def _table(table: Table, labels: dict[Cell, str], shorts: dict[str, str]) -> Grid:
    columns: list[Column] = []
    by_column: list[list[tuple[Span, ...]]] = []
    for index, head in enumerate(table.heads):
        details = tuple(visible(detail) for detail in head.details)
        columns.append(Column(visible(head.text), details, head.is_numeric))
        cells = [row[index] for row in table.rows]
        if index == 0:
            by_column.append([((shorts[labels[cell]], ""),) for cell in cells])
        elif head.is_numeric:
            by_column.append(_aligned(cells))
        else:
            by_column.append([((visible(cell.text + cell.detail), ""),) for cell in cells])
    return Grid(columns, list(zip(*by_column, strict=True)))


def _aligned(cells: list[Cell]) -> list[tuple[Span, ...]]:
    """Values whose last digits stand below each other, also where one has no error or no mark.

    The best has a sign beside its colour, because a file or a blind reader has no colour.
    """
    texts = max((width_of(cell.text) for cell in cells), default=0)
    details = max((width_of(cell.detail) for cell in cells), default=0)
    is_marked = any(cell.is_best or cell.is_tied for cell in cells)
    spans: list[tuple[Span, ...]] = []
    for cell in cells:
        value = " " * (texts - width_of(cell.text)) + cell.text
        error = cell.detail + " " * (details - width_of(cell.detail))
        mark = " *" if cell.is_best else " =" if cell.is_tied else "  "
        style = "bold green" if cell.is_best else ""
        marked = ((mark, style),) if is_marked else ()
        spans.append(((value, style), (error, "dim"), *marked))
    return spans
