"""Dense features of an attention tower: what it says of a patch that has nothing but itself to look at.

The value path of MaskCLIP (2112.01071): a query whose attention lies on one token alone returns the value of that token through
the output layer, whatever the query, the keys and the number of heads; queries and keys drop out. Attention is linear in its
values, so their mean, weighted as each head weighs them, is what the attention returns.

Shapes: B pictures, N tokens, W width of the tokens, E width of the attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def value_path(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """[..., W] -> [..., E]: for each token what ``attention`` returns to a query that looks at it alone."""
    width = attention.embed_dim
    packed = attention.in_proj_weight  # queries, keys and values in one, unless their inputs differ in width
    weight = attention.v_proj_weight if packed is None else packed[2 * width :]
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
    return attention.out_proj(F.linear(tokens, weight, bias))


@contextmanager
def each_token_alone(block: nn.Module) -> Iterator[None]:
    """While it lasts, each token that enters ``block`` attends to itself alone.

    ``block`` takes [B, N, W] and an additive ``attn_mask``, as the blocks of open_clip and timm do; rotary positions, scaled
    values and norms inside the attention stay what they are.
    """

    def mask(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens = inputs[0]
        length = tokens.shape[1]
        alone = torch.full((length, length), -torch.inf, dtype=tokens.dtype, device=tokens.device).fill_diagonal_(0)
        return inputs, {**keywords, "attn_mask": alone}

    handle = block.register_forward_pre_hook(mask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
