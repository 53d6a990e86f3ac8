"""The EMA teacher of the vision tower and head, its centre, and its targets. State changes in two named methods only.

The teacher follows the student after every optimiser step with a *fixed* momentum: SILC never schedules it to 1, else the
teacher would stop learning from the text loss (2310.13355). Weights, centre and arithmetic are fp32.

Shapes: T views, B pictures, K prototypes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.config import DistillationConfig
from trainer.model import Student
from trainer.views import Views


class Teacher(nn.Module):
    """``targets`` reads, ``update`` and ``update_center`` write. Without a head (weight 0) it is the EMA of the tower."""

    center: Tensor

    def __init__(self, student: Student, config: DistillationConfig):
        super().__init__()
        self.vision = copy.deepcopy(student.vision)
        self.head = copy.deepcopy(student.head)
        self.requires_grad_(False)
        self.temp = config.teacher_temp
        self.center_momentum = config.center_momentum
        self._lerp = get_ema_multi_avg_fn(config.ema_momentum)
        self.register_buffer("center", torch.zeros(config.num_prototypes) if student.head is not None else None)

    @torch.no_grad()
    def targets(self, views: Views) -> tuple[Tensor, Tensor]:
        """Of the global crops: probabilities softmax((logits - centre) / temp) and the logits, both [T, B, K] fp32."""
        assert self.head is not None, "targets need a head: distillation.weight is 0"
        assert views.global_crops is not None, "targets need global crops"
        T, B = views.global_crops.shape[:2]
        logits = self.head(self.vision(views.global_crops.flatten(0, 1))).view(T, B, -1)
        return torch.softmax((logits - self.center) / self.temp, dim=-1), logits

    @torch.no_grad()
    def update(self, student: Student) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, once an optimiser step."""
        theirs = [*student.vision.parameters(), *(student.head.parameters() if student.head is not None else ())]
        self._lerp(list(self.parameters()), theirs, 0)

    @torch.no_grad()
    def update_center(self, logits: Tensor) -> None:
        """centre <- m * centre + (1 - m) * mean of the logits [T, B, K] over views and the global batch."""
        self.center.lerp_(logits.flatten(0, -2).mean(0), 1 - self.center_momentum)
