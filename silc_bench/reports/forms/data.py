"""The scores of a board for other programs: JSON and Parquet, unrounded (no torch).

Both hold what the CSV holds: a row for each record and metric, published ones included.
"""

from __future__ import annotations

import io
import json

from silc_bench.reports.tables import Board

SCHEMA_VERSION = "leaderboard/1"


def to_json(board: Board) -> str:
    """``{"schema": "leaderboard/1", "columns": [...], "rows": [[...], ...]}``; gaps are null.

    A row is a line, because names of columns in each of a hundred thousand rows are most of a file.
    """
    scores = board.scores
    columns: list[list] = []
    for name in scores:
        values = zip(scores[name].tolist(), scores[name].isna().tolist(), strict=True)
        columns.append([None if is_gap else value for value, is_gap in values])
    names = json.dumps(list(scores))

    # written row by row: a second text of a hundred thousand rows would be tens of megabytes
    text = io.StringIO()
    text.write(f'{{"schema": "{SCHEMA_VERSION}", "columns": {names}, "rows": [\n')
    for number, row in enumerate(zip(*columns, strict=True)):
        text.write(",\n" if number else "")
        text.write(json.dumps(row, ensure_ascii=False, allow_nan=False))
    text.write("\n]}\n")
    return text.getvalue()


def to_parquet(board: Board) -> bytes:
    """The same with types: whole numbers, floats, texts; needs pyarrow."""
    buffer = io.BytesIO()
    board.scores.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()
