"""Multinomial logistic regression for a sweep of regularisation strengths, each to its optimum (linear probe).

Flow: ``fit_logistic(features, labels, costs)`` -> a LogisticFit with one linear map a cost. The objective is scikit-learn's,

    cost * sum_n -log softmax(x_n W + b)[y_n] + |W|^2 / 2          (b is free)

here divided by ``cost * N``, so that losses of different costs compare. Minimised by L-BFGS (Nocedal and Wright,
algorithm 7.4), on the CPU or a GPU, with four things that a solver of single problems lacks:

- The costs are one path, from the strongest penalty to the weakest: each starts from the solution before it *and* from its
  curvature pairs, whose change of gradient is corrected exactly for the new penalty.
- The initial inverse Hessian is diagonal in the principal axes of the features: the variance along an axis times the mean of
  p (1 - p) of a class, plus the penalty. It costs nothing, and follows the classes as they are learned.
- All but the last steps are in fp32; float64 finishes.
- Converged means that the decrease which the quadratic model still promises is below ``TOLERANCE`` of the loss.

Shapes: N samples, D features, C classes, K costs, parameters [D + 1, C] in the principal axes of the centred
features, with the bias in the last row (it is free, so centring changes no optimum).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-9  # leaves the loss within 1e-6 of the optimum, relative, also where axes are badly scaled or classes separable
COARSE_TOLERANCE = 1e-5  # of the steps in fp32
MAX_STEPS = 1000
MEMORY = 20  # pairs that approximate the Hessian
_MAX_HALVINGS = 10
_CHUNK_CELLS = 1 << 20  # logits held at once: 4 MiB of fp32, about a core's cache
_MIN_CURVATURE = 1e-12
_MAX_SPREAD = 0.5  # diag(p) - p p^T is nowhere larger (Boehning, 1992)

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

    Features are used as they come: standardise them first, or the penalty means something else for each of them.
    ``start`` is a weight [D, C] and a bias [C] near the solution of the smallest cost; the optimum does not depend on it.
    """
    num_classes = int(labels.max()) + 1
    assert len(np.unique(labels)) == num_classes, "number the classes that occur from 0 without gaps"
    problem = _Problem(features, labels, num_classes, torch.device(device))
    pairs: list[Pair] = []
    x, decay = problem.rotate(start), problem.decay(min(costs))
    fits: dict[int, tuple[np.ndarray, np.ndarray, float, bool]] = {}
    for k in np.argsort(costs).tolist():
        change = problem.decay(costs[k]) - decay
        decay = decay + change
        pairs = [(s, y + change * s) for s, y in pairs]
        for dtype, tolerance in ((torch.float32, COARSE_TOLERANCE), (torch.float64, TOLERANCE)):
            x, pairs, value, converged = _descend(problem, decay, x.to(dtype), pairs, tolerance)
        x, decay = x.double(), problem.decay(costs[k])
        fits[k] = (*problem.unrotate(x), value, converged)
    weight, bias, loss, has_converged = zip(*(fits[k] for k in range(len(costs))), strict=True)
    return LogisticFit(np.stack(weight), np.stack(bias), np.array(loss), np.array(has_converged))


def _descend(
    problem: _Problem, decay: Tensor, x: Tensor, pairs: list[Pair], tolerance: float
) -> tuple[Tensor, list[Pair], float, bool]:
    """L-BFGS in the precision of ``x``: parameters, pairs, value, and whether it got within ``tolerance``."""
    decay = decay.to(x.dtype)
    pairs = [(s.to(x.dtype), y.to(x.dtype)) for s, y in pairs]
    value, gradient, spread = problem(x, decay)
    is_cautious = False
    for _ in range(MAX_STEPS):
        pairs = [(s, y) for s, y in pairs if _dot(s, y) > 0][-MEMORY:]
        direction = -_times_inverse_hessian(gradient, pairs, 1 / (problem.curvature(spread) + decay))
        promise = _dot(gradient, direction)  # negative
        if -promise / 2 <= tolerance * value and not is_cautious:
            return x, pairs, value, True
        step = 1.0
        for _ in range(_MAX_HALVINGS):  # until it keeps a ten-thousandth of what the slope promises
            trial = x + step * direction
            trial_value, trial_gradient, trial_spread = problem(trial, decay)
            if trial_value <= value + 1e-4 * step * promise:
                break
            step /= 2
        else:
            if is_cautious:
                break  # round-off is all that is left
            # far from the optimum the classes saturate and the model of the Hessian is no guide: descend by its upper bound
            pairs, spread, is_cautious = [], torch.full_like(spread, _MAX_SPREAD), True
            continue
        pairs.append((step * direction, trial_gradient - gradient))
        x, value, gradient, spread, is_cautious = trial, trial_value, trial_gradient, trial_spread, False
    return x, pairs, value, False


