"""Is B better than A: two models on the same samples, task by task (no torch).

What cannot be compared is listed, with the reason.

Flow: ``compare("results", ["a", "b", "c"])`` -> rows of the leaderboard by name -> records that
measure the same, paired -> each pair's outcomes -> difference, standard error and p -> Holm over
all of them -> ``Comparison``. The first model is the baseline. `silc_bench.reports.compare_report`
writes it down; run: ``silc-bench compare A B --results results``.

Hits are tested by McNemar's exact test. Everything else has Student's t on the paired bootstrap's
error: captions and pixels are drawn with their picture; where the training shots were drawn several
times, that variance is added.

Which records of two models measure the same - one protocol, data, limit and task version - and why
others do not (no torch).

``pair_up(mine, theirs, labels)`` takes the records of one task by two models and accounts for every
one of them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from silc_bench.errors import UserError, unknown_name
from silc_bench.metrics import statistics
from silc_bench.reports.leaderboard import COMPARED, flat_fields
from silc_bench.results import outcomes
from silc_bench.results.outcomes import PerPicture
from silc_bench.results.record import Record, load_all

ALPHA = 0.05  # of all tests together


@dataclass(frozen=True)
class Paired:
    """Two models on the same samples, as fractions; the difference is second minus first."""

    difference: float
    stderr: float
    margin: float  # half the 95 % interval, of this test alone
    p: float
    test: str  # "mcnemar" or "bootstrap"


@dataclass(frozen=True)
class Result:
    """One metric of one task, a model against the baseline."""

    model: str
    task: str
    metric: str
    is_main: bool
    protocol: str  # name and hash; both, where they differ
    fingerprint: str
    limit: int | None
    n: int
    baseline_value: float
    value: float
    paired: Paired
    p_holm: float = 1.0

    @property
    def verdict(self) -> str:
        if self.p_holm >= ALPHA:
            return "no difference"
        return "better" if self.paired.difference > 0 else "worse"

    @property
    def marks(self) -> tuple[str, ...]:
        """What sets it apart from a whole run under one protocol."""
        limited = (f"limited to {self.limit} pictures",) if self.limit is not None else ()
        return limited + ((f"protocols differ: {self.protocol}",) if " / " in self.protocol else ())


@dataclass(frozen=True)
class Omission:
    """A task, or a way of measuring it, that was not compared."""

    model: str
    task: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    baseline: str
    models: tuple[str, ...]
    results: tuple[Result, ...]
    omissions: tuple[Omission, ...]


def compare(
    results_dir: Path,
    names: Sequence[str],
    tasks: Sequence[str] = (),
    *,
    across_protocols: bool = False,
) -> Comparison:
    """Each further model of ``names`` against the first.

    Args:
        names: of models, as the leaderboard's rows; with "@" and digits of the revision where
        several bear one name. tasks: names, families, datasets, groups or globs; empty: all.
        across_protocols: also pair what was measured under different protocols on the same samples,
        and mark it.

    Raises:
        UserError: fewer than two models, one twice, an unknown or ambiguous name, no record of such
        a task, a damaged file.
    """
    if len(names) < 2:
        raise UserError(
            "name two models or more; the first is the one that the others are compared with"
        )
    records = [record for record in load_all(results_dir) if record.source == "measured"]
    if not records:
        raise UserError(
            f"no records in {results_dir}; `silc-bench eval --results {results_dir}` writes them"
        )
    rows = sorted({(record.model.name, record.model.revision) for record in records})
    chosen = [_row(name, rows) for name in names]
    if len(set(chosen)) < len(chosen):
        raise UserError(f"a model was named twice: {', '.join(names)}")
    labels = [_label(row, rows) for row in chosen]
    named = _of_tasks(records, tasks)
    of_row = [
        [record for record in named if (record.model.name, record.model.revision) == row]
        for row in chosen
    ]
    results: list[Result] = []
    omissions: list[Omission] = []
    for label, theirs in zip(labels[1:], of_row[1:], strict=True):
        for task in sorted({record.task.name for record in (*of_row[0], *theirs)}):
            mine, other = (
                [record for record in part if record.task.name == task]
                for part in (of_row[0], theirs)
            )
            pairs, reasons = pair_up(mine, other, (labels[0], label), across_protocols)
            for a, b in pairs:
                found, reason = _results(a, b, (labels[0], label), results_dir)
                results += found
                reasons += reason
            omissions += [Omission(label, task, reason) for reason in reasons]
    adjusted = statistics.holm([result.paired.p for result in results])
    final = tuple(
        replace(result, p_holm=float(p)) for result, p in zip(results, adjusted, strict=True)
    )
    return Comparison(labels[0], tuple(labels[1:]), final, tuple(omissions))


def paired(a: PerPicture, b: PerPicture) -> Paired:
    """One metric of two models, from what each picture adds to it."""
    values = [float(part.statistic(part.counts.sum(axis=0)[None])[0]) for part in (a, b)]
    difference, num_pictures = values[1] - values[0], len(a.counts)
    variances, dofs = (
        [statistics.paired_bootstrap(a.counts, b.counts, a.statistic) ** 2],
        [num_pictures - 1],
    )
    if a.hits is not None and b.hits is not None:
        variances.append(statistics.draws_variance(a.hits, b.hits))
        dofs.append(a.hits.shape[1] - 1)
    stderr, dof = float(np.sqrt(sum(variances))), statistics.pooled_dof(variances, dofs)
    if a.hits is not None and b.hits is not None and a.hits.shape[1] == 1:
        p, test = statistics.mcnemar(a.hits, b.hits), "mcnemar"
    else:
        differing = int((a.counts != b.counts).reshape(num_pictures, -1).any(axis=1).sum())
        p, test = statistics.paired_p(difference, stderr, dof, differing), "bootstrap"
    return Paired(difference, stderr, statistics.half_interval(stderr, dof), p, test)


def _row(name: str, rows: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The model of this name, or of this name@revision."""
    found = [row for row in rows if row[0] == name]
    if not found and "@" in name:
        model, _, digits = name.rpartition("@")
        found = [row for row in rows if row[0] == model and digits and row[1].startswith(digits)]
    if not found:
        revisions = [f"{model}@{revision[:8]}" for model, revision in rows]
        raise unknown_name(
            "model", name, revisions if "@" in name else {model for model, _ in rows}
        )
    if len(found) > 1:
        raise UserError(
            f"{name} has several revisions; name one: {', '.join(_shown(row) for row in found)}"
        )
    return found[0]


