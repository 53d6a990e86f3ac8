"""Correspondence: does a patch find its class among its nearest patches in another image?

Each image asks, for each of its classes but a background, the next image that holds the class,
in an order that only the masks decide (`silc_bench.tasks.dense.correspondence`). Recall at k is the
mean over classes of the share of asking patches with a patch of their class among the k nearest,
everything else in that image distracting. Chance is exact: k patches drawn from that image.

Whether a patch finds its like in another picture: ranks of the nearest patch of the same class, and
what chance would find.

Flow: ``cell_classes(mask, layout)`` for each image -> ``partners`` names the other image for
each class -> ``ranks`` of its patches there -> recall at k, beside ``chance_at``.

The retrieval behind "dense correspondence" figures of self-supervised models, as one number without
a threshold: for each patch of a class, is one of its k nearest patches (cosine) in another image
that holds the class, of that class? Everything else in the other image distracts, the background
too. A patch has the class of most of its pixels.

Shapes: n patches of the asking image, m of the other, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from silc_bench.errors import UserError
from silc_bench.metrics import iou as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.metrics.accuracy import normalize
from silc_bench.models.windows import Layout
from silc_bench.probes.patch_labels import class_sums, members
from silc_bench.task import Features, Scores, register
from silc_bench.tasks.dense.scores import CellsTask
from silc_bench.tasks.sources import shapes

KS = (1, 5)
MAX_PICTURES = 500  # whose patches are held at once


@dataclass(kw_only=True, eq=False)
class Correspondence(CellsTask):
    main_metric: str = "patch_recall@1"

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "k": list(KS),
            "patch": "class of most of its pixels",
            "pairs": "for each class but a background, the next picture that holds it, in the order of the masks' SHA-256",
            "pictures": f"the first {MAX_PICTURES} in that order",
            "scored": "mean over classes of the share of patches",
        }

    def score(self, features: Features) -> Scores:
        cells, classes, order = self._chosen(features)
        num_classes, first = (
            len(features.data["test"].mask_names),
            int(features.data["test"].has_background),
        )
        counts = {k: np.zeros((len(cells), 2, num_classes), np.int64) for k in KS}
        chance = np.zeros(num_classes)
        for picture, asked in enumerate(partners(classes, order)):
            for index, other in asked.items():
                if index < first:
                    continue
                is_right, known = classes[other] == index, classes[other] >= 0
                queries = cells[picture][classes[picture] == index]
                found = ranks(queries, cells[other][known], is_right[known])
                for k in KS:
                    counts[k][picture, :, index] = np.sum(found < k), len(found)
                chance[index] += len(found) * chance_at(
                    KS[0], int(is_right.sum()), int(known.sum())
                )
        num_asked = counts[KS[0]].sum(axis=0)[1]
        if not num_asked.any():
            raise UserError(
                f"{self.name}: no class occurs in two of the {len(cells)} pictures; leave it out, or raise --limit"
            )
        kept = {f"patch_recall@{k}": counted for k, counted in counts.items()}
        return Scores(
            metrics={
                name: float(metrics.mean_class_rate(counted.sum(axis=0)))
                for name, counted in kept.items()
            },
            stderr={
                name: stats.bootstrap_stderr(counted, metrics.mean_class_rate)
                for name, counted in kept.items()
            },
            n=len(cells),
            chance=float(metrics.mean_class_rate(np.stack([chance, num_asked]))),
            details={"patches": int(num_asked.sum())},
            outcomes=dict(kept),
        )

    def _chosen(self, features: Features) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Cells and their classes of each image that takes part, and the order of these images.

        Cells are fp16 [n, D], classes [n].
        """
        dataset = features.data["test"]
        order = order_by_mask(dataset.mask(index) for index in range(len(dataset)))[:MAX_PICTURES]
        chosen = set(order.tolist())
        cells: list[np.ndarray] = []
        classes: list[np.ndarray] = []
        places: dict[int, int] = {}
        for number, (grid, layout, mask) in enumerate(self.labelled(features, "test")):
            if number in chosen:
                places[number] = len(cells)
                cells.append(
                    grid.reshape(-1, grid.shape[-1]).astype(np.float16)
                )  # what they were rounded to
                classes.append(cell_classes(mask, layout))
        return cells, classes, np.array([places[number] for number in order.tolist()])


register(Correspondence(name="shapes/correspondence", sources={"test": shapes("test", 1000)}))
UNLABELLED = -1


def cell_classes(mask: np.ndarray, layout: Layout) -> np.ndarray:
    """int64 [gh * gw]: the class of most pixels in each cell, of equal ones the first.

    UNLABELLED where no pixel is scored.
    """
    classes, counts = class_sums(mask, *members(layout, *mask.shape))
    if not len(classes):
        return np.full(len(counts), UNLABELLED)
    return np.where(counts.any(axis=1), classes[counts.argmax(axis=1)], UNLABELLED)


def order_by_mask(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Images in an order that only what they show decides: by the SHA-256 of their masks.

    Neighbours in it are not neighbours in a video, and a data set in another order gives the same
    pairs.
    """
    digests = [
        hashlib.sha256(repr(mask.shape).encode() + mask.astype("<u2").tobytes()).hexdigest()
        for mask in masks
    ]
    return np.argsort(digests, kind="stable")


def partners(classes: Sequence[np.ndarray], order: np.ndarray) -> list[dict[int, int]]:
    """For each image and class that its cells hold, the next image that holds it too.

    Next is meant in ``order``, round and round.

    Args:
        classes: of the cells of each image.
        order: a permutation of the images.
    """
    found: list[dict[int, int]] = [{} for _ in classes]
    held = [set(np.unique(own).tolist()) - {UNLABELLED} for own in classes]
    for index in set().union(*held):
        holders = [picture for picture in order.tolist() if index in held[picture]]
        if len(holders) > 1:
            for picture, following in zip(holders, holders[1:] + holders[:1], strict=True):
                found[picture][index] = following
    return found


def ranks(queries: np.ndarray, others: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """How many wrong patches are at least as near as the nearest right one.

    Queries [n, D], others [m, D], bool [m] -> [n] int64.
    """
    similarity = normalize(queries.astype(np.float32)) @ normalize(others.astype(np.float32)).T
    best = similarity[:, is_right].max(axis=1)
    return (~(similarity[:, ~is_right] < best[:, None])).sum(axis=1)


def chance_at(k: int, num_right: int, num_others: int) -> float:
    """Probability that k patches drawn from ``num_others`` hold one of the ``num_right``.

    With m others and r right ones it is 1 - C(m - r, k) / C(m, k).
    """
    wrong = num_others - num_right
    if wrong < k:
        return 1.0
    logs = gammaln([wrong + 1, num_others - k + 1, wrong - k + 1, num_others + 1])
    return float(1 - np.exp(logs[0] + logs[1] - logs[2] - logs[3]))
