"""The two towers and the student: ViT with MAP pooling, SigLIP-style text transformer; their weights at the start.

Flow: ``Student(config)(views, tokens)`` -> embeddings and head logits; ``VisionTower.tokens`` for patch features.
Layout and parameter counts follow SigLIP (2303.15343; big_vision's and transformers' towers).

Shapes: B pictures or texts, N patches, L text tokens, W width, D embedding (= W), d bottleneck, K prototypes, V and S views.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import Config
from trainer.head import Head
from trainer.layers import LN_EPS, Block, Blocks, MapPooling
from trainer.masking import take
from trainer.sections import TextConfig, VisionConfig
from trainer.views import Views

TAUGHT = ("head.", "patch_head.", "mask_token")  # names of what only a teacher's targets move begin so


class VisionTower(nn.Module):
    """[B, 3, H, W] pixels in [-1, 1] -> [B, D]. Any size that is a multiple of the patch: positions are interpolated."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid = config.image_size // config.patch_size
        self.patch = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.positions = nn.Parameter(torch.empty(1, self.grid**2, config.width))
        sizes = (config.width, config.num_heads, config.mlp_dim, config.gelu)
        self.blocks = Blocks(Block(*sizes) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LN_EPS)
        self.pool = MapPooling(*sizes)

    def tokens(self, images: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, N, W], after the last norm, row by row. ``masked``, ``mask_token``: as ``embed``."""
        return self.norm(self.blocks(self.embed(images, masked, mask_token)))

    def embed(self, images: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, N, W], patches with their positions, as they enter the first block.

        ``mask_token`` [W] stands in the places ``masked`` (int64 [B, n]) before positions are added, so that what is hidden
        is the content of a patch and not where it is (iBOT, DINOv2).
        """
        B, _, H, W = images.shape
        P = self.patch_size
        if H % P or W % P:
            raise ValueError(f"pictures of {H} x {W} pixels do not divide into patches of {P}")
        h, w = H // P, W // P
        patches = images.view(B, 3, h, P, w, P).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, 3 * P * P)
        x = F.linear(patches, self.patch.weight.flatten(1), self.patch.bias)  # a convolution without overlap is a matmul
        if masked is not None:
            assert mask_token is not None
            places = masked.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = x.scatter(1, places, mask_token.to(x.dtype).expand_as(places))
        return x + self.positions_for(h, w).to(x.dtype)

    def positions_for(self, h: int, w: int) -> Tensor:
        """[1, h * w, W] position embeddings, resized (antialiased bilinear, as big_vision) from the trained grid."""
        if (h, w) == (self.grid, self.grid):
            return self.positions
        grid = self.positions.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(h, w), mode="bilinear", antialias=True, align_corners=False)
        return grid.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.tokens(images))


class TextTower(nn.Module):
    """[B, L] token ids, padded to L -> [B, D]. The last position is pooled; padding is attended to, as in SigLIP."""

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(1, config.context_length, config.width))
        sizes = (config.width, config.num_heads, config.mlp_dim, config.gelu)
        self.blocks = Blocks(Block(*sizes) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LN_EPS)
        self.head = nn.Linear(config.width, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.embedding(tokens) + self.positions)
        return self.head(self.norm(x[:, -1]))


class StudentOutput(NamedTuple):
    image_features: Tensor  # [V, B, D] the views that meet the text
    text_features: Tensor  # [B, D]
    scale: Tensor  # of the contrastive logits, exponentiated
    bias: Tensor
    projections: Tensor | None  # [S, B, d] fp32: local views, after the global ones where these are distilled too
    prototypes: Tensor | None  # [K, d] fp32
    patch_projections: Tensor | None = None  # [T, B, n, d] fp32: of the masked places of the masked global views
    patch_prototypes: Tensor | None = None  # [K, d] fp32


