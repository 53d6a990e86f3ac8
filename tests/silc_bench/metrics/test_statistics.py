"""Standard errors against simulation: the spread of a score over repetitions. p against peers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, t

from silc_bench.metrics import accuracy, iou
from silc_bench.metrics import statistics as stats

REPETITIONS = 1000


def test_accuracy_by_hand_and_by_simulation():
    assert stats.accuracy_stderr(np.array([True, False, False, False])) == pytest.approx(
        np.sqrt(0.25 * 0.75 / 4)
    )
    rng = np.random.default_rng(0)
    hits = rng.random((REPETITIONS, 150)) < 0.3
    claimed = np.mean([stats.accuracy_stderr(row) for row in hits])
    assert claimed == pytest.approx(hits.mean(axis=1).std(), rel=0.06)


def test_mean_per_class_by_simulation():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 5], [200, 60, 20])
    rate = np.repeat([0.9, 0.5, 0.2], [200, 60, 20])
    hits = rng.random((REPETITIONS, len(labels))) < rate
    spread = np.std([accuracy.mean_per_class_recall(row, labels) for row in hits])
    claimed = np.mean([stats.mean_per_class_stderr(row, labels) for row in hits])
    assert claimed == pytest.approx(spread, rel=0.06)
    assert claimed > 1.3 * stats.accuracy_stderr(hits[0]), (
        "few pictures in a class weigh more than the binomial says"
    )


def test_bootstrap_of_a_mean_is_its_binomial_error():
    hits = np.random.default_rng(2).random(400) < 0.4
    counts = np.stack([hits, np.ones(400)], axis=1)
    error = stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1])
    assert error == pytest.approx(stats.accuracy_stderr(hits), rel=0.08)
    assert error == stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1]), "seeded"


def test_bootstrap_sees_that_captions_of_an_image_fail_together():
    hits = np.random.default_rng(3).random(200) < 0.4
    five = np.stack([5 * hits, np.full(200, 5)], axis=1)
    error = stats.bootstrap_stderr(five, lambda sums: sums[:, 0] / sums[:, 1])
    assert error == pytest.approx(stats.accuracy_stderr(hits), rel=0.1), "not smaller by sqrt(5)"


def test_bootstrap_of_miou_by_simulation():
    rng = np.random.default_rng(4)

    def images(num):
        truth = rng.multinomial(100, [0.6, 0.3, 0.1], size=num)
        found = rng.binomial(truth, rng.beta(4, 2, size=(num, 3)))
        return np.stack([found, found + rng.poisson(10, size=(num, 3)), truth], axis=1)

    spread = np.std([iou.mean_iou(images(60).sum(axis=0)) for _ in range(600)])
    claimed = np.mean([stats.bootstrap_stderr(images(60), iou.mean_iou) for _ in range(12)])
    assert claimed == pytest.approx(spread, rel=0.12)


@pytest.mark.filterwarnings("error")
def test_draws_in_which_no_class_was_asked_for_do_not_count():
    """A third of the draws of three pictures, of which one is asked about, are empty: (2/3)^3."""
    counts = np.zeros((3, 2, 1))
    counts[0] = [[1], [2]]
    assert stats.bootstrap_stderr(counts, iou.mean_class_rate) == 0
    assert stats.paired_bootstrap(counts, counts, iou.mean_class_rate) == 0
    assert np.isnan(iou.mean_iou(np.zeros((3, 2))))


def test_bootstrap_does_not_depend_on_the_chunks(monkeypatch):
    counts = np.random.default_rng(5).integers(0, 9, size=(30, 2)) + 1
    errors = set()
    for chunk in (1, 30 * 7, 1 << 22):
        monkeypatch.setattr(stats, "_CHUNK", chunk)
        errors.add(stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1]))
    assert len(errors) == 1


def test_seeds_cover_images_and_draws():
    rng = np.random.default_rng(6)
    spread, claimed = [], []
    for _ in range(600):
        draws = 0.1 * rng.normal(size=3)
        hits = rng.random((3, 200)) < (0.5 + draws)[:, None]
        spread.append(hits.mean())
        claimed.append(stats.seeds_stderr(hits))
    assert np.sqrt(np.mean(np.square(claimed))) == pytest.approx(np.std(spread), rel=0.2)
    assert stats.seeds_stderr(np.ones((3, 50), dtype=bool)) == 0


# ---- two models on the same samples ----


def hits(both, only_a, only_b, neither):
    """A picture of each kind, so often."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


def fraction(num_images):
    return lambda sums: sums[..., 0] / num_images


def paired_error(a, b, seed=0):
    return stats.paired_bootstrap(a[:, None], b[:, None], fraction(len(a)), seed)


@pytest.mark.parametrize("only_a", [0, 1, 3, 10, 200])
@pytest.mark.parametrize("only_b", [0, 1, 4, 30, 190])
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(only_a, only_b):
    p = stats.mcnemar(*hits(7, only_a, only_b, 5))
    if only_a + only_b == 0:
        assert p == 1
    else:
        assert p == pytest.approx(binomtest(only_a, only_a + only_b, 0.5).pvalue, rel=1e-12)


def test_mcnemar_by_hand():
    assert stats.mcnemar(*hits(50, 1, 5, 50)) == pytest.approx(2 * (1 + 6) / 64)


