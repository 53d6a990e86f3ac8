"""The vision tower of `trainer.model`, as ``towers.dense`` wants it: no class token, a MAP head, no projection after it.

Shapes: B pictures, N = h x w patches, W width (= D).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from silc_bench.models.towers import heads_of, joint_methods, methods_of, without_heads


class NativeTower:
    """One branch's tower; ``vision`` is a ``trainer.model.VisionTower``."""

    num_prefix = 0
    is_attention_pooled = True

    def __init__(self, vision: Any):
        self.vision = vision
        self.block = NativeBlock(vision.blocks[-1])
        joint, self.lacking = joint_methods(True, self.block, "Block")
        self.dense_methods = methods_of(len(vision.blocks), joint)

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], None, tuple[int, int]]:
        entered = [self.vision.embed(images)]
        for block in self.vision.blocks[:-1]:
            entered = [*entered, block(entered[-1])][-count:]
        patch = self.vision.patch_size
        return entered, None, (images.shape[2] // patch, images.shape[3] // patch)

    def last(self, tokens: Tensor, rope: None) -> Tensor:
        return self.vision.blocks[-1](tokens)

    def normed(self, patches: Tensor) -> Tensor:
        return self.vision.norm(patches)

    def joint(self, patches: Tensor) -> Tensor:
        return self.vision.pool.per_patch(self.vision.norm(patches))


class NativeBlock:
    """`trainer.model.Block` taken apart."""

    def __init__(self, block: Any):
        self.block = block

    def split(self, tokens: Tensor, rope: None) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.block.attention
        q, k, v = attention.qkv(self.block.norm1(tokens)).chunk(3, dim=-1)
        return heads_of(q, attention.num_heads), heads_of(k, attention.num_heads), heads_of(v, attention.num_heads)

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        return self.block.attention.out(without_heads(values))

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        tokens = tokens + added
        return tokens + self.block.mlp(self.block.norm2(tokens))