def _label(row: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    return row[0] if sum(name == row[0] for name, _ in rows) == 1 else _shown(row)


def _shown(row: tuple[str, str]) -> str:
    return f"{row[0]}@{row[1][:8]}"


def _of_tasks(records: Sequence[Record], patterns: Sequence[str]) -> list[Record]:
    """Those whose task is meant by one of the patterns.

    The patterns are those of `silc_bench.tasks.selection.select`.
    """
    if not patterns:
        return list(records)
    words = {}
    for record in records:
        dataset, family = record.task.name.split("/")
        words[record.task.name] = {
            record.task.name,
            dataset,
            family,
            family.split("_")[0],
            record.task.group,
        }
    for pattern in patterns:
        if not any(
            pattern in own or fnmatch.fnmatchcase(name, pattern) for name, own in words.items()
        ):
            raise unknown_name("task", pattern, set().union(*words.values()))
    return [
        record
        for record in records
        if any(
            pattern in words[record.task.name] or fnmatch.fnmatchcase(record.task.name, pattern)
            for pattern in patterns
        )
    ]


def _results(
    a: Record, b: Record, labels: tuple[str, str], results_dir: Path
) -> tuple[list[Result], list[str]]:
    """Main metric first, then recall at 1 the other way; or why there are none."""
    kept_a, kept_b = (outcomes.load(record, results_dir) for record in (a, b))
    if kept_a is None or kept_b is None:
        missing = [
            label for label, found in zip(labels, (kept_a, kept_b), strict=True) if found is None
        ]
        mend = "`silc-bench eval --existing overwrite` keeps them"
        return [], [f"{' and '.join(missing)} kept no outcomes of single pictures ({mend})"]
    if problem := _not_the_same_samples(kept_a, kept_b):
        if not is_alike(a, b):
            return [], [f"the protocols differ, and so do the samples: {problem}"]
        places = " and ".join(str(outcomes.path_of(record, results_dir)) for record in (a, b))
        raise UserError(
            f"{places}: {problem}, though both say the same data; measure one of them again"
        )
    shared = [
        metric for metric in a.metrics if metric in b.metrics and re.fullmatch(COMPARED, metric)
    ]
    results, reasons = [], []
    for metric in dict.fromkeys((a.task.main_metric, *shared)):
        part_a, part_b = (outcomes.per_picture(found, metric) for found in (kept_a, kept_b))
        if part_a is None or part_b is None:
            reasons.append(f"the outcomes do not say what each picture adds to {metric}")
            continue
        protocol = protocol_of(a) if is_alike(a, b) else f"{protocol_of(a)} / {protocol_of(b)}"
        where = (
            metric,
            metric == a.task.main_metric,
            protocol,
            a.dataset.fingerprint,
            a.limit,
            a.n,
        )
        test = paired(part_a, part_b)
        results.append(
            Result(labels[1], a.task.name, *where, a.metrics[metric], b.metrics[metric], test)
        )
    return results, reasons


def _not_the_same_samples(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
    for name in sorted(set(a) & set(b)):
        if a[name].shape != b[name].shape:
            return f"{name} is {list(a[name].shape)} in one and {list(b[name].shape)} in the other"
        if name in (outcomes.LABELS, outcomes.ASKED_BY) and not np.array_equal(a[name], b[name]):
            return f"{name} differs"
    return ""


SHOWN_FIELDS = 3  # of those in which two measurements differ


def pair_up(
    mine: Sequence[Record],
    theirs: Sequence[Record],
    labels: tuple[str, str],
    across_protocols: bool = False,
) -> tuple[list[tuple[Record, Record]], list[str]]:
    """Pairs of records, and a reason for each record that is in none.

    Of several pairs the newest task version counts, and of that whole runs, if there are any.

    Args:
        labels: of the two models, for the reasons.
        across_protocols: also pair records that differ in nothing but the protocol, where each
        model has one such.
    """
    pairs = [(a, b) for a in mine for b in theirs if a.key == b.key]
    left = _without(mine, pairs), _without(theirs, pairs)
    if across_protocols:
        for a in left[0]:
            same = [[record for record in side if _scored(record) == _scored(a)] for side in left]
            if len(same[0]) == len(same[1]) == 1:
                pairs.append((a, same[1][0]))
        left = _without(mine, pairs), _without(theirs, pairs)
    best = max((a for a, _ in pairs), key=_rank, default=None)
    if best is None:
        return [], _unpaired(*left, labels)
    reasons = [
        f"{_way(a)}: left out, as {_way(best)} was compared"
        for a, _ in pairs
        if _rank(a) != _rank(best)
    ]
    return [pair for pair in pairs if _rank(pair[0]) == _rank(best)], reasons + _unpaired(
        *left, labels
    )


def is_alike(a: Record, b: Record) -> bool:
    return bool(a.protocol["hash"] == b.protocol["hash"])


def protocol_of(record: Record) -> str:
    """Its name and the beginning of its hash."""
    return f"{record.protocol['name']} {record.protocol['hash'][:8]}"


def _without(records: Sequence[Record], pairs: Sequence[tuple[Record, Record]]) -> list[Record]:
    return [record for record in records if all(record not in pair for pair in pairs)]


def _scored(record: Record) -> tuple[int, str, int | None]:
    return record.task.version, record.dataset.fingerprint, record.limit


def _rank(record: Record) -> tuple[int, bool]:
    return record.task.version, record.limit is None


def _way(record: Record) -> str:
    return f"task version {record.task.version} on {_part(record)}"


def _part(record: Record) -> str:
    return "the whole split" if record.limit is None else f"{record.limit} pictures"


def _unpaired(mine: list[Record], theirs: list[Record], labels: tuple[str, str]) -> list[str]:
    """A reason for each record, or for two at once.

    Two are named together where they are nearest to having measured the same.
    """
    reasons = []
    while mine and theirs:
        a, b = min(
            ((a, b) for a in mine for b in theirs), key=lambda pair: len(_differences(*pair))
        )
        mine, theirs = _without(mine, [(a, b)]), _without(theirs, [(a, b)])
        differing = _differences(a, b)
        more = f" and {len(differing) - SHOWN_FIELDS} more" if len(differing) > SHOWN_FIELDS else ""
        reasons.append(f"not measured alike: {'; '.join(differing[:SHOWN_FIELDS])}{more}")
    for label, rest in zip(labels, (mine, theirs), strict=True):
        reasons += [
            f"only {label} has measured it (protocol {protocol_of(record)}, {_way(record)})"
            for record in rest
        ]
    return reasons


def _differences(a: Record, b: Record) -> list[str]:
    """Every field that decides what a measurement is, where the two disagree."""
    fields = [
        {
            "limit": _part(record),
            "data": record.dataset.fingerprint[:8],
            **flat_fields(record.protocol),
        }
        for record in (a, b)
    ]
    names = dict.fromkeys((*fields[0], *fields[1]))
    values = [
        (name, fields[0].get(name, "nothing"), fields[1].get(name, "nothing")) for name in names
    ]
    return [
        f"{name} is {first} against {second}" for name, first, second in values if first != second
    ]
