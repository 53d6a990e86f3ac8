"""The logistic sweep against scikit-learn's optimum and the objective written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from silc_bench.probes import logistic
from silc_bench.probes.closed_form import moments
from silc_bench.probes.logistic import Problem, fit_logistic

COSTS = (1e-5, 1e-3, 1e-1, 10.0)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


@pytest.fixture(scope="module")
def samples(clustered):
    return clustered(np.random.default_rng(11), 200, 8, 4, 2.0)


@pytest.fixture(scope="module")
def fit(samples):
    return fit_logistic(*samples, COSTS)


def check_same(fitted, fit, rtol=1e-6):
    assert fitted.converged.all()
    np.testing.assert_allclose(fitted.loss, fit.loss, rtol=rtol)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spread", [3.0, 0.5], ids=["overlapping", "separable"])
@pytest.mark.parametrize(
    ("num_samples", "dim", "num_classes"), [(300, 12, 5), (60, 90, 20)], ids=["N > D", "N < D"]
)
def test_logistic_reaches_sklearns_optimum_at_every_cost(
    clustered, num_samples, dim, num_classes, spread, device
):
    """Also where classes have more samples than the curvature keeps apart, or one alone."""
    from sklearn.linear_model import LogisticRegression

    x, labels = clustered(np.random.default_rng(6), num_samples, dim, num_classes, spread)
    mean, std = moments(x)
    x = (x - mean) / std
    fitted = fit_logistic(x, labels, COSTS, device=device)
    assert fitted.converged.all()

    def loss(weight, bias, cost):
        logits = x @ weight + bias
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(x)), labels]
        return log_loss.mean() + (weight**2).sum() / (2 * cost * len(x))

    for k, cost in enumerate(COSTS):
        ours = loss(fitted.weight[k], fitted.bias[k], cost)
        assert fitted.loss[k] == pytest.approx(ours, rel=1e-7), "it reports what it reached"
        peer = LogisticRegression(C=cost, tol=1e-8, max_iter=5000).fit(x, labels)
        assert ours <= loss(peer.coef_.T, peer.intercept_, cost) * (1 + 1e-6)


def test_logistic_without_standardisation_and_in_any_chunks(samples, monkeypatch):
    x, labels = samples
    x = (x * np.logspace(0, 3, 8)).astype(np.float32)  # badly scaled, far from centred
    whole = fit_logistic(x, labels, (1e-2, 1.0))
    for cells in (1, 1000):
        monkeypatch.setattr(logistic, "CHUNK_CELLS", cells)
        check_same(fit_logistic(x, labels, (1e-2, 1.0)), whole)


@pytest.fixture
def precisions(monkeypatch):
    """Of each pass; in fp32 they have the error of ``precisions.noise``."""

    class Precisions(list):
        noise = 0.0

    seen = Precisions()
    called = Problem.__call__
    generator = torch.Generator().manual_seed(0)

    def inexact(problem, parameters):
        seen.append(parameters.dtype)
        point = called(problem, parameters)
        if parameters.dtype == torch.float32:
            error = torch.randn(point.slope.shape, generator=generator)
            point.slope.add_(error, alpha=seen.noise)
        return point

    monkeypatch.setattr(Problem, "__call__", inexact)
    return seen


def test_where_fp32_is_not_enough_float64_finishes(samples, fit, precisions, monkeypatch):
    monkeypatch.setattr(Problem, "rounding", lambda *_: np.inf)
    check_same(fit_logistic(*samples, COSTS), fit)
    assert precisions.count(torch.float64) >= len(COSTS)


def test_fp32_is_left_soon_where_it_gains_nothing(samples, fit, precisions):
    """Gradients with an error that does not shrink: steps lead nowhere for ever.

    As of many samples of collinear features.
    """
    precisions.noise = 1e-5
    check_same(fit_logistic(*samples, COSTS), fit)
    assert precisions.count(torch.float32) < 100 * len(COSTS)


def test_rounding_is_the_difference_to_float64(samples):
    problem = Problem(*samples, 4, torch.device("cpu"))
    parameters = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    point = problem(parameters)
    assert problem.rounding(point) < 1e-6
    point.losses.add_(0.5)
    assert problem.rounding(point) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("own_rows", [3, 32])
def test_the_model_of_the_curvature_is_divided_by_exactly(clustered, own_rows, monkeypatch):
    """Against the dense matrix of each class; classes of unequal sizes.

    Some have more samples than are kept apart.
    """
    monkeypatch.setattr(logistic, "OWN_ROWS", own_rows)
    x, labels = clustered(np.random.default_rng(13), 24, 5, 4)
    problem = Problem(x, labels, 4, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    parameters, gradient = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    parameters /= 10
    solved = problem.curvature(problem(parameters), 0.1).solve(gradient)

    centered = x - x.mean(axis=0, dtype=np.float64)
    rows = np.pad(centered @ problem.axes.numpy(), ((0, 0), (0, 1)), constant_values=1)
    p = (torch.from_numpy(rows) @ parameters.T).softmax(1).numpy()
    covariance = np.diag([*np.linalg.eigvalsh(np.cov(centered.T, bias=True)), 1.0])
    for c in range(4):
        apart = np.flatnonzero(labels == c)[:own_rows]
        others = np.setdiff1d(np.arange(len(x)), apart)
        weight = p[:, c] * (1 - p[:, c]) / len(x)
        hessian = weight[others].sum() * covariance + np.diag([0.1] * 5 + [0.0])
        hessian += (rows[apart].T * weight[apart]) @ rows[apart]
        expected = np.linalg.solve(hessian, gradient[c].numpy())
        np.testing.assert_allclose(solved[c].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize(("num_samples", "dim", "num_classes"), [(200, 8, 4), (200, 90, 20)])
def test_what_is_known_of_the_curvature_saves_passes(
    clustered, precisions, num_samples, dim, num_classes
):
    """About 65; twice to nine times as many without the samples kept apart, or the pairs."""
    x, labels = clustered(np.random.default_rng(6), num_samples, dim, num_classes, 2.0)
    mean, std = moments(x)
    fit_logistic((x - mean) / std, labels, COSTS)
    assert len(precisions) < 100


def test_neither_the_order_of_the_costs_nor_the_start_moves_the_optimum(samples, fit):
    turned = fit_logistic(*samples, COSTS[::-1])
    np.testing.assert_allclose(turned.loss[::-1], fit.loss, rtol=1e-6)
    rng = np.random.default_rng(9)
    far = rng.normal(size=(8, 4)), rng.normal(size=4)
    check_same(fit_logistic(*samples, COSTS, start=far), fit)


def test_a_start_at_the_optimum_is_where_it_stays_and_a_fit_says_when_it_is_cut_short(
    samples, monkeypatch
):
    fit = fit_logistic(*samples, (1.0,))
    monkeypatch.setattr(logistic, "MAX_STEPS", 1)
    start = fit.weight[0], fit.bias[0]
    check_same(fit_logistic(*samples, (1.0,), start=start), fit, rtol=1e-9)
    assert not fit_logistic(*samples, (1.0,)).converged.any()


def test_logistic_with_one_class():
    assert fit_logistic(np.ones((4, 2)), np.zeros(4, dtype=np.int64), (1.0,)).converged.all()
