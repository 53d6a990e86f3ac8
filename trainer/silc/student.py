"""Towers, heads and scalars: everything the optimiser moves.

Large contrastive batches on a small device: the towers see a few pairs at a time, the losses the
whole batch, exactly.

The outputs of every micro-batch are computed and kept, their activations are not: the backward pass
of the one loss makes them anew, micro-batch by micro-batch (GradCache, 2101.06983, as activation
checkpointing). So k micro-batches of b pairs equal one batch of k * b in loss and gradients, and
teacher and centre change once a step. It costs one more forward pass of the student.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from silc_bench.trainer.config.config import Config
from silc_bench.trainer.silc.distillation import Head
from silc_bench.trainer.silc.masking import take
from silc_bench.trainer.silc.towers import MapPooling, TextTower, VisionTower, sincos_positions
from silc_bench.trainer.silc.views import Views

TAUGHT = (
    "head.",
    "patch_head.",
    "mask_token",
)  # names of what only a teacher's targets move begin so


class StudentOutput(NamedTuple):
    image_features: Tensor  # [V, B, D] the views that meet the text
    text_features: Tensor  # [B, D]
    scale: Tensor  # of the contrastive logits, exponentiated
    bias: Tensor
    projections: (
        Tensor | None
    )  # [S, B, d] fp32: local views, after the global ones where these are distilled too
    prototypes: Tensor | None  # [K, d] fp32
    patch_projections: Tensor | None = (
        None  # [T, B, n, d] fp32: of the masked places of the masked global views
    )
    patch_prototypes: Tensor | None = None  # [K, d] fp32


class Student(nn.Module):
    """Towers, heads, mask token and the two scalars of the contrastive loss: everything the
    optimiser moves.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.text = TextTower(config.text, embed_dim=config.vision.width)
        self.vision.blocks.is_checkpointed = self.text.blocks.is_checkpointed = (
            config.checkpointing == "blocks"
        )
        self.log_scale = nn.Parameter(torch.empty(()))
        # a bias cancels in a softmax: it would be a parameter without a gradient
        self.logit_bias = nn.Parameter(
            torch.empty(()), requires_grad=config.contrastive.loss == "sigmoid"
        )
        self.head = (
            Head(config.vision.width, config.distillation)
            if config.distillation.weight > 0
            else None
        )
        has_masked = config.masked.weight > 0
        self.patch_head = Head(config.vision.width, config.distillation) if has_masked else None
        self.mask_token = nn.Parameter(torch.empty(config.vision.width)) if has_masked else None
        if config.optim.locked:
            self.get_submodule(config.optim.locked).requires_grad_(False)

    def taught_parameters(self) -> list[nn.Parameter]:
        """What only a teacher's targets move."""
        return [parameter for name, parameter in self.named_parameters() if name.startswith(TAUGHT)]

    def forward(
        self,
        views: Views,
        tokens: Tensor,
        masked: Tensor | None = None,
        is_taught: bool = True,
        locked: Tensor | None = None,
    ) -> StudentOutput:
        """Encode each view once: those that meet the text, and those that the head shows to the
        teacher's targets.

        Args:
            masked: int64 [T, B, n], the patches that are hidden when the global views are encoded
            once more (``masking``). is_taught: False: the teacher does not teach yet, and only what
            meets the text is encoded. locked: what ``of_locked`` gave for the views and tokens,
            where it is known already.
        """
        config = self.config
        locked = self.of_locked(views, tokens) if locked is None else locked
        if config.optim.locked == "vision":
            assert locked is not None
            return StudentOutput(
                locked, self.text(tokens), self.log_scale.exp(), self.logit_bias, None, None
            )
        features: dict[str, Tensor] = {}
        shows_globals = (
            is_taught and self.head is not None and config.distillation.pairs == "local+global"
        )
        if "global" in config.contrastive.images or shows_globals:
            assert views.global_crops is not None
            features["global"] = self._encode(views.global_crops)
        if "original" in config.contrastive.images:
            assert views.original is not None
            features["original"] = self._encode(views.original.unsqueeze(0))
        meets_text = torch.cat([features[kind] for kind in config.contrastive.images.split("+")])
        projections = prototypes = patch_projections = patch_prototypes = None
        if is_taught and self.head is not None:
            shown = [features["global"]] if shows_globals else []
            shown += [] if views.local_crops is None else [self._encode(views.local_crops)]
            projections, prototypes = (
                self.head.project(torch.cat(shown)),
                self.head.unit_prototypes(),
            )
        if masked is not None:
            assert views.global_crops is not None
            assert self.patch_head is not None
            patch_projections = self.project_masked(views.global_crops, masked)
            patch_prototypes = self.patch_head.unit_prototypes()
        return StudentOutput(
            meets_text,
            self.text(tokens) if locked is None else locked,
            self.log_scale.exp(),
            self.logit_bias,
            projections,
            prototypes,
            patch_projections,
            patch_prototypes,
        )

    def project_masked(self, views: Tensor, masked: Tensor) -> Tensor:
        """[T, B, 3, s, s], int64 [T, B, n] -> [T, B, n, d]: what the student says of the patches
        that it does not see.
        """
        assert self.patch_head is not None
        places = masked.flatten(0, 1)
        tokens = self.vision.tokens(views.flatten(0, 1), places, self.mask_token)
        return self.patch_head.project(take(tokens, places)).unflatten(0, masked.shape[:2])

    @torch.no_grad()
    def of_locked(self, views: Views, tokens: Tensor) -> Tensor | None:
        """Without a graph, what the locked tower gives: texts [B, D], or views that meet them [V,
        B, D]; None if none is.
        """
        if self.config.optim.locked == "text":
            return self.text(tokens)
        if self.config.optim.locked == "vision":
            original = None if views.original is None else views.original.unsqueeze(0)
            kinds = {"global": views.global_crops, "original": original}
            shown = [kinds[kind] for kind in self.config.contrastive.images.split("+")]
            return torch.cat([self._encode(crops) for crops in shown if crops is not None])
        return None

    def _encode(self, views: Tensor) -> Tensor:
        """[V, B, 3, s, s] -> [V, B, D]."""
        return self.vision(views.flatten(0, 1)).view(*views.shape[:2], -1)


