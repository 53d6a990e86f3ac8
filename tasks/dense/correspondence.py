"""Correspondence: does a patch find its class among its nearest patches in another image?

Each image asks, for each of its classes but a background, the next image that holds the class, in
an order that only the masks decide. Recall at k is the mean over classes of the share of asking
patches with a patch of their class among the k nearest (cosine); everything else in that image
distracts, the background too. A patch has the class of most of its pixels. Chance is exact: k
patches drawn from that image. It is the retrieval behind "dense correspondence" figures of
self-supervised models, as one number without a threshold.

Flow: ``cell_classes(mask, layout)`` for each image -> ``partners`` names the other image for
each class -> ``ranks`` of its patches there -> recall at k, beside ``chance_at``.

Shapes: n patches of the asking image, m of the other, D features, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.metrics import iou as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.metrics.accuracy import normalize
from silc_bench.models.windows import Layout
from silc_bench.probes.patch_labels import class_sums, members
from silc_bench.task import Features, Scores
from silc_bench.tasks.dense.scores import CellsTask

KS = (1, 5)
MAX_IMAGES = 500  # whose patches are held at once
UNLABELLED = -1


@dataclass(kw_only=True, eq=False)
class Correspondence(CellsTask):
    needs: ClassVar = frozenset({"masks"})

    main_metric: str = "patch_recall@1"

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "k": list(KS),
            "patch": "class of most of its pixels",
            "pairs": "for each class but a background, the next picture that holds it,"
            " in the order of the masks' SHA-256",
            "pictures": f"the first {MAX_IMAGES} in that order",
            "scored": "mean over classes of the share of patches",
        }

    def score(self, features: Features) -> Scores:
        cells, classes, order = self._chosen(features)
        dataset = features.data["test"]
        num_classes = len(dataset.mask_names)
        first_class = int(dataset.has_background)  # label 0 asks nothing where it is a background

        # for each k: of each image and class how many patches hit and how many asked, [I, 2, C]
        counts = {k: np.zeros((len(cells), 2, num_classes), np.int64) for k in KS}
        chance = np.zeros(num_classes)
        for image, partner_of in enumerate(partners(classes, order)):
            for index, other in partner_of.items():
                if index < first_class:
                    continue
                is_right = classes[other] == index
                is_known = classes[other] >= 0
                queries = cells[image][classes[image] == index]
                wrong_before = ranks(queries, cells[other][is_known], is_right[is_known])
                for k in KS:
                    counts[k][image, 0, index] = np.sum(wrong_before < k)
                    counts[k][image, 1, index] = len(wrong_before)
                at_random = chance_at(KS[0], int(is_right.sum()), int(is_known.sum()))
                chance[index] += len(wrong_before) * at_random

        num_asked = counts[KS[0]].sum(axis=0)[1]
        if not num_asked.any():
            raise UserError(
                f"no class occurs in two images, of {len(cells)}",
                about=self.name,
                fix="leave the task out, or raise --limit",
            )

        by_name = {f"patch_recall@{k}": hits_and_asked for k, hits_and_asked in counts.items()}
        rate = metrics.mean_class_rate
        return Scores(
            metrics={name: float(rate(own.sum(axis=0))) for name, own in by_name.items()},
            stderr={name: stats.bootstrap_stderr(own, rate) for name, own in by_name.items()},
            n=len(cells),
            chance=float(rate(np.stack([chance, num_asked]))),
            details={"patches": int(num_asked.sum())},
            outcomes=dict(by_name),
        )

    def _chosen(self, features: Features) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Cells and their classes of each image that takes part, and the order of these images.

        Cells are fp16 [n, D], classes [n].
        """
        dataset = features.data["test"]
        masks = (dataset.mask(index) for index in range(len(dataset)))
        order = order_by_mask(masks)[:MAX_IMAGES]
        chosen = set(order.tolist())

        # features come in the dataset's order; ``places`` says where an image lies in the lists
        cells: list[np.ndarray] = []
        classes: list[np.ndarray] = []
        places: dict[int, int] = {}
        for number, (grid, layout, mask) in enumerate(self.labelled(features, "test")):
            if number in chosen:
                places[number] = len(cells)
                # fp16 is what they were rounded to: nothing is lost
                cells.append(grid.reshape(-1, grid.shape[-1]).astype(np.float16))
                classes.append(cell_classes(mask, layout))
        return cells, classes, np.array([places[number] for number in order.tolist()])


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
    # the shape is hashed too: the bytes of a 2 x 8 mask are those of a 4 x 4 one
    contents = (repr(mask.shape).encode() + mask.astype("<u2").tobytes() for mask in masks)
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return np.argsort(digests, kind="stable")


def partners(classes: Sequence[np.ndarray], order: np.ndarray) -> list[dict[int, int]]:
    """For each image and class that its cells hold, the next image that holds it too.

    Next is meant in ``order``, round and round.

    Args:
        classes: of the cells of each image.
        order: a permutation of the images.
    """
    partner_of: list[dict[int, int]] = [{} for _ in classes]
    held = [set(np.unique(own).tolist()) - {UNLABELLED} for own in classes]
    for index in set().union(*held):
        holders = [image for image in order.tolist() if index in held[image]]

        # a class that one image alone holds has nowhere to be looked for
        if len(holders) > 1:
            for image, following in zip(holders, holders[1:] + holders[:1], strict=True):
                partner_of[image][index] = following
    return partner_of


def ranks(queries: np.ndarray, others: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """How many wrong patches are at least as near as the nearest right one.

    Queries [n, D], others [m, D], bool [m] -> [n] int64.
    """
    similarity = normalize(queries.astype(np.float32)) @ normalize(others.astype(np.float32)).T

    # "not below" instead of "at least": a NaN counts as a wrong patch that is nearer
    best = similarity[:, is_right].max(axis=1)
    return (~(similarity[:, ~is_right] < best[:, None])).sum(axis=1)


def chance_at(k: int, num_right: int, num_others: int) -> float:
    """Probability that k patches drawn from ``num_others`` hold one of the ``num_right``.

    With m others and r right ones it is 1 - C(m - r, k) / C(m, k).
    """
    wrong = num_others - num_right
    if wrong < k:
        return 1.0
    # imported here: a listing of tasks needs no scipy
    from scipy.special import gammaln

    # by logarithms of factorials, as the binomials themselves overflow
    logs = gammaln([wrong + 1, num_others - k + 1, wrong - k + 1, num_others + 1])
    return float(1 - np.exp(logs[0] + logs[1] - logs[2] - logs[3]))
