"""What self-distillation changed: a SILC model against its contrastive-only twin, task by task (no torch).

Twins are found by name, ``preset-objective:branch``: "shapes_tiny-silc:student" and "shapes_tiny-contrastive:student".
They are compared only within a column of the leaderboard: same data, same protocol.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from silc_bench.board import Cell, Change, Head, Table
from silc_bench.schema import is_fraction

_TWIN = re.compile(r"(?P<preset>.+)-(?P<objective>contrastive|silc)(?P<branch>:.+)?")
NOTE = (
    "SILC minus its contrastive-only twin, in points. The standard error is the root of the two summed squares, as if the "
    "two were independent; the interval is ±1.96 of it, for each task alone (no correction for several tasks). It covers "
    "the finite test set, not the spread between training seeds."
)


def change_tables(ranked: pd.DataFrame) -> tuple[Table, ...]:
    """One table a pair of twins.

    Where several revisions bear one twin's name, the table lists them instead: which to pair is not ours to guess.
    """
    twins: dict[tuple[str, str], dict[str, list[tuple[str, str]]]] = {}
    for model, revision in sorted(set(zip(ranked.model, ranked.revision, strict=True))):
        if match := _TWIN.fullmatch(model):
            found = twins.setdefault((match["preset"], match["branch"] or ""), {"contrastive": [], "silc": []})
            found[match["objective"]].append((model, revision))
    tables = []
    for (preset, branch), found in sorted(twins.items()):
        if len(found["contrastive"]) == len(found["silc"]) == 1:
            changes = tuple(_changes(ranked, found["contrastive"][0], found["silc"][0]))
            if changes:
                tables.append(_table(f"{preset}{branch}", changes))
        elif found["contrastive"] and found["silc"]:
            rows = tuple((Cell(model, f"@{revision[:8]}"),) for model, revision in found["contrastive"] + found["silc"])
            title = f"{preset}{branch}: not compared, several models bear one name"
            tables.append(Table(title, (Head("model", is_numeric=False),), rows))
    return tuple(tables)


def _changes(ranked: pd.DataFrame, before: tuple[str, str], after: tuple[str, str]) -> list[Change]:
    def scores(model: str, revision: str) -> dict[tuple, Any]:
        part = ranked[(ranked.model == model) & (ranked.revision == revision)]
        return {(s.task, s.metric, s.protocol, s.fingerprint): s for s in part.itertuples() if is_fraction(s.metric)}

    old, new = scores(*before), scores(*after)
    changes = []
    for column in [column for column in old if column in new]:
        a, b = old[column], new[column]
        stderr = None if pd.isna(a.stderr) or pd.isna(b.stderr) else math.hypot(a.stderr, b.stderr)
        changes.append(Change(a.task, a.metric, a.value, b.value, stderr))
    return changes


def _table(title: str, changes: tuple[Change, ...]) -> Table:
    heads = (
        Head("task", is_numeric=False),
        Head("metric", is_numeric=False),
        Head("contrastive"),
        Head("silc"),
        Head("difference", ("points",)),
        Head("95 % interval", ("excludes 0?",), is_numeric=False),
    )
    rows = tuple(
        (
            Cell(change.task),
            Cell(change.metric),
            Cell(f"{100 * change.contrastive:.1f}"),
            Cell(f"{100 * change.silc:.1f}"),
            Cell(f"{100 * change.difference:+.1f}", "" if change.stderr is None else f" ±{100 * change.stderr:.1f}"),
            Cell(change.verdict),
        )
        for change in changes
    )
    return Table(title, heads, rows, changes)
