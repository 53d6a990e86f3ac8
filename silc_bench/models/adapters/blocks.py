"""Transformers of open_clip and timm taken apart, for what dense features change in them.

Two flows, which ``silc_bench.models.patch_features`` and the adapters call:

- ``block_of(tower's last block)`` -> a ``LastBlock`` of ``patch_features`` (queries, keys and
  values of a block, and what the block does after its attention), or None for a kind that nobody
  has taken apart. Each part is the library's own layer, called as the library's forward calls it,
  in evaluation: dropout and stochastic depth do nothing.
- ``trunk_tokens(trunk)`` -> a transformer of timm up to its last block, by its own
  ``forward_features``. ``enter`` runs a second view of the trunk whose last block and norm are left
  out. The view shares every weight, buffer and layer with the trunk, so it moves to a device with
  it.

Shapes: B images, N tokens (prefix tokens first), W width of the tokens, H heads of d.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silc_bench.models.patch_features import LastBlock, heads_of, merge_heads

# Classes whose forward was read. One of another name may do something else between its layers.
OPEN_CLIP = ("ResidualAttentionBlock", "CustomResidualAttentionBlock")
TIMM = ("Block", "EvaBlock", "EvaBlockPostNorm")
TIMM_ATTENTION = ("Attention", "EvaAttention", "AttentionRope")

Network = Any  # a torch module with timm's names, which its base class does not declare


def block_of(block: nn.Module) -> LastBlock | None:
    """The parts of a block of open_clip or timm."""
    home = type(block).__module__.partition(".")[0]
    kind = type(block).__name__
    attention = getattr(block, "attn", None)

    # attention with a scale of its own (cosine attention) is not q k^T / sqrt(d)
    has_own_scale = getattr(attention, "logit_scale", None) is not None
    if home == "open_clip" and kind in OPEN_CLIP and not has_own_scale:
        return OpenClipBlock(block)
    if home == "timm" and kind in TIMM and type(attention).__name__ in TIMM_ATTENTION:
        return TimmBlock(block)
    return None


class OpenClipBlock:
    """open_clip's block over torch's attention, or over its own with norms and scales of heads."""

    def __init__(self, block: Any):
        self.block = block
        self.attention = block.attn

    def split(self, tokens: Tensor, rope: Any) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attention
        packed = F.linear(self.block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (heads_of(part, attention.num_heads) for part in packed.chunk(3, dim=-1))
        if isinstance(attention, nn.MultiheadAttention):
            return q, k, v

        # open_clip's own attention norms queries and keys
        return attention.ln_q(q), attention.ln_k(k), v

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        block = self.block
        attention = self.attention
        if isinstance(attention, nn.MultiheadAttention):
            return block.ls_1(attention.out_proj(merge_heads(values)))

        if attention.head_scale is not None:
            values = values * attention.head_scale
        added = attention.out_proj(attention.ln_inner(merge_heads(values)))
        return block.ls_1(block.ln_attn(added))

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        tokens = tokens + added
        return tokens + self.block.ls_2(self.block.mlp(self.block.ln_2(tokens)))


class TimmBlock:
    """timm's block, plain or EVA's, its norms before the layers or after them."""

    def __init__(self, block: Any):
        self.block = block
        self.attention = block.attn
        self.is_post_norm = type(block).__name__ == "EvaBlockPostNorm"

    def split(self, tokens: Tensor, rope: Any) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attention
        q, k, v = self._projected(self._attention_input(tokens))
        q = attention.q_norm(q)
        k = attention.k_norm(k)

        # rotary positions are fp32: without the cast queries would leave the values' precision
        if rope is not None:
            q = self._rotated(q, rope).type_as(v)
            k = self._rotated(k, rope).type_as(v)

        # with grouped queries several heads of queries share one of keys and values
        groups = getattr(attention, "num_kv_groups", 1)
        return q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        attention = self.attention
        mixed = merge_heads(values)

        # EVA's attention may norm what it mixed, others may gate it by what they read
        if getattr(attention, "norm", None) is not None:
            mixed = attention.norm(mixed)
        if getattr(attention, "gate", None) is not None:
            mixed = mixed * attention.gate(self._attention_input(tokens)).sigmoid()

        added = attention.proj(mixed)
        return self.block.norm1(added) if self.is_post_norm else self._scaled(added, "1")

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        block = self.block
        tokens = tokens + added
        if self.is_post_norm:
            return tokens + block.norm2(block.mlp(tokens))
        return tokens + self._scaled(block.mlp(block.norm2(tokens)), "2")

    def _attention_input(self, tokens: Tensor) -> Tensor:
        return tokens if self.is_post_norm else self.block.norm1(tokens)

    def _projected(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, W] -> q [B, H, N, d], k and v [B, heads of keys, N, d]."""
        attention = self.attention
        parts: Sequence[Tensor]
        if attention.qkv is None:
            parts = (attention.q_proj(inputs), attention.k_proj(inputs), attention.v_proj(inputs))
        elif getattr(attention, "q_bias", None) is not None:
            # EVA's keys have no bias: the layer holds none, and a buffer of zeros fills the gap
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            parts = F.linear(inputs, attention.qkv.weight, bias).chunk(3, dim=-1)
        else:
            parts = attention.qkv(inputs).chunk(3, dim=-1)

        q, k, v = parts
        num_kv_heads = getattr(attention, "num_kv_heads", attention.num_heads)
        return (
            heads_of(q, attention.num_heads),
            heads_of(k, num_kv_heads),
            heads_of(v, num_kv_heads),
        )

    def _rotated(self, part: Tensor, rope: Tensor) -> Tensor:
        """[B, H, N, d] with the patches rotated by their positions, prefix tokens as they are."""
        from timm.layers import apply_rot_embed_cat

        num_prefix = self.attention.num_prefix_tokens
        prefix, patches = part[:, :, :num_prefix], part[:, :, num_prefix:]

        # releases of timm that know one layout only do not take the argument
        layout = {"half": True} if getattr(self.attention, "rotate_half", False) else {}
        return torch.cat([prefix, apply_rot_embed_cat(patches, rope, **layout)], dim=2)

    def _scaled(self, added: Tensor, which: str) -> Tensor:
        """The layer scale: a vector or None in EVA, a layer in other blocks."""
        if hasattr(self.block, f"gamma_{which}"):
            gamma = getattr(self.block, f"gamma_{which}")
            return added if gamma is None else gamma * added
        return getattr(self.block, f"ls{which}")(added)


