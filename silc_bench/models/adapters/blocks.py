"""Blocks of open_clip and timm taken apart: queries, keys and values of a block, and what the block
does after its attention.

Flow: ``block_of(tower's last block)`` -> a ``LastBlock`` (``towers``), or None for a kind that
nobody has taken apart.

Each part is the library's own layer, called as the library's forward calls it, in evaluation:
dropout and stochastic depth do nothing.

Shapes: B pictures, N tokens, W width of the tokens, H heads of d.

A transformer of timm up to its last block: what ``towers.dense`` needs of it, beside its own
``forward_features``.

Flow: ``trunk_tokens(trunk)`` -> ``enter`` runs a second view of the trunk whose last block and norm
are left out; it shares every weight, buffer and layer with the trunk, so it moves to a device with
it.

Shapes: B pictures, N tokens, prefix tokens first, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silc_bench.models.patch_features import LastBlock, heads_of, merge_heads

OPEN_CLIP = ("ResidualAttentionBlock", "CustomResidualAttentionBlock")
TIMM = ("Block", "EvaBlock", "EvaBlockPostNorm")
TIMM_ATTENTION = ("Attention", "EvaAttention", "AttentionRope")


def block_of(block: nn.Module) -> LastBlock | None:
    """The parts of a block of open_clip or timm."""
    home, kind = type(block).__module__.partition(".")[0], type(block).__name__
    attention = getattr(block, "attn", None)
    if (
        home == "open_clip"
        and kind in OPEN_CLIP
        and getattr(attention, "logit_scale", None) is None
    ):
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
            return block.ls_1(attention.out_proj(merge_heads(values)))
        if attention.head_scale is not None:
            values = values * attention.head_scale
        return block.ls_1(
            block.ln_attn(attention.out_proj(attention.ln_inner(merge_heads(values))))
        )

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
        groups = getattr(
            attention, "num_kv_groups", 1
        )  # heads of queries that share one of keys and values
        return q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        attention = self.attention
        mixed = merge_heads(values)
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
        return (
            heads_of(parts[0], attention.num_heads),
            heads_of(parts[1], few),
            heads_of(parts[2], few),
        )

    def _rotated(self, part: Tensor, rope: Tensor) -> Tensor:
        """[B, H, N, d] with the patches rotated by their positions, prefix tokens as they are."""
        from timm.layers import apply_rot_embed_cat

        count = self.attention.num_prefix_tokens
        half = {"half": True} if getattr(self.attention, "rotate_half", False) else {}
        return torch.cat(
            [part[:, :, :count], apply_rot_embed_cat(part[:, :, count:], rope, **half)], dim=2
        )

    def _scaled(self, added: Tensor, which: str) -> Tensor:
        """The layer scale, which EVA keeps as a vector, or None, and other blocks as a layer."""
        if hasattr(self.block, f"gamma_{which}"):
            gamma = getattr(self.block, f"gamma_{which}")
            return added if gamma is None else gamma * added
        return getattr(self.block, f"ls{which}")(added)


Network = Any  # a torch module with timm's names, which its base class does not declare


class TrunkTokens:
    """The trunk's tokens before its last block, and that block."""

    def __init__(self, trunk: Network):
        self.trunk = trunk
        self.blocks = list(trunk.blocks)
        self.block = block_of(self.blocks[-1])
        self.is_rotary = getattr(trunk, "rope", None) is not None
        self._end = _End()
        self._before = copy.copy(trunk)
        self._before.__dict__["_modules"] = dict(
            trunk._modules
        )  # the copy's own, so that the trunk keeps its parts
        self._before.blocks = nn.Sequential(*self.blocks[:-1], self._end)
        self._before.norm = nn.Identity()

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], Any]:
        """[B, N, W] that enter each of the last ``count`` blocks, and the last one's rotary
        positions.
        """
        entered: list[Tensor] = []
        seen = self.blocks[-count:-1]
        handles = [
            block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
            for block in seen
        ]
        try:
            entered.append(self._before.forward_features(images))
            return entered, self._end.rope
        finally:
            self._end.rope = None
            for handle in handles:
                handle.remove()

    def last(self, tokens: Tensor, rope: Any) -> Tensor:
        """[B, N, W] as they leave the last block."""
        return self.blocks[-1](tokens, rope=rope) if self.is_rotary else self.blocks[-1](tokens)


class _End(nn.Module):
    """In the last block's place: its input goes on, and the rotary positions that come with it are
    kept.
    """

    rope: Any = None

    def forward(self, tokens: Tensor, rope: Any = None, **others: Any) -> Tensor:
        self.rope = rope
        return tokens


def trunk_tokens(trunk: Network) -> TrunkTokens | None:
    """None for a trunk of another course."""
    return TrunkTokens(trunk) if is_known_course(trunk) else None


def is_known_course(trunk: Network) -> bool:
    """Whether ``forward_features`` is one of timm's two that go: embed, ``blocks`` one after
    another, ``norm``.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    known = (VisionTransformer.forward_features, Eva.forward_features)
    return getattr(type(trunk), "forward_features", None) in known
