"""What the towers are built of: attention, transformer blocks, MAP pooling.

Shapes: B pictures or texts, N patches or tokens, W width, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LN_EPS = 1e-6


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, heads, N, d].

    Written out on the CPU: there the fused kernel is 4 times slower forward and backward at our lengths (64 patches, bf16)
    and materialising [N, N] is cheap; on a GPU the fused kernel wins.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, W], no mask."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, W = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, W // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, N, W))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str):
        super().__init__()
        self.approximate = {"tanh": "tanh", "exact": "none"}[gelu]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, gelu: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = Mlp(width, mlp_dim, gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Blocks(nn.ModuleList):
    """The blocks of a tower in a row, [B, N, W] -> [B, N, W].

    ``is_checkpointed``: of a forward pass only what enters each block is kept, and the backward pass computes the block anew,
    to the same bits.
    """

    is_checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        is_anew = self.is_checkpointed and torch.is_grad_enabled()
        for block in self:
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False) if is_anew else block(x)
        return x


class MapPooling(nn.Module):
    """Multi-head attention pooling: one learned query attends to all patches, then a residual MLP."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, gelu: str):
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = Mlp(width, mlp_dim, gelu)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, W] -> [B, W]."""
        B, N, W = tokens.shape
        heads = (self.num_heads, W // self.num_heads)
        q = self.q(self.probe).view(1, 1, *heads).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = self.kv(tokens).view(B, N, 2, *heads).permute(2, 0, 3, 1, 4)
        pooled = attend(q, k, v).transpose(1, 2).reshape(B, W)
        return self._finish(pooled)

    def per_patch(self, tokens: Tensor) -> Tensor:
        """[B, N, W] -> [B, N, W]: what pooling would return if all its attention lay on one patch (the value path).

        Averaging the values with the pooling weights before the output layer gives ``forward`` exactly: attention is
        linear in its values. This is MaskCLIP's idea (2112.01071) for a MAP head.
        """
        return self._finish(self.kv(tokens)[..., tokens.shape[-1] :])

    def _finish(self, values: Tensor) -> Tensor:
        values = self.out(values)
        return values + self.mlp(self.norm(values))
