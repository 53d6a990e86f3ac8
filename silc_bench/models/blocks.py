"""Blocks of open_clip and timm taken apart: queries, keys and values of a block, and what the block does after its attention.

Flow: ``block_of(tower's last block)`` -> a ``LastBlock`` (``towers``), or None for a kind that nobody has taken apart.

Each part is the library's own layer, called as the library's forward calls it, in evaluation: dropout and stochastic depth
do nothing.

Shapes: B pictures, N tokens, W width of the tokens, H heads of d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silc_bench.models.towers import LastBlock, heads_of, without_heads

OPEN_CLIP = ("ResidualAttentionBlock", "CustomResidualAttentionBlock")
TIMM = ("Block", "EvaBlock", "EvaBlockPostNorm")
TIMM_ATTENTION = ("Attention", "EvaAttention", "AttentionRope")


def block_of(block: nn.Module) -> LastBlock | None:
    """The parts of a block of open_clip or timm."""
    home, kind = type(block).__module__.partition(".")[0], type(block).__name__
    attention = getattr(block, "attn", None)
    if home == "open_clip" and kind in OPEN_CLIP and getattr(attention, "logit_scale", None) is None:
        return OpenClipBlock(block)
    if home == "timm" and kind in TIMM and type(attention).__name__ in TIMM_ATTENTION:
        return TimmBlock(block)
    return None


class OpenClipBlock:
    """open_clip's block over torch's attention, or over its own with norms and scales of heads."""

    def __init__(self, block: Any):
        self.block, self.attention = block, block.attn

    def split(self, tokens: Tensor, rope: Any) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attention
        packed = F.linear(self.block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (heads_of(part, attention.num_heads) for part in packed.chunk(3, dim=-1))
        if isinstance(attention, nn.MultiheadAttention):
            return q, k, v
        return attention.ln_q(q), attention.ln_k(k), v

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        block, attention = self.block, self.attention
        if isinstance(attention, nn.MultiheadAttention):
            return block.ls_1(attention.out_proj(without_heads(values)))
        if attention.head_scale is not None:
            values = values * attention.head_scale
        return block.ls_1(block.ln_attn(attention.out_proj(attention.ln_inner(without_heads(values)))))

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        tokens = tokens + added
        return tokens + self.block.ls_2(self.block.mlp(self.block.ln_2(tokens)))


class TimmBlock:
    """timm's block, plain or EVA's, its norms before the layers or after them."""

    def __init__(self, block: Any):
        self.block, self.attention = block, block.attn
        self.is_post_norm = type(block).__name__ == "EvaBlockPostNorm"

    def split(self, tokens: Tensor, rope: Any) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attention
        q, k, v = self._projected(self._seen(tokens))
        q, k = attention.q_norm(q), attention.k_norm(k)
        if rope is not None:
            q, k = (self._rotated(part, rope).type_as(v) for part in (q, k))
        groups = getattr(attention, "num_kv_groups", 1)  # heads of queries that share one of keys and values
        return q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        attention = self.attention
        mixed = without_heads(values)
        if getattr(attention, "norm", None) is not None:
            mixed = attention.norm(mixed)
        if getattr(attention, "gate", None) is not None:
            mixed = mixed * attention.gate(self._seen(tokens)).sigmoid()
        added = attention.proj(mixed)
        return self.block.norm1(added) if self.is_post_norm else self._scaled(added, "1")

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        block, tokens = self.block, tokens + added
        if self.is_post_norm:
            return tokens + block.norm2(block.mlp(tokens))
        return tokens + self._scaled(block.mlp(block.norm2(tokens)), "2")

    def _seen(self, tokens: Tensor) -> Tensor:
        return tokens if self.is_post_norm else self.block.norm1(tokens)

    def _projected(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attention
        parts: Sequence[Tensor]
        if attention.qkv is None:
            parts = (attention.q_proj(seen), attention.k_proj(seen), attention.v_proj(seen))
        elif getattr(attention, "q_bias", None) is not None:  # EVA's keys have no bias
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            parts = F.linear(seen, attention.qkv.weight, bias).chunk(3, dim=-1)
        else:
            parts = attention.qkv(seen).chunk(3, dim=-1)
        few = getattr(attention, "num_kv_heads", attention.num_heads)
        return heads_of(parts[0], attention.num_heads), heads_of(parts[1], few), heads_of(parts[2], few)

    def _rotated(self, part: Tensor, rope: Tensor) -> Tensor:
        """[B, H, N, d] with the patches rotated by their positions, prefix tokens as they are."""
        from timm.layers import apply_rot_embed_cat

        count = self.attention.num_prefix_tokens
        half = {"half": True} if getattr(self.attention, "rotate_half", False) else {}
        return torch.cat([part[:, :, :count], apply_rot_embed_cat(part[:, :, count:], rope, **half)], dim=2)

    def _scaled(self, added: Tensor, which: str) -> Tensor:
        """The layer scale, which EVA keeps as a vector, or None, and other blocks as a layer."""
        if hasattr(self.block, f"gamma_{which}"):
            gamma = getattr(self.block, f"gamma_{which}")
            return added if gamma is None else gamma * added
        return getattr(self.block, f"ls{which}")(added)
