"""The board as data, and its four forms: terminal, Markdown, CSV, HTML (no torch).

A board is made of sections of tables, pictures and changes.

``leaderboard.build`` makes a Board; each ``to_*`` is a pure function of it, so equal boards give
equal bytes.
"""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType


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
    share: float | None = None  # 0 (chance) .. 1 (perfect): length of the bar
    hint: str = ""  # shown on pointing
    url: str = ""


@dataclass(frozen=True)
class Change:
    """One metric of two twins, as fractions, and the standard error of their difference."""

    task: str
    metric: str
    contrastive: float
    silc: float
    stderr: float | None

    @property
    def difference(self) -> float:
        return self.silc - self.contrastive

    @property
    def margin(self) -> float:
        """Half the 95 % interval; 0 where no standard error is known."""
        return 1.96 * (self.stderr or 0.0)

    @property
    def verdict(self) -> str:
        if self.stderr is None:
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


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    data_uri: str


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    # published numbers: long, and left to the files when the terminal is shown
    is_reference: bool = False


@dataclass(frozen=True)
class Board:
    sections: tuple[Section, ...]
    scores: (
        pd.DataFrame
    )  # one row per record and metric, published ones included; ``kind`` says which is which


def to_terminal(board: Board) -> RenderableType:
    """Something for ``rich.print``.

    Published numbers and pictures are counted and left to the files.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for section in board.sections:
        parts.append(Text(f"\n{section.title}", style="bold"))
        if section.is_reference or section.pictures:
            rows = sum(len(table.rows) for table in section.tables)
            what = f"{len(section.pictures)} pictures" if section.pictures else f"{rows} rows"
            parts.append(
                Text(
                    f"{what}: see the page that `silc-bench leaderboard --out DIR` writes",
                    style="dim",
                )
            )
            continue
        parts.append(Text(section.note.replace("**", ""), style="dim"))
        parts += [
            _terminal_table(table, columns)
            for table in section.tables
            for columns in _blocks(table)
        ]
    return Group(*parts)


def _blocks(table: Table) -> list[list[int]]:
    """Columns side by side in a terminal of 80 characters: the first one, and five at a time."""
    return [
        [0, *range(start, min(start + 5, len(table.heads)))]
        for start in range(1, len(table.heads), 5)
    ] or [[0]]


def _terminal_table(table: Table, columns: list[int]) -> RenderableType:
    """A table for the terminal, whose values never wrap.

    In a narrow terminal the heads and the names wrap, preferably before "@" and after "/".
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(
        title=Text(table.title),
        title_justify="left",
        header_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    for head, cells in (
        (table.heads[index], [row[index] for row in table.rows]) for index in columns
    ):
        lines = ((f"\n{line}", "dim") for line in head.details)
        label = Text.assemble(
            (head.text.replace("/", "/\n") if head.is_numeric else head.text, "bold"), *lines
        )
        width = max(len(cell.text + cell.detail) for cell in cells) if head.is_numeric else None
        grid.add_column(
            label, justify="right" if head.is_numeric else "left", min_width=width, overflow="fold"
        )
    for row in table.rows:
        texts = (
            (row[index].text, row[index].detail.replace("@", " @"), row[index].is_best)
            for index in columns
        )
        grid.add_row(
            *(
                Text.assemble((text, "bold green" if best else ""), (detail, "dim"))
                for text, detail, best in texts
            )
        )
    return grid


def to_markdown(board: Board) -> str:
    lines = ["# Leaderboard"]
    for section in board.sections:
        lines += ["", f"## {section.title}", *(["", section.note] if section.note else [])]
        for table in section.tables:
            lines += ["", f"### {escaped(table.title)}", ""]
            heads = (
                "<br>".join(escaped(text) for text in (head.text, *head.details))
                for head in table.heads
            )
            lines.append(f"| {' | '.join(heads)} |")
            lines.append(
                f"|{'|'.join('---:' if head.is_numeric else '---' for head in table.heads)}|"
            )
            lines += [
                f"| {' | '.join(_markdown_cell(cell) for cell in row)} |" for row in table.rows
            ]
        if section.pictures:
            lines += ["", f"In the HTML page: {len(section.pictures)}."]
    return "\n".join(lines) + "\n"


def to_csv(board: Board) -> str:
    """Long form, one line per model, task and metric, unrounded.

    ``kind`` separates ranked, limited and published.
    """
    return board.scores.to_csv(index=False, lineterminator="\n")


def to_html(board: Board) -> str:
    """One file with everything in it: no network, no scripts; every text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("silc_bench.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = _marked
    return environment.get_template("leaderboard.html.j2").render(board=board, chart=_chart)


def _chart(changes: tuple[Change, ...]) -> dict[str, Any]:
    """Where the marks of a chart of differences go: x in percent of its width, ticks in points."""
    ends = [
        0.0,
        *(c.difference - c.margin for c in changes),
        *(c.difference + c.margin for c in changes),
    ]
    low, high = 100 * min(ends), 100 * max(ends)
    room = (high - low) or 1.0
    rough = room / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    left, right = low - 0.06 * room, high + 0.06 * room

    def x(points: float) -> str:
        return f"{100 * (points - left) / (right - left):.2f}%"

    ticks = [step * index for index in range(math.ceil(left / step), math.floor(right / step) + 1)]
    marks = [
        {
            "change": change,
            "low": x(100 * (change.difference - change.margin)),
            "middle": x(100 * change.difference),
            "high": x(100 * (change.difference + change.margin)),
            "tone": {"yes, better": "up", "yes, worse": "down"}.get(change.verdict, "flat"),
        }
        for change in changes
    ]
    return {
        "marks": marks,
        "ticks": [(x(tick), f"{tick:+g}" if tick else "0") for tick in ticks],
        "zero": x(0.0),
    }


def _markdown_cell(cell: Cell) -> str:
    text = escaped(cell.text)
    text = f"**{text}**" if cell.is_best else text
    text = f"[{text}](<{cell.url}>)" if cell.url else text
    return text + escaped(cell.detail)


def escaped(text: str) -> str:
    """Markdown that shows ``text`` as it is: no tags, links, emphasis or table borders.

    An underscore inside a word is safe.
    """
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", html.escape(text, quote=False).replace("\n", " "))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _marked(note: str) -> Any:
    """Our own notes use two marks of Markdown, `code` and **bold**; the rest is escaped."""
    from markupsafe import Markup

    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(note))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text))
