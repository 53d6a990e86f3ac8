"""The student: towers, heads and scalars, which is everything that the optimiser moves.

Flow: ``Student(config)`` -> ``init_weights(student, seed)`` -> ``student(views,
tokens)`` gives a ``StudentOutput``, all that the losses need.

``MicroBatches`` wraps the student for large contrastive batches on a small device: the
towers see a few pairs at a time, the losses see the whole batch. The outputs of every
micro-batch are kept, the activations are not: the backward pass of the loss computes
them again, micro-batch by micro-batch (GradCache, 2101.06983, as activation
checkpointing). So k micro-batches of b pairs equal one batch of k * b in loss and
gradients, and teacher and centre change once a step. It costs one more forward pass of
the student.

Shapes: B images or texts, V views that meet the text, S views that meet the
teacher's, T masked views with n masked patches each, D embedding, d bottleneck, K
prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from silc_bench.trainer.config.config import Config
from silc_bench.trainer.silc.distillation import Head
from silc_bench.trainer.silc.masking import take
from silc_bench.trainer.silc.towers import MapPooling, TextTower, VisionTower, sincos_positions
from silc_bench.trainer.silc.views import Views

# How the names of the parameters begin that only a teacher's targets train.
TAUGHT = ("head.", "patch_head.", "mask_token")

# Tensors of one number. They have shape [1] and not [], because a tensor without a dimension cannot
# be sharded.
SCALARS = ("log_scale", "logit_bias")


class StudentOutput(NamedTuple):
    """What the losses read. The last four are None where no head is used."""

    image_features: Tensor  # [V, B, D] the views that meet the text
    text_features: Tensor  # [B, D]
    scale: Tensor  # of the contrastive logits, exponentiated
    bias: Tensor

    # [S, B, d] fp32: local views, after the global ones where these are distilled too.
    projections: Tensor | None = None
    prototypes: Tensor | None = None  # [K, d] fp32

    # [T, B, n, d] fp32: of the masked places of the masked global views.
    patch_projections: Tensor | None = None
    patch_prototypes: Tensor | None = None  # [K, d] fp32


class Student(nn.Module):
    """Towers, heads, mask token and the two scalars of the contrastive loss."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.text = TextTower(config.text, embed_dim=config.vision.width)
        for tower in (self.vision, self.text):
            tower.blocks.num_checkpointed = config.num_checkpointed(len(tower.blocks))

        self.log_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1), config.contrastive.has_bias)

        # A part whose loss has weight 0 is not built.
        has_head = config.distillation.weight > 0
        has_masked = config.masked.weight > 0
        width = config.vision.width
        self.head = Head(width, config.distillation) if has_head else None
        self.patch_head = Head(width, config.distillation) if has_masked else None
        self.mask_token = nn.Parameter(torch.empty(width)) if has_masked else None

        # Exports and other libraries hold the SCALARS without a dimension.
        self.register_load_state_dict_pre_hook(
            lambda module, weights, *_: weights.update(with_scalars(weights))
        )

        if config.optim.locked:
            self.get_submodule(config.optim.locked).requires_grad_(False)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Bring the scale down to ``contrastive.max_scale``, after an update (CLIP, open_clip)."""
        highest = self.config.contrastive.max_scale
        if highest:
            self.log_scale.clamp_(max=math.log(highest))

    def taught_parameters(self) -> list[nn.Parameter]:
        """Parameters that only a teacher's targets train."""
        return [parameter for name, parameter in self.named_parameters() if name.startswith(TAUGHT)]

    def forward(
        self,
        views: Views,
        tokens: Tensor,
        masked: Tensor | None = None,
        is_taught: bool = True,
        locked: Tensor | None = None,
    ) -> StudentOutput:
        """Encode each view once: those that meet the text, and those that meet the teacher's.

        Args:
            views: the crops of B images.
            tokens: int64 [B, L].
            masked: int64 [T, B, n], the patches that are hidden when the global views are encoded
                once more (``masking``).
            is_taught: False where the teacher does not teach yet: only views that meet the text
                are encoded.
            locked: what ``of_locked`` gave for the views and tokens, if it was called before.
        """
        config = self.config
        locked = self._of_locked(views, tokens) if locked is None else locked
        scalars = (self.log_scale.exp().sum(), self.logit_bias.sum())  # [1] -> [], and no views
        if config.optim.locked == "vision":
            # Nothing is left to distil into: only the text tower and the scalars learn.
            assert locked is not None
            return StudentOutput(locked, self.text(tokens), *scalars)

        head = self.head if is_taught else None
        shows_globals = head is not None and config.distillation.pairs == "local+global"

        # Each kind of view is encoded once, whichever losses ask for it.
        kinds = config.contrastive.images.split("+")
        asked = {*kinds, "global"} if shows_globals else {*kinds}
        crops = views.of_images()
        features = {kind: self._encode(crops[kind]) for kind in crops if kind in asked}
        meets_text = torch.cat([features[kind] for kind in kinds])

        projections = prototypes = None
        if head is not None:
            # Global views first: the loss tells by their place which of them the teacher saw too.
            shown = [features["global"]] if shows_globals else []
            if views.local_crops is not None:
                shown.append(self._encode(views.local_crops))
            projections = head.project(torch.cat(shown))
            prototypes = head.unit_prototypes()

        patch_projections = patch_prototypes = None
        if masked is not None:
            assert self.patch_head is not None
            patch_projections = self.project_masked(crops["global"], masked)
            patch_prototypes = self.patch_head.unit_prototypes()

        text_features = self.text(tokens) if locked is None else locked
        return StudentOutput(
            meets_text,
            text_features,
            *scalars,
            projections,
            prototypes,
            patch_projections,
            patch_prototypes,
        )

    def project_masked(self, views: Tensor, masked: Tensor) -> Tensor:
        """[T, B, 3, s, s], int64 [T, B, n] -> [T, B, n, d]: the patches that it does not see."""
        assert self.patch_head is not None
        places = masked.flatten(0, 1)
        tokens = self.vision.tokens(views.flatten(0, 1), places, self.mask_token)
        hidden = take(tokens, places).unflatten(0, masked.shape[:2])
        return self.patch_head.project(hidden)

    def of_locked(self, views: Views, tokens: Tensor) -> Tensor | None:
        """Features of the locked tower, without gradient; None if no tower is locked.

        Texts [B, D], or the views that meet them [V, B, D]. It is for callers from outside: of a
        sharded student it first gathers the weights, as ``forward`` does. Within ``forward`` they
        are gathered already, so that calls ``_of_locked``.
        """
        return self._of_locked(views, tokens)

    @torch.no_grad()
    def _of_locked(self, views: Views, tokens: Tensor) -> Tensor | None:
        if self.config.optim.locked == "text":
            return self.text(tokens)
        if self.config.optim.locked == "vision":
            crops = views.of_images()
            kinds = self.config.contrastive.images.split("+")
            return torch.cat([self._encode(crops[kind]) for kind in kinds])
        return None

    def _encode(self, views: Tensor) -> Tensor:
        """[V, B, 3, s, s] -> [V, B, D]."""
        return self.vision(views.flatten(0, 1)).view(*views.shape[:2], -1)


