"""SILC's step as one would write it first, to measure the trainer against; its losses are equal.

One forward pass a crop size through the same towers, full tables of logits of student and teacher,
lightly's DINO loss, open_clip's image-text loss, torch's gradient clipping and AdamW, a loop for
the EMA; views by torchvision, one sample at a time, in this process.
"""

from __future__ import annotations

import torch
from lightly.loss import DINOLoss
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional as F
from views_speed import PerSampleViews

from silc_bench.trainer.data.stream import Batch
from silc_bench.trainer.optim import ema_at, lr_at
from silc_bench.trainer.silc.views import Views
from silc_bench.trainer.train import TrainState


class PlainSilc:
    """``state`` gives weights and configuration, with ``distillation.pairs=local+global``.

    lightly's loss has no other pairs.
    """

    def __init__(self, state: TrainState, batch: Batch):
        assert state.config.distillation.pairs == "local+global", (
            "lightly's loss compares all views"
        )
        self.state, self.texts = state, batch.texts
        self.device = state.student.log_scale.device
        self.samples = PerSampleViews(batch.images, state.config.views, batches=1)
        self.dino = dino_loss(state)
        self.optimizer = torch.optim.AdamW(
            [p for p in state.student.parameters() if p.requires_grad], weight_decay=0.1
        )

    def make_views(self) -> tuple[Tensor, ...]:
        """A stack [B, 3, s, s] of each view.

        Only timed: the losses are compared on the trainer's own views.
        """
        return tuple(
            torch.stack(crops).to(self.device)
            for crops in zip(*self.samples.one_batch(), strict=True)
        )

    def losses(self, views: Views) -> dict[str, Tensor]:
        student, teacher, config = self.state.student, self.state.teacher, self.state.config
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            with torch.no_grad():
                targets = logits_of(teacher, encode(teacher, views.global_crops))
            seen, small = encode(student, views.global_crops), encode(student, views.local_crops)
            texts = student.text(self.state.tokenizer(self.texts).to(self.device))
            shown = logits_of(student, torch.cat([seen, small]))
        y, scale = F.normalize(texts.float(), dim=-1), student.log_scale.exp()
        units = F.normalize(seen.float(), dim=-1)
        if config.contrastive.loss == "sigmoid":
            parts = [SigLipLoss()(unit, y, scale, student.logit_bias) for unit in units]
        else:
            parts = [ClipLoss()(unit, y, scale) for unit in units]
        return {
            "contrastive": torch.stack(parts).mean(),
            "distillation": self.dino(list(targets), list(shown)),
        }

    def step(self, views: Views) -> dict[str, float]:
        """One update; its losses and the norm of its gradients, as ``train_step`` reports them."""
        state, config = self.state, self.state.config
        self.optimizer.param_groups[0]["lr"] = lr_at(state.step, config.num_steps, config.optim)
        losses = self.losses(views)
        self.optimizer.zero_grad()
        (losses["contrastive"] + config.distillation.weight * losses["distillation"]).backward()
        norm = torch.nn.utils.clip_grad_norm_(
            state.student.parameters(), config.optim.clip_norm, foreach=False
        )
        self.optimizer.step()
        momentum = ema_at(state.step, config.num_steps, config.distillation, config.batch_size)
        with torch.no_grad():
            for name, average in state.teacher.named_parameters():
                average.mul_(momentum).add_(state.student.get_parameter(name), alpha=1 - momentum)
        state.step += 1
        return {name: value.item() for name, value in (losses | {"gradient_norm": norm}).items()}


def dino_loss(state: TrainState) -> DINOLoss:
    d = state.config.distillation
    loss = DINOLoss(
        d.num_prototypes,
        teacher_temp=d.teacher_temp,
        student_temp=d.student_temp,
        center_momentum=d.center_momentum,
    )
    return loss.to(state.student.log_scale.device)


def encode(model, crops: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """[V, B, 3, s, s] -> [V, B, D]."""
    return model.vision(crops.flatten(0, 1)).view(*crops.shape[:2], -1)


def logits_of(model, features: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """[V, B, D] -> [V, B, K], in fp32."""
    with torch.autocast(features.device.type, enabled=False):
        return (
            F.normalize(model.head.layers(features.float()), dim=-1)
            @ F.normalize(model.head.prototypes, dim=-1).T
        )
