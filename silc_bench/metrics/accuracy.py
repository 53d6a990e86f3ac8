"""Accuracy from scores: arrays in, numbers out; nothing is read, stored or drawn.

Flow: logits or embeddings -> rank of the right answer -> fraction of ranks below k. Everything that
can be right or wrong is counted through ranks, and one rule holds for all of them: **a tie is not a
hit**. A wrong answer that scores as much as the right one (or scores NaN) stands before it, so a
model that gives every class the same score gets 0, not the share that an index order would hand it.
Ranks of retrieval stand in `silc_bench.metrics.retrieval`.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from silc_bench.later import np


def class_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many wrong classes score at least as much as the right one; 0 is best.

    Logits [N, C], labels [N] -> [N] int64.
    """
    assert labels.shape == logits.shape[:1], (logits.shape, labels.shape)
    right = np.take_along_axis(logits, labels[:, None], axis=1)

    # "not less" counts a NaN as a miss; it counts the right class too, which is taken off again
    return (~(logits < right)).sum(axis=1) - 1


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Fraction of ``ranks`` [N] below k.

    This is top-k accuracy of class ranks, and any-hit recall@k of retrieval ranks.
    """
    return float(np.mean(ranks < k))


def median_rank(ranks: np.ndarray) -> float:
    """Median of ``ranks`` [N], counted from 1 as the field reports it."""
    return float(np.median(ranks)) + 1.0


def mean_per_class_recall(hits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the fraction hit: hits [N] bool, labels [N].

    Classes without a sample are not averaged.

    Equal to scikit-learn's ``balanced_accuracy_score`` of the predictions behind ``hits``.
    """
    # numbered anew, so that classes without a sample take no place
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(inverse, weights=hits) / counts))


def normalize(features: np.ndarray) -> np.ndarray:
    """Unit length along the last axis; a zero vector stays zero (and so ties with everything)."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)
