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

Flow: ``ShotTask.load`` -> pool and scored images -> ``scored_shots`` -> the numbers of shots that
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

import numpy as np

from silc_bench.datasets.dataset import spread
from silc_bench.errors import UserError
from silc_bench.metrics import statistics
from silc_bench.metrics.accuracy import class_ranks
from silc_bench.probes.closed_form import BIAS_COLUMN, STD_EPSILON, ridge, shot_indices
from silc_bench.task import Features, Scores, register
from silc_bench.tasks.classification.linear import HELD_OUT, held_out_fifth, logistic_probe
from silc_bench.tasks.classification.scores import labels_of, uniform_chance
from silc_bench.tasks.sources import OwnSource, SourcedTask, cifar100, shapes

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset, Pool

SEEDS = (0, 1, 2)
L2 = 1024.0
SHOTS = (1, 5, 10, 25)
POOL = max(SHOTS)  # training images a class that --limit keeps
COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C
MAIN_SHOTS = 10  # of the main metric
_LEFT_OUT = "numbers of shots that a class has too few pictures for"


@dataclass(kw_only=True, eq=False)
class ShotTask(SourcedTask):
    """A task that learns from some images of each class."""

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
        """Why the user's own data does not allow the main metric.

        None where it does, and for sets whose size is known.
        """
        source = self.sources["train"]
        if not isinstance(source, OwnSource):
            return None

        pool = source(None, None)
        return too_few(labels_of(pool), pool.class_names)


def metric(shots: int) -> str:
    return f"acc1_{shots}shot"


@dataclass(kw_only=True, eq=False)
class FewShot(ShotTask):
    # 25 shots are not scored where a class has 24; the other numbers are those of version 2
    version: int = 3
    group: str = "few-shot"
    main_metric: str = metric(MAIN_SHOTS)
    requires: frozenset[str] = frozenset({"image"})

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
        train = labels_of(features.data["train"])
        labels = labels_of(features.data["test"])
        names = features.data["train"].class_names
        scored, details = scored_shots(self.name, train, names, SHOTS)

        hits: dict[int, np.ndarray] = {}
        num_classes = len(names)
        for shots in scored:
            # the same seeds for each number: 5 shots hold the 1 shot
            right: list[np.ndarray] = []
            for seed in SEEDS:
                chosen = shot_indices(train, shots, seed, num_classes)
                probe = ridge(features.image("train")[chosen], train[chosen], num_classes, L2)
                right.append(class_ranks(probe(features.image("test")), labels) < 1)
            hits[shots] = np.stack(right, axis=1)  # [N, S]
        return _scores(hits, train, labels, details)


