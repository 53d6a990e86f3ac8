"""Multinomial logistic regression for every regularisation strength at once, to the optimum (linear probe).

Flow: ``fit_logistic(features, labels, costs)`` -> a LogisticFit with one linear map a cost. The objective is scikit-learn's,

    cost * sum_n -log softmax(x_n W + b)[y_n] + |W|^2 / 2          (b is free)

here divided by ``cost * N``, so that losses of different costs compare. All costs share each pass over the features: their
maps lie side by side in one matrix product. Minimised by L-BFGS (Nocedal and Wright, algorithm 7.4) in float64, each cost with
its own step length, starting from the inverse Hessian at W = 0: after rotating the features to their principal axes that
matrix is diagonal, and the number of steps no longer grows with their condition number (28 instead of hundreds).
A cost is converged when the decrease its quadratic model still promises is below ``TOLERANCE`` of its loss.

Shapes: N samples, D features, C classes, K costs still at work, parameters [K, D + 1, C] with the bias in the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-8  # leaves the loss within 1e-6 of the optimum, relative, also where the classes are separable
MAX_STEPS = 1000
MEMORY = 10  # pairs that approximate the Hessian
_CHUNK_CELLS = 1 << 20  # logits held at once: 8 MiB, about a core's cache


@dataclass(frozen=True)
class LogisticFit:
    """One linear map a cost: logits = features @ weight[k] + bias[k]."""

    weight: np.ndarray  # [K, D, C]
    bias: np.ndarray  # [K, C]
    loss: np.ndarray  # [K] the objective above, divided by cost * N
    converged: np.ndarray  # [K] bool


def fit_logistic(features: np.ndarray, labels: np.ndarray, costs: Sequence[float]) -> LogisticFit:
    """Features [N, D], labels [N] from 0 to C - 1, all of them occurring.

    Features are used as they come: standardise them first, or the penalty means something else for each of them.
    """
    num_classes = int(labels.max()) + 1
    assert len(np.unique(labels)) == num_classes, "number the classes that occur from 0 without gaps"
    objective = _Objective(features, labels, costs, num_classes)
    x = torch.zeros_like(objective.inverse_hessian).repeat(1, 1, num_classes)
    value, gradient = objective(x, torch.arange(len(costs)))
    active, converged = torch.arange(len(costs)), torch.zeros(len(costs), dtype=torch.bool)
    pairs: list[tuple[Tensor, Tensor]] = []  # (change of x, change of gradient), the newest last
    for _ in range(MAX_STEPS):
        recent = [(s[active], y[active]) for s, y in pairs]
        direction = -_times_inverse_hessian(gradient[active], recent, objective.inverse_hessian[active])
        promise = _dot(gradient[active], direction)  # negative
        done = -promise / 2 <= TOLERANCE * value[active]
        converged[active[done]] = True
        active, direction, promise = active[~done], direction[~done], promise[~done]
        if not len(active):
            break
        old_x, old_gradient = x.clone(), gradient.clone()
        moved = _line_search(objective, x, value, gradient, active, direction, promise)
        pairs = [*pairs, (x - old_x, gradient - old_gradient)][-MEMORY:]
        active = active[moved]
    weight, bias = objective.unrotate(x)
    return LogisticFit(weight, bias, value.numpy(), converged.numpy())


class _Objective:
    """Value [K] and gradient [K, D + 1, C] at parameters, for the costs named by index."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, costs: Sequence[float], num_classes: int) -> None:
        x = torch.as_tensor(features, dtype=torch.float64)
        num_samples, dim = x.shape
        variance, self.axes = torch.linalg.eigh(x.T @ x / num_samples)
        self.x = torch.cat([x @ self.axes, torch.ones(num_samples, 1, dtype=torch.float64)], dim=1)
        self.labels = torch.as_tensor(labels)
        free = torch.zeros(len(costs), 1, dtype=torch.float64)
        decay = 1 / (num_samples * torch.tensor(list(costs), dtype=torch.float64))[:, None].expand(-1, dim)
        self.decay = torch.cat([decay, free], dim=1)[:, :, None]
        curvature = torch.cat([variance.clamp(min=0), torch.ones(1)]) / num_classes  # of the mean loss at W = 0
        self.inverse_hessian = 1 / (curvature[None, :, None] + self.decay)

    def unrotate(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return (self.axes @ x[:, :-1]).numpy(), x[:, -1].numpy()

    def __call__(self, parameters: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        num_costs, rows, num_classes = parameters.shape
        flat = parameters.permute(1, 0, 2).reshape(rows, -1)
        value, gradient = torch.zeros(num_costs, dtype=torch.float64), torch.zeros_like(flat)
        chunk = max(1, _CHUNK_CELLS // flat.shape[1])
        for x, labels in zip(self.x.split(chunk), self.labels.split(chunk), strict=True):
            logits = (x @ flat).view(len(x), num_costs, num_classes)
            logits -= logits.amax(dim=-1, keepdim=True)
            target = labels[:, None, None].expand(-1, num_costs, 1)
            right = logits.gather(2, target)[..., 0]
            probabilities = logits.exp_()
            total = probabilities.sum(dim=-1, keepdim=True)
            value += (total[..., 0].log() - right).sum(dim=0)
            probabilities /= total
            probabilities.scatter_add_(2, target, -torch.ones_like(right)[..., None])  # p - y
            gradient += x.T @ probabilities.view(len(x), -1)
        decay = self.decay[which]
        value = value / len(self.x) + (decay * parameters**2).sum(dim=(1, 2)) / 2
        gradient = gradient.view(rows, num_costs, num_classes).permute(1, 0, 2) / len(self.x) + decay * parameters
        return value, gradient


def _times_inverse_hessian(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]], initial: Tensor) -> Tensor:
    """The two loops of L-BFGS for K problems at once; ``initial`` is the diagonal that the pairs correct."""
    q, alphas = gradient, []
    for s, y in reversed(pairs):
        alpha = _ratio(_dot(s, q), _dot(s, y))
        q = q - alpha * y
        alphas.append(alpha)
    if pairs:
        s, y = pairs[-1]
        initial = initial * _ratio(_dot(s, y), _dot(y, initial * y))
    q = initial * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + s * (alpha - _ratio(_dot(y, q), _dot(s, y)))
    return q


def _line_search(
    objective: _Objective, x: Tensor, value: Tensor, gradient: Tensor, active: Tensor, direction: Tensor, promise: Tensor
) -> Tensor:
    """Halve each problem's step until it keeps a ten-thousandth of what the slope promises; move x, value, gradient in place.

    Returns which of the active problems moved: the others cannot be improved in float64.
    """
    step = torch.ones(len(active), dtype=torch.float64)
    waiting = torch.arange(len(active))
    for _ in range(30):
        which = active[waiting]
        trial = x[which] + step[waiting, None, None] * direction[waiting]
        trial_value, trial_gradient = objective(trial, which)
        good = trial_value <= value[which] + 1e-4 * step[waiting] * promise[waiting]
        x[which[good]], value[which[good]], gradient[which[good]] = trial[good], trial_value[good], trial_gradient[good]
        waiting = waiting[~good]
        if not len(waiting):
            break
        step[waiting] /= 2
    moved = torch.ones(len(active), dtype=torch.bool)
    moved[waiting] = False
    return moved


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """[K, 1, 1]; 0 where a pair carries no curvature (round-off at the optimum)."""
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(torch.float64).tiny), 0)[:, None, None]
