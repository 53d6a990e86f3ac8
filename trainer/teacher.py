"""The EMA teacher of the vision tower and head, its centre, and its targets. State changes in two named methods only.

The teacher follows the student after every optimiser step with a *fixed* momentum: SILC never schedules it to 1, else the
teacher would stop learning from the text loss (2310.13355). Weights, centre and arithmetic are fp32.

Shapes: T views, B pictures of this rank, K prototypes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.config import DistillationConfig
from trainer.distillation import Targets, log_sum_exp
from trainer.distributed import mean_over_ranks
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
    def targets(self, views: Views) -> Targets:
        """Of the global crops: the distributions softmax((logits - centre) / temp) over [T, B, K], factored, fp32."""
        assert self.head is not None, "targets need a head: distillation.weight is 0"
        assert views.global_crops is not None, "targets need global crops"
        T, B = views.global_crops.shape[:2]
        features = self.head.project(self.vision(views.global_crops.flatten(0, 1))).view(T, B, -1)
        prototypes, offsets = self.head.unit_prototypes(), self.center.clone()
        with torch.autocast(features.device.type, enabled=False):
            normalizers = log_sum_exp(features, prototypes, self.temp, offsets)
        return Targets(features, prototypes, offsets, normalizers, self.temp)

    @torch.no_grad()
    def update(self, student: Student) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, once an optimiser step."""
        theirs = [*student.vision.parameters(), *(student.head.parameters() if student.head is not None else ())]
        self._lerp(list(self.parameters()), theirs, 0)

    @torch.no_grad()
    def update_center(self, targets: Targets) -> None:
        """centre <- m * centre + (1 - m) * mean of the logits over views and the global batch.

        A logit is linear in the feature, so the mean of the logits is the logit of the mean: no table of [T, B, K].
        """
        mean = mean_over_ranks(targets.features.flatten(0, 1).mean(0))
        self.center.lerp_(targets.prototypes @ mean, 1 - self.center_momentum)
