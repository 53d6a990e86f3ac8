"""Linear probe: logistic regression on frozen embeddings.

Its one hyper-parameter is chosen on held-out *training* images.

Flow: standardise by the training statistics -> fit every cost on four fifths of each class's
training images -> keep the cost that is right most often on the rest (every fifth image of a
class in the set's order; of equals the strongest penalty) -> fit it again on all of them -> score
the test images once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.metrics.accuracy import class_ranks
from silc_bench.probes.closed_form import LinearMap, moments
from silc_bench.task import Features, Scores
from silc_bench.tasks.classification.scores import (
    LearnedTask,
    classification_scores,
    frequency_chance,
    labels_of_both,
)

COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the weight of the summed log loss
HELD_OUT = 5  # every fifth of a class


@dataclass(kw_only=True, eq=False)
class Linear(LearnedTask):
    # held out by class: of data in which the classes alternate, every fifth image can be all of
    # one class
    version: int = 3
    group: str = "linear"
    main_metric: str = "acc1"

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "multinomial logistic regression on standardised pooled embeddings,"
            " l2 penalty, free bias",
            "costs": list(COSTS),
            "held_out": f"every {HELD_OUT}th training picture of each class,"
            " or the last of two to four",
        }

    def score(self, features: Features) -> Scores:
        train, labels, names = labels_of_both(features)

        # of training images: the test images are scored once, after every choice
        held_out = held_out_fifth(train)
        if not held_out.any():
            raise UserError(
                "needs two training images of a class to choose its penalty, and each has one",
                about=self.name,
                fix="add images, or leave the task out",
            )

        probe, details = logistic_probe(
            features.image("train"), train, held_out, len(names), COSTS, features.device
        )
        ranks = class_ranks(probe(features.image("test")), labels)
        return classification_scores(
            ranks, labels, names, chance=frequency_chance(train, labels), details=details
        )


def held_out_fifth(labels: np.ndarray) -> np.ndarray:
    """[N] bool: every fifth sample of each class, in order.

    Of a class of two to four it is the last one, of a single one none.

    It depends on the labels alone. Every class keeps most of its samples, however the classes
    alternate in the set.
    """
    held_out = np.zeros(len(labels), dtype=bool)
    # by class, not every fifth of the set: a set sorted by class would lose whole classes
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        held_out[own[HELD_OUT - 1 :: HELD_OUT]] = True
        if 1 < len(own) < HELD_OUT:
            held_out[own[-1]] = True
    return held_out


def logistic_probe(
    features: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    num_classes: int,
    costs: Sequence[float],
    device: str,
) -> tuple[LinearMap, dict[str, Any]]:
    """Logits of all classes from raw features, with the cost that does best on held-out samples.

    ``held_out`` is [N] bool.

    The details name the cost, the accuracy of each on the held-out samples, and which fits
    converged (the last fit, too).
    """

    # the probe learns on standardised features: one penalty then weighs all of them alike
    mean, std = moments(features)
    x = (features - mean) / std
    sweep, converged = _fit(x[~held_out], labels[~held_out], costs, num_classes, device)
    right = [
        float(np.mean(class_ranks(probe(x[held_out]), labels[held_out]) < 1)) for probe in sweep
    ]

    # argmax takes the first of equals, which is the strongest penalty; the last fit starts from
    # the chosen one, and so needs few steps
    best = int(np.argmax(right))
    (probe,), (last_converged,) = _fit(
        x, labels, costs[best : best + 1], num_classes, device, start=sweep[best]
    )
    details = {
        "cost": costs[best],
        "held_out_acc1": {f"{cost:g}": value for cost, value in zip(costs, right, strict=True)},
        "converged": [*converged, last_converged],
    }

    # folded into the map: (f - mean) / std @ w + b, as one product with the raw features
    weight = probe.weight / std[:, None]
    return LinearMap(weight, probe.bias - mean @ weight), details


def _fit(
    x: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float],
    num_classes: int,
    device: str,
    start: LinearMap | None = None,
) -> tuple[list[LinearMap], list[bool]]:
    """A map to all classes for each cost, and whether its fit converged.

    A class that does not occur in training gets -inf and is never the answer.
    """
    # imported here: it brings torch, which a listing of the tasks must not wait for
    from silc_bench.probes.logistic import fit_logistic

    known, numbered = np.unique(labels, return_inverse=True)
    near = None
    if start is not None:
        # a class that the start did not know begins as its least likely one
        bias = start.bias[known]
        least = bias[np.isfinite(bias)].min()
        near = (start.weight[:, known], np.where(np.isfinite(bias), bias, least))

    fit = fit_logistic(x, numbered, costs, start=near, device=device)
    maps = []
    for weight, bias in zip(fit.weight, fit.bias, strict=True):
        full = LinearMap(np.zeros((x.shape[1], num_classes)), np.full(num_classes, -np.inf))
        full.weight[:, known] = weight
        full.bias[known] = bias
        maps.append(full)

    return maps, fit.converged.tolist()
