"""The EMA teacher of the vision tower and head, its centre, and its targets. State changes in two named methods only.

The teacher follows the student after every optimiser step, with the momentum of ``schedule.ema_at``. Weights, centre and
arithmetic are fp32.

Shapes: T views, B pictures of this rank, K prototypes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.distillation import Targets, log_sum_exp, sinkhorn_targets
from trainer.distributed import mean_over_ranks
from trainer.model import Student
from trainer.sections import DistillationConfig
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
        self.is_sinkhorn = config.centering == "sinkhorn"
        self.register_buffer("center", torch.zeros(config.num_prototypes) if student.head is not None else None)

    @torch.no_grad()
    def targets(self, views: Views, micro_batch: int = 0) -> Targets:
        """Of the global crops: over [T, B, K], factored, fp32: softmax((logits - centre) / temp), or Sinkhorn's."""
        assert self.head is not None, "targets need a head: distillation.weight is 0"
        assert views.global_crops is not None, "targets need global crops"
        T, B = views.global_crops.shape[:2]
        crops = views.global_crops.split(micro_batch or B, dim=1)
        features = torch.cat([self.head.project(self.vision(c.flatten(0, 1))).view(T, c.shape[1], -1) for c in crops], dim=1)
        prototypes, offsets = self.head.unit_prototypes(), self.center.clone()
        with torch.autocast(features.device.type, enabled=False):
            if self.is_sinkhorn:
                return sinkhorn_targets(features, prototypes, self.temp)
            normalizers = log_sum_exp(features, prototypes, self.temp, offsets)
        return Targets(features, prototypes, offsets, normalizers, self.temp)

    @torch.no_grad()
    def update(self, student: Student, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, once an optimiser step."""
        theirs = [*student.vision.parameters(), *(student.head.parameters() if student.head is not None else ())]
        get_ema_multi_avg_fn(momentum)(list(self.parameters()), theirs, 0)

    @torch.no_grad()
    def update_center(self, targets: Targets) -> None:
        """centre <- m * centre + (1 - m) * mean of the logits over views and the global batch; Sinkhorn's targets have none.

        A logit is linear in the feature, so the mean of the logits is the logit of the mean: no table of [T, B, K].
        """
        if self.is_sinkhorn:
            return
        mean = mean_over_ranks(targets.features.flatten(0, 1).mean(0))
        self.center.lerp_(targets.prototypes @ mean, 1 - self.center_momentum)
