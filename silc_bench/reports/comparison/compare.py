"""Is B better than A: two models on the same samples, task by task (no torch).

What cannot be compared is listed, with the reason.

Flow: ``compare("results", ["a", "b", "c"])`` -> rows of the leaderboard by name -> records that
answer one question, paired -> the paired test of each pair (``pairing``) -> Holm over all of them
-> ``Comparison``. The first model is the baseline; of more than two models every pair is tested.
Several seeds of one method are one side of a pair (``seeds``). How the models' setups differ is
said once. ``report`` writes it down; run: ``silc-bench compare A B --results results``.

``pair_up(mine, theirs, labels)`` decides which records of two models answer the same question and
says why others do not; it accounts for every record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.metrics import statistics
from silc_bench.metrics.statistics import Paired
from silc_bench.reports.comparison.pairing import ALPHA, Samples
from silc_bench.reports.comparison.seeds import Method, Methods, over_seeds
from silc_bench.reports.titles import COMPARED, differing, question_words, setup_words
from silc_bench.results import folders
from silc_bench.results.names import Models, Row
from silc_bench.results.record import Record
from silc_bench.system.terminal import counted

if TYPE_CHECKING:
    import pandas as pd

SHOWN_FIELDS = 3  # of those in which two measurements differ


@dataclass(frozen=True)
class Result:
    """One metric of one task, a model against another one."""

    baseline: str
    model: str
    task: str
    metric: str
    is_main: bool
    protocol: str  # its name
    question: str  # its hash
    fingerprint: str
    limit: int | None
    n: int  # samples scored
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
            marks.append(f"limited to {counted(self.limit, 'image')}")
        if self.paired.test.startswith("t over"):
            marks.append(self.paired.test)
        return tuple(marks)


def flat(result: Result) -> dict[str, Any]:
    """All fields beside each other, the test's among them."""
    data = asdict(result)
    test = data.pop("paired")
    p_holm = data.pop("p_holm")
    return {**data, **test, "p_holm": p_holm, "verdict": result.verdict}


@dataclass(frozen=True)
class Omission:
    """A task, or a way of measuring it, that was not compared."""

    baseline: str
    model: str
    task: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    baseline: str
    models: tuple[str, ...]  # the others
    # of every two models: the baseline's first, in the order of the models
    results: tuple[Result, ...]
    omissions: tuple[Omission, ...]
    # of each further model: in which fields its setup differs from the baseline's, with both values
    setups: dict[str, tuple[tuple[str, str, str], ...]]
    # which files and runs were left out, and why, and what seeds do not share: a sentence each
    remarks: tuple[str, ...] = ()
    is_of_methods: bool = False  # several seeds each, instead of single checkpoints

    def __repr__(self) -> str:
        verdicts = Counter(result.verdict for result in self.results if result.is_main)
        counts = [f"{verdicts[word]} {word}" for word in ("better", "worse", "no difference")]
        of = f"<Comparison of {', '.join(map(repr, self.models))} with {self.baseline!r}"
        return f"{of}: main metrics {', '.join(counts)}; {len(self.omissions)} not compared>"

    def to_frame(self) -> pd.DataFrame:
        """A row for each result, with its test: values and differences are fractions."""
        import pandas as pd

        return pd.DataFrame([flat(result) for result in self.results])

    def of(self, baseline: str, model: str) -> list[Result]:
        """The results of one pair."""
        return [
            result
            for result in self.results
            if (result.baseline, result.model) == (baseline, model)
        ]


@dataclass(frozen=True)
class _Side:
    """One model, or one method: its records by seed."""

    label: str
    runs: dict[int, list[Record]]  # a single model has one entry