class Student(nn.Module):
    """Towers, heads, mask token and the two scalars of the contrastive loss: everything the optimiser moves."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.text = TextTower(config.text, embed_dim=config.vision.width)
        self.vision.blocks.is_checkpointed = self.text.blocks.is_checkpointed = config.checkpointing == "blocks"
        self.log_scale = nn.Parameter(torch.empty(()))
        # a bias cancels in a softmax: it would be a parameter without a gradient
        self.logit_bias = nn.Parameter(torch.empty(()), requires_grad=config.contrastive.loss == "sigmoid")
        self.head = Head(config.vision.width, config.distillation) if config.distillation.weight > 0 else None
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
        """Encode each view once: those that meet the text, and those that the head shows to the teacher's targets.

        Args:
            masked: int64 [T, B, n], the patches that are hidden when the global views are encoded once more (``masking``).
            is_taught: False: the teacher does not teach yet, and only what meets the text is encoded.
            locked: what ``of_locked`` gave for the views and tokens, where it is known already.
        """
        config = self.config
        locked = self.of_locked(views, tokens) if locked is None else locked
        if config.optim.locked == "vision":
            assert locked is not None
            return StudentOutput(locked, self.text(tokens), self.log_scale.exp(), self.logit_bias, None, None)
        features: dict[str, Tensor] = {}
        shows_globals = is_taught and self.head is not None and config.distillation.pairs == "local+global"
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
            projections, prototypes = self.head.project(torch.cat(shown)), self.head.unit_prototypes()
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
        """[T, B, 3, s, s], int64 [T, B, n] -> [T, B, n, d]: what the student says of the patches that it does not see."""
        assert self.patch_head is not None
        places = masked.flatten(0, 1)
        tokens = self.vision.tokens(views.flatten(0, 1), places, self.mask_token)
        return self.patch_head.project(take(tokens, places)).unflatten(0, masked.shape[:2])

    @torch.no_grad()
    def of_locked(self, views: Views, tokens: Tensor) -> Tensor | None:
        """Without a graph, what the locked tower gives: texts [B, D], or views that meet them [V, B, D]; None if none is."""
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
    """Fill every parameter from ``seed`` alone, towers before heads, so that the objective does not change the towers.

    Xavier-uniform matrices as big_vision, biases zero; positions of patches sines and cosines, of tokens normal with std
    1/sqrt(width); heads as DINO (normal, std 0.02); the mask token zero, as iBOT and DINOv2.
    """
    if student.mask_token is not None:
        nn.init.zeros_(student.mask_token)
    contrastive = student.config.contrastive
    nn.init.constant_(student.log_scale, math.log(contrastive.init_scale))
    nn.init.constant_(student.logit_bias, contrastive.init_bias if contrastive.loss == "sigmoid" else 0.0)
    generator = torch.Generator().manual_seed(seed)
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear):
            if name.startswith(("head.", "patch_head.")):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            elif name.endswith((".qkv", ".kv")):  # q, k and v are three matrices stacked: each has its own fan
                for part in module.weight.data.split(module.in_features):
                    nn.init.xavier_uniform_(part, generator=generator)
            else:
                nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5, generator=generator)
        elif isinstance(module, VisionTower):
            module.positions.data.copy_(sincos_positions(module.grid, module.positions.shape[-1]))
        elif isinstance(module, TextTower):
            nn.init.normal_(module.positions, std=module.positions.shape[-1] ** -0.5, generator=generator)
        elif isinstance(module, MapPooling):
            nn.init.xavier_uniform_(module.probe.data[0], generator=generator)
        elif isinstance(module, Head):
            nn.init.trunc_normal_(module.prototypes, std=0.02, generator=generator)


def sincos_positions(grid: int, width: int) -> Tensor:
    """[1, grid * grid, width]: sine and cosine of row and column at width / 4 frequencies, 1 down to 1/10,000 (2205.01580)."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4)
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    y, x = rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).unsqueeze(0)


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
