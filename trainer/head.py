"""The projection head that student and teacher meet in: DINO's (2104.14294), in fp32 whatever the towers run in.

Shapes: B rows, D embedding, d bottleneck, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.distillation import unit_rows
from trainer.sections import DistillationConfig


class Head(nn.Module):
    """DINO's projection head, always in fp32: 3 linear layers, l2-norm, prototypes of unit length. [B, D] -> [B, K].

    Training never makes the K logits: ``trainer.distillation`` takes ``project`` and ``unit_prototypes``.
    """

    def __init__(self, embed_dim: int, config: DistillationConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.bottleneck_dim),
        )
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.bottleneck_dim))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(self.project(features), self.unit_prototypes())

    def project(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., d]: the bottleneck, of unit length."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.layers(features.to(self.prototypes.dtype)), dim=-1)

    def unit_prototypes(self) -> Tensor:
        """[K, d]: weight normalisation with its gain fixed to 1."""
        return unit_rows(self.prototypes)
