"""What `silc-bench eval` measured of a run's checkpoints: scores over steps (no torch).

Flow: ``measured(runs, ["results"])`` -> a ``Measured``: curves for each run, as those of its log,
and their charts. A record is a run's where both have one recipe, seed and data, and the record has
the run's name or was measured from its folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.errors import UserError
from silc_bench.models.load import normal_form
from silc_bench.reports.titles import title
from silc_bench.results import folders
from silc_bench.results.record import Record
from silc_bench.system.files import printable
from silc_bench.system.terminal import counted
from silc_bench.trainer.config.config import from_dict
from silc_bench.trainer.config.identity import by_content, named, recipe_of
from silc_bench.trainer.monitor.report.charts import Chart
from silc_bench.trainer.monitor.report.run import Run

GROUP = "Measured"
Curves = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    curves: list[Curves]  # of each run, by the name of a chart
    charts: list[Chart]
    remarks: tuple[str, ...]  # sentences: what was left out


def measured(runs: Sequence[Run], results_dirs: Sequence[Path]) -> Measured:
    """Main metrics by step, of student, teacher and average.

    Of measurements that differ in their setup alone (precision, device, libraries) the newest
    counts, and a remark says how many do not.

    Raises:
        UserError: no such folder of records.
    """
    reading = folders.read(results_dirs)
    by_run = [_records_of(run, reading.records) for run in runs]
    labels = _labels([record for records in by_run for record in records])

    curves: list[Curves] = []
    num_older = 0
    for records in by_run:
        newest: dict[tuple[str, int], Record] = {}
        for record in sorted(records, key=lambda record: record.created):
            assert record.model.training is not None
            place = (_name(labels, record), record.model.training.step)
            num_older += place in newest
            newest[place] = record
        curves.append(_curves(newest))

    remarks = list(reading.remarks)
    if num_older:
        count = counted(num_older, "measurement counts", "measurements count")
        remarks.append(f"{count} not: a newer one asks the same at the same step in another setup")
    for run, own in zip(runs, curves, strict=True):
        if not own:
            where = ", ".join(map(str, results_dirs))
            remarks.append(
                f"no record in {where} is of the run {run.name}, with its configuration;"
                f" `silc-bench eval --ckpt {run.folder}@all --tasks ...` measures its checkpoints"
            )
    return Measured(curves, _charts(labels, curves), tuple(remarks))


def _records_of(run: Run, records: Sequence[Record]) -> list[Record]:
    # a later version may have other fields: then no record can be told to be of this run
    try:
        config = by_content(from_dict(run.config), run.brought)
    except UserError:
        return []

    recipe = recipe_of(config)
    data = printable(named(config.data.source))
    folder = run.folder.resolve()
    found = []
    for record in records:
        training = record.model.training
        if training is None or (training.recipe, training.seed) != (recipe, config.seed):
            continue
        is_named_so = record.model.name.rpartition(":")[0] == printable(folder.name)
        source = normal_form(record.model.source)
        is_inside = re.match(rf"{re.escape(printable(str(folder)))}(?:[/:]|$)", source) is not None
        if training.data == data and (is_named_so or is_inside):
            found.append(record)
    return found


def _labels(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """(task, question) -> what its chart is called."""
    labels: dict[tuple[str, str], str] = {}
    uses: Counter[str] = Counter()
    for record in sorted(records, key=lambda record: (record.task.name, record.created)):
        key = (record.task.name, record.question.hash)
        if key in labels:
            continue
        marks = [] if record.question.protocol == "native" else [record.question.protocol]
        marks += [f"limited to {counted(record.limit, 'image')}"] if record.limit else []
        words = ", ".join([title(record.task.name, record.task.main_metric), *marks])

        # the same words for two questions: another version of the task, or other data
        uses[words] += 1
        labels[key] = words if uses[words] == 1 else f"{words} ({uses[words]})"
    return labels


def _name(labels: dict[tuple[str, str], str], record: Record) -> str:
    """Of its curve: one for each branch."""
    assert record.model.training is not None
    label = labels[record.task.name, record.question.hash]
    return f"measured, {record.model.training.branch}: {label}"


def _curves(records: dict[tuple[str, int], Record]) -> Curves:
    curves: Curves = {}
    for (name, step), record in sorted(records.items(), key=lambda item: item[0]):
        metric = record.task.main_metric
        errors = [record.stderr[metric]] if metric in record.stderr else []
        values = [float(f"{value:.6g}") for value in (record.metrics[metric], *errors)]
        curve = curves.setdefault(name, {"points": [], "odd": [], "rows": 0})
        curve["points"].append([step, *values])
        curve["rows"] += 1
    return curves


def _charts(labels: dict[tuple[str, str], str], curves: Sequence[Curves]) -> list[Chart]:
    names = set().union(*curves)
    charts = []
    meaning = "measured by silc-bench eval; the band is the 95 % interval over the test images"
    for label in labels.values():
        student, teacher, average = (
            f"measured, {branch}: {label}" for branch in ("student", "teacher", "average")
        )
        if {student, teacher} & names:
            chart = Chart(student, label, "percent", meaning, percent=True, teacher=teacher)
            charts.append(chart)
        if average in names:
            words = f"{label}, average of the weights"
            charts.append(Chart(average, words, "percent", meaning, percent=True))
    return charts
