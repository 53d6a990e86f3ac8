"""Linear probe: logistic regression on frozen embeddings, its one hyper-parameter chosen on held-out *training* pictures.

Flow: standardise by the training statistics -> fit every cost on four fifths of the training pictures -> keep the cost that
is right most often on the last fifth (every fifth picture in order; of equals the strongest penalty) -> fit it again on
all of them -> score the test pictures once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from silc_bench.errors import UserError
from silc_bench.metrics import class_ranks
from silc_bench.probes import LinearMap, moments
from silc_bench.registry import Features, Scores, register
from tasks.classification import classification_scores, frequency_chance, labels_of
from tasks.sources import SourcedTask, cifar100, shapes

COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the weight of the summed log loss
HELD_OUT = 5  # every fifth


@dataclass(kw_only=True, eq=False)
class Linear(SourcedTask):
    version: int = 1
    group: str = "linear"
    main_metric: str = "acc1"
    requires: frozenset[str] = frozenset({"image"})

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "multinomial logistic regression on standardised pooled embeddings, l2 penalty, free bias",
            "costs": list(COSTS),
            "held_out": f"every {HELD_OUT}th training picture",
        }

    def score(self, features: Features) -> Scores:
        train, labels = labels_of(features.data["train"]), labels_of(features.data["test"])
        if len(train) < HELD_OUT:
            raise UserError(f"{self.name} needs {HELD_OUT} training pictures or more to choose its penalty, not {len(train)}")
        num_classes = len(features.data["train"].class_names)
        mean, std = moments(features.image("train"))
        x = (features.image("train") - mean) / std

        held_out = np.arange(len(train)) % HELD_OUT == HELD_OUT - 1
        sweep, converged = _fit(x[~held_out], train[~held_out], COSTS, num_classes)
        right = [float(np.mean(class_ranks(probe(x[held_out]), train[held_out]) < 1)) for probe in sweep]
        best = int(np.argmax(right))
        (probe,), (last_converged,) = _fit(x, train, COSTS[best : best + 1], num_classes)

        ranks = class_ranks(probe((features.image("test") - mean) / std), labels)
        details = {
            "cost": COSTS[best],
            "held_out_acc1": {f"{cost:g}": value for cost, value in zip(COSTS, right, strict=True)},
            "converged": [*converged, last_converged],
        }
        return classification_scores(
            ranks, labels, features.data["train"].class_names, chance=frequency_chance(train, labels), details=details
        )


def _fit(x: np.ndarray, labels: np.ndarray, costs: tuple[float, ...], num_classes: int) -> tuple[list[LinearMap], list[bool]]:
    """A map to all classes for each cost; a class that does not occur in training gets -inf and is never the answer."""
    from silc_bench.logistic import fit_logistic

    known, numbered = np.unique(labels, return_inverse=True)
    fit = fit_logistic(x, numbered, costs)
    maps = []
    for weight, bias in zip(fit.weight, fit.bias, strict=True):
        full = LinearMap(np.zeros((x.shape[1], num_classes)), np.full(num_classes, -np.inf))
        full.weight[:, known], full.bias[known] = weight, bias
        maps.append(full)
    return maps, fit.converged.tolist()


register(Linear(name="shapes/linear", sources={"train": shapes("train", 2000), "test": shapes("test", 1000)}))
register(Linear(name="cifar100/linear", needs_data_root=True, sources={"train": cifar100("train"), "test": cifar100("test")}))
