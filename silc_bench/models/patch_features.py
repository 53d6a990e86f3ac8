"""Dense features of an attention tower: one pass up to its last block, then each method from there.

Flow: an adapter describes its tower as a ``TokenTower`` -> ``dense(tower, images, methods)`` ->
{method: [B, h, w, D or W]}. ``resize_positions`` fits the position embeddings of a trained grid to
images of another size.

What the methods do in the last block, with q, k, v of each head, d their width, and the norm before
attention kept:

- maskclip (Zhou et al., 2112.01071; the ViT of its code, ``return_qkv``): each token returns its
  own v, through the output layer; residual and FFN stay. A query whose attention lies on one token
  alone returns just that.
- sclip (Wang et al., 2312.01597; wangf3014/SCLIP clip/model.py): softmax(q q^T / sqrt(d)) v +
  softmax(k k^T / sqrt(d)) v; residual and FFN stay. The two are summed, not averaged.
- naclip (Hajimiri et al., 2404.08181; sinahmr/NACLIP clip/model.py, its "reduced" one): softmax(k
  k^T / sqrt(d) + G) v alone, no residual, no FFN; G = exp(-distance^2 / (2 * 5^2)) between two
  patches, in patches, and 0 to the class token.
- clearclip (Lan et al., 2407.12442; mc-lan/ClearCLIP open_clip/transformer.py): softmax(q q^T /
  sqrt(d)) v alone, no residual, no FFN.

In all three codes the class token is among the keys, and the tower's last norm and projection
follow. A layer scale belongs to what attention adds, so it stays where the residual goes (the three
papers' models have none).

Attention pooling (a MAP head) has a value path of its own: each patch as if all the pooling's
attention lay on it. There maskclip is that path after the unmodified last block, and the other
three change the last block and then take the same path. Averaged with the pooling's weights, head
by head and before the output layer, its values give the image embedding.

Shapes: B images, N tokens = prefix tokens and h x w patches, W width of the tokens, H heads of d,
D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.interface import JOINT

# Methods that replace the attention of the last block, whatever pools it; of these, the ones
# without residual and FFN.
CHANGED = ("sclip", "naclip", "clearclip")
ALONE = ("naclip", "clearclip")

NEIGHBOURHOOD = 5.0  # patches: the standard deviation of naclip's G
POOLED_BY_ATTENTION = (
    "its patches meet text through attention pooling, so their plain path is maskclip"
)


class LastBlock(Protocol):
    """A transformer block in three parts, so that its attention can be another."""

    def split(self, tokens: Tensor, rope: Any) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, W] that enter the block -> q, k, v [B, H, N, d].

        They are normed and rotated where the block does so.
        """
        ...

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        """What the attention adds to ``tokens`` [B, N, W], given its mixed values [B, H, N, d]."""
        ...

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        """The residual, and the FFN with its own: [B, N, W] as they leave the block."""
        ...


class TokenTower(Protocol):
    """A tower of blocks over tokens, the prefix tokens first."""

    num_prefix: int  # class and register tokens
    is_attention_pooled: bool

    @property
    def block(self) -> LastBlock | None:
        """The last one, or None where it cannot be taken apart."""
        ...

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], Any, tuple[int, int]]:
        """What enters the last ``count`` blocks, and what the last one needs.

        The tokens [B, N, W] that enter each of them, the last block's rotary positions, and (h, w).
        """
        ...

    def last(self, tokens: Tensor, rope: Any) -> Tensor:
        """The last block as it is."""
        ...

    def normed(self, patches: Tensor) -> Tensor:
        """[B, h * w, W] as they leave a block -> as "tokens" gives them."""
        ...

    def joint(self, patches: Tensor) -> Tensor:
        """[B, h * w, W] as they leave the last block -> [B, h * w, D] in the space of text."""
        ...


