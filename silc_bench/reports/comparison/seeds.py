"""Several seeds of one method as one row: what can be said of a method, not of a checkpoint.

A method is what runs have in common that differ in the seed alone: preset, objective, branch, data,
step and the rest of the configuration (``Training.recipe``). One run says which of two checkpoints
is better; several seeds say something of the method, and their spread is its error.

Flow: ``Methods(records)`` -> ``.of(row)`` -> a ``Method`` with its runs by seed ->
``over_seeds(a, b)`` pairs two methods by seed (no torch). ``.remarks()`` says which runs stand
beside a method and which of its runs differ in more than the seed, as far as records tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from silc_bench.later import np
from silc_bench.metrics import statistics
from silc_bench.metrics.statistics import Paired
from silc_bench.models.interface import Training
from silc_bench.reports.comparison.pairing import ALPHA
from silc_bench.results.names import Row, shown
from silc_bench.results.record import Record
from silc_bench.system.terminal import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seed alone."""

    label: str
    key: Training  # of each of its runs, but the seed
    runs: dict[int, Row]  # by seed
    older: tuple[tuple[int, Row], ...] = ()  # of a seed that a newer run has, too


class Methods:
    """The methods of ``records``, and which run is whose."""

    def __init__(self, records: Iterable[Record]) -> None:
        by_key: dict[Training, dict[int, dict[Row, None]]] = {}
        self._key_of: dict[Row, Training] = {}
        self._tokenizer_of: dict[Row, str] = {}
        for record in sorted(records, key=lambda record: record.created):
            training = record.model.training
            if training is None:
                continue
            row = (record.model.name, record.model.revision)
            key = replace(training, seed=0)
            self._key_of[row] = key
            if "tokenizer" in record.setup.text:
                self._tokenizer_of[row] = str(record.setup.text["tokenizer"])
            runs = by_key.setdefault(key, {}).setdefault(training.seed, {})
            runs.pop(row, None)
            runs[row] = None  # the newest is the last

        labels = _labels(list(by_key))
        self._methods = {key: _method(labels[key], key, by_seed) for key, by_seed in by_key.items()}

    def of(self, row: Row) -> Method | None:
        """The method of a run; None of a model that was not trained here."""
        key = self._key_of.get(row)
        return None if key is None else self._methods[key]

    def named(self, label: str) -> Method | None:
        """The method of this label."""
        return next((own for own in self._methods.values() if own.label == label), None)

    def remarks(self, methods: Collection[Method] | None = None) -> tuple[str, ...]:
        """Sentences: what is grouped, or is not, although it may look otherwise.

        ``methods``: the ones that are asked for; None: all.
        """
        asked = list(self._methods.values()) if methods is None else methods
        said: dict[str, None] = {}
        for method in asked:
            sentences = (_left_out(method), self._read_otherwise(method), self._apart(method))
            said |= dict.fromkeys(filter(None, sentences))
        return tuple(said)

    def _read_otherwise(self, method: Method) -> str:
        """Where the runs have several tokenizers."""
        firsts: dict[str, str] = {}  # by tokenizer
        for seed, row in method.runs.items():
            if row in self._tokenizer_of:
                firsts.setdefault(self._tokenizer_of[row], f"{shown(row)} of seed {seed}")
        if len(firsts) < 2:
            return ""
        return (
            f"{method.label}: its runs differ in more than the seed: they read texts by"
            f" {len(firsts)} tokenizers, as {' and '.join(list(firsts.values())[:2])}"
        )

    def _apart(self, method: Method) -> str:
        """Where a method of one run may have been meant as a seed of another one.

        Variants that are meant have the same seeds as what they vary.
        """
        if len(method.runs) > 1:
            return ""
        family = replace(method.key, recipe="")
        alike = [own for own in self._methods.values() if replace(own.key, recipe="") == family]
        if all(method is own or method.runs.keys() & own.runs.keys() for own in alike):
            return ""

        runs = [(seed, row) for own in alike for seed, row in own.runs.items()]
        (seed, row), (other_seed, other) = runs[0], runs[-1]
        return (
            f"{len(runs)} runs, as {shown(row)} of seed {seed} and {shown(other)} of seed"
            f" {other_seed}, are alike in preset, objective, branch, data and step, but are"
            f" {len(alike)} methods and not grouped: another field of the configuration differs,"
            " or what --init or --tokenizer brought"
        )


def _method(label: str, key: Training, by_seed: Mapping[int, Iterable[Row]]) -> Method:
    """Of several runs with one seed the newest counts: they are one sample of the method."""
    rows = {seed: list(rows) for seed, rows in sorted(by_seed.items())}
    older = [(seed, row) for seed, rows_of_seed in rows.items() for row in rows_of_seed[:-1]]
    return Method(label, key, {seed: own[-1] for seed, own in rows.items()}, tuple(older))