def init_weights(student: Student, seed: int) -> None:
    """Fill every parameter from ``seed`` alone, towers before heads, so that the objective does not
    change the towers.

    Xavier-uniform matrices as big_vision, biases zero; positions of patches sines and cosines, of
    tokens normal with std 1/sqrt(width); heads as DINO (normal, std 0.02); the mask token zero, as
    iBOT and DINOv2.
    """
    if student.mask_token is not None:
        nn.init.zeros_(student.mask_token)
    contrastive = student.config.contrastive
    nn.init.constant_(student.log_scale, math.log(contrastive.init_scale))
    nn.init.constant_(
        student.logit_bias, contrastive.init_bias if contrastive.loss == "sigmoid" else 0.0
    )
    generator = torch.Generator().manual_seed(seed)
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear):
            if name.startswith(("head.", "patch_head.")):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            elif name.endswith(
                (".qkv", ".kv")
            ):  # q, k and v are three matrices stacked: each has its own fan
                for part in module.weight.data.split(module.in_features):
                    nn.init.xavier_uniform_(part, generator=generator)
            else:
                nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(
                module.weight, std=module.weight[0].numel() ** -0.5, generator=generator
            )
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5, generator=generator)
        elif isinstance(module, VisionTower):
            module.positions.data.copy_(sincos_positions(module.grid, module.positions.shape[-1]))
        elif isinstance(module, TextTower):
            nn.init.normal_(
                module.positions, std=module.positions.shape[-1] ** -0.5, generator=generator
            )
        elif isinstance(module, MapPooling):
            nn.init.xavier_uniform_(module.probe.data[0], generator=generator)
        elif isinstance(module, Head):
            nn.init.trunc_normal_(module.prototypes, std=0.02, generator=generator)


class MicroBatches(nn.Module):
    """Called like the student; ``size`` pairs at a time."""

    def __init__(self, student: Student, size: int):
        super().__init__()
        self.student, self.size = student, size

    def forward(
        self, views: Views, tokens: Tensor, masked: Tensor | None = None, is_taught: bool = True
    ) -> StudentOutput:
        words = tokens.split(self.size)
        places = [None] * len(words) if masked is None else masked.split(self.size, dim=1)
        outs: list[StudentOutput] = [
            # nothing is random in it; a locked tower is outside of what is computed again
            checkpoint(
                self.student,
                *part,
                is_taught,
                self.student.of_locked(*part[:2]),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for part in zip(views.split(self.size), words, places, strict=True)
        ]
        return outs[0]._replace(
            image_features=torch.cat([out.image_features for out in outs], dim=1),
            text_features=torch.cat([out.text_features for out in outs]),
            projections=_joined([out.projections for out in outs]),
            patch_projections=_joined([out.patch_projections for out in outs]),
        )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Along the pictures; None where there is none of them."""
    there = [part for part in parts if part is not None]
    assert len(there) in (0, len(parts))
    return torch.cat(there, dim=1) if there else None
