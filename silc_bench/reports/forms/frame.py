"""Records as one tidy pandas frame, for notebooks (no torch).

``silc_bench.load_results("results")`` -> a row for each record and metric.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from silc_bench.errors import UserError
from silc_bench.later import pd
from silc_bench.reports.titles import flat_fields, question_words, title
from silc_bench.results import folders
from silc_bench.results.question import Question
from silc_bench.results.record import Record
from silc_bench.results.setup import Setup

# fields of a question that have columns of their own, and say nothing new among the others
STATED = ("task", "task_version", "main_metric", "protocol", "limit", "dataset.name")
FIRST = ("title", "model", "task", "metric", "value", "stderr", "chance", "is_main", "n", "limit")

WHOLE_NUMBERS = ("n", "limit", "params", "image_size")


def load_results(*results_dirs: str | Path) -> pd.DataFrame:
    """Every record below the folders, with all that was asked and how each model took it in.

    Columns, besides those of ``FIRST`` (a title in words, fractions, ``limit`` None for a whole
    run): dataset, family, group, protocol, task_version; revision, model_source, params (a count),
    image_size (pixels); ``question`` and ``setup``, the hashes by which rows are alike;
    ``question.NAME`` and ``setup.NAME`` for each field of them, for example ``question.asks.shots``
    and ``setup.precision``; seconds, created (UTC), commit, source.

    A metric is a fraction, or a rank that counts from 1. The chance is known of main metrics alone.
    A long list is told by its length: the record itself has it whole. A column that a record has
    nothing for is empty there.

    Damaged and foreign files are left out, and a warning names them.

    Raises:
        UserError: no folder is named, or there is no such folder.
    """
    if not results_dirs:
        raise UserError("no folder of records is named", about="load_results", fix="name one")
    reading = folders.read([Path(folder) for folder in results_dirs])
    for remark in reading.remarks:
        warnings.warn(remark, stacklevel=2)
    return frame_of(reading.records)


def frame_of(records: Iterable[Record]) -> pd.DataFrame:
    """``load_results`` of records that are there."""
    rows: list[dict[str, Any]] = []
    for record in records:
        shared = _fields(record)
        rows += [_score(record, metric) | shared for metric in record.metrics]

    # a field that only some records have stands among its kin
    names = dict.fromkeys((*FIRST, *(name for row in rows for name in row)))
    ordered = sorted(names, key=lambda name: name if "." in name else "")
    frame = pd.DataFrame(rows, columns=ordered)
    return frame.astype({name: "Int64" for name in WHOLE_NUMBERS if name in frame})


def _score(record: Record, metric: str) -> dict[str, Any]:
    is_main = metric == record.task.main_metric
    return {
        "title": title(record.task.name, metric),
        "metric": metric,
        "value": record.metrics[metric],
        "stderr": record.stderr.get(metric),
        "chance": record.task.chance if is_main else None,
        "is_main": is_main,
    }


def _fields(record: Record) -> dict[str, Any]:
    """What all scores of a record share."""
    task, model, question = record.task, record.model, record.question
    dataset, _, family = task.name.partition("/")
    return {
        "model": model.name,
        "task": task.name,
        "n": record.n,
        "limit": question.limit,
        "dataset": dataset,
        "family": family,
        "group": task.group,
        "protocol": question.protocol,
        "task_version": task.version,
        "revision": model.revision,
        "model_source": model.source,
        "params": model.params,
        "image_size": model.image_size,
        "question": question.hash,
        "setup": record.setup.row,
        **_question_fields(question),
        **_setup_fields(record.setup),
        "seconds": record.seconds,
        "created": record.created,
        "commit": record.code.commit,
        "source": record.source,
    }


def _question_fields(question: Question) -> dict[str, Any]:
    """Numbers and short texts as they are, long lists in words."""
    words = question_words(question)
    fields = flat_fields(question.as_dict())
    shown = {name: value for name, value in fields.items() if name not in STATED}
    return {f"question.{name}": _plain(value, words[name]) for name, value in shown.items()}


def _setup_fields(setup: Setup) -> dict[str, Any]:
    fields = flat_fields(setup.as_dict())
    return {f"setup.{name}": _plain(value, str(value)) for name, value in fields.items()}


def _plain(value: Any, words: str) -> Any:
    return value if value is None or isinstance(value, str | int | float) else words