@dataclass(kw_only=True, eq=False)
class FewShotLogistic(ShotTask):
    # as few-shot's 3; of 10 and 25 shots the fifth and tenth ... are held out, not the last ones
    version: int = 2
    group: str = "few-shot"
    main_metric: str = metric(MAIN_SHOTS)
    requires: frozenset[str] = frozenset({"image"})

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "multinomial logistic regression on standardised pooled embeddings,"
            " l2 penalty, free bias",
            "shots": list(SHOTS[1:]),
            "left_out": _LEFT_OUT,
            "seeds": list(SEEDS),
            "costs": list(COSTS),
            "held_out": f"every {HELD_OUT}th shot of each class",
        }

    def score(self, features: Features) -> Scores:
        train = labels_of(features.data["train"])
        labels = labels_of(features.data["test"])
        names = features.data["train"].class_names
        # one shot is left out: nothing remains to choose the penalty on
        scored, details = scored_shots(self.name, train, names, SHOTS[1:])

        hits: dict[int, np.ndarray] = {}
        chosen_costs: dict[str, list[float]] = {}
        converged: dict[str, bool] = {}
        for shots in scored:
            draws = [self._draw(features, train, labels, len(names), shots, seed) for seed in SEEDS]
            hits[shots] = np.stack([draw for draw, _ in draws], axis=1)
            chosen_costs[metric(shots)] = [fit["cost"] for _, fit in draws]
            converged[metric(shots)] = all(all(fit["converged"]) for _, fit in draws)

        fits = {"cost_by_seed": chosen_costs, "converged": converged}
        return _scores(hits, train, labels, {**fits, **details})

    def _draw(
        self,
        features: Features,
        train: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        shots: int,
        seed: int,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Hits [N] on the test images of one draw, and how its fit went."""
        chosen = shot_indices(train, shots, seed, num_classes)

        # the penalty is chosen on shots, never on test images: more would not be few shots
        held_out = held_out_fifth(train[chosen])
        probe, details = logistic_probe(
            features.image("train")[chosen],
            train[chosen],
            held_out,
            num_classes,
            COSTS,
            features.device,
        )
        return class_ranks(probe(features.image("test")), labels) < 1, details


def _scores(
    hits: Mapping[int, np.ndarray], train: np.ndarray, labels: np.ndarray, details: dict[str, Any]
) -> Scores:
    """From the hits [N, S] of S draws for each number of shots."""
    # the deviation over draws alone: the standard error holds the draw of the test images too
    by_seed = {metric(shots): hit.mean(axis=0).tolist() for shots, hit in hits.items()}
    deviations = {name: float(np.std(values, ddof=1)) for name, values in by_seed.items()}
    return Scores(
        metrics={metric(shots): float(hit.mean()) for shots, hit in hits.items()},
        stderr={metric(shots): statistics.seeds_stderr(hit.T) for shots, hit in hits.items()},
        n=len(labels),
        chance=uniform_chance(train, labels),
        details={**details, "by_seed": by_seed, "std_over_seeds": deviations},
        outcomes={metric(shots): hit for shots, hit in hits.items()},
    )


def spread_by_class(labels: np.ndarray, count: int) -> list[int]:
    """Indices of ``count`` samples of each class, or of all that it has, in ascending order.

    They are spread evenly over the samples of the class.
    """
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return sorted(int(own[i]) for own in by_class for i in spread(len(own), count))


def scored_shots(
    task_name: str, labels: np.ndarray, class_names: Sequence[str], shots: Sequence[int]
) -> tuple[list[int], dict[str, Any]]:
    """Those of ``shots`` that every class of the pool has images for, and the record's details.

    Raises:
        UserError: the main metric's number is not among them; names the class and its count.
    """
    reason = too_few(labels, class_names)
    if reason is not None:
        raise UserError(f"{task_name}: {reason}; add pictures, or leave the task out")

    # the scarcest class decides for all: every number means as many of each class
    name, fewest = _scarcest(labels, class_names)
    left_out = {k: f"{name!r} has {fewest} training pictures" for k in shots if k > fewest}
    details = {
        "left_out": {metric(k): reason for k, reason in left_out.items()},
        "fewest_pictures_of_a_class": fewest,
        "classes_without_pictures": len(class_names) - len(np.unique(labels)),
    }
    return [number for number in shots if number <= fewest], details


def too_few(labels: np.ndarray, class_names: Sequence[str]) -> str | None:
    """ "'cat' has 3 training images, and acc1_10shot needs 10 of each class", or None."""
    name, fewest = _scarcest(labels, class_names)
    if fewest >= MAIN_SHOTS:
        return None
    return (
        f"{name!r} has {fewest} training pictures,"
        f" and {metric(MAIN_SHOTS)} needs {MAIN_SHOTS} of each class"
    )


def _scarcest(labels: np.ndarray, class_names: Sequence[str]) -> tuple[str, int]:
    """The class with the fewest images among those that have any."""
    counts = np.bincount(labels, minlength=len(class_names))
    # a class without images is not learned at all, and is counted in the details
    present = np.flatnonzero(counts)
    scarcest = present[counts[present].argmin()]
    return class_names[scarcest], int(counts[scarcest])


SHAPES = {"train": shapes("train", 2000), "test": shapes("test", 1000)}
CIFAR100 = {"train": cifar100("train"), "test": cifar100("test")}
register(FewShot(name="shapes/fewshot", sources=SHAPES))
register(FewShot(name="cifar100/fewshot", needs_data_root=True, sources=CIFAR100))
register(FewShotLogistic(name="shapes/fewshot_logistic", sources=SHAPES))
register(FewShotLogistic(name="cifar100/fewshot_logistic", needs_data_root=True, sources=CIFAR100))
