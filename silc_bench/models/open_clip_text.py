"""Text towers of open_clip without the padding that no answer depends on.

A causal tower reads left to right and is pooled at the end of the text: what stands behind the longest text of a batch changes
nothing. A batch is cut there (77 tokens to a dozen, for prompts), exactly; towers that see their padding are left whole.

Shapes: B texts, L tokens, W width, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Network = Any  # a CLIP, CustomTextCLIP or CoCa of open_clip
POOLS = ("argmax", "eos")  # at the end of the text: the largest id, or a given one


def encoder_of(network: Network) -> Callable[[Tensor], Tensor]:
    """[B, L] -> [B, D], as ``network.encode_text(tokens, normalize=False)``."""
    tower: Any = getattr(network, "text", network)
    pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    eos_id: Any = getattr(tower, "text_eos_id", None) if tower is network else getattr(tower, "eos_id", None)
    sees_padding = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
    if pool not in POOLS or sees_padding or getattr(tower, "attn_mask", None) is None:
        return lambda tokens: network.encode_text(tokens, normalize=False)

    def encode(tokens: Tensor) -> Tensor:
        ends = tokens.argmax(dim=-1) if pool == "argmax" else tokens.eq(eos_id).int().argmax(dim=-1)
        length = int(ends.max()) + 1
        x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    return encode
