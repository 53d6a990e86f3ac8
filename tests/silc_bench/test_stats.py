"""Standard errors against simulation: the spread of a score over many repetitions is what its error claims."""

from __future__ import annotations

import numpy as np
import pytest

from silc_bench import metrics, stats

REPETITIONS = 1000


def test_accuracy_by_hand_and_by_simulation():
    assert stats.accuracy_stderr(np.array([True, False, False, False])) == pytest.approx(np.sqrt(0.25 * 0.75 / 4))
    rng = np.random.default_rng(0)
    hits = rng.random((REPETITIONS, 150)) < 0.3
    claimed = np.mean([stats.accuracy_stderr(row) for row in hits])
    assert claimed == pytest.approx(hits.mean(axis=1).std(), rel=0.06)


def test_mean_per_class_by_simulation():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 5], [200, 60, 20])
    rate = np.repeat([0.9, 0.5, 0.2], [200, 60, 20])
    hits = rng.random((REPETITIONS, len(labels))) < rate
    spread = np.std([metrics.mean_per_class_recall(row, labels) for row in hits])
    claimed = np.mean([stats.mean_per_class_stderr(row, labels) for row in hits])
    assert claimed == pytest.approx(spread, rel=0.06)
    assert claimed > 1.3 * stats.accuracy_stderr(hits[0]), "few pictures in a class weigh more than the binomial says"


def test_bootstrap_of_a_mean_is_its_binomial_error():
    hits = np.random.default_rng(2).random(400) < 0.4
    counts = np.stack([hits, np.ones(400)], axis=1)
    error = stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1])
    assert error == pytest.approx(stats.accuracy_stderr(hits), rel=0.08)
    assert error == stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1]), "seeded"


def test_bootstrap_sees_that_captions_of_a_picture_fail_together():
    hits = np.random.default_rng(3).random(200) < 0.4
    five = np.stack([5 * hits, np.full(200, 5)], axis=1)
    error = stats.bootstrap_stderr(five, lambda sums: sums[:, 0] / sums[:, 1])
    assert error == pytest.approx(stats.accuracy_stderr(hits), rel=0.1), "not smaller by sqrt(5)"


def test_bootstrap_of_miou_by_simulation():
    rng = np.random.default_rng(4)

    def pictures(num):
        truth = rng.multinomial(100, [0.6, 0.3, 0.1], size=num)
        found = rng.binomial(truth, rng.beta(4, 2, size=(num, 3)))
        return np.stack([found, found + rng.poisson(10, size=(num, 3)), truth], axis=1)

    spread = np.std([metrics.mean_iou(pictures(60).sum(axis=0)) for _ in range(600)])
    claimed = np.mean([stats.bootstrap_stderr(pictures(60), metrics.mean_iou) for _ in range(12)])
    assert claimed == pytest.approx(spread, rel=0.12)


def test_bootstrap_does_not_depend_on_the_chunks(monkeypatch):
    counts = np.random.default_rng(5).integers(0, 9, size=(30, 2)) + 1
    errors = set()
    for chunk in (1, 30 * 7, 1 << 22):
        monkeypatch.setattr(stats, "_CHUNK", chunk)
        errors.add(stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1]))
    assert len(errors) == 1


def test_seeds_cover_pictures_and_draws():
    rng = np.random.default_rng(6)
    spread, claimed = [], []
    for _ in range(600):
        draws = 0.1 * rng.normal(size=3)
        hits = rng.random((3, 200)) < (0.5 + draws)[:, None]
        spread.append(hits.mean())
        claimed.append(stats.seeds_stderr(hits))
    assert np.sqrt(np.mean(np.square(claimed))) == pytest.approx(np.std(spread), rel=0.2)
    assert stats.seeds_stderr(np.ones((3, 50), dtype=bool)) == 0
