"""Is B better than A: two models on the same samples, task by task (no torch).

What cannot be compared is listed, with the reason.

Flow: ``compare("results", ["a", "b", "c"])`` -> rows of the leaderboard by name -> records that
measure the same, paired -> each pair's outcomes -> difference, standard error and p -> Holm over
all of them -> ``Comparison``. The first model is the baseline. `silc_bench.reports.compare_report`
writes it down; run: ``silc-bench compare A B --results results``.

Hits are tested by McNemar's exact test. Everything else has Student's t on the paired bootstrap's
error: captions and pixels are drawn with their image; where the training shots were drawn several
times, that variance is added.

``pair_up(mine, theirs, labels)`` decides which records of two models measure the same - one
protocol, data, limit and task version - and says why others do not; it accounts for every record.
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
from silc_bench.reports.leaderboard import COMPARED, flat_fields, no_records
from silc_bench.results import outcomes
from silc_bench.results.outcomes import PerImage
from silc_bench.results.record import Record, load_all

ALPHA = 0.05  # of all tests together
SHOWN_FIELDS = 3  # of those in which two measurements differ


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
        """In one word, after Holm's correction over all tests of the comparison."""
        if self.p_holm >= ALPHA:
            return "no difference"
        return "better" if self.paired.difference > 0 else "worse"

    @property
    def marks(self) -> tuple[str, ...]:
        """What sets it apart from a whole run under one protocol."""
        marks: list[str] = []
        if self.limit is not None:
            marks.append(f"limited to {self.limit} images")
        if " / " in self.protocol:
            marks.append(f"protocols differ: {self.protocol}")
        return tuple(marks)


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
            several bear one name.
        tasks: names, families, datasets, groups or globs; empty: all.
        across_protocols: also pair what was measured under different protocols on the same samples,
            and mark it.

    Raises:
        UserError: fewer than two models, one twice, an unknown or ambiguous name, no record of such
            a task, a damaged file.
    """
    if len(names) < 2:
        raise UserError(
            "one model cannot be compared",
            about=", ".join(names),
            fix="name two or more; the others are compared with the first",
        )

    records = [record for record in load_all(results_dir) if record.source == "measured"]
    if not records:
        raise no_records(results_dir)

    rows = sorted({(record.model.name, record.model.revision) for record in records})
    chosen = [_row(name, rows) for name in names]
    if len(set(chosen)) < len(chosen):
        raise UserError("names one model twice", about=", ".join(names), fix="name each one once")
    labels = [_label(row, rows) for row in chosen]

    named = _of_tasks(records, tasks)
    of_row: list[list[Record]] = []
    for row in chosen:
        of_row.append([r for r in named if (r.model.name, r.model.revision) == row])

    # every task that either of two models has measured is a result or an omission
    results: list[Result] = []
    omissions: list[Omission] = []
    for label, theirs in zip(labels[1:], of_row[1:], strict=True):
        both = (labels[0], label)
        for task in sorted({record.task.name for record in (*of_row[0], *theirs)}):
            mine = [record for record in of_row[0] if record.task.name == task]
            other = [record for record in theirs if record.task.name == task]
            pairs, reasons = pair_up(mine, other, both, across_protocols)
            for a, b in pairs:
                new_results, new_reasons = _results(a, b, both, results_dir)
                results += new_results
                reasons += new_reasons
            omissions += [Omission(label, task, reason) for reason in reasons]

    # over all tests of the comparison: more models and tasks make each claim harder
    adjusted = statistics.holm([result.paired.p for result in results])
    final = tuple(
        replace(result, p_holm=float(p)) for result, p in zip(results, adjusted, strict=True)
    )
    return Comparison(labels[0], tuple(labels[1:]), final, tuple(omissions))


def paired(a: PerImage, b: PerImage) -> Paired:
    """One metric of two models, from what each image adds to it."""
    value_a, value_b = (float(part.statistic(part.counts.sum(axis=0)[None])[0]) for part in (a, b))
    difference = value_b - value_a
    num_images = len(a.counts)

    # which images were tested, and which shots were drawn: independent, so variances add
    variances = [statistics.paired_bootstrap(a.counts, b.counts, a.statistic) ** 2]
    dofs = [num_images - 1]
    if a.hits is not None and b.hits is not None:
        variances.append(statistics.draws_variance(a.hits, b.hits))
        dofs.append(a.hits.shape[1] - 1)
    stderr = float(np.sqrt(sum(variances)))
    dof = statistics.pooled_dof(variances, dofs)

    # hits of a single draw have an exact test
    if a.hits is not None and b.hits is not None and a.hits.shape[1] == 1:
        test = "mcnemar"
        p = statistics.mcnemar(a.hits, b.hits)
    else:
        test = "bootstrap"
        num_differing = int((a.counts != b.counts).reshape(num_images, -1).any(axis=1).sum())
        p = statistics.paired_p(difference, stderr, dof, num_differing)
    return Paired(difference, stderr, statistics.half_interval(stderr, dof), p, test)


def _row(name: str, rows: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The model of this name, or of this name@revision."""
    matching_rows = [row for row in rows if row[0] == name]
    if not matching_rows and "@" in name:
        # the last "@", as a model's name may hold one too
        model, _, digits = name.rpartition("@")
        revisions_of_model = [row for row in rows if row[0] == model]
        matching_rows = [row for row in revisions_of_model if digits and row[1].startswith(digits)]

    if not matching_rows:
        known_names = {model for model, _ in rows}
        if "@" in name:
            known_names = {_shown(row) for row in rows}
        raise unknown_name("model", name, known_names)
    if len(matching_rows) > 1:
        shown = ", ".join(_shown(row) for row in matching_rows)
        raise UserError("has several revisions", about=name, fix=f"name one of {shown}")
    return matching_rows[0]


