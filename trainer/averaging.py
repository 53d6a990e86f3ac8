"""A moving average of the student's towers and scalars, kept for evaluation: ``--ckpt RUN:average``.

The teacher averages the vision tower and head, which it needs for its targets; this averages the text tower and the scalars of
the contrastive loss too, and nothing of it flows back into training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.model import TAUGHT, Student


class Average:
    """The weights by the student's names, without heads and mask token. ``update`` is the only thing that moves them."""

    def __init__(self, student: Student) -> None:
        self.weights = {name: value.detach().clone() for name, value in averaged(student).items()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Those of a checkpoint. KeyError where names or shapes are others."""
        theirs, ours = ({(name, value.shape) for name, value in one.items()} for one in (weights, self.weights))
        if theirs != ours:
            raise KeyError(f"average of {sorted({name for name, _ in theirs ^ ours})[:3]}")
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def update(self, student: Student, momentum: float) -> None:
        """average <- momentum * average + (1 - momentum) * student, once an optimiser step."""
        get_ema_multi_avg_fn(momentum)(list(self.weights.values()), list(averaged(student).values()), 0)


def average_at(step: int, momentum: float) -> float:
    """The momentum after optimiser update number ``step`` (from 0): min(momentum, (1 + step) / (10 + step)).

    So the first weights, which are noise, are forgotten at once (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    return min(momentum, (1 + step) / (10 + step))


def averaged(student: Student) -> dict[str, Tensor]:
    return {name: value for name, value in student.named_parameters() if not name.startswith(TAUGHT)}
