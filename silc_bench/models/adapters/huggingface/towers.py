"""Image towers of transformers, run block by block from the library's modules.

So they take any input size, and give the features before and after pooling.

All of the library's CLIP-like vision towers name their parts alike (`embeddings`, `encoder.layers`,
`layer_norm1`, `self_attn`, `layer_norm2`, `mlp`, `post_layernorm`), in every release from 4.51 on;
what their `forward` takes and returns has changed.

Shapes: B images, H x W pixels, N patches = h x w, W width of the tower, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from silc_bench.models.patch_features import (
    dense,
    heads_of,
    joint_methods,
    merge_heads,
    methods_of,
    resize_positions,
    value_path,
)


class LayeredTower:
    """What both kinds share: the library's layers one after the other.

    ``enter``, ``last``, ``normed`` and the kinds' ``joint`` are what ``patch_features.dense`` asks
    of a tower (its ``TokenTower``).
    """

    num_prefix: int
    is_attention_pooled: bool

    def __init__(self, vision: Any):
        self.vision = vision
        self.patch_size = self.step = int(vision.config.patch_size)
        self.block = HfBlock(self.vision.encoder.layers[-1])
        joint, self.lacking = joint_methods(self.is_attention_pooled, self.block, "layer")
        self.dense_methods = methods_of(len(self.vision.encoder.layers), joint)

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], None, tuple[int, int]]:
        """The tokens that enter each of the last ``count`` layers, no rotary positions, (h, w)."""
        tokens, grid = self._embedded(images)

        # only the last ``count`` are kept, so that memory does not grow with the depth
        entered = [tokens]
        for layer in self.vision.encoder.layers[:-1]:
            entered = [*entered, _through(layer, entered[-1])][-count:]
        return entered, None, grid

    def last(self, tokens: Tensor, rope: None) -> Tensor:
        return _through(self.vision.encoder.layers[-1], tokens)

    def normed(self, patches: Tensor) -> Tensor:
        """The final norm, which a library that pools a class token gives to that alone."""
        return self.vision.post_layernorm(patches)

    def dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D or W]}."""
        return dense(self, images, methods)

    def joint(self, patches: Tensor) -> Tensor:
        raise NotImplementedError

    def _embedded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, N, W] or [B, 1 + N, W] that enter the first block, and (h, w).

        What is left over at the trained size is not seen, as in the library (SigLIP So400m: 27
        patches of 14 pixels in 384).
        """
        embeddings = self.vision.embeddings
        planes = embeddings.patch_embedding(images)
        grid = tuple(planes.shape[2:])

        # the first position is a class token's, if there is one; it has no place in the image, and
        # one more does not change the root, which is rounded down
        positions = embeddings.position_embedding.weight
        side = math.isqrt(len(positions))
        resized = resize_positions(positions[self.num_prefix :], (side, side), *grid)
        tokens = planes.flatten(2).transpose(1, 2) + resized
        if not self.num_prefix:
            return tokens, grid

        # "layrnorm" is how the library spells it
        first = (embeddings.class_embedding + positions[0]).expand(len(images), 1, -1)
        return self.vision.pre_layrnorm(torch.cat([first, tokens], dim=1)), grid


class ClsTower(LayeredTower):
    """CLIP, AltCLIP, Chinese-CLIP: a class token is normalised and projected."""

    num_prefix = 1
    is_attention_pooled = False

    def __init__(self, network: Any):
        super().__init__(network.vision_model)
        self.projection = network.visual_projection
        width = self.vision.config.hidden_size
        self.feature_points = {
            "pooled": self.projection.out_features,
            "pre_projection": width,
            "mean_patch": width,
        }

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, D] or [B, W]."""
        (tokens,), _, _ = self.enter(images, 1)
        pooled = self.normed(self.last(tokens, None)[:, 0])
        return pooled if point == "pre_projection" else self.projection(pooled)

    def joint(self, patches: Tensor) -> Tensor:
        return self.projection(self.vision.post_layernorm(patches))


class MapTower(LayeredTower):
    """SigLIP, and SigLIP 2 of one resolution: a learned query pools the patches.

    Nothing is projected after it.
    """

    num_prefix = 0
    is_attention_pooled = True

    def __init__(self, network: Any):
        super().__init__(network.vision_model)
        width = self.vision.config.hidden_size
        self.feature_points = {"pooled": width, "mean_patch": width}

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, W]."""
        (tokens,), _, _ = self.enter(images, 1)
        return self.vision.head(self.normed(self.last(tokens, None)))

    def joint(self, patches: Tensor) -> Tensor:
        # as the head does after its attention, whose residual begins behind the query
        head = self.vision.head
        patches = value_path(head.attention, self.vision.post_layernorm(patches))
        return patches + head.mlp(head.layernorm(patches))


class HfBlock:
    """A layer of one of these towers taken apart."""

    def __init__(self, layer: Any):
        self.layer = layer

    def split(self, tokens: Tensor, rope: None) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.layer.self_attn
        inputs = self.layer.layer_norm1(tokens)
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (heads_of(layer(inputs), attention.num_heads) for layer in layers)
        return q, k, v

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        return self.layer.self_attn.out_proj(merge_heads(values))

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        tokens = tokens + added
        return tokens + self.layer.mlp(self.layer.layer_norm2(tokens))


def embedding_of(output: Any) -> Tensor:
    """[B, D] from what `get_text_features` returns.

    That is a tensor in transformers 4; in 5 it is an output whose pooled part is meant.
    """
    return output if isinstance(output, Tensor) else output.pooler_output


def _through(layer: Any, tokens: Tensor) -> Tensor:
    """One layer, part by part, because what the layer's ``forward`` returns has changed."""
    tokens = tokens + layer.self_attn(layer.layer_norm1(tokens))[0]
    return tokens + layer.mlp(layer.layer_norm2(tokens))
