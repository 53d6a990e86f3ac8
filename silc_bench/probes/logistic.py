"""Multinomial logistic regression for a sweep of penalties, each to its optimum (linear probe).

Flow: ``fit_logistic(features, labels, costs)`` -> a LogisticFit with one linear map a cost. The
objective is scikit-learn's,

    cost * sum_n -log softmax(x_n W + b)[y_n] + |W|^2 / 2          (b is free)

here divided by ``cost * N``, so that losses of different costs compare. Minimised by L-BFGS
(Nocedal and Wright, algorithm 7.4), on the CPU or a GPU, with four things that a solver of single
problems lacks:

- The costs are one path, from the strongest penalty to the weakest: each starts from the solution
  before it *and* from its curvature pairs, whose change of gradient is corrected exactly for the
  new penalty.
- The first step to a new cost goes on along the line through the last two solutions, in the
  logarithm of the cost, if that came nearer to the last solution than the Newton step did.
- L-BFGS corrects a model of the Hessian that is close already (below).
- Steps are in fp32. Float64 checks the losses of a sample, and goes on where they or the steps were
  not exact enough.

Converged means that the loss is within ``TOLERANCE`` of the optimum: the objective is at least as
curved as its penalty, so no weights are better than these by more than |gradient|^2 / (2 decay).
What the biases, few and unpenalised, could still gain is estimated by the model of the Hessian.

What is minimised is a ``Problem``: the mean log loss of a softmax, its gradient, and a model of its
curvature. ``Problem(features, labels, ...)`` turns the features into their principal axes once ->
``problem(parameters)`` passes over all samples in chunks -> a ``Pass`` ->
``problem.curvature(point, decay).solve(gradient)`` divides by the model of the Hessian.

The Hessian of class c alone is ``sum_n p_nc (1 - p_nc) x_n x_n^T / N + decay``. The model keeps
apart the few samples that weigh most in it, the first ``OWN_ROWS`` of the class itself, and lets
all others share one weight:

    H_c ~ spread_c * covariance + decay + U_c^T diag(w_c) U_c

The covariance is diagonal in the principal axes and U_c has few rows (Woodbury's identity), so that
dividing by it costs a tenth of a pass. With ten samples a class, 98 of 100 eigenvalues of the true
Hessian divided by it lie within a fifth of 1, be the penalty strong or weak (`docs/log.md`).

Shapes: N samples, D features, C classes, K costs, M samples of a class kept apart, parameters
[C, D + 1] in the principal axes of the centred features, with the bias in the last column (it is
not penalised, so centring changes no optimum).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 5e-7  # of the loss
# of the loss: a decrease so small ends the descent too, where the penalty is too weak to bound
# anything
PROMISE = 1e-9
MAX_STEPS = 1000
# steps in a row that lower the loss by no more than PROMISE: round-off is all that is left
STALE = 5
MEMORY = 8  # pairs that correct the model
OWN_ROWS = 32  # samples of a class kept apart, at most
CHUNK_CELLS = 1 << 20  # logits held at once: 4 MiB of fp32, about a core's cache
MIN_SPREAD = 1e-12
MAX_SPREAD = 0.5  # diag(p) - p p^T is nowhere larger (Boehning, 1992)
_MAX_HALVINGS = 10
Pair = tuple[Tensor, Tensor]  # change of the parameters, change of the gradient


@dataclass(frozen=True)
class LogisticFit:
    """One linear map a cost: logits = features @ weight[k] + bias[k]."""

    weight: np.ndarray  # [K, D, C]
    bias: np.ndarray  # [K, C]
    loss: np.ndarray  # [K] the objective above, divided by cost * N
    converged: np.ndarray  # [K] bool


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float],
    *,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    device: str = "cpu",
) -> LogisticFit:
    """Features [N, D], labels [N] from 0 to C - 1, all of them occurring.

    Features are used as they come: standardise them first, or the penalty means something else for
    each of them. ``start`` is a weight [D, C] and a bias [C] near the solution of the smallest
    cost; the optimum does not depend on it.
    """
    num_classes = int(labels.max()) + 1
    assert len(np.unique(labels)) == num_classes, (
        "number the classes that occur from 0 without gaps"
    )
    problem = Problem(features, labels, num_classes, torch.device(device))
    zeros = np.zeros((features.shape[1], num_classes)), np.zeros(num_classes)
    point = problem(problem.parameters(*(start or zeros)).float())
    pairs: list[Pair] = []

    solutions: list[tuple[float, Tensor]] = []  # the last two: logarithm of the cost, parameters
    decay = 0.0
    was_line_nearer = False
    fits: dict[float, tuple[np.ndarray, np.ndarray, float, bool]] = {}
    for cost in sorted(set(costs)):
        # what the penalty adds to each pair's change of gradient is known exactly
        previous_decay = decay
        decay = 1 / (len(features) * cost)
        for s, y in pairs:
            y[:, :-1].add_(s[:, :-1], alpha=decay - previous_decay)

        # two guesses of the new solution; the line is tried where it was the better one last time
        newton = point.x - _solve(problem.curvature(point, decay), pairs, point.gradient(decay))
        line = newton
        if len(solutions) == 2:
            (log_a, a), (log_b, b) = solutions
            line = torch.lerp(a, b, (math.log(cost) - log_a) / (log_b - log_a))
        if was_line_nearer:
            point, pairs = _tried(problem, decay, point, pairs, line)

        # fp32 first; float64 goes on from there where fp32 was not exact enough
        point, pairs, converged = _descend(problem, decay, point, pairs)
        if not converged or problem.rounding(point) > TOLERANCE * point.value(decay):
            exact = problem(point.x.double())
            point, pairs, converged = _descend(problem, decay, exact, pairs)
        fits[cost] = (*problem.linear_map(point.x), point.value(decay), converged)

        point = point.in_fp32()
        pairs = [(s.float(), y.float()) for s, y in pairs]
        was_line_nearer = torch.dist(point.x, line).item() < torch.dist(point.x, newton).item()
        solutions = [*solutions, (math.log(cost), point.x)][-2:]

    # in the order of ``costs``, which need not be sorted
    weight, bias, loss, has_converged = zip(*(fits[cost] for cost in costs), strict=True)
    return LogisticFit(np.stack(weight), np.stack(bias), np.array(loss), np.array(has_converged))


def _tried(
    problem: Problem, decay: float, point: Pass, pairs: list[Pair], x: Tensor
) -> tuple[Pass, list[Pair]]:
    """``x`` if it is better than ``point``, with the pair that the way there gave."""
    trial = problem(x)
    if trial.value(decay) >= point.value(decay):
        return point, pairs
    return trial, [*pairs, (trial.x - point.x, trial.gradient(decay) - point.gradient(decay))]


def _descend(
    problem: Problem, decay: float, point: Pass, pairs: list[Pair]
) -> tuple[Pass, list[Pair], bool]:
    """L-BFGS in the precision of ``point``: the last point, the pairs, and whether it converged."""
    dtype = point.x.dtype
    curvature = problem.curvature(point, decay)
    is_cautious = False
    lowest = math.inf
    num_stale = 0
    for _ in range(MAX_STEPS):
        value = point.value(decay)
        gradient = point.gradient(decay)
        if _possible_gain(curvature, decay, gradient) <= TOLERANCE * value and not is_cautious:
            return point, pairs, True

        if value < lowest * (1 - PROMISE):
            lowest = value
            num_stale = 0
        else:
            num_stale += 1
        if num_stale == STALE:
            break

        # a pair of negative curvature would turn the direction uphill
        pairs = [(s.to(dtype), y.to(dtype)) for s, y in pairs if _dot(s, y) > 0][-MEMORY:]
        direction = -_solve(curvature, pairs, gradient)
        promise = _dot(gradient, direction)  # negative
        if -promise / 2 <= PROMISE * value and not is_cautious:
            return point, pairs, True

        # halved until it keeps, but for round-off, a ten-thousandth of what the slope promises
        step = 1.0
        for _ in range(_MAX_HALVINGS):
            trial = problem(point.x + step * direction)
            if trial.value(decay) <= value * (1 + torch.finfo(dtype).eps) + 1e-4 * step * promise:
                break
            step /= 2
        else:
            if is_cautious:
                break  # round-off is all that is left

            # far from the optimum the classes saturate and the model of the Hessian is no guide:
            # descend by its upper bound
            pairs = []
            curvature = problem.upper_bound(dtype, decay)
            is_cautious = True
            continue

        pairs.append((step * direction, trial.gradient(decay) - gradient))
        point = trial
        curvature = problem.curvature(trial, decay)
        is_cautious = False
    return point, pairs, False


def _possible_gain(curvature: Curvature, decay: float, gradient: Tensor) -> float:
    """How far the value can at most be above the optimum; the biases' part is an estimate."""
    weights = gradient[:, :-1].square().sum(dtype=torch.float64) / decay
    biases = (gradient[:, -1].square() * curvature.inverse[:, -1]).sum(dtype=torch.float64)
    return float(weights + biases) / 2


