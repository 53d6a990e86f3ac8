"""Whether a patch finds its like in another picture: ranks of the nearest patch of the same class, and what chance would find.

Flow: ``cell_classes(mask, layout)`` for each picture -> ``partners`` names the other picture for each class -> ``ranks`` of
its patches there -> recall at k, beside ``chance_at``.

The retrieval behind "dense correspondence" figures of self-supervised models, as one number without a threshold: for each
patch of a class, is one of its k nearest patches (cosine) in another picture that holds the class, of that class? Everything
else in the other picture distracts, the background too. A patch has the class of most of its pixels.

Shapes: n patches of the asking picture, m of the other, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import gammaln

from silc_bench.cells import class_sums, members
from silc_bench.metrics import normalize
from silc_bench.windows import Layout

UNLABELLED = -1


def cell_classes(mask: np.ndarray, layout: Layout) -> np.ndarray:
    """int64 [gh * gw]: the class of most pixels in each cell, of equal ones the first; UNLABELLED where none is scored."""
    classes, counts = class_sums(mask, *members(layout, *mask.shape))
    if not len(classes):
        return np.full(len(counts), UNLABELLED)
    return np.where(counts.any(axis=1), classes[counts.argmax(axis=1)], UNLABELLED)


def order_by_mask(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Pictures in an order that only what they show decides: by the SHA-256 of their masks.

    Neighbours in it are not neighbours in a video, and a data set in another order gives the same pairs.
    """
    digests = [hashlib.sha256(repr(mask.shape).encode() + mask.astype("<u2").tobytes()).hexdigest() for mask in masks]
    return np.argsort(digests, kind="stable")


def partners(classes: Sequence[np.ndarray], order: np.ndarray) -> list[dict[int, int]]:
    """For each picture and class that its cells hold, the next picture in ``order``, round and round, that holds it too.

    Args:
        classes: of the cells of each picture.
        order: a permutation of the pictures.
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
    """How many wrong patches are at least as near as the nearest right one: [n, D], [m, D], bool [m] -> [n] int64."""
    similarity = normalize(queries.astype(np.float32)) @ normalize(others.astype(np.float32)).T
    best = similarity[:, is_right].max(axis=1)
    return (~(similarity[:, ~is_right] < best[:, None])).sum(axis=1)


def chance_at(k: int, num_right: int, num_others: int) -> float:
    """Probability that k patches drawn from ``num_others`` hold one of the ``num_right``: 1 - C(m - r, k) / C(m, k)."""
    wrong = num_others - num_right
    if wrong < k:
        return 1.0
    logs = gammaln([wrong + 1, num_others - k + 1, wrong - k + 1, num_others + 1])
    return float(1 - np.exp(logs[0] + logs[1] - logs[2] - logs[3]))