def _left_out(method: Method) -> str:
    if not method.older:
        return ""
    seed, row = method.older[0]
    count = counted(len(method.older), "run is", "runs are")
    return (
        f"{method.label}: {count} left out, as a newer one has the same seed: the first is"
        f" {shown(row)}, with seed {seed} as {shown(method.runs[seed])}"
    )


def over_seeds(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | str:
    """One metric of two methods, paired by seed: Student's t over the seeds that both have.

    The difference is second minus first; ``a`` and ``b`` are values by seed. A string says why
    there is no test.
    """
    seeds = sorted(set(a) & set(b))
    if len(seeds) < 2:
        return f"{counted(len(seeds), 'seed')} that both have been measured with: two are needed"

    differences = np.array([b[seed] - a[seed] for seed in seeds])
    stderr = float(differences.std(ddof=1) / np.sqrt(len(seeds)))
    dof = len(seeds) - 1
    mean = float(differences.mean())
    p = statistics.paired_p(mean, stderr, dof, int(np.count_nonzero(differences)))
    test = f"t over {len(seeds)} seeds"
    return Paired(mean, stderr, statistics.half_interval(stderr, dof), p, test)


Place: TypeAlias = tuple[str, str, str, str]  # label, setup, question, metric


def grouped(
    ranked: pd.DataFrame, methods: Methods
) -> tuple[pd.DataFrame, dict[Place, dict[int, float]]]:
    """The scores of a board with the seeds of each method as one row, and their values by seed.

    The value is the mean over seeds, ``stderr`` half of its 95 % interval. A model that was not
    trained here, or has no second seed, stays as it is. Of two runs with one seed the newer counts.
    """
    import pandas as pd

    values: dict[Place, dict[int, float]] = {}
    firsts: dict[Place, dict[str, Any]] = {}
    setups: dict[Place, str] = {}
    rows: list[dict[str, Any]] = []
    for score in ranked.to_dict("records"):
        row = (score["model"], score["revision"])
        method = methods.of(row)
        if method is None or len(method.runs) < 2:
            rows.append(score)
            continue
        seed = next((seed for seed, run in method.runs.items() if run == row), None)
        if seed is not None:
            place = (method.label, score["setup"], score["question"], score["metric"])
            values.setdefault(place, {})[seed] = score["value"]
            firsts.setdefault(place, score)
            # a run that was measured in one setup alone has no label of it
            setups[place] = setups.get(place) or score["setup_label"]

    for place, by_seed in values.items():
        mean, half = mean_and_half(by_seed.values())
        label = ", ".join(filter(None, (counted(len(by_seed), "seed"), setups[place])))
        score = {**firsts[place], "model": place[0], "revision": "", "setup_label": label}
        rows.append({**score, "value": mean, "stderr": half})
    joined = pd.DataFrame(rows, columns=ranked.columns).astype(ranked.dtypes.to_dict())
    return joined, values


def tied_over_seeds(
    best: Mapping[int, float], others: Sequence[Mapping[int, float]]
) -> list[bool | None]:
    """Of each other method whether no difference to the best shows, after Holm; None: no test."""
    tests = [over_seeds(best, other) for other in others]
    known = [index for index, test in enumerate(tests) if isinstance(test, Paired)]
    p = [test.p for test in tests if isinstance(test, Paired)]
    adjusted = dict(zip(known, statistics.holm(p), strict=True))
    return [
        bool(adjusted[index] >= ALPHA) if index in adjusted else None for index in range(len(tests))
    ]


def mean_and_half(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean over seeds and half of its 95 % interval by Student's t; None of a single seed."""
    array = np.array(list(values), dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), None
    stderr = float(array.std(ddof=1) / np.sqrt(len(array)))
    return float(array.mean()), statistics.half_interval(stderr, len(array) - 1)


def _labels(keys: list[Training]) -> dict[Training, str]:
    """Words for each method, no two alike: preset, objective, branch, then what differs."""
    labels = {key: f"{key.preset}-{key.objective}:{key.branch}" for key in keys}

    # recipes have no words: they are numbered in the order in which they were measured
    parts = [
        {key: f"data {key.data}" for key in keys},
        {key: f"step {key.step:,}" for key in keys},
        {key: f"recipe {1 + number}" for number, key in enumerate(keys)},
    ]
    for part in parts:
        texts = list(labels.values())
        repeated = {text for text in texts if texts.count(text) > 1}
        for key, text in labels.items():
            if text in repeated:
                labels[key] = f"{text}, {part[key]}"
    return labels
