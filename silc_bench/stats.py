"""How far a measured score may lie from the one on infinitely many pictures: the standard error beside each metric.

Closed forms where the samples are independent; a bootstrap over *pictures* where they are not (the captions or the pixels
of one picture are wrong together, so counting them as independent would promise too much).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NUM_RESAMPLES = 1000
_CHUNK = 1 << 22  # drawn indices held at once


def accuracy_stderr(hits: np.ndarray) -> float:
    """Binomial, sqrt(p (1 - p) / N): hits [N] bool -> a fraction."""
    p = float(np.mean(hits))
    return float(np.sqrt(p * (1 - p) / len(hits)))


def mean_per_class_stderr(hits: np.ndarray, labels: np.ndarray) -> float:
    """Stratified, sqrt(sum_c p_c (1 - p_c) / n_c) / C over the classes that occur: the class sizes are taken as given."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    p = np.bincount(inverse, weights=hits) / counts
    return float(np.sqrt(np.sum(p * (1 - p) / counts)) / len(counts))


def seeds_stderr(hits: np.ndarray) -> float:
    """Of the mean accuracy over S draws of the training shots, scored on the same N pictures: hits [S, N] bool.

    Two sources add in squares: which pictures were tested (variance over pictures of the hit rate over draws, / N) and which
    shots were drawn (variance over draws of the accuracy, / S). The second holds a little of the first again, so the
    sum errs on the wide side.
    """
    num_draws, num_pictures = hits.shape
    pictures = hits.mean(axis=0).var(ddof=1) / num_pictures if num_pictures > 1 else 0.0
    draws = hits.mean(axis=1).var(ddof=1) / num_draws if num_draws > 1 else 0.0
    return float(np.sqrt(pictures + draws))


def bootstrap_stderr(per_picture: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> float:
    """Standard deviation of a statistic of summed counts when the pictures are drawn anew, with replacement (Efron, 1979).

    Args:
        per_picture: [N, ...] counts of each picture (areas [3, C], or hits and queries [2]).
        statistic: sums [R, ...] -> [R], for R draws at once.
        seed: of the draws; the same counts give the same error.
    """
    num_pictures = len(per_picture)
    flat = per_picture.reshape(num_pictures, -1).astype(np.float64)
    rng = np.random.default_rng(seed)
    sums = np.empty((NUM_RESAMPLES, flat.shape[1]))
    chunk = max(1, _CHUNK // num_pictures)
    for start in range(0, NUM_RESAMPLES, chunk):
        rows = min(chunk, NUM_RESAMPLES - start)
        drawn = rng.integers(num_pictures, size=(rows, num_pictures)) + num_pictures * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * num_pictures).reshape(rows, num_pictures)
        sums[start : start + rows] = times @ flat
    return float(np.std(statistic(sums.reshape(NUM_RESAMPLES, *per_picture.shape[1:])), ddof=1))