def holm_by_definition(p):
    """Step down: the i-th smallest adjusted p is the largest (M - j) p_j over j <= i, at most 1."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted = [0.0] * len(p)
    for i, index in enumerate(order):
        adjusted[index] = min(1.0, max((len(p) - j) * p[order[j]] for j in range(i + 1)))
    return adjusted


def test_holm_by_hand_and_by_definition():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert stats.holm([0.02]) == pytest.approx([0.02])
    assert len(stats.holm([])) == 0
    rng = np.random.default_rng(7)
    for size in (2, 5, 20):
        p = np.round(rng.random(size) ** 3, 2)  # with ties
        assert stats.holm(p) == pytest.approx(holm_by_definition(p.tolist()), abs=1e-15)


@pytest.mark.parametrize("table", [(300, 40, 70, 90), (0, 5, 5, 490), (10, 0, 30, 60)])
def test_paired_bootstrap_of_hits_is_the_closed_form(table):
    n, (_, only_a, only_b, _) = sum(table), table
    closed = np.sqrt(only_a + only_b - (only_b - only_a) ** 2 / n) / n
    assert paired_error(*hits(*table)) == pytest.approx(closed, rel=0.03)


def test_paired_bootstrap_does_not_depend_on_the_order_or_the_chunks(monkeypatch):
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 9, size=(2, 40, 3)).astype(float) + 1
    measure = lambda sums: sums[:, 0] / sums[:, 1:].sum(axis=1)  # noqa: E731
    first = stats.paired_bootstrap(a, b, measure)
    order = rng.permutation(40)
    assert stats.paired_bootstrap(a[order], b[order], measure) == first
    assert stats.paired_bootstrap(a, b, measure, seed=1) != first
    assert stats.paired_bootstrap(b, a, measure) == pytest.approx(first, rel=0.05)
    monkeypatch.setattr(stats, "_CHUNK", 77)
    assert stats.paired_bootstrap(a, b, measure) == pytest.approx(first, rel=1e-12)


def test_pairing_removes_what_the_models_share():
    rng = np.random.default_rng(9)
    hard = rng.random(1000)
    a, b = hard < 0.5, hard < 0.52
    unpaired = np.hypot(stats.accuracy_stderr(a), stats.accuracy_stderr(b))
    assert paired_error(a, b) < 0.3 * unpaired
    assert paired_error(a, a) == 0


def test_paired_bootstrap_is_the_plain_one_when_one_model_is_constant():
    rng = np.random.default_rng(10)
    counts = np.stack([rng.integers(0, 6, 300), np.full(300, 5)], axis=1)
    measure = lambda sums: sums[:, 0] / sums[:, 1]  # noqa: E731
    never = counts * [0, 1]
    assert stats.paired_bootstrap(never, counts, measure) == pytest.approx(
        stats.bootstrap_stderr(counts, measure), rel=0.06
    )


def test_the_interval_covers_at_its_level(monkeypatch):
    """Captions of one picture are hit together; the truth is the mean over very many pictures."""
    monkeypatch.setattr(stats, "PAIRED_RESAMPLES", 400)
    rng = np.random.default_rng(11)

    def counts(num):
        easy = rng.beta(1, 1, size=num)  # of an image, for both modelss
        a, b = rng.binomial(5, easy), rng.binomial(5, np.minimum(1, easy * 1.1))
        return [np.stack([found, np.full(num, 5)], axis=1) for found in (a, b)]

    measure = lambda sums: sums[:, 0] / sums[:, 1]  # noqa: E731
    a, b = (part.sum(axis=0)[None] for part in counts(1_000_000))
    truth = measure(b) - measure(a)
    covered = 0
    for _ in range(400):
        a, b = counts(80)
        difference = measure(b.sum(axis=0)[None]) - measure(a.sum(axis=0)[None])
        margin = stats.half_interval(stats.paired_bootstrap(a, b, measure), dof=79)
        covered += abs(difference - truth)[0] <= margin
    assert 0.92 <= covered / 400 <= 0.98, "95 % within 2.8 standard errors of this simulation"


def test_few_draws_of_the_shots_widen_the_interval():
    """Both models are equal on average, but one set of shots favours this one, another that one."""
    rng = np.random.default_rng(12)
    false, claimed, spread = 0, [], []
    for _ in range(600):
        favour = 0.05 * rng.normal(size=3)
        a, b = rng.random((400, 3)) < 0.5, rng.random((400, 3)) < 0.5 + favour
        difference = b.mean() - a.mean()
        images = (b.mean(axis=1) - a.mean(axis=1)).var(ddof=1) / 400
        draws = stats.draws_variance(a, b)
        stderr, dof = np.sqrt(images + draws), stats.pooled_dof([images, draws], [399, 2])
        false += stats.paired_p(difference, stderr, dof, 400) < 0.05
        claimed.append(stderr)
        spread.append(difference)
    assert np.sqrt(np.mean(np.square(claimed))) == pytest.approx(np.std(spread), rel=0.25)
    assert false / 600 < 0.07
    assert stats.draws_variance(a[:, :1], b[:, :1]) == 0


def test_degrees_of_freedom_by_hand():
    assert stats.pooled_dof([2.0, 1.0], [10, 2]) == pytest.approx(9 / (4 / 10 + 1 / 2))
    assert stats.pooled_dof([2.0, 0.0], [10, 2]) == pytest.approx(10)
    assert stats.pooled_dof([0.0], [10]) == 10


def test_a_p_value_by_student_and_its_floor():
    assert stats.paired_p(0.02, 0.01, 30, 100) == pytest.approx(2 * t.sf(2, 30))
    assert stats.paired_p(-0.02, 0.01, 30, 100) == stats.paired_p(0.02, 0.01, 30, 100)
    assert stats.paired_p(0.0, 0.0, 30, 0) == 1
    assert stats.paired_p(1.0, 0.0, 2, 3) == 2 / 2**3, (
        "three pictures in agreement prove no more than three tosses"
    )
    assert stats.paired_p(1.0, 0.0, 1, 1) == 1
    assert stats.half_interval(0.01, 20) == pytest.approx(0.01 * t.ppf(0.975, 20))