def _label(row: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    """The name alone where it says which model is meant, else with the revision."""
    return row[0] if sum(name == row[0] for name, _ in rows) == 1 else _shown(row)


def _shown(row: tuple[str, str]) -> str:
    return f"{row[0]}@{row[1][:8]}"


def _of_tasks(records: Sequence[Record], patterns: Sequence[str]) -> list[Record]:
    """Those whose task is meant by one of the patterns.

    The patterns are those of `silc_bench.tasks.selection.select`.
    """
    if not patterns:
        return list(records)

    words: dict[str, set[str]] = {}
    for record in records:
        name = record.task.name
        dataset, family = name.split("/")
        words[name] = {name, dataset, family, family.split("_")[0], record.task.group}

    def is_meant(name: str, pattern: str) -> bool:
        return pattern in words[name] or fnmatch.fnmatchcase(name, pattern)

    # a pattern that means nothing is a mistake, even beside others that mean something
    for pattern in patterns:
        if not any(is_meant(name, pattern) for name in words):
            raise unknown_name("task", pattern, set().union(*words.values()))
    meant = {name for name in words if any(is_meant(name, pattern) for pattern in patterns)}
    return [record for record in records if record.task.name in meant]


def _results(
    a: Record, b: Record, labels: tuple[str, str], results_dir: Path
) -> tuple[list[Result], list[str]]:
    """Main metric first, then recall at 1 the other way; or why there are none."""
    kept_a = outcomes.load(a, results_dir)
    kept_b = outcomes.load(b, results_dir)
    if kept_a is None or kept_b is None:
        by_label = zip(labels, (kept_a, kept_b), strict=True)
        missing = [label for label, kept in by_label if kept is None]
        mend = "`silc-bench eval --existing overwrite` keeps them"
        return [], [f"{' and '.join(missing)} kept no outcomes of single images ({mend})"]

    problem = _not_the_same_samples(kept_a, kept_b)
    if problem:
        # under two protocols other samples are a choice; under one they are damage
        if not is_alike(a, b):
            return [], [f"the protocols differ, and so do the samples: {problem}"]
        places = " and ".join(str(outcomes.path_of(record, results_dir)) for record in (a, b))
        raise UserError(
            f"{problem}, though both records name the same data",
            about=places,
            fix="measure one of them again",
        )

    protocol = protocol_of(a)
    if not is_alike(a, b):
        protocol = f"{protocol_of(a)} / {protocol_of(b)}"
    results: list[Result] = []
    reasons: list[str] = []
    in_both = [metric for metric in a.metrics if metric in b.metrics]
    shared = [metric for metric in in_both if re.fullmatch(COMPARED, metric)]
    for metric in dict.fromkeys((a.task.main_metric, *shared)):
        part_a = outcomes.per_image(kept_a, metric)
        part_b = outcomes.per_image(kept_b, metric)
        if part_a is None or part_b is None:
            reasons.append(f"the outcomes do not say what each image adds to {metric}")
            continue
        results.append(
            Result(
                model=labels[1],
                task=a.task.name,
                metric=metric,
                is_main=metric == a.task.main_metric,
                protocol=protocol,
                fingerprint=a.dataset.fingerprint,
                limit=a.limit,
                n=a.n,
                baseline_value=a.metrics[metric],
                value=b.metrics[metric],
                paired=paired(part_a, part_b),
            )
        )
    return results, reasons


def _not_the_same_samples(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
    """What shows that two files are of different samples; empty if nothing does."""
    for name in sorted(set(a) & set(b)):
        if a[name].shape != b[name].shape:
            return f"{name} is {list(a[name].shape)} in one and {list(b[name].shape)} in the other"
        if name in (outcomes.LABELS, outcomes.ASKED_BY) and not np.array_equal(a[name], b[name]):
            return f"{name} differs"
    return ""


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
    left_mine = _without(mine, pairs)
    left_theirs = _without(theirs, pairs)
    if across_protocols:
        for a in left_mine:
            same_mine = [record for record in left_mine if _scored(record) == _scored(a)]
            same_theirs = [record for record in left_theirs if _scored(record) == _scored(a)]

            # of several protocols on one side none is ours to choose
            if len(same_mine) == len(same_theirs) == 1:
                pairs.append((a, same_theirs[0]))
        left_mine = _without(mine, pairs)
        left_theirs = _without(theirs, pairs)

    best = max((a for a, _ in pairs), key=_rank, default=None)
    if best is None:
        return [], _unpaired(left_mine, left_theirs, labels)
    kept = [pair for pair in pairs if _rank(pair[0]) == _rank(best)]
    worse = [a for a, _ in pairs if _rank(a) != _rank(best)]
    reasons = [f"{_way(a)}: left out, as {_way(best)} was compared" for a in worse]
    return kept, reasons + _unpaired(left_mine, left_theirs, labels)


def is_alike(a: Record, b: Record) -> bool:
    """Whether two records have one protocol."""
    return bool(a.protocol["hash"] == b.protocol["hash"])


def protocol_of(record: Record) -> str:
    """Its name and the beginning of its hash."""
    return f"{record.protocol['name']} {record.protocol['hash'][:8]}"


def _without(records: Sequence[Record], pairs: Sequence[tuple[Record, Record]]) -> list[Record]:
    return [record for record in records if all(record not in pair for pair in pairs)]


def _scored(record: Record) -> tuple[int, str, int | None]:
    """What two records must share to be of the same samples."""
    return record.task.version, record.dataset.fingerprint, record.limit


def _rank(record: Record) -> tuple[int, bool]:
    """Newer task versions before older ones, whole runs before limited ones."""
    return record.task.version, record.limit is None


def _way(record: Record) -> str:
    return f"task version {record.task.version} on {_part(record)}"


def _part(record: Record) -> str:
    return "the whole split" if record.limit is None else f"{record.limit} images"


def _unpaired(mine: list[Record], theirs: list[Record], labels: tuple[str, str]) -> list[str]:
    """A reason for each record, or for two at once.

    Two are named together where they are nearest to having measured the same.
    """
    reasons: list[str] = []
    while mine and theirs:
        candidates = ((a, b) for a in mine for b in theirs)
        a, b = min(candidates, key=lambda pair: len(_differences(*pair)))
        mine = _without(mine, [(a, b)])
        theirs = _without(theirs, [(a, b)])

        differing = _differences(a, b)
        more = ""
        if len(differing) > SHOWN_FIELDS:
            more = f" and {len(differing) - SHOWN_FIELDS} more"
        reasons.append(f"not measured alike: {'; '.join(differing[:SHOWN_FIELDS])}{more}")

    # one side is empty by now
    for label, rest in zip(labels, (mine, theirs), strict=True):
        for record in rest:
            how = f"protocol {protocol_of(record)}, {_way(record)}"
            reasons.append(f"only {label} has measured it ({how})")
    return reasons


def _differences(a: Record, b: Record) -> list[str]:
    """Every field that decides what a measurement is, where the two disagree."""
    fields: list[dict[str, str]] = []
    for record in (a, b):
        data = {"limit": _part(record), "data": record.dataset.fingerprint[:8]}
        fields.append({**data, **flat_fields(record.protocol)})

    # the order of the first record, then what the second alone has
    differences: list[str] = []
    for name in dict.fromkeys((*fields[0], *fields[1])):
        first = fields[0].get(name, "nothing")
        second = fields[1].get(name, "nothing")
        if first != second:
            differences.append(f"{name} is {first} against {second}")
    return differences
