"""A transformer of timm up to its last block: what ``towers.dense`` needs of it, beside its own ``forward_features``.

Flow: ``trunk_tokens(trunk)`` -> ``enter`` runs a second view of the trunk whose last block and norm are left out; it shares
every weight, buffer and layer with the trunk, so it moves to a device with it.

Shapes: B pictures, N tokens, prefix tokens first, W width.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from silc_bench.models.blocks import block_of

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
        self._before.__dict__["_modules"] = dict(trunk._modules)  # the copy's own, so that the trunk keeps its parts
        self._before.blocks = nn.Sequential(*self.blocks[:-1], self._end)
        self._before.norm = nn.Identity()

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], Any]:
        """[B, N, W] that enter each of the last ``count`` blocks, and the last one's rotary positions."""
        entered: list[Tensor] = []
        seen = self.blocks[-count:-1]
        handles = [block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])) for block in seen]
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
    """In the last block's place: its input goes on, and the rotary positions that come with it are kept."""

    rope: Any = None

    def forward(self, tokens: Tensor, rope: Any = None, **others: Any) -> Tensor:
        self.rope = rope
        return tokens


def trunk_tokens(trunk: Network) -> TrunkTokens | None:
    """None for a trunk of another course."""
    return TrunkTokens(trunk) if is_known_course(trunk) else None


def is_known_course(trunk: Network) -> bool:
    """Whether ``forward_features`` is one of timm's two that go: embed, ``blocks`` one after another, ``norm``."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    known = (VisionTransformer.forward_features, Eva.forward_features)
    return getattr(type(trunk), "forward_features", None) in known