class _Problem:
    """The mean loss and its derivatives over all samples, in chunks, in the precision of the parameters."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int, device: torch.device) -> None:
        self.x = torch.as_tensor(features, device=device)
        self.labels = torch.as_tensor(labels, device=device)
        self.num_classes = num_classes
        self.mean = torch.as_tensor(features.mean(axis=0, dtype=np.float64), device=device)
        covariance = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=device)
        for x in self.x.split(1 << 14):
            centered = x.double() - self.mean
            covariance += centered.T @ centered
        variance, self.axes = torch.linalg.eigh(covariance / len(features))
        self.variance = torch.cat([variance.clamp(min=0), variance.new_ones(1)])[:, None]  # of the bias column, too

    def __call__(self, parameters: Tensor, decay: Tensor) -> tuple[float, Tensor, Tensor]:
        """Value, gradient [D + 1, C], and the mean of p (1 - p) of each class [C]."""
        axes, mean = self.axes.to(parameters.dtype), self.mean.to(parameters.dtype)
        weight, bias = axes @ parameters[:-1], parameters[-1]
        gradient, spread = torch.zeros_like(parameters), torch.zeros_like(bias)
        total = torch.zeros((), dtype=torch.float64, device=bias.device)
        rows = max(1, _CHUNK_CELLS // self.num_classes)
        for x, labels in zip(self.x.split(rows), self.labels.split(rows), strict=True):
            x = x.to(parameters.dtype) - mean
            logits = torch.addmm(bias, x, weight)
            logits -= logits.amax(dim=1, keepdim=True)
            right = logits.gather(1, labels[:, None])
            probabilities = logits.exp_()
            sums = probabilities.sum(dim=1, keepdim=True)
            total += (sums.log() - right).sum(dtype=torch.float64)
            probabilities /= sums
            spread += probabilities.sum(dim=0) - torch.linalg.vecdot(probabilities, probabilities, dim=0)
            probabilities.scatter_add_(1, labels[:, None], -torch.ones_like(right))  # p - y
            gradient[:-1] += x.T @ probabilities
            gradient[-1] += probabilities.sum(dim=0)
        gradient[:-1] = axes.T @ gradient[:-1]
        gradient = gradient / len(self.x) + decay * parameters
        value = float(total) / len(self.x) + float((decay * parameters**2).sum(dtype=torch.float64)) / 2
        return value, gradient, spread / len(self.x)

    def decay(self, cost: float) -> Tensor:
        """[D + 1, 1]: the penalty's second derivative; 0 for the bias."""
        decay = torch.full_like(self.variance, 1 / (len(self.x) * cost))
        decay[-1] = 0
        return decay

    def curvature(self, spread: Tensor) -> Tensor:
        """[D + 1, C] about the diagonal of the mean loss's Hessian."""
        return (self.variance.to(spread.dtype) * spread).clamp(min=_MIN_CURVATURE)

    def rotate(self, start: tuple[np.ndarray, np.ndarray] | None) -> Tensor:
        parameters = self.variance.new_zeros(len(self.variance), self.num_classes)
        if start is not None:
            weight, bias = (torch.as_tensor(part, dtype=torch.float64, device=self.axes.device) for part in start)
            parameters[:-1], parameters[-1] = self.axes.T @ weight, bias + self.mean @ weight
        return parameters

    def unrotate(self, parameters: Tensor) -> tuple[np.ndarray, np.ndarray]:
        weight = self.axes @ parameters[:-1]
        return weight.cpu().numpy(), (parameters[-1] - self.mean @ weight).cpu().numpy()


def _times_inverse_hessian(gradient: Tensor, pairs: list[Pair], initial: Tensor) -> Tensor:
    """The two loops of L-BFGS; ``initial`` is the diagonal that the pairs correct."""
    q, alphas = gradient, []
    for s, y in reversed(pairs):
        alphas.append(_dot(s, q) / _dot(s, y))
        q = q - alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        initial = initial * (_dot(s, y) / _dot(y, initial * y))
    q = initial * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + s * (alpha - _dot(y, q) / _dot(s, y))
    return q


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.vdot(a.flatten(), b.flatten()))
