"""What the board decided -> the page's document: which records rank, who is best, what differs.

Flow: ``leaderboard.build`` keeps ``lambda: page_document(...)`` with the board, so that a terminal
never waits for it; ``leaderboard.write`` calls it and renders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from silc_bench.reports.page.document import Difference, Ranked, Row, document
from silc_bench.reports.tables import Figure, Table
from silc_bench.reports.titles import GROUPS, title
from silc_bench.results.published import ReportedRow
from silc_bench.results.record import Record

if TYPE_CHECKING:
    import pandas as pd

# Of a published task that nobody measured here: its family, by the end of its name.
GROUP_OF = {
    "zeroshot": "zero-shot",
    "fewshot": "few-shot",
    "fewshot_logistic": "few-shot",
    "linear": "linear",
    "knn": "knn",
    "retrieval": "retrieval",
}
# of the board's kinds, those that are measured and yet not ranked
REASONS = {
    "limited": "run with --limit {}",
    "outdated": "version {} of its task, which gives other numbers today",
    "reported": "its record was typed in from a publication",
}


def page_document(
    records: Sequence[Record],
    reported: Sequence[ReportedRow],
    scores: pd.DataFrame,
    standing: Callable[[pd.DataFrame, str], Mapping[tuple[str, str, str], str]],
    shown: pd.DataFrame,
    changes: Sequence[Table],
    images: Sequence[Figure],
    remarks: Sequence[str],
) -> dict[str, Any]:
    """The document of ``render``.

    Args:
        scores: of the board, one row a record and metric; ``shown``: those of the ranked ones that
            its tables show.
        standing: of one column of them and its metric, which rows are "best" or "tied".
        remarks: which files of the results were left out, and why.
    """
    label_of, question_label, kind_of = _labels(scores)

    def place(record: Record) -> tuple[str, str, str]:
        return record.model.name, record.model.revision, record.setup.row

    def row(record: Record) -> Row:
        name, revision, _ = place(record)
        return Row(name, revision, label_of[place(record)])

    # words only where two questions of one task stand side by side
    ranked_records: list[Record] = []
    unranked: list[tuple[Record, str]] = []
    for record in records:
        kind = kind_of[(*place(record), record.question.hash)]
        if kind == "ranked":
            ranked_records.append(record)
        else:
            reason = REASONS[kind]
            number = record.limit if kind == "limited" else record.task.version
            unranked.append((record, reason.format(number)))
    questions: dict[str, set[str]] = {}
    for record in ranked_records:
        questions.setdefault(record.task.name, set()).add(record.question.hash)

    def titled(record: Record, metric: str) -> str:
        words = title(record.task.name, metric)
        label = question_label[record.question.hash]
        has_several = len(questions.get(record.task.name, ())) > 1
        return f"{words} ({label})" if has_several and label else words

    best: dict[tuple[str, str], list[Row]] = {}
    for (question, metric), own in shown.groupby(["question", "metric"]):
        best[question, metric] = [
            Row(name, revision, label_of[name, revision, setup])
            for name, revision, setup in standing(own, metric)
        ]

    ranked = Ranked(
        title=titled,
        row=row,
        best=lambda question, metric: best.get((question, metric), ()),
        published=lambda task, metric: (_group_of(task, ranked_records), title(task, metric)),
    )
    return document(
        ranked_records,
        reported,
        ranked,
        unranked=unranked,
        changes={table.title: _differences(table) or _names(table) for table in changes},
        images=[
            {"title": image.title, "caption": image.caption, "uri": image.data_uri}
            for image in images
        ],
        remarks=remarks,
        families=GROUPS,
    )


def _labels(
    scores: pd.DataFrame,
) -> tuple[dict[tuple[str, str, str], str], dict[str, str], dict[tuple[str, str, str, str], str]]:
    """The label of each row, of each question, and the kind of each record."""
    own = scores[scores.question.notna()]
    names = ["model", "revision", "setup", "question", "setup_label", "question_label", "kind"]
    rows: dict[tuple[str, str, str], str] = {}
    questions: dict[str, str] = {}
    kinds: dict[tuple[str, str, str, str], str] = {}
    for score in own[names].drop_duplicates().itertuples():
        place = (score.model, score.revision, score.setup)
        rows[place] = score.setup_label
        questions[score.question] = score.question_label
        kinds[(*place, score.question)] = score.kind
    return rows, questions, kinds


def _group_of(task: str, records: Sequence[Record]) -> str:
    """As the measured tasks of the same family have it, else by the name."""
    family = task.partition("/")[2]
    for record in records:
        if record.task.name.partition("/")[2] == family:
            return record.task.group
    return GROUP_OF.get(family, "dense" if family.startswith("segmentation") else "published only")


def _differences(table: Table) -> list[Difference]:
    differences = []
    for change in table.changes:
        paired = change.paired
        low = None if paired is None else change.difference - paired.margin
        high = None if paired is None else change.difference + paired.margin
        words = title(change.task, change.metric)
        differences.append(Difference(words, change.contrastive, change.silc, low, high))
    return differences


def _names(table: Table) -> list[str]:
    """Of twins that were not compared: the models that could be meant."""
    return [row[0].text + row[0].detail for row in table.rows]
