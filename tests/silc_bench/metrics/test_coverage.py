"""Intervals from our standard errors hold the true score as often as they say.

Score +- 1.96 errors: 95 of 100 times.
"""

from __future__ import annotations

import numpy as np
import pytest

from silc_bench.metrics import accuracy as metrics
from silc_bench.metrics import statistics as stats

REPETITIONS = 400
NOMINAL, SPREAD = 0.95, 0.033  # three standard errors of a share of 0.95 in 400


def coverage(rng, truth, draw):
    """``draw`` gives a score and its standard error from fresh samples."""
    covered = [
        abs(value - truth) <= 1.96 * error
        for value, error in (draw(rng) for _ in range(REPETITIONS))
    ]
    return np.mean(covered)


def accuracy(rng):
    hits = rng.random(500) < 0.3
    return hits.mean(), stats.accuracy_stderr(hits)


def mean_per_class(rng):
    labels = np.repeat([0, 1, 2], [300, 100, 60])
    hits = rng.random(len(labels)) < np.array([0.9, 0.5, 0.2])[labels]
    return metrics.mean_per_class_recall(hits, labels), stats.mean_per_class_stderr(hits, labels)


def recall_of_captions(rng):
    """Five captions a picture, hit or missed together: a picture's own rate is 0.1 or 0.9."""
    hits = rng.binomial(5, rng.choice([0.1, 0.9], size=200))
    counts = np.stack([hits, np.full(200, 5)], axis=1)
    return hits.sum() / 1000, stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1])


@pytest.mark.parametrize(
    ("draw", "truth"),
    [(accuracy, 0.3), (mean_per_class, (0.9 + 0.5 + 0.2) / 3), (recall_of_captions, 0.5)],
)
def test_intervals_cover_at_the_nominal_rate(draw, truth, monkeypatch):
    monkeypatch.setattr(stats, "NUM_RESAMPLES", 200)
    assert coverage(np.random.default_rng(0), truth, draw) == pytest.approx(NOMINAL, abs=SPREAD)


def test_captions_counted_as_independent_would_not_cover():
    def naive(rng):
        value, _ = recall_of_captions(rng)
        return value, np.sqrt(value * (1 - value) / 1000)

    assert coverage(np.random.default_rng(0), 0.5, naive) < 0.8


def test_intervals_of_few_shots_err_on_the_wide_side():
    """Three draws tell little of their own spread.

    The interval must not promise more than it holds by much.
    """

    def draw(rng):
        hits = rng.random((3, 300)) < (0.5 + 0.02 * rng.normal(size=3))[:, None]
        return hits.mean(), stats.seeds_stderr(hits)

    assert 0.9 < coverage(np.random.default_rng(1), 0.5, draw) <= 1
