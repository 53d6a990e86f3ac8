r"""Tables for a paper: LaTeX with booktabs, the best of a column bold, what is tied underlined.

``to_latex(board)`` -> a file to ``\input``. ``table(...)`` makes one table of rows; a comparison
uses it too. A table that is wider than a page of one column stands in several below each other, and
so do its rows beyond ``MOST_ROWS``.

Every sign that means something to TeX is escaped, so a name is a name whatever stands in it. Of
letters beyond ASCII LuaLaTeX sets all that its fonts have; the head of the file says how.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from silc_bench.reports.tables import BEST, TIED, Board, Cell, Table, row_names
from silc_bench.system.terminal_table import (
    Column,
    blocks_of,
    letters_of,
    room_for_names,
    short_names,
    visible,
    width_of,
    wrapped,
    written_out,
)

HEAD = r"""% Made by silc-bench. In the preamble:
%   \usepackage{booktabs}
% and for pdflatex, which sets names in ASCII:
%   \usepackage[T1]{fontenc}
% or for lualatex, which sets every letter that a font of the document has:
%   \usepackage{fontspec}
%   \usepackage[bidi=basic,english]{babel}
"""
LETTERS = 70  # of a line of a table in \small on a page of one column
LONG_WORD = 40  # letters; a longer one may be broken in a caption
MOST_ROWS = 45  # of a table on one page
# What TeX would not print as it stands; brackets and stars mean something after the end of a row.
ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "…": r"\dots{}",
    "–": r"\textendash{}",
}
JOINING = "-,<>"  # of two of a kind TeX makes another sign

Pair = tuple[str, str]  # what a reader sees, to be measured; and how TeX writes it


def escaped(text: str) -> str:
    """TeX that prints ``text`` as it is; letters without a shape are written out as <U+202E>."""
    shown = visible(text)
    parts = []
    for index, letter in enumerate(shown):
        parts.append(ESCAPES.get(letter, letter))
        if letter in JOINING and shown[index + 1 : index + 2] == letter:
            parts.append(r"\kern0pt{}")
    return "".join(parts)


def number(text: str) -> str:
    """A number with its sign as one: a hyphen before it is a minus."""
    if text[:1] in ("-", "+"):
        return f"${text[0]}${escaped(text[1:])}"
    return escaped(text)


def to_latex(board: Board) -> str:
    """Every table of the board but the published numbers, which are counted in a comment."""
    names = row_names(board)
    parts = [HEAD]
    for section in board.sections:
        if section.is_for_the_page:
            count = sum(len(part.rows) for part in section.tables) or len(section.images)
            parts.append(f"% {section.title}: {count}, not in this file.\n")
            continue

        note = section.note.replace(BEST, "bold").replace(TIED, "underlined").replace("`", "")
        for part in section.tables:
            caption = " ".join(filter(None, (f"{section.title}: {part.title}.", note, part.note)))
            parts.append(_of_board(part, names, caption))
    return "\n".join(parts)


def table(columns: Sequence[Column], rows: Sequence[Sequence[Pair]], caption: str) -> str:
    """One table, or as many as its width and its rows need; the first column is in each.

    A name of the first column whose words are too long loses its middle; the caption gives it back.

    Args:
        rows: a cell for each column. Of the first one the first part alone is used.
        caption: as a reader sees it.
    """
    spans = [[((text, ""),) for text, _ in row] for row in rows]
    room = room_for_names(columns, spans, LETTERS)
    names = [written_out(row[0][0]) for row in rows]

    # what has words goes on in the next line; a single word too long for the room cannot
    too_long = [name for name in names if max(map(width_of, name.split()), default=0) > room]
    shorts = {name: name for name in names} | short_names(too_long, room)
    named: list[list[Pair]] = []
    for (name, _), *cells in rows:
        short = shorts[written_out(name)]
        named.append([(short, escaped(short)), *cells])

    measured = [[((text, ""),) for text, _ in row] for row in named]
    parts: list[str] = []
    for indices, widths in blocks_of(columns, measured, LETTERS):
        for start in range(0, len(named), MOST_ROWS):
            some = named[start : start + MOST_ROWS]
            shown = [row[0][0] for row in some]
            told = {name: short for name, short in shorts.items() if short in shown}
            title = caption if not parts else f"{caption.partition('. ')[0]}, continued."
            block = [columns[index] for index in indices]
            cells_of = [[row[index] for index in indices] for row in some]
            parts.append(_one(block, widths, cells_of, title + _told(told)))
    return "\n".join(parts)


def _one(
    columns: Sequence[Column], widths: Sequence[int], rows: Iterable[Sequence[Pair]], caption: str
) -> str:
    kinds = "".join("r" if column.is_numeric else "l" for column in columns)
    heads = [_head(*sized) for sized in zip(columns, widths, strict=True)]
    lines_of_rows = []
    for row in rows:
        cells = [_fitted(*sized) for sized in zip(row, columns, widths, strict=True)]
        lines_of_rows.append(" & ".join(cells))
    lines = [
        r"\begin{table}[tbp]",
        r"  \centering\small",
        rf"  \caption{{{_breakable(caption)}}}",
        r"  \smallskip",
        rf"  \begin{{tabular}}{{@{{}}{kinds}@{{}}}}",
        r"    \toprule",
        rf"    {' & '.join(heads)} \\",
        r"    \midrule",
        *(rf"    {line} \\" for line in lines_of_rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _told(shorts: dict[str, str]) -> str:
    """The names that were shortened, as sentences of a caption."""
    told = [f" {short} = {name}." for name, short in shorts.items() if name != short]
    return "".join(told)


def _breakable(caption: str) -> str:
    """As TeX, with places to break in words that are longer than a line may be."""
    words = []
    for word in written_out(caption).split(" "):
        letters = letters_of(word)
        step = 12 if len(letters) > LONG_WORD else LONG_WORD
        parts = ["".join(letters[start : start + step]) for start in range(0, len(letters), step)]
        words.append(r"\penalty100{}".join(map(escaped, parts)))
    return " ".join(words)


def _head(column: Column, width: int) -> str:
    lines = [line for text in (column.title, *column.details) for line in wrapped(text, width)]
    return _stacked(lines, "r" if column.is_numeric else "l", "b")


def _fitted(cell: Pair, column: Column, width: int) -> str:
    text, tex = cell
    if column.is_numeric or (width_of(text) <= width and "\n" not in text):
        return tex
    return _stacked(wrapped(text, width), "l", "t")


def _stacked(lines: Sequence[str], side: str, edge: str) -> str:
    """Lines above each other, as wide as the longest."""
    if len(lines) == 1:
        return escaped(lines[0])
    inner = r" \\ ".join(map(escaped, lines))
    return rf"\begin{{tabular}}[{edge}]{{@{{}}{side}@{{}}}}{inner}\end{{tabular}}"


def _of_board(part: Table, names: dict[Cell, str], caption: str) -> str:
    columns: list[Column] = []
    by_column: list[list[Pair]] = []
    for index, head in enumerate(part.heads):
        details = tuple(map(written_out, head.details))
        columns.append(Column(written_out(head.text), details, head.is_numeric))
        cells = [row[index] for row in part.rows]

        # the longest error keeps the room of one where a value has none
        errors = [cell.detail for cell in cells if head.is_numeric]
        widest = max(errors, key=len, default="")
        pairs = [_cell(cell, head.is_numeric, widest) for cell in cells]
        by_column.append(pairs if index else [(names[cell], "") for cell in cells])
    return table(columns, list(zip(*by_column, strict=True)), caption)


def _cell(cell: Cell, is_numeric: bool, widest: str) -> Pair:
    value = number(cell.text) if is_numeric else escaped(cell.text)
    if cell.is_best:
        value = rf"\textbf{{{value}}}"
    elif cell.is_tied:
        value = rf"\underline{{{value}}}"
    if cell.detail:
        value += rf"{{\scriptsize {escaped(cell.detail)}}}"
    elif cell.text and widest:
        value += rf"\phantom{{\scriptsize {escaped(widest)}}}"
    return written_out(cell.text + cell.detail), value