def with_scalars(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by their names, each of SCALARS as [1].

    Checkpoints before format 3, exports and other libraries hold them without a dimension.
    """
    return {name: value.reshape(1) if name in SCALARS else value for name, value in weights.items()}


def init_weights(student: Student, seed: int) -> None:
    """Fill every parameter from ``seed`` alone.

    Xavier-uniform matrices as big_vision, biases zero (there normal with std 1e-6 in MLPs);
    positions of patches as ``vision.init_positions``, of tokens normal with std 1/sqrt(width);
    heads as DINO (normal, std 0.02), and prototypes as ``distillation.init_prototypes``; the mask
    token zero, as iBOT and DINOv2.
    """
    contrastive = student.config.contrastive
    init_bias = contrastive.init_bias if contrastive.has_bias else 0.0
    if student.mask_token is not None:
        nn.init.zeros_(student.mask_token)
    nn.init.constant_(student.log_scale, math.log(contrastive.init_scale))
    nn.init.constant_(student.logit_bias, init_bias)

    for name, parameter in student.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(parameter)

    # One generator, and modules in the order they were made: towers before heads, so that the
    # objective does not change the towers.
    generator = torch.Generator().manual_seed(seed)
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear):
            _init_matrix(name, module, generator)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.Embedding):
            std = module.weight[0].numel() ** -0.5
            nn.init.normal_(module.weight, std=std, generator=generator)
        elif isinstance(module, VisionTower):
            width = module.positions.shape[-1]
            if student.config.vision.init_positions == "normal":
                nn.init.normal_(module.positions, std=width**-0.5, generator=generator)
            else:
                module.positions.data.copy_(sincos_positions(module.grid, width))
        elif isinstance(module, TextTower):
            std = module.positions.shape[-1] ** -0.5
            nn.init.normal_(module.positions, std=std, generator=generator)
        elif isinstance(module, MapPooling):
            nn.init.xavier_uniform_(module.probe.data[0], generator=generator)
        elif isinstance(module, Head):
            if student.config.distillation.init_prototypes == "uniform":
                bound = module.prototypes.shape[-1] ** -0.5
                nn.init.uniform_(module.prototypes, -bound, bound, generator=generator)
            else:
                nn.init.trunc_normal_(module.prototypes, std=0.02, generator=generator)


def _init_matrix(name: str, layer: nn.Linear, generator: torch.Generator) -> None:
    """Fill the weight of the layer ``name`` of the student."""
    if name.startswith(("head.", "patch_head.")):
        nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
    elif name.endswith((".qkv", ".kv")):
        # q, k and v are three matrices stacked: each has its own fan.
        for part in layer.weight.data.split(layer.in_features):
            nn.init.xavier_uniform_(part, generator=generator)
    else:
        nn.init.xavier_uniform_(layer.weight, generator=generator)


class MicroBatches(nn.Module):
    """The student, called with ``size`` pairs at a time."""

    def __init__(self, student: Student, size: int):
        super().__init__()
        self.student = student
        self.size = size

    def forward(
        self, views: Views, tokens: Tensor, masked: Tensor | None = None, is_taught: bool = True
    ) -> StudentOutput:
        """As ``Student.forward``; prototypes, scale and bias are those of the first part."""
        texts = tokens.split(self.size)
        masks = [None] * len(texts) if masked is None else masked.split(self.size, dim=1)

        outs: list[StudentOutput] = []
        for part in zip(views.split(self.size), texts, masks, strict=True):
            # A locked tower needs no backward pass, so it is computed outside of the checkpoint,
            # once. Nothing is random in the student, so no state of generators needs to be kept.
            locked = self.student.of_locked(*part[:2])
            arguments = (*part, is_taught, locked)
            out = checkpoint(
                self.student, *arguments, use_reentrant=False, preserve_rng_state=False
            )
            outs.append(out)

        # Each with the dimension in which its pairs lie.
        dims = {"image_features": 1, "text_features": 0, "projections": 1, "patch_projections": 1}
        joined: dict[str, Any] = {}
        for name, dim in dims.items():
            parts = [getattr(out, name) for out in outs]
            joined[name] = None if parts[0] is None else torch.cat(parts, dim)
        return outs[0]._replace(**joined)