def dense(tower: TokenTower, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
    """[B, 3, H, W] -> {method: [B, h, w, D]}, each of ``methods`` after one pass.

    The width is W for "tokens" and N * W for "tokens:N", the earliest of the N blocks first. Each
    of ``methods`` is one that this tower can do (``check_methods``).
    """
    entered, rope, grid = tower.enter(images, max(map(num_layers, methods)))
    leaving = None  # the last block's own output, computed when the first method needs it
    features = {}

    for method in methods:
        # With attention pooling maskclip is the value path of the pooling, not of the last block.
        changes_block = method in CHANGED or (
            method == "maskclip" and not tower.is_attention_pooled
        )
        if changes_block:
            assert tower.block is not None, method
            changed = _changed(tower.block, entered[-1], method, grid, tower.num_prefix, rope)
            patches = tower.joint(changed)
        else:
            if leaving is None:
                leaving = tower.last(entered[-1], rope)

            # What enters a block left the one before it, so the outputs are the inputs but the
            # first, and the last block's own output.
            outputs = [tokens[:, tower.num_prefix :] for tokens in [*entered[1:], leaving]]
            if method in ("plain", "maskclip"):
                patches = tower.joint(outputs[-1])
            else:
                chosen = outputs[-num_layers(method) :]
                patches = torch.cat([tower.normed(layer) for layer in chosen], dim=-1)

        features[method] = patches.unflatten(1, grid).float()

    return features


def num_layers(method: str) -> int:
    """1 for "tokens" and the joint methods, 4 for "tokens:4"."""
    name, colon, count = method.partition(":")
    return int(count) if name == "tokens" and colon and count.isdecimal() else 1


def methods_of(num_blocks: int, joint: Sequence[str]) -> tuple[str, ...]:
    """All that a tower of ``num_blocks`` blocks can do, given its joint methods."""
    return ("tokens", *(f"tokens:{count}" for count in range(2, num_blocks + 1)), *joint)


def joint_methods(
    is_attention_pooled: bool, block: LastBlock | None, kind: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """What a tower can do in the space shared with text, and {method: why not} for the rest.

    Args:
        kind: the class of its last block, for the reason.
    """
    lacking = {"plain": POOLED_BY_ATTENTION} if is_attention_pooled else {}
    possible = tuple(method for method in JOINT if method not in lacking)
    if block is not None:
        return possible, lacking

    # One method needs nothing from inside the last block: it takes what leaves it.
    outside = "maskclip" if is_attention_pooled else "plain"
    reason = f"nobody has taken its last block, a {kind}, apart to change its attention"
    closed = {method: reason for method in possible if method != outside}
    return (outside,), {**closed, **lacking}


def check_methods(
    name: str, methods: Sequence[str], can: Sequence[str], why: Mapping[str, str]
) -> None:
    """Refuse the first of ``methods`` that is not among ``can``.

    Raises:
        UserError: names the method, the reason in ``why`` where it is known, and what ``name``
            can do.
    """
    refused = next((method for method in methods if method not in can), None)
    if refused is None:
        return

    # "tokens:2", "tokens:3", ... of a deep tower are listed by their range alone
    counts = [num_layers(known) for known in can if ":" in known]
    listed = ", ".join(known for known in can if ":" not in known)
    reason = why.get(refused, "")
    if counts:
        listed += f", and tokens:N of its last 2 to {max(counts)} blocks"
    elif num_layers(refused) > 1:
        reason = "its features leave no blocks of one width"

    because = f": {reason}" if reason else ""
    raise UserError(
        f"cannot give dense features by {refused!r}{because}",
        about=name,
        fix=f"choose from {listed}",
    )


def value_path(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """[..., W] -> [..., E]: what ``attention`` returns to a query that looks at one token alone."""
    width = attention.embed_dim

    # Queries, keys and values are packed in one weight, unless their inputs differ in width; the
    # bias is packed always.
    packed = attention.in_proj_weight
    weight = attention.v_proj_weight if packed is None else packed[2 * width :]
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]

    return attention.out_proj(F.linear(tokens, weight, bias))


def heads_of(tokens: Tensor, num_heads: int) -> Tensor:
    """[B, N, H * d] -> [B, H, N, d]."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(values: Tensor) -> Tensor:
    """[B, H, N, d] -> [B, N, H * d]."""
    return values.transpose(1, 2).flatten(2)


def neighbourhood(grid: tuple[int, int], num_prefix: int) -> Tensor:
    """naclip's G, fp32 [h * w, num_prefix + h * w]: a row a patch, a column a token."""
    # The Gaussian of a squared distance is a product over rows and columns, so two small matrices
    # and their Kronecker product make the whole.
    near = []
    for side in grid:
        places = torch.arange(side, dtype=torch.float32)
        near.append(torch.exp(-((places[:, None] - places) ** 2) / (2 * NEIGHBOURHOOD**2)))
    return F.pad(torch.kron(*near), (num_prefix, 0))


def resize_positions(positions: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """[h0 * w0, W] on ``grid`` = (h0, w0) -> [height * width, W], bicubic and antialiased.

    The trained size stays as it is. This is the choice of open_clip (``resize_pos_embed``) and timm
    (``resample_abs_pos_embed``); transformers interpolates without antialiasing, which differs
    where a grid shrinks. Computed in fp32, returned in the dtype of ``positions``.
    """
    if grid == (height, width):
        return positions

    planes = positions.float().view(1, *grid, -1).permute(0, 3, 1, 2)  # [1, W, h0, w0]
    planes = F.interpolate(
        planes, size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return planes.flatten(2)[0].T.to(positions.dtype)


def _changed(
    block: LastBlock, tokens: Tensor, method: str, grid: tuple[int, int], num_prefix: int, rope: Any
) -> Tensor:
    """[B, N, W] that enter the last block -> [B, h * w, W], with the attention of ``method``."""
    # softmax(q k^T / sqrt(d) + attn_mask) v, of which the [N, N] is never kept
    attend = F.scaled_dot_product_attention

    # Only patches ask, but every token is a key: the class token too, as in the papers' code.
    q, k, v = block.split(tokens, rope)
    own_q = q[:, :, num_prefix:]
    own_k = k[:, :, num_prefix:]
    patches = tokens[:, num_prefix:]

    if method == "maskclip":
        values = v[:, :, num_prefix:]
    elif method == "sclip":
        values = attend(own_q, q, v) + attend(own_k, k, v)
    elif method == "naclip":
        values = attend(own_k, k, v, attn_mask=neighbourhood(grid, num_prefix).to(q))
    else:
        values = attend(own_q, q, v)

    added = block.join(patches, values)
    return added if method in ALONE else block.finish(patches, added)