def _solve(curvature: Curvature, pairs: list[Pair], gradient: Tensor) -> Tensor:
    """The two loops of L-BFGS: an inverse Hessian times ``gradient``.

    ``curvature`` is the model that the pairs correct.
    """
    q = gradient.clone()
    alphas: list[float] = []
    for s, y in reversed(pairs):
        alphas.append(_dot(s, q) / _dot(s, y))
        q.sub_(y, alpha=alphas[-1])

    q = curvature.solve(q)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q.add_(s, alpha=alpha - _dot(y, q) / _dot(s, y))
    return q


def _dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors of one shape."""
    return float(torch.vdot(a.flatten(), b.flatten()))


@dataclass(frozen=True)
class Pass:
    """What a pass over all samples sees at some parameters.

    The penalty is added apart, so that it may change.
    """

    x: Tensor  # [C, D + 1] the parameters
    losses: Tensor  # [N]
    slope: Tensor  # [C, D + 1] the gradient of their mean
    # [C] mean of p (1 - p) over the samples of other classes, times their share of all
    others: Tensor
    own: Tensor  # [N] p (1 - p) of the sample's own class

    def value(self, decay: float) -> float:
        """The penalised objective, divided by ``cost * N``."""
        squares = self.x[:, :-1].square().sum(dtype=torch.float64)
        return mean_loss(self.losses) + decay / 2 * float(squares)

    def gradient(self, decay: float) -> Tensor:
        """[C, D + 1], the bias without a penalty."""
        gradient = self.slope.clone()
        gradient[:, :-1].add_(self.x[:, :-1], alpha=decay)
        return gradient

    def in_fp32(self) -> Pass:
        """The same, rounded."""
        return Pass(*(tensor.float() for tensor in vars(self).values()))


class Problem:
    """The samples in their principal axes.

    Passes are computed in the precision of the parameters.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, num_classes: int, device: torch.device
    ) -> None:
        self.raw = torch.as_tensor(features, device=device)
        self.labels = torch.as_tensor(labels, device=device)
        self.num_classes = num_classes
        self.mean = torch.as_tensor(features.mean(axis=0, dtype=np.float64), device=device)

        # in float64 and in parts: a copy of all features in float64 could take twice their memory
        dim = features.shape[1]
        covariance = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        for x in self.raw.split(1 << 14):
            centered = x.double() - self.mean
            covariance += centered.T @ centered
        variance, self.axes = torch.linalg.eigh(covariance / len(features))

        # rounding can make an eigenvalue negative; the bias column is a one
        variance = variance.clamp(min=0)
        self.variance = torch.cat([variance, variance.new_ones(1)])
        self.x = torch.cat([self._rotated(x).float() for x in self.raw.split(1 << 14)])
        self._keep_apart(labels)

    def _keep_apart(self, labels: np.ndarray) -> None:
        """``own_index`` [C, M], ``own_rows`` and ``is_apart`` [N].

        ``own_index`` names the samples of U_c, filled up with N, which is none.
        """
        most = min(OWN_ROWS, int(np.bincount(labels).max()))
        index = np.full((self.num_classes, most), len(labels))
        is_apart = np.zeros(len(labels), dtype=bool)
        for c in range(self.num_classes):
            rows = np.flatnonzero(labels == c)[:most]
            index[c, : len(rows)] = rows
            is_apart[rows] = True

        self.own_index = torch.as_tensor(index, device=self.x.device)
        self.is_apart = torch.as_tensor(is_apart, device=self.x.device)

        # with the bias column, and one row of zeros for the index N
        padded = torch.nn.functional.pad(self.x, (0, 1, 0, 1))
        padded[:-1, -1] = 1
        self.own_rows = padded[self.own_index]  # [C, M, D + 1]

    def __call__(self, parameters: Tensor) -> Pass:
        """One pass over all samples at ``parameters``."""
        weight = parameters[:, :-1].contiguous()
        bias = parameters[:, -1]
        gradient = torch.zeros_like(weight)
        residual_sum = torch.zeros_like(bias)
        others = torch.zeros_like(bias)
        losses, own = bias.new_empty(2, len(self.x))

        # in chunks that stay in the cache: the logits of all samples would be read from memory
        # several times
        rows = max(1, CHUNK_CELLS // self.num_classes)
        for start in range(0, len(self.x), rows):
            part = slice(start, start + rows)
            x = self._in_axes(part, bias.dtype)
            labels = self.labels[part, None]
            logits = torch.addmm(bias, x, weight.T)
            logits -= logits.amax(dim=1, keepdim=True)
            right = logits.gather(1, labels).exp()

            # the own class apart: 1 - p of it, and the loss, keep their relative accuracy as they
            # go to 0
            probabilities = logits.exp_().scatter_(1, labels, 0.0)
            wrong = probabilities.sum(dim=1, keepdim=True)
            losses[part] = (wrong / right).log1p_()[:, 0]

            probabilities /= wrong + right
            squares = torch.linalg.vecdot(probabilities, probabilities, dim=0)
            others += probabilities.sum(dim=0) - squares
            missing = wrong / (wrong + right)
            own[part] = (missing * (1 - missing))[:, 0]

            residual = probabilities.scatter_(1, labels, -missing)  # p - y
            gradient.addmm_(residual.T, x)
            residual_sum += residual.sum(dim=0)

        gradient = torch.cat([gradient, residual_sum[:, None]], dim=1) / len(self.x)
        return Pass(parameters, losses, gradient, others / len(self.x), own)

    def curvature(self, point: Pass, decay: float) -> Curvature:
        """The model of the penalised objective's Hessian at ``point``."""
        # samples that are kept apart have weights of their own; the others share one
        rest = torch.where(self.is_apart, 0, point.own)
        shared = torch.zeros_like(point.others).index_add_(0, self.labels, rest)
        spread = point.others + shared / len(self.x)
        weights = torch.cat([point.own, point.own.new_zeros(1)])[self.own_index] / len(self.x)
        diagonal = spread[:, None].clamp(min=MIN_SPREAD) * self.variance.to(spread.dtype)
        diagonal[:, :-1] += decay
        return Curvature(diagonal, self.own_rows.to(spread.dtype), weights)

    def upper_bound(self, dtype: torch.dtype, decay: float) -> Curvature:
        """Nowhere below the Hessian: slow, but safe where the model misleads."""
        diagonal = (MAX_SPREAD * self.variance.to(dtype)).repeat(self.num_classes, 1)
        diagonal[:, :-1] += decay
        no_weights = diagonal.new_zeros(self.num_classes, 0)
        return Curvature(diagonal, self.own_rows[:, :0].to(dtype), no_weights)

    def parameters(self, weight: np.ndarray, bias: np.ndarray) -> Tensor:
        """Weight [D, C] and bias [C] for the features as they came -> float64 parameters."""
        w = torch.as_tensor(weight, dtype=torch.float64, device=self.axes.device)
        b = torch.as_tensor(bias, dtype=torch.float64, device=self.axes.device)

        # x w + b = (x - mean) axes (axes^T w) + (b + mean w)
        return torch.cat([w.T @ self.axes, (b + self.mean @ w)[:, None]], dim=1)

    def linear_map(self, parameters: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of ``parameters``."""
        weight = self.axes @ parameters[:, :-1].double().T
        bias = parameters[:, -1].double() - self.mean @ weight
        return weight.cpu().numpy(), bias.cpu().numpy()

    def rounding(self, point: Pass) -> float:
        """How far the mean loss of ``point`` is from float64's, over the samples of one chunk."""
        # evenly spread, as neighbours may be of one class
        sample = slice(None, None, -(-len(self.x) * self.num_classes // CHUNK_CELLS))
        weight = point.x[:, :-1].double()
        bias = point.x[:, -1].double()
        logits = self._rotated(self.raw[sample]) @ weight.T + bias
        exact = torch.nn.functional.cross_entropy(logits, self.labels[sample])
        return abs(float(exact) - mean_loss(point.losses[sample]))

    def _in_axes(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Rows of ``part`` in ``dtype``; only fp32 is kept, float64 is computed anew."""
        return self.x[part] if dtype == torch.float32 else self._rotated(self.raw[part])

    def _rotated(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) @ self.axes


class Curvature:
    """diagonal_c + U_c^T diag(w_c) U_c for each class c.

    Diagonal [C, D + 1], rows U [C, M, D + 1], weights w [C, M].
    """

    def __init__(self, diagonal: Tensor, rows: Tensor, weights: Tensor) -> None:
        self.inverse = 1 / diagonal
        self.rows = rows
        self.roots = weights.sqrt()

        # Woodbury: the inverse of the whole from that of the diagonal and of an [M, M] matrix
        inner = (rows * self.inverse[:, None]) @ rows.transpose(1, 2)
        inner = inner * self.roots[:, :, None] * self.roots[:, None]
        inner.diagonal(dim1=1, dim2=2).add_(1)
        self.factor = torch.linalg.cholesky(inner)

    def solve(self, gradient: Tensor) -> Tensor:
        """The inverse times ``gradient`` [C, D + 1]."""
        q = gradient * self.inverse
        inner = torch.bmm(self.rows, q[:, :, None]) * self.roots[:, :, None]
        inner = torch.cholesky_solve(inner, self.factor) * self.roots[:, :, None]
        return q - self.inverse * torch.bmm(inner.transpose(1, 2), self.rows)[:, 0]


def mean_loss(losses: Tensor) -> float:
    """In float64: a sum of many fp32 losses would lose the digits that decide a step."""
    return float(losses.mean(dtype=torch.float64))