def places_of(trunk: Network, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """What `forward_features` of a trunk gives -> [B, h, w, W]; a map has a grid of its own."""
    if features.dim() == 3:
        return features[:, trunk.num_prefix_tokens :].unflatten(1, grid)
    return features if is_channels_last(trunk) else features.permute(0, 2, 3, 1)


def is_channels_last(trunk: Network) -> bool:
    """The order of a map, which most trunks give as [B, W, h, w]."""
    return str(getattr(trunk, "output_fmt", "NCHW")) == "NHWC"


@contextmanager
def inputs_of(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The tokens that enter each of the blocks within."""
    entered: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        for block in blocks
    ]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def trunk_tokens(trunk: Network) -> TrunkTokens | None:
    """None for a trunk whose ``forward_features`` takes other steps (``is_known_course``)."""
    return TrunkTokens(trunk) if is_known_course(trunk) else None


def is_known_course(trunk: Network) -> bool:
    """Whether ``forward_features`` is one of timm's two that embed, run the blocks, then norm."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    known = (VisionTransformer.forward_features, Eva.forward_features)
    return getattr(type(trunk), "forward_features", None) in known


class TrunkTokens:
    """The trunk's tokens before its last block, and that block."""

    def __init__(self, trunk: Network):
        self.trunk = trunk
        self.blocks = list(trunk.blocks)
        self.block = block_of(self.blocks[-1])
        self.is_rotary = getattr(trunk, "rope", None) is not None

        # A shallow copy shares the dictionary of parts; with one of its own the view can leave out
        # parts that the trunk keeps.
        self._end = _End()
        self._before = copy.copy(trunk)
        self._before.__dict__["_modules"] = dict(trunk._modules)
        self._before.blocks = nn.Sequential(*self.blocks[:-1], self._end)
        self._before.norm = nn.Identity()

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], Any]:
        """[B, N, W] that enter each of the last ``count`` blocks, and the last one's positions.

        The positions are rotary ones, or None.
        """
        with inputs_of(self.blocks[-count:-1]) as entered:
            # what leaves the view would have entered the last block
            entered.append(self._before.forward_features(images))

        rope, self._end.rope = self._end.rope, None
        return entered, rope

    def last(self, tokens: Tensor, rope: Any) -> Tensor:
        """[B, N, W] as they leave the last block."""
        return self.blocks[-1](tokens, rope=rope) if self.is_rotary else self.blocks[-1](tokens)


class _End(nn.Module):
    """Stands in the last block's place: passes its input on and keeps the rotary positions."""

    rope: Any = None

    def forward(self, tokens: Tensor, rope: Any = None, **others: Any) -> Tensor:
        self.rope = rope
        return tokens
