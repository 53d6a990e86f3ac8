"""Is B better than A: two models on the same samples, task by task (no torch).

What cannot be compared is listed, with the reason.

Flow: ``compare("results", ["a", "b", "c"])`` -> rows of the leaderboard by name -> records that
answer one question, paired -> the paired test of each pair (`silc_bench.reports.pairing`) -> Holm
over all of them -> ``Comparison``. The first model is the baseline. How the models' setups differ
is said once. `silc_bench.reports.compare_report` writes it down; run: ``silc-bench compare A B
--results results``.

``pair_up(mine, theirs, labels)`` decides which records of two models answer the same question and
says why others do not; it accounts for every record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from silc_bench.errors import UserError, unknown_name
from silc_bench.metrics import statistics
from silc_bench.reports.leaderboard import COMPARED
from silc_bench.reports.pairing import ALPHA, Paired, Samples
from silc_bench.reports.titles import differing, question_words, setup_words
from silc_bench.results import folders
from silc_bench.results.names import Models
from silc_bench.results.record import Record

SHOWN_FIELDS = 3  # of those in which two measurements differ


@dataclass(frozen=True)
class Result:
    """One metric of one task, a model against the baseline."""

    model: str
    task: str
    metric: str
    is_main: bool
    protocol: str  # its name
    question: str  # its hash
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
        """What sets it apart from a whole run under the native protocol."""
        marks: list[str] = []
        if self.protocol != "native":
            marks.append(self.protocol)
        if self.limit is not None:
            marks.append(f"limited to {self.limit} images")
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
    # of each further model: in which fields its setup differs from the baseline's, with both values
    setups: dict[str, tuple[tuple[str, str, str], ...]]
    remarks: tuple[str, ...] = ()  # which files were left out, and why: a sentence each


def compare(
    results_dirs: folders.Folders, names: Sequence[str], tasks: Sequence[str] = ()
) -> Comparison:
    """Each further model of ``names`` against the first.

    Damaged and foreign files are left out, and named in ``Comparison.remarks``.

    Args:
        names: of models: what `eval --ckpt` took, or a name as the leaderboard's rows have it; with
            "@" and digits of the revision where several bear one name.
        tasks: names, families, datasets, groups or globs; empty: all.

    Raises:
        UserError: fewer than two models, one twice, an unknown or ambiguous name, no record of such
            a task.
    """
    if len(names) < 2:
        raise UserError(
            "one model cannot be compared",
            about=", ".join(names),
            fix="name two or more; the others are compared with the first",
        )

    reading = folders.read(results_dirs)
    located = [found for found in reading.located if found.record.source == "measured"]
    records = [found.record for found in located]
    if not records:
        raise folders.none_in(reading)

    models = Models(records)
    chosen = [models.find(name) for name in names]
    if len(set(chosen)) < len(chosen):
        raise UserError("names one model twice", about=", ".join(names), fix="name each one once")
    labels = [models.label(row) for row in chosen]

    named = [found.record for found in folders.chosen(located, tasks=tasks)]
    of_row: list[list[Record]] = []
    for row in chosen:
        of_row.append([r for r in named if (r.model.name, r.model.revision) == row])

    # every task that either of two models has measured is a result or an omission
    samples = Samples(reading)
    results: list[Result] = []
    omissions: list[Omission] = []
    setups: dict[str, tuple[tuple[str, str, str], ...]] = {}
    for label, theirs in zip(labels[1:], of_row[1:], strict=True):
        both = (labels[0], label)
        paired_setups: dict[tuple[str, str, str], None] = {}
        for task in sorted({record.task.name for record in (*of_row[0], *theirs)}):
            mine = [record for record in of_row[0] if record.task.name == task]
            other = [record for record in theirs if record.task.name == task]
            pairs, reasons = pair_up(mine, other, both)
            for a, b in pairs:
                new_results, new_reasons = _results(a, b, label, samples)
                results += new_results
                reasons += new_reasons
                words = setup_words(a.setup), setup_words(b.setup)
                paired_setups |= dict.fromkeys(differing(*words))
            omissions += [Omission(label, task, reason) for reason in reasons]
        setups[label] = tuple(paired_setups)

    # over all tests of the comparison: more models and tasks make each claim harder
    adjusted = statistics.holm([result.paired.p for result in results])
    final = tuple(
        replace(result, p_holm=float(p)) for result, p in zip(results, adjusted, strict=True)
    )
    damaged = [folders.Problem(path, sentence) for path, sentence in samples.problems.items()]
    remarks = reading.remarks_with(damaged)
    return Comparison(labels[0], tuple(labels[1:]), final, tuple(omissions), setups, remarks)




def _results(a: Record, b: Record, model: str, samples: Samples) -> tuple[list[Result], list[str]]:
    """Main metric first, then recall at 1 the other way; or why there are none."""
    results: list[Result] = []
    reasons: list[str] = []
    in_both = [metric for metric in a.metrics if metric in b.metrics]
    shared = [metric for metric in in_both if re.fullmatch(COMPARED, metric)]
    for metric in dict.fromkeys((a.task.main_metric, *shared)):
        pair = samples.pair(a, b, metric)
        if isinstance(pair, str):
            reasons.append(pair)
            continue
        results.append(
            Result(
                model=model,
                task=a.task.name,
                metric=metric,
                is_main=metric == a.task.main_metric,
                protocol=a.question.protocol,
                question=a.question.hash,
                fingerprint=a.dataset.fingerprint,
                limit=a.limit,
                n=a.n,
                baseline_value=a.metrics[metric],
                value=b.metrics[metric],
                paired=pair,
            )
        )
    return results, list(dict.fromkeys(reasons))


def pair_up(
    mine: Sequence[Record], theirs: Sequence[Record], labels: tuple[str, str]
) -> tuple[list[tuple[Record, Record]], list[str]]:
    """Pairs of records of one question, and a reason for each record that is in none.

    Of several setups under which a model answered one question, the newest record counts. Of
    several pairs the newest task version counts, and of that whole runs, if there are any.

    Args:
        labels: of the two models, for the reasons.
    """
    reasons: list[str] = []
    newest: list[dict[str, Record]] = []
    for label, records in zip(labels, (mine, theirs), strict=True):
        own: dict[str, Record] = {}
        for record in sorted(records, key=lambda record: (record.created, record.key)):
            if record.question.hash in own:
                reasons.append(f"{label} answered it under several setups: the newest counts")
            own[record.question.hash] = record
        newest.append(own)

    shared = [name for name in newest[0] if name in newest[1]]
    pairs = [(newest[0][name], newest[1][name]) for name in shared]
    left_mine, left_theirs = (
        [record for name, record in own.items() if name not in shared] for own in newest
    )

    best = max((a for a, _ in pairs), key=_rank, default=None)
    if best is None:
        return [], reasons + _unpaired(left_mine, left_theirs, labels)
    kept = [pair for pair in pairs if _rank(pair[0]) == _rank(best)]
    worse = [a for a, _ in pairs if _rank(a) != _rank(best)]
    reasons += [f"{_way(a)}: left out, as {_way(best)} was compared" for a in worse]
    return kept, reasons + _unpaired(left_mine, left_theirs, labels)


def _rank(record: Record) -> tuple[int, bool]:
    """Newer task versions before older ones, whole runs before limited ones."""
    return record.task.version, record.limit is None


def _way(record: Record) -> str:
    part = "the whole split" if record.limit is None else f"{record.limit} images"
    return f"task version {record.task.version} on {part}"


def _unpaired(mine: list[Record], theirs: list[Record], labels: tuple[str, str]) -> list[str]:
    """A reason for each record, or for two at once.

    Two are named together where their questions are nearest to each other.
    """
    reasons: list[str] = []
    mine, theirs = list(mine), list(theirs)
    while mine and theirs:
        candidates = ((a, b) for a in mine for b in theirs)
        a, b = min(candidates, key=lambda pair: len(_differences(*pair)))
        mine.remove(a)
        theirs.remove(b)

        differences = _differences(a, b)
        more = ""
        if len(differences) > SHOWN_FIELDS:
            more = f" and {len(differences) - SHOWN_FIELDS} more"
        reasons.append(f"not the same question: {'; '.join(differences[:SHOWN_FIELDS])}{more}")

    # one side is empty by now
    for label, rest in zip(labels, (mine, theirs), strict=True):
        for record in rest:
            how = f"protocol {record.question.protocol}, {_way(record)}"
            reasons.append(f"only {label} has measured it ({how})")
    return reasons


def _differences(a: Record, b: Record) -> list[str]:
    """Every field of the questions in which the two disagree."""
    fields = question_words(a.question), question_words(b.question)
    return [f"{name} is {one} against {other}" for name, one, other in differing(*fields)]
