"""Standard errors against simulation: the spread of a score over repetitions. p against peers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, t

from silc_bench.metrics import accuracy, iou
from silc_bench.metrics import statistics as stats


def fraction(sums):
    return sums[..., 0] / sums[..., 1]


# ---- the errors of a score, and of a difference ----


def hits_of_classes(rng):
    labels = np.repeat([0, 1, 5], [200, 60, 20])
    hits = rng.random(len(labels)) < np.repeat([0.9, 0.5, 0.2], [200, 60, 20])
    return accuracy.mean_per_class_recall(hits, labels), stats.mean_per_class_stderr(hits, labels)


def captions(rng):
    """Five captions an image, hit or missed together: an image's own rate is 0.1 or 0.9."""
    hits = rng.binomial(5, rng.choice([0.1, 0.9], size=200))
    counts = np.stack([hits, np.full(200, 5)], axis=1)
    return hits.mean() / 5, stats.bootstrap_stderr(counts, fraction)


def draws_of_shots(rng):
    """Three draws tell little of their own spread: it errs on the wide side."""
    hits = rng.random((3, 200)) < (0.5 + 0.1 * rng.normal(size=3))[:, None]
    return hits.mean(), stats.seeds_stderr(hits)


def shots_of_two_models(rng):
    """Equal on average, but one set of shots favours this one, another that one."""
    favour = 0.05 * rng.normal(size=3)
    a, b = rng.random((400, 3)) < 0.5, rng.random((400, 3)) < 0.5 + favour
    of_images = (b.mean(axis=1) - a.mean(axis=1)).var(ddof=1) / 400
    return b.mean() - a.mean(), np.sqrt(of_images + stats.draws_variance(a, b))


@pytest.mark.parametrize(
    ("draw", "repetitions", "within"),
    [
        (hits_of_classes, 1000, 0.06),
        (captions, 400, 0.12),
        (draws_of_shots, 600, 0.2),
        (shots_of_two_models, 600, 0.25),
    ],
)
def test_the_error_is_the_spread_of_the_score(draw, repetitions, within, monkeypatch):
    monkeypatch.setattr(stats, "NUM_RESAMPLES", 200)
    rng = np.random.default_rng(1)
    scores, errors = np.array([draw(rng) for _ in range(repetitions)]).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(np.std(scores), rel=within)


def test_accuracy_by_hand():
    hits = np.array([True, False, False, False])
    assert stats.accuracy_stderr(hits) == pytest.approx(np.sqrt(0.25 * 0.75 / 4))
    assert stats.draws_variance(hits[:, None], ~hits[:, None]) == 0, "a single draw"


@pytest.mark.filterwarnings("error")
def test_draws_in_which_no_class_was_asked_for_do_not_count():
    """A third of the draws of three images, of which one is asked about, are empty: (2/3)^3."""
    counts = np.zeros((3, 2, 1))
    counts[0] = [[1], [2]]
    assert stats.bootstrap_stderr(counts, iou.mean_class_rate) == 0
    assert stats.paired_bootstrap(counts, counts, iou.mean_class_rate) == 0
    assert np.isnan(iou.mean_iou(np.zeros((3, 2))))


# ---- two models on the same samples ----


def hits(both, only_a, only_b, neither):
    """An image of each kind, so often."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


def test_mcnemar_is_the_binomial_test_of_a_fair_coin():
    assert stats.mcnemar(*hits(7, 0, 0, 5)) == 1
    for only_a, only_b in itertools.product((0, 1, 3, 10, 200), (1, 4, 30, 190)):
        expected = binomtest(only_a, only_a + only_b, 0.5).pvalue
        assert stats.mcnemar(*hits(7, only_a, only_b, 5)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 20])
def test_holm_by_definition(size):
    """Step down: the i-th smallest adjusted p is the largest (M - j) p_j over j <= i, at most 1."""
    p = np.round(np.random.default_rng(7).random(size) ** 3, 2)  # with ties
    order = sorted(range(size), key=lambda index: p[index])
    expected = np.empty(size)
    for i, index in enumerate(order):
        expected[index] = min(1.0, max((size - j) * p[order[j]] for j in range(i + 1)))
    assert stats.holm(p) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("table", [(300, 40, 70, 90), (0, 5, 5, 490)])
def test_paired_bootstrap_of_hits_is_the_closed_form(table):
    n, (_, only_a, only_b, _) = sum(table), table
    closed = np.sqrt(only_a + only_b - (only_b - only_a) ** 2 / n) / n
    a, b = (model[:, None] for model in hits(*table))
    error = stats.paired_bootstrap(a, b, lambda sums: sums[..., 0] / n)
    assert error == pytest.approx(closed, rel=0.03)


def test_the_bootstrap_does_not_depend_on_chunks_or_order(monkeypatch):
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 9, size=(2, 40, 3)).astype(float) + 1
    alone = stats.bootstrap_stderr(a, fraction)
    paired = stats.paired_bootstrap(a, b, fraction)
    order = rng.permutation(40)
    assert stats.paired_bootstrap(a[order], b[order], fraction) == paired
    for chunk in (1, 77):
        monkeypatch.setattr(stats, "_CHUNK", chunk)
        assert stats.bootstrap_stderr(a, fraction) == alone
        assert stats.paired_bootstrap(a, b, fraction) == pytest.approx(paired, rel=1e-12)


@pytest.mark.parametrize(
    ("variances", "dofs", "expected"),
    [([2.0, 1.0], [10, 2], 9 / (4 / 10 + 1 / 2)), ([2.0, 0.0], [10, 2], 10), ([0.0], [10], 10)],
)
def test_degrees_of_freedom_by_hand(variances, dofs, expected):
    assert stats.pooled_dof(variances, dofs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("difference", "stderr", "dof", "num_differing", "expected"),
    [
        (-0.02, 0.01, 30, 100, 2 * t.sf(2, 30)),
        (0.0, 0.0, 30, 0, 1),
        (1.0, 0.0, 2, 3, 2 / 2**3),  # three images in agreement prove no more than three tosses
    ],
)
def test_a_p_value_by_student_and_its_floor(difference, stderr, dof, num_differing, expected):
    assert stats.paired_p(difference, stderr, dof, num_differing) == pytest.approx(expected)


def test_the_half_interval_is_students():
    assert stats.half_interval(0.01, 20) == pytest.approx(0.01 * t.ppf(0.975, 20))
