"""Multinomial logistic regression for a sweep of regularisation strengths, each to its optimum (linear probe).

Flow: ``fit_logistic(features, labels, costs)`` -> a LogisticFit with one linear map a cost. The objective is scikit-learn's,

    cost * sum_n -log softmax(x_n W + b)[y_n] + |W|^2 / 2          (b is free)

here divided by ``cost * N``, so that losses of different costs compare. Minimised by L-BFGS (Nocedal and Wright,
algorithm 7.4), on the CPU or a GPU, with four things that a solver of single problems lacks:

- The costs are one path, from the strongest penalty to the weakest: each starts from the solution before it *and* from its
  curvature pairs, whose change of gradient is corrected exactly for the new penalty.
- The first step to a new cost goes on along the line through the last two solutions, in the logarithm of the cost, if that
  came nearer to the last solution than the Newton step did.
- L-BFGS corrects a model of the Hessian that is close already (`silc_bench.logistic_problem`).
- Steps are in fp32. Float64 checks the losses of a sample, and goes on where they or the steps were not exact enough.

Converged means that the loss is within ``TOLERANCE`` of the optimum: the objective is at least as curved as its penalty, so no
weights are better than these by more than |gradient|^2 / (2 decay). What the biases, few and unpenalised, could still gain is
estimated by the model of the Hessian.

Shapes: N samples, D features, C classes, K costs, parameters [C, D + 1] (`silc_bench.logistic_problem`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from silc_bench.logistic_problem import Curvature, Pass, Problem, mean_loss

TOLERANCE = 5e-7  # of the loss
PROMISE = 1e-9  # of the loss: a decrease so small ends the descent too, where the penalty is too weak to bound anything
MAX_STEPS = 1000
STALE = 5  # steps in a row that lower the loss by no more than PROMISE: round-off is all that is left
MEMORY = 8  # pairs that correct it
_MAX_HALVINGS = 10

Pair = tuple[Tensor, Tensor]  # change of the parameters, change of the gradient


@dataclass(frozen=True)
class LogisticFit:
    """One linear map a cost: logits = features @ weight[k] + bias[k]."""

    weight: np.ndarray  # [K, D, C]
    bias: np.ndarray  # [K, C]
    loss: np.ndarray  # [K] the objective above, divided by cost * N
    converged: np.ndarray  # [K] bool


@dataclass(frozen=True)
class _Point:
    """Parameters, and what a pass over the samples found there. The penalty is added apart, so that it may change."""

    x: Tensor
    state: Pass

    def value(self, decay: float) -> float:
        return mean_loss(self.state.losses) + decay / 2 * float(self.x[:, :-1].square().sum(dtype=torch.float64))

    def gradient(self, decay: float) -> Tensor:
        gradient = self.state.gradient.clone()
        gradient[:, :-1].add_(self.x[:, :-1], alpha=decay)
        return gradient


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float],
    *,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    device: str = "cpu",
) -> LogisticFit:
    """Features [N, D], labels [N] from 0 to C - 1, all of them occurring.

    Features are used as they come: standardise them first, or the penalty means something else for each of them.
    ``start`` is a weight [D, C] and a bias [C] near the solution of the smallest cost; the optimum does not depend on it.
    """
    num_classes = int(labels.max()) + 1
    assert len(np.unique(labels)) == num_classes, "number the classes that occur from 0 without gaps"
    problem = Problem(features, labels, num_classes, torch.device(device))
    zeros = np.zeros((features.shape[1], num_classes)), np.zeros(num_classes)
    point, pairs = _evaluate(problem, problem.parameters(*(start or zeros)).float()), list[Pair]()
    solutions: list[tuple[float, Tensor]] = []  # the last two: logarithm of the cost, parameters
    decay, was_line_nearer = 0.0, False
    fits: dict[float, tuple[np.ndarray, np.ndarray, float, bool]] = {}
    for cost in sorted(set(costs)):
        change, decay = 1 / (len(features) * cost) - decay, 1 / (len(features) * cost)
        for s, y in pairs:
            y[:, :-1].add_(s[:, :-1], alpha=change)
        newton = point.x - _solve(problem.curvature(point.state, decay), pairs, point.gradient(decay))
        line = _extrapolated(solutions, math.log(cost)) if len(solutions) == 2 else newton
        if was_line_nearer:
            point, pairs = _tried(problem, decay, point, pairs, line)
        point, pairs, converged = _descend(problem, decay, point, pairs)
        if not converged or problem.rounding(point.x, point.state) > TOLERANCE * point.value(decay):
            point, pairs, converged = _descend(problem, decay, _evaluate(problem, point.x.double()), pairs)
        fits[cost] = (*problem.linear_map(point.x), point.value(decay), converged)
        point = _Point(point.x.float(), point.state.float())
        pairs = [(s.float(), y.float()) for s, y in pairs]
        was_line_nearer = torch.dist(point.x, line).item() < torch.dist(point.x, newton).item()
        solutions = [*solutions, (math.log(cost), point.x)][-2:]
    weight, bias, loss, has_converged = zip(*(fits[cost] for cost in costs), strict=True)
    return LogisticFit(np.stack(weight), np.stack(bias), np.array(loss), np.array(has_converged))


def _evaluate(problem: Problem, x: Tensor) -> _Point:
    return _Point(x, problem(x))


def _extrapolated(solutions: list[tuple[float, Tensor]], log_cost: float) -> Tensor:
    (log_a, a), (log_b, b) = solutions
    return torch.lerp(a, b, (log_cost - log_a) / (log_b - log_a))


def _tried(problem: Problem, decay: float, point: _Point, pairs: list[Pair], x: Tensor) -> tuple[_Point, list[Pair]]:
    """``x`` if it is better than ``point``, with the pair that the way there gave."""
    trial = _evaluate(problem, x)
    if trial.value(decay) >= point.value(decay):
        return point, pairs
    return trial, [*pairs, (trial.x - point.x, trial.gradient(decay) - point.gradient(decay))]


def _descend(problem: Problem, decay: float, point: _Point, pairs: list[Pair]) -> tuple[_Point, list[Pair], bool]:
    """L-BFGS in the precision of ``point``: the last point, the pairs, and whether it converged."""
    dtype = point.x.dtype
    curvature, is_cautious = problem.curvature(point.state, decay), False
    lowest, num_stale = math.inf, 0
    for _ in range(MAX_STEPS):
        value, gradient = point.value(decay), point.gradient(decay)
        if _possible_gain(curvature, decay, gradient) <= TOLERANCE * value and not is_cautious:
            return point, pairs, True
        lowest, num_stale = (value, 0) if value < lowest * (1 - PROMISE) else (lowest, num_stale + 1)
        if num_stale == STALE:
            break
        pairs = [(s.to(dtype), y.to(dtype)) for s, y in pairs if _dot(s, y) > 0][-MEMORY:]
        direction = -_solve(curvature, pairs, gradient)
        promise = _dot(gradient, direction)  # negative
        if -promise / 2 <= PROMISE * value and not is_cautious:
            return point, pairs, True
        step = 1.0
        for _ in range(_MAX_HALVINGS):  # until it keeps, but for round-off, a ten-thousandth of what the slope promises
            trial = _evaluate(problem, point.x + step * direction)
            if trial.value(decay) <= value * (1 + torch.finfo(dtype).eps) + 1e-4 * step * promise:
                break
            step /= 2
        else:
            if is_cautious:
                break  # round-off is all that is left
            # far from the optimum the classes saturate and the model of the Hessian is no guide: descend by its upper bound
            pairs, curvature, is_cautious = [], problem.upper_bound(dtype, decay), True
            continue
        pairs.append((step * direction, trial.gradient(decay) - gradient))
        point, curvature, is_cautious = trial, problem.curvature(trial.state, decay), False
    return point, pairs, False


def _possible_gain(curvature: Curvature, decay: float, gradient: Tensor) -> float:
    """How far the value can at most be above the optimum; the biases' part is an estimate."""
    weights = gradient[:, :-1].square().sum(dtype=torch.float64) / decay
    biases = (gradient[:, -1].square() * curvature.inverse[:, -1]).sum(dtype=torch.float64)
    return float(weights + biases) / 2


def _solve(curvature: Curvature, pairs: list[Pair], gradient: Tensor) -> Tensor:
    """The two loops of L-BFGS: an inverse Hessian times ``gradient``. ``curvature`` is the model that the pairs correct."""
    q, alphas = gradient.clone(), []
    for s, y in reversed(pairs):
        alphas.append(_dot(s, q) / _dot(s, y))
        q.sub_(y, alpha=alphas[-1])
    q = curvature.solve(q)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q.add_(s, alpha=alpha - _dot(y, q) / _dot(s, y))
    return q


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.vdot(a.flatten(), b.flatten()))