def compare(
    results_dirs: folders.Folders,
    names: Sequence[str],
    tasks: Sequence[str] = (),
    *,
    has_seeds_grouped: bool = False,
) -> Comparison:
    """Every two models of ``names``; the first is the baseline.

    Damaged and foreign files are left out, and named in ``Comparison.remarks``.

    Args:
        names: of models: what `eval --ckpt` took, or a name as the leaderboard's rows have it; with
            "@" and digits of the revision where several bear one name.
        tasks: names, families, datasets, groups or globs; empty: all.
        has_seeds_grouped: compare methods, each over all its seeds, paired by seed; a name is then
            that of any of its runs, or the method's own.

    Raises:
        UserError: fewer than two models, one twice, an unknown or ambiguous name, no record of such
            a task, a model that was not trained here where seeds are grouped.
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

    named = [found.record for found in folders.chosen(located, tasks=tasks)]
    remarks: tuple[str, ...] = ()
    if has_seeds_grouped:
        sides, remarks = _methods(names, records, named)
    else:
        sides = _models(names, records, named)

    # every task that either of two models has measured is a result or an omission
    samples = Samples(reading)
    results: list[Result] = []
    omissions: list[Omission] = []
    setups: dict[str, tuple[tuple[str, str, str], ...]] = {}
    for first, second in combinations(sides, 2):
        pair = _Pair(first, second, samples, has_seeds_grouped)
        pair.compare()
        results += pair.results
        omissions += pair.omissions
        if first is sides[0]:
            setups[second.label] = tuple(pair.setups)

    # over all tests of the comparison: more models and tasks make each claim harder
    adjusted = statistics.holm([result.paired.p for result in results])
    final = tuple(
        replace(result, p_holm=float(p)) for result, p in zip(results, adjusted, strict=True)
    )
    damaged = [folders.Problem(path, sentence) for path, sentence in samples.problems.items()]
    return Comparison(
        sides[0].label,
        tuple(side.label for side in sides[1:]),
        final,
        tuple(omissions),
        setups,
        (*reading.remarks_with(damaged), *remarks),
        has_seeds_grouped,
    )


def _models(
    names: Sequence[str], records: Sequence[Record], named: Sequence[Record]
) -> list[_Side]:
    """Each model with its records among ``named``."""
    models = Models(records)
    rows = [models.find(name) for name in names]
    if len(set(rows)) < len(rows):
        raise UserError("names one model twice", about=", ".join(names), fix="name each one once")
    return [_Side(models.label(row), {0: _of_row(named, row)}) for row in rows]


def _methods(
    names: Sequence[str], records: Sequence[Record], named: Sequence[Record]
) -> tuple[list[_Side], tuple[str, ...]]:
    """Each method with the records of its runs among ``named``, by seed; sentences about them."""
    models = Models(records)
    known = Methods(records)
    chosen: list[Method] = []
    for name in names:
        method = known.named(name)
        if method is None:
            method = known.of(models.find(name))
        if method is None:
            raise UserError(
                "was not trained here, so its seeds are not known",
                about=name,
                fix="leave out --group-seeds",
            )
        chosen.append(method)

    labels = [method.label for method in chosen]
    if len(set(labels)) < len(labels):
        fix = "name a run of each method once"
        raise UserError("names one method twice", about=", ".join(names), fix=fix)
    sides = [
        _Side(method.label, {seed: _of_row(named, row) for seed, row in method.runs.items()})
        for method in chosen
    ]
    lacking = [_without_partner(*pair) for pair in permutations(sides, 2)]
    return sides, (*known.remarks(chosen), *filter(None, lacking))


def _without_partner(side: _Side, other: _Side) -> str:
    """A sentence where two methods share seeds, and ``side`` has more of them."""
    more = sorted(set(side.runs) - set(other.runs))
    if not more or len(more) == len(side.runs):
        return ""
    if len(more) == 1:
        return f"{side.label}: seed {more[0]} has no partner in {other.label}, and is left out"
    seeds = f"{counted(len(more), 'seed')}, as {more[0]}, have"
    return f"{side.label}: {seeds} no partner in {other.label}, and are left out"


def _of_row(records: Sequence[Record], row: Row) -> list[Record]:
    return [record for record in records if (record.model.name, record.model.revision) == row]


class _Pair:
    """Two models or two methods, task by task."""

    def __init__(self, first: _Side, second: _Side, samples: Samples, are_methods: bool) -> None:
        self.sides = (first, second)
        self.are_methods = are_methods
        self.labels = (first.label, second.label)
        self.samples = samples
        self.results: list[Result] = []
        self.omissions: list[Omission] = []
        self.setups: dict[tuple[str, str, str], None] = {}

    def compare(self) -> None:
        """Fill results, omissions and setups."""
        first, second = self.sides
        # a seed that one method lacks has no partner; single models have seed 0 alone
        seeds = sorted(set(first.runs) & set(second.runs)) or sorted({*first.runs, *second.runs})
        names = {
            record.task.name for side in self.sides for own in side.runs.values() for record in own
        }
        for task in sorted(names):
            by_question: dict[str, list[tuple[int, Record, Record]]] = {}
            for seed in seeds:
                mine, theirs = (
                    [record for record in side.runs.get(seed, []) if record.task.name == task]
                    for side in self.sides
                )
                pairs, reasons = pair_up(mine, theirs, self.labels)
                for a, b in pairs:
                    by_question.setdefault(a.question.hash, []).append((seed, a, b))
                    words = setup_words(a.setup), setup_words(b.setup)
                    self.setups |= dict.fromkeys(differing(*words))
                self._omit(task, reasons)
            for pairs_of_seeds in by_question.values():
                self._test(pairs_of_seeds)

    def _omit(self, task: str, reasons: Sequence[str]) -> None:
        for reason in reasons:
            omission = Omission(*self.labels, task, reason)
            if omission not in self.omissions:
                self.omissions.append(omission)

    def _test(self, pairs: Sequence[tuple[int, Record, Record]]) -> None:
        """Main metric first, then recall at 1 the other way; or why there are none."""
        _, a, b = pairs[0]
        in_both = [metric for metric in a.metrics if metric in b.metrics]
        shared = [metric for metric in in_both if re.fullmatch(COMPARED, metric)]
        for metric in dict.fromkeys((a.task.main_metric, *shared)):
            mine = {seed: one.metrics[metric] for seed, one, _ in pairs}
            theirs = {seed: other.metrics[metric] for seed, _, other in pairs}
            tested: Paired | str
            if self.are_methods:
                tested = over_seeds(mine, theirs)
            else:
                tested = self.samples.pair(a, b, metric)
            if isinstance(tested, str):
                self._omit(a.task.name, [tested])
                continue
            self.results.append(
                Result(
                    *self.labels,
                    task=a.task.name,
                    metric=metric,
                    is_main=metric == a.task.main_metric,
                    protocol=a.question.protocol,
                    question=a.question.hash,
                    fingerprint=a.dataset.fingerprint,
                    limit=a.limit,
                    n=a.n,
                    baseline_value=float(np.mean(list(mine.values()))),
                    value=float(np.mean(list(theirs.values()))),
                    paired=tested,
                )
            )


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
    part = "the whole split" if record.limit is None else counted(record.limit, "image")
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
