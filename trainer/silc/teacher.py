"""The EMA teacher: the vision tower and heads, their centres, and the targets that they give.

``targets`` reads; the state changes in ``update`` and ``update_center`` only. The
teacher follows the student after every optimiser step, with the momentum of
``silc_bench.trainer.optim.ema_at``. Weights, centres and arithmetic are fp32.

Shapes: T views, B images of this rank, N patches of a view, n of them masked for
the student, d bottleneck, K prototypes.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from silc_bench.trainer.config.config import DistillationConfig
from silc_bench.trainer.device import local_part, mean_over_ranks
from silc_bench.trainer.silc.distillation import Head, Targets, log_sum_exp, sinkhorn_targets
from silc_bench.trainer.silc.masking import take
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.silc.views import Views


class Taught(NamedTuple):
    """What the teacher says of a batch; None for what its student does not learn."""

    views: Targets | None  # of the global views, [T, B, K]
    patches: Targets | None  # of their masked places, [1, T * B * n, K]

    def shuffled(self, num_views: int, num_images: int, seed: int, step: int) -> Taught:
        """Each image of this rank gets the targets of another one, and so do its masked patches.

        The permutation is one cycle through all images, drawn by seed and step.
        """
        order = np.random.default_rng([seed, step]).permutation(num_images)
        giver = np.empty_like(order)
        giver[order] = np.roll(order, 1)

        def moved(targets: Targets | None) -> Targets | None:
            if targets is None:
                return None
            # [T, B, n] rows in their order, n = 1 for views; then those of the giving images
            rows = torch.arange(targets.normalizers.numel()).view(num_views, num_images, -1)
            index = rows[:, torch.from_numpy(giver)].flatten().to(targets.features.device)
            features = targets.features.flatten(0, 1)[index].view_as(targets.features)
            normalizers = targets.normalizers.flatten()[index].view_as(targets.normalizers)
            return targets._replace(features=features, normalizers=normalizers)

        return Taught(moved(self.views), moved(self.patches))


class Teacher(nn.Module):
    """The teacher of one student; without heads (weights 0) it is the EMA of the vision tower."""

    center: Tensor
    patch_center: Tensor

    def __init__(self, student: Student, config: DistillationConfig):
        super().__init__()
        self.vision = copy.deepcopy(student.vision)
        self.head = copy.deepcopy(student.head)
        self.patch_head = copy.deepcopy(student.patch_head)
        self.requires_grad_(False)

        self.temp = config.teacher_temp
        self.center_momentum = config.center_momentum
        self.is_sinkhorn = config.centering == "sinkhorn"
        self.is_tf32 = config.products == "tf32"

        # Buffers, so that a checkpoint holds them. A head that is not there has no centre.
        for name, head in (("center", self.head), ("patch_center", self.patch_head)):
            center = None if head is None else torch.zeros(config.num_prototypes)
            self.register_buffer(name, center)

    @torch.no_grad()
    def targets(self, views: Views, masked: Tensor | None = None, micro_batch: int = 0) -> Taught:
        """The targets of the global crops, and of their patches ``masked`` (int64 [T, B, n]).

        Factored, fp32: softmax((logits - centre) / temp), or Sinkhorn's over the views, and over
        all masked patches, of the global batch. The teacher itself sees every patch.
        ``micro_batch``: images that are encoded at a time, with the same result; 0: all.
        """
        assert views.global_crops is not None
        T, B = views.global_crops.shape[:2]
        size = micro_batch or B

        of_views, of_patches = [], []
        for start in range(0, B, size):
            part = slice(start, start + size)

            # One pass of the tower serves both heads.
            tokens = self.vision.tokens(views.global_crops[:, part].flatten(0, 1))
            if self.head is not None:
                features = self.head.project(self.vision.pool(tokens))
                of_views.append(features.unflatten(0, (T, -1)))
            if masked is not None:
                assert self.patch_head is not None
                hidden = take(tokens, masked[:, part].flatten(0, 1))
                of_patches.append(self.patch_head.project(hidden).unflatten(0, (T, -1)))

        view_targets = patch_targets = None
        if self.head is not None:
            view_targets = self._of(torch.cat(of_views, dim=1), self.head, self.center)
        if masked is not None:
            # One row a masked place, so that the loss compares each place with itself alone.
            patches = torch.cat(of_patches, dim=1).flatten(0, 2).unsqueeze(0)
            patch_targets = self._of(patches, self.patch_head, self.patch_center)
        return Taught(view_targets, patch_targets)

    def _of(self, features: Tensor, head: Head | None, center: Tensor) -> Targets:
        assert head is not None
        prototypes = head.unit_prototypes()
        # The targets keep the centre of the moment; the teacher's moves on.
        offsets = center.clone()

        with torch.autocast(features.device.type, enabled=False):
            if self.is_sinkhorn:
                return sinkhorn_targets(features, prototypes, self.temp, self.is_tf32)
            normalizers = log_sum_exp(features, prototypes, self.temp, offsets, self.is_tf32)
        return Targets(features, prototypes, offsets, normalizers, self.temp, self.is_tf32)

    @torch.no_grad()
    def update(self, student: Student, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, once an optimiser step.

        With momentum 0 it becomes the student.
        """
        # Both are sharded in the same way, so each rank updates the part that it holds.
        ours = [local_part(weight) for weight in self.parameters()]
        theirs = [local_part(student.get_parameter(name)) for name, _ in self.named_parameters()]
        get_ema_multi_avg_fn(momentum)(ours, theirs, 0)

    @torch.no_grad()
    def update_center(self, taught: Taught) -> None:
        """centre <- m * centre + (1 - m) * mean of the logits over views and the global batch.

        Patches have a centre of their own (iBOT); Sinkhorn's targets have none.
        """
        if self.is_sinkhorn:
            return

        pairs = (
            (taught.views, self.center),
            (taught.patches, self.patch_center),
        )
        for targets, center in pairs:
            if targets is not None:
                # A logit is linear in the feature, so the mean of the logits is the logit of the
                # mean: no table of [T, B, K].
                mean = mean_over_ranks(targets.features.flatten(0, 1).mean(0))
                mean_logits = targets.prototypes @ mean
                center.lerp_(mean_logits, 1 - self.center_momentum)
