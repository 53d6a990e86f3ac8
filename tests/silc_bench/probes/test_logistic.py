"""The logistic sweep against scikit-learn's optimum and the objective written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from silc_bench.probes import logistic
from silc_bench.probes import logistic as logistic_problem
from silc_bench.probes.closed_form import moments
from silc_bench.probes.logistic import Problem, fit_logistic

COSTS = (1e-5, 1e-3, 1e-1, 10.0)


def clustered(rng, num_samples, dim, num_classes, spread=1.0):
    """Features of very different scales around a centre a class."""
    labels = rng.integers(0, num_classes, size=num_samples)
    labels[:num_classes] = np.arange(num_classes)
    centers = rng.normal(size=(num_classes, dim))
    features = (centers[labels] + spread * rng.normal(size=(num_samples, dim))) @ (
        rng.normal(size=(dim, dim)) * np.logspace(0, -2, dim)
    ) + 3
    return features.astype(np.float32), labels


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spread", [3.0, 0.5], ids=["overlapping", "separable"])
@pytest.mark.parametrize(
    ("num_samples", "dim", "num_classes"), [(300, 12, 5), (60, 90, 20)], ids=["N > D", "N < D"]
)
def test_logistic_reaches_sklearns_optimum_at_every_cost(
    num_samples, dim, num_classes, spread, device
):
    """Also where classes have more samples than the curvature keeps apart, or one alone."""
    from sklearn.linear_model import LogisticRegression

    x, labels = clustered(np.random.default_rng(6), num_samples, dim, num_classes, spread)
    mean, std = moments(x)
    x = (x - mean) / std
    fit = fit_logistic(x, labels, COSTS, device=device)
    assert fit.converged.all()

    def loss(weight, bias, cost):
        logits = x @ weight + bias
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(x)), labels]
        return log_loss.mean() + (weight**2).sum() / (2 * cost * len(x))

    for k, cost in enumerate(COSTS):
        ours = loss(fit.weight[k], fit.bias[k], cost)
        assert fit.loss[k] == pytest.approx(ours, rel=1e-7), (
            "the loss it reports is the loss it reached"
        )
        peer = LogisticRegression(C=cost, tol=1e-8, max_iter=5000).fit(x, labels)
        theirs = loss(peer.coef_.T, peer.intercept_, cost)
        assert ours <= theirs * (1 + 1e-6)


def test_logistic_without_standardisation_and_in_any_chunks(monkeypatch):
    x, labels = clustered(np.random.default_rng(7), 200, 6, 3, 2.0)
    x = (x * np.logspace(0, 3, 6)).astype(np.float32)  # badly scaled, far from centred
    losses = []
    for cells in (1, 1000, 1 << 20):
        monkeypatch.setattr(logistic_problem, "CHUNK_CELLS", cells)
        fit = fit_logistic(x, labels, (1e-2, 1.0))
        assert fit.converged.all()
        losses.append(fit.loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-6)


def test_where_fp32_is_not_enough_float64_finishes(monkeypatch):
    x, labels = clustered(np.random.default_rng(11), 200, 8, 4, 2.0)
    fit = fit_logistic(x, labels, COSTS)
    precisions = []
    called = Problem.__call__
    monkeypatch.setattr(
        Problem, "__call__", lambda self, x: precisions.append(x.dtype) or called(self, x)
    )
    monkeypatch.setattr(Problem, "rounding", lambda *_: np.inf)
    exact = fit_logistic(x, labels, COSTS)
    assert precisions.count(torch.float64) >= len(COSTS)
    assert exact.converged.all()
    np.testing.assert_allclose(exact.loss, fit.loss, rtol=1e-6)


def test_fp32_is_left_soon_where_it_gains_nothing(monkeypatch):
    """Gradients with an error that does not shrink: steps lead nowhere for ever.

    As of many samples of collinear features.
    """
    x, labels = clustered(np.random.default_rng(11), 200, 8, 4, 2.0)
    fit = fit_logistic(x, labels, COSTS)
    precisions = []
    called = Problem.__call__

    generator = torch.Generator().manual_seed(0)

    def inexact(problem, parameters):
        precisions.append(parameters.dtype)
        state = called(problem, parameters)
        if parameters.dtype == torch.float32:
            state.gradient.add_(torch.randn(state.gradient.shape, generator=generator), alpha=1e-5)
        return state

    monkeypatch.setattr(Problem, "__call__", inexact)
    exact = fit_logistic(x, labels, COSTS)
    assert exact.converged.all()
    np.testing.assert_allclose(exact.loss, fit.loss, rtol=1e-6)
    assert precisions.count(torch.float32) < 100 * len(COSTS), precisions.count(torch.float32)


def test_rounding_is_the_difference_to_float64():
    x, labels = clustered(np.random.default_rng(12), 50, 6, 3)
    problem = Problem(x, labels, 3, torch.device("cpu"))
    parameters = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    state = problem(parameters)
    assert problem.rounding(parameters, state) < 1e-6
    state.losses.add_(0.5)
    assert problem.rounding(parameters, state) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("own_rows", [3, 32])
def test_the_model_of_the_curvature_is_divided_by_exactly(own_rows, monkeypatch):
    """Against the dense matrix of each class; classes of unequal sizes.

    Some have more samples than are kept apart.
    """
    monkeypatch.setattr(logistic_problem, "OWN_ROWS", own_rows)
    x, labels = clustered(np.random.default_rng(13), 24, 5, 4)
    problem = Problem(x, labels, 4, torch.device("cpu"))
    parameters = (
        torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    )
    gradient = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    solved = problem.curvature(problem(parameters), 0.1).solve(gradient)

    rows = np.pad(
        (x - x.mean(axis=0, dtype=np.float64)) @ problem.axes.numpy(),
        ((0, 0), (0, 1)),
        constant_values=1,
    )
    logits = rows @ parameters.numpy().T
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    covariance = np.diag([*np.linalg.eigvalsh(np.cov(x.astype(np.float64).T, bias=True)), 1.0])
    for c in range(4):
        apart = np.flatnonzero(labels == c)[:own_rows]
        others = np.setdiff1d(np.arange(len(x)), apart)
        weight = p[:, c] * (1 - p[:, c]) / len(x)
        hessian = weight[others].sum() * covariance + np.diag([0.1] * 5 + [0.0])
        hessian += (rows[apart].T * weight[apart]) @ rows[apart]
        np.testing.assert_allclose(
            solved[c].numpy(), np.linalg.solve(hessian, gradient[c].numpy()), rtol=1e-4
        )


def test_neither_the_order_of_the_costs_nor_the_start_moves_the_optimum():
    rng = np.random.default_rng(9)
    x, labels = clustered(rng, 200, 8, 4, 2.0)
    costs = (1e-3, 1e-1, 10.0)
    fit = fit_logistic(x, labels, costs)
    other = fit_logistic(x, labels, costs[::-1])
    np.testing.assert_allclose(other.loss[::-1], fit.loss, rtol=1e-6)
    far = rng.normal(size=(8, 4)), rng.normal(size=4)
    np.testing.assert_allclose(fit_logistic(x, labels, costs, start=far).loss, fit.loss, rtol=1e-6)


def test_a_start_at_the_optimum_is_where_it_stays(monkeypatch):
    x, labels = clustered(np.random.default_rng(10), 200, 8, 4, 2.0)
    fit = fit_logistic(x, labels, (1.0,))
    monkeypatch.setattr(logistic, "MAX_STEPS", 1)
    again = fit_logistic(x, labels, (1.0,), start=(fit.weight[0], fit.bias[0]))
    assert again.converged.all()
    np.testing.assert_allclose(again.loss, fit.loss, rtol=1e-9)
    assert not fit_logistic(x, labels, (1.0,)).converged.any()


def test_logistic_says_when_it_is_cut_short(monkeypatch):
    monkeypatch.setattr(logistic, "MAX_STEPS", 3)
    x, labels = clustered(np.random.default_rng(8), 100, 6, 3)
    assert not fit_logistic(x, labels, (10.0,)).converged.any()


def test_logistic_with_one_class_and_with_a_gap():
    fit = fit_logistic(np.ones((4, 2)), np.zeros(4, dtype=np.int64), (1.0,))
    assert fit.converged.all()
    with pytest.raises(AssertionError, match="without gaps"):
        fit_logistic(np.ones((2, 2)), np.array([0, 2]), (1.0,))
