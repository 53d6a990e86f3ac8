"""Which part of the records a leaderboard shows, and in which order (no torch).

``View`` holds the options of ``silc-bench leaderboard``; the functions below carry them out, one
each. A pattern that means nothing is an error, even beside others that mean something.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from silc_bench.errors import UserError, unknown_name
from silc_bench.reports.tables import Section, Table
from silc_bench.reports.titles import dataset_title
from silc_bench.results.names import Models, Row
from silc_bench.results.schema import is_fraction

if TYPE_CHECKING:
    import pandas as pd

    from silc_bench.results.published import ReportedRow
    from silc_bench.results.record import Record

GROUPED_BY = ("family", "dataset", "protocol")
SORTED_BY = ("name", "params")  # besides a task


@dataclass(frozen=True)
class View:
    """Nothing is left out unless it is asked for."""

    tasks: Sequence[str] = ()  # as of `silc_bench.tasks.selection.select`; empty: all
    # what `eval --ckpt` took, names, NAME@REVISION or globs of names; empty: all
    models: Sequence[str] = ()
    sort: str = ""  # "name", "params", TASK or TASK:METRIC; empty: by the first column of a table
    group_by: str = "family"  # what has a table of its own
    limit: int | None = None  # rows of a table; None: all
    has_seeds_grouped: bool = False  # several seeds of a method are one row

    def __post_init__(self) -> None:
        if self.group_by not in GROUPED_BY:
            raise unknown_name("grouping", self.group_by, GROUPED_BY, about="--group-by")


def chosen(
    records: Sequence[Record], reported: Sequence[ReportedRow], view: View
) -> tuple[list[Record], list[ReportedRow]]:
    """What the view's tasks and models mean, of what was measured and of what was published.

    Raises:
        UserError: a pattern means nothing, or nothing is meant by both at once.
    """
    task_words: dict[str, set[str]] = {}
    for record in records:
        task_words.setdefault(record.task.name, set()).add(record.task.group)
    for published_row in reported:
        for task in published_row.values:
            task_words.setdefault(task, set())
    for task, words in task_words.items():
        dataset, family = task.split("/")
        words |= {task, dataset, family, family.split("_")[0]}

    tasks = _tasks(task_words, view.tasks)
    measured, published = _models(records, reported, view.models)
    kept = []
    for record in records:
        model = (record.model.name, record.model.revision)
        if record.task.name in tasks and model in measured:
            kept.append(record)
    rows = []
    for published_row in reported:
        values = {task: metrics for task, metrics in published_row.values.items() if task in tasks}
        if values and published_row.model in published:
            rows.append(replace(published_row, values=values))
    if view.sort and view.sort not in SORTED_BY:
        # before any table is made, which takes seconds; `row_order` looks at what ranks alone
        tasks_of_rows = {record.task.name for record in kept}
        if view.sort.partition(":")[0] not in tasks_of_rows:
            raise unknown_name("order", view.sort, {*SORTED_BY, *tasks_of_rows}, about="--sort")
    if not kept and not rows:
        fix = "leave one of them out; `silc-bench results ls` shows who has measured what"
        raise UserError("none of these models has these tasks", about="--models, --tasks", fix=fix)
    return kept, rows


def _tasks(words: Mapping[str, set[str]], patterns: Sequence[str]) -> set[str]:
    """The tasks of which a pattern is one of the words, or matches the name."""
    meant = set() if patterns else set(words)
    for pattern in patterns:
        found = {name for name, own in words.items() if pattern in own}
        found |= set(fnmatch.filter(words, pattern))
        if not found:
            raise unknown_name("task", pattern, set().union(*words.values()), about="--tasks")
        meant |= found
    return meant


def _models(
    records: Sequence[Record], reported: Sequence[ReportedRow], patterns: Sequence[str]
) -> tuple[set[Row], set[str]]:
    """The measured and the published models that are meant."""
    models = Models(records)
    names = {row.model for row in reported}
    if not patterns:
        return set(models.rows), names

    measured: set[Row] = set()
    published: set[str] = set()
    for pattern in patterns:
        rows = {row for row in models.rows if fnmatch.fnmatchcase(row[0], pattern)}
        rows |= set(models.meant_by(pattern))
        found = {pattern} & names | set(fnmatch.filter(names, pattern))
        if not rows and not found:
            known = names | {row[0] for row in models.rows}
            raise unknown_name("model", pattern, known, about="--models")
        measured |= rows
        published |= found
    return measured, published


def group_of(ranked: pd.DataFrame, view: View) -> pd.Series:
    """The heading of the table that each score stands in."""
    if view.group_by == "dataset":
        return ranked.task.map(lambda task: dataset_title(task.partition("/")[0]))
    return ranked.protocol if view.group_by == "protocol" else ranked.group


def row_order(ranked: pd.DataFrame, row: Sequence[str], view: View) -> dict[tuple, tuple] | None:
    """{row: what it is sorted by, the first lowest}; None where each table keeps its own order.

    By a task: the best first, models that have not measured it last. Of several questions of one
    task the native one counts.

    Args:
        row: the fields that set two rows apart.

    Raises:
        UserError: ``view.sort`` means nothing.
    """
    if not view.sort:
        return None
    order: dict[tuple, tuple] = {}
    if view.sort in SORTED_BY:
        for score in ranked.itertuples():
            largest_first = -int(score.params) if view.sort == "params" else 0
            order[tuple(getattr(score, name) for name in row)] = (largest_first, score.model)
        return order

    task, _, metric = view.sort.partition(":")
    own = ranked[ranked.task == task]
    own = own[own.metric == metric] if metric else own[own.is_main.astype(bool)]
    if own.empty:
        known = {*SORTED_BY, *ranked.task}
        if task in known:
            of_task = ranked[ranked.task == task]
            known = {f"{task}:{name}" for name in of_task.metric}
        raise unknown_name("order", view.sort, known, about="--sort")

    # False stands before True
    by_question = own.assign(is_other=own.protocol != "native").sort_values(
        ["is_other", "question_label"], kind="stable"
    )
    own = own[own.question == by_question.question.iloc[0]]
    sign = -1 if is_fraction(str(own.metric.iloc[0])) else 1
    for score in own.itertuples():
        order[tuple(getattr(score, name) for name in row)] = (sign * score.value, score.model)
    return order


def limited(section: Section, view: View) -> Section:
    """Its tables with the first rows alone, each with a sentence about what it leaves out."""
    if view.limit is None:
        return section
    tables: list[Table] = []
    for table in section.tables:
        rows = table.rows[: view.limit]
        note = table.note
        if len(rows) < len(table.rows):
            first = table.rows[len(rows)][0]
            note = f"{len(rows)} of {len(table.rows)} rows; left out from {first.text} on"
        tables.append(replace(table, rows=rows, note=note))
    return replace(section, tables=tuple(tables))
