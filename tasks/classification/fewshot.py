"""Few-shot classification on 1, 5, 10 and 25 frozen embeddings a class, for three draws of them.

- ``FewShot``: ridge regression in closed form, the protocol of big_vision's ``fewshot_lsr``
  (`silc_bench.probes.closed_form.ridge`), which published 10-shot numbers use. Nothing is tuned.
- ``FewShotLogistic``: logistic regression whose penalty is chosen on a fifth of each class's shots
  (one of 5, two of 10, five of 25; never a test image), then fitted on all of them. One shot
  cannot be divided, and is left out.

Which images are the shots depends on the dataset, the number of shots and the seed alone. What
happens where a class has too few of them, and under ``--limit``, stands in
`silc_bench.tasks.classification.fewshot`.

The pool that few shots are drawn from, and which numbers of shots it allows: no number is scored
under another one's name.

Flow: ``FewShot.load`` -> pool and scored images -> ``score`` takes the numbers of shots that
every class has.

- A class that the pool holds no image of is not learned, and is counted in the details.
- A number of shots is left out, and the details say why, where a class has fewer images. Where
  that is the main metric's number the task is refused.
- ``--limit`` thins out the scored images. The pool keeps POOL images of each class, as many as
  the most shots: fewer would give other numbers than their names say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from silc_bench.datasets.dataset import spread
from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.metrics import statistics
from silc_bench.metrics.accuracy import class_ranks
from silc_bench.probes.closed_form import (
    BIAS_COLUMN,
    STD_EPSILON,
    LinearMap,
    ridge,
    shot_indices,
)
from silc_bench.task import Features, Scores
from silc_bench.tasks.classification.linear import HELD_OUT, held_out_fifth, logistic_probe
from silc_bench.tasks.classification.scores import (
    LearnedTask,
    labels_of,
    labels_of_both,
    uniform_chance,
)
from silc_bench.tasks.sources import OwnSource

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset, Pool

SEEDS = (0, 1, 2)
L2 = 1024.0
SHOTS = (1, 5, 10, 25)
POOL = max(SHOTS)  # training images a class that --limit keeps
COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C
MAIN_SHOTS = 10  # of the main metric
_LEFT_OUT = "numbers of shots that a class has too few pictures for"


def metric(shots: int) -> str:
    return f"acc1_{shots}shot"


@dataclass(kw_only=True, eq=False)
class FewShot(LearnedTask):
    # 25 shots are not scored where a class has 24; the other numbers are those of version 2
    version: int = 3
    group: str = "few-shot"
    main_metric: str = metric(MAIN_SHOTS)

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        if limit is None:
            return super().load(data_root, None)

        # the whole pool is read first: only its labels say which images keep every class
        pool = cast("Pool", self.sources["train"](data_root, None))
        return {
            "train": pool.part(spread_by_class(labels_of(pool), POOL)),
            "test": self.sources["test"](data_root, limit),
        }

    def shortage(self) -> str | None:
        """Of the user's own data; the size of a named set is known."""
        source = self.sources["train"]
        if not isinstance(source, OwnSource):
            return None

        pool = source(None, None)
        return too_few(*scarcest_class(labels_of(pool), pool.class_names))

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "ridge on standardised pooled embeddings, targets +1 and -1",
            "shots": list(SHOTS),
            "left_out": _LEFT_OUT,
            "seeds": list(SEEDS),
            "l2": L2,
            "bias_column": BIAS_COLUMN,
            "std_epsilon": STD_EPSILON,
        }

    def score(self, features: Features) -> Scores:
        train, labels, names = labels_of_both(features)
        num_shots = self.protocol()["shots"]

        # the scarcest class decides for all: every number means as many of each class
        scarcest, fewest = scarcest_class(train, names)
        reason = too_few(scarcest, fewest)
        if reason is not None:
            raise UserError(reason, about=self.name, fix="add images, or leave the task out")
        left_out = [metric(k) for k in num_shots if k > fewest]
        details: dict[str, Any] = {
            "left_out": dict.fromkeys(left_out, f"{scarcest!r} has {fewest} training pictures"),
            "fewest_pictures_of_a_class": fewest,
            "classes_without_pictures": len(names) - len(np.unique(train)),
        }

        hits: dict[str, np.ndarray] = {}  # [N, S] of S draws
        fits: dict[str, list[dict[str, Any]]] = {}
        for shots in (k for k in num_shots if k <= fewest):
            # the same seeds for each number: 5 shots hold the 1 shot
            draws = [shot_indices(train, shots, seed, len(names)) for seed in SEEDS]
            right: list[np.ndarray] = []
            fits[metric(shots)] = []
            for chosen in draws:
                x = features.image("train")[chosen]
                probe, fit = self.fit(x, train[chosen], len(names), features.device)
                right.append(class_ranks(probe(features.image("test")), labels) < 1)
                fits[metric(shots)].append(fit)
            hits[metric(shots)] = np.stack(right, axis=1)

        # the deviation over draws alone: the standard error holds the draw of the test images too
        by_seed = {name: hit.mean(axis=0).tolist() for name, hit in hits.items()}
        deviations = {name: float(np.std(own, ddof=1)) for name, own in by_seed.items()}
        return Scores(
            metrics={name: float(hit.mean()) for name, hit in hits.items()},
            stderr={name: statistics.seeds_stderr(hit.T) for name, hit in hits.items()},
            n=len(labels),
            chance=uniform_chance(train, labels),
            details={
                **self.describe(fits),
                **details,
                "by_seed": by_seed,
                "std_over_seeds": deviations,
            },
            outcomes=dict(hits),
        )

    def fit(
        self, x: np.ndarray, labels: np.ndarray, num_classes: int, device: str
    ) -> tuple[LinearMap, dict[str, Any]]:
        """The probe of one draw's shots [K, D] and labels [K], and what is to be said of it."""
        return ridge(x, labels, num_classes, L2), {}

    def describe(self, fits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Details of the fits of each metric, a draw each."""
        return {}


@dataclass(kw_only=True, eq=False)
class FewShotLogistic(FewShot):
    # as few-shot's 3; of 10 and 25 shots the fifth and tenth ... are held out, not the last ones
    version: int = 2

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "multinomial logistic regression on standardised pooled embeddings,"
            " l2 penalty, free bias",
            # one shot is left out: nothing remains to choose the penalty on
            "shots": list(SHOTS[1:]),
            "left_out": _LEFT_OUT,
            "seeds": list(SEEDS),
            "costs": list(COSTS),
            "held_out": f"every {HELD_OUT}th shot of each class",
        }

    def fit(
        self, x: np.ndarray, labels: np.ndarray, num_classes: int, device: str
    ) -> tuple[LinearMap, dict[str, Any]]:
        # the penalty is chosen on shots, never on test images: more would not be few shots
        held_out = held_out_fifth(labels)
        return logistic_probe(x, labels, held_out, num_classes, COSTS, device)

    def describe(self, fits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        costs = {name: [fit["cost"] for fit in own] for name, own in fits.items()}
        converged = {name: all(all(fit["converged"]) for fit in own) for name, own in fits.items()}
        return {"cost_by_seed": costs, "converged": converged}


def spread_by_class(labels: np.ndarray, count: int) -> list[int]:
    """Indices of ``count`` samples of each class, or of all that it has, in ascending order.

    They are spread evenly over the samples of the class.
    """
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return sorted(int(own[i]) for own in by_class for i in spread(len(own), count))


def scarcest_class(labels: np.ndarray, class_names: Sequence[str]) -> tuple[str, int]:
    """The class with the fewest images among those that have any, and how many these are."""
    counts = np.bincount(labels, minlength=len(class_names))
    # a class without images is not learned at all, and is counted in the details
    present = np.flatnonzero(counts)
    scarcest = present[counts[present].argmin()]
    return class_names[scarcest], int(counts[scarcest])


def too_few(class_name: str, num_images: int) -> str | None:
    """Why the main metric needs more than the scarcest class has; None if it has enough."""
    if num_images >= MAIN_SHOTS:
        return None
    needed = f"{metric(MAIN_SHOTS)} needs {MAIN_SHOTS} of each class"
    return f"{class_name!r} has {num_images} training images, and {needed}"
