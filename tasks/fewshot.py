"""Few-shot classification on 1, 5, 10 and 25 frozen embeddings a class, for three draws of them.

- ``FewShot``: ridge regression in closed form, the protocol of big_vision's ``fewshot_lsr`` (`silc_bench.probes.ridge`), which
  published 10-shot numbers use. Nothing is tuned.
- ``FewShotLogistic``: logistic regression whose penalty is chosen on a fifth of each class's shots (one of 5, two of 10, five
  of 25; never a test picture), then fitted on all of them. One shot cannot be divided, and is left out.

Which pictures are the shots depends on the dataset, the number of shots and the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from silc_bench import stats
from silc_bench.errors import UserError
from silc_bench.metrics import class_ranks
from silc_bench.probes import BIAS_COLUMN, STD_EPSILON, ridge, shot_indices
from silc_bench.registry import Features, Scores, register
from tasks.classification import labels_of, uniform_chance
from tasks.linear import logistic_probe
from tasks.sources import SourcedTask, cifar100, shapes

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 1024.0
COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C
HELD_OUT = 5  # one of five shots


@dataclass(kw_only=True, eq=False)
class FewShot(SourcedTask):
    version: int = 2  # 25 shots; the numbers of 1, 5 and 10 are those of version 1
    group: str = "few-shot"
    main_metric: str = "acc1_10shot"
    requires: frozenset[str] = frozenset({"image"})

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "ridge on standardised pooled embeddings, targets +1 and -1",
            "shots": list(SHOTS),
            "seeds": list(SEEDS),
            "l2": L2,
            "bias_column": BIAS_COLUMN,
            "std_epsilon": STD_EPSILON,
        }

    def score(self, features: Features) -> Scores:
        train, labels = labels_of(features.data["train"]), labels_of(features.data["test"])
        num_classes = len(features.data["train"].class_names)
        hits = {}
        for shots in SHOTS:
            draws = [shot_indices(train, shots, seed, num_classes) for seed in SEEDS]
            probes = [ridge(features.image("train")[chosen], train[chosen], num_classes, L2) for chosen in draws]
            hits[shots] = np.stack([class_ranks(probe(features.image("test")), labels) < 1 for probe in probes], axis=1)
        return _scores(hits, train, labels, num_classes, details={})


@dataclass(kw_only=True, eq=False)
class FewShotLogistic(SourcedTask):
    version: int = 1
    group: str = "few-shot"
    main_metric: str = "acc1_10shot"
    requires: frozenset[str] = frozenset({"image"})

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "multinomial logistic regression on standardised pooled embeddings, l2 penalty, free bias",
            "shots": list(SHOTS[1:]),
            "seeds": list(SEEDS),
            "costs": list(COSTS),
            "held_out": f"one of {HELD_OUT} shots of each class",
        }

    def score(self, features: Features) -> Scores:
        train, labels = labels_of(features.data["train"]), labels_of(features.data["test"])
        num_classes = len(features.data["train"].class_names)
        if np.bincount(train).max() < 2:
            raise UserError(f"{self.name} needs two training pictures of a class to choose its penalty, and each has one")
        hits, chosen_costs, converged = {}, {}, {}
        for shots in SHOTS[1:]:
            draws = [self._draw(features, train, labels, num_classes, shots, seed) for seed in SEEDS]
            hits[shots] = np.stack([draw for draw, _ in draws], axis=1)
            chosen_costs[_name(shots)] = [details["cost"] for _, details in draws]
            converged[_name(shots)] = all(all(details["converged"]) for _, details in draws)
        details = {"cost_by_seed": chosen_costs, "converged": converged}
        return _scores(hits, train, labels, num_classes, details)

    def _draw(
        self, features: Features, train: np.ndarray, labels: np.ndarray, num_classes: int, shots: int, seed: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        chosen = shot_indices(train, shots, seed, num_classes)
        held_out = held_out_shots(train[chosen])
        probe, details = logistic_probe(
            features.image("train")[chosen], train[chosen], held_out, num_classes, COSTS, features.device
        )
        return class_ranks(probe(features.image("test")), labels) < 1, details


def held_out_shots(labels: np.ndarray) -> np.ndarray:
    """[N] bool: the last fifth of the shots of each class, one or more where a class has two."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) > 1:
            held_out[own[-max(1, len(own) // HELD_OUT) :]] = True
    return held_out


def _name(shots: int) -> str:
    return f"acc1_{shots}shot"


def _scores(
    hits: Mapping[int, np.ndarray], train: np.ndarray, labels: np.ndarray, num_classes: int, details: dict[str, Any]
) -> Scores:
    """From the hits [N, S] of S draws for each number of shots."""
    by_seed = {_name(shots): hit.mean(axis=0).tolist() for shots, hit in hits.items()}
    counts = np.bincount(train, minlength=num_classes)
    return Scores(
        metrics={_name(shots): float(hit.mean()) for shots, hit in hits.items()},
        stderr={_name(shots): stats.seeds_stderr(hit.T) for shots, hit in hits.items()},
        n=len(labels),
        chance=uniform_chance(train, labels),
        details={
            **details,
            "by_seed": by_seed,
            "std_over_seeds": {name: float(np.std(values, ddof=1)) for name, values in by_seed.items()},
            # a limit can leave fewer pictures than shots, and classes without any
            "fewest_pictures_of_a_class": int(counts[counts > 0].min()),
            "classes_without_pictures": int((counts == 0).sum()),
        },
        outcomes={_name(shots): hit for shots, hit in hits.items()},
    )


register(FewShot(name="shapes/fewshot", sources={"train": shapes("train", 2000), "test": shapes("test", 1000)}))
register(FewShot(name="cifar100/fewshot", needs_data_root=True, sources={"train": cifar100("train"), "test": cifar100("test")}))
register(
    FewShotLogistic(name="shapes/fewshot_logistic", sources={"train": shapes("train", 2000), "test": shapes("test", 1000)})
)
register(
    FewShotLogistic(
        name="cifar100/fewshot_logistic",
        needs_data_root=True,
        sources={"train": cifar100("train"), "test": cifar100("test")},
    )
)
