"""Image towers of transformers, run block by block from the library's modules: any input size, pooled, before and after.

All of the library's CLIP-like vision towers name their parts alike (`embeddings`, `encoder.layers`, `layer_norm1`, `self_attn`,
`layer_norm2`, `mlp`, `post_layernorm`), in every release from 4.51 on; what their `forward` takes and returns has changed.

Shapes: B pictures, N patches = h x w, W width of the tower, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.positions import resize_positions
from silc_bench.models.towers import value_path


class ClsTower:
    """CLIP, AltCLIP, Chinese-CLIP: a class token is normalised and projected."""

    def __init__(self, network: Any):
        self.vision, self.projection = network.vision_model, network.visual_projection
        self.patch_size = int(self.vision.config.patch_size)
        width = self.vision.config.hidden_size
        self.feature_points = {"pooled": self.projection.out_features, "pre_projection": width, "mean_patch": width}

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, D] or [B, W]."""
        tokens, _ = self._tokens(images)
        tokens = _through(self.vision.encoder.layers, tokens)
        if point == "mean_patch":
            return self.vision.post_layernorm(tokens[:, 1:]).mean(dim=1)
        pooled = self.vision.post_layernorm(tokens[:, 0])
        return pooled if point == "pre_projection" else self.projection(pooled)

    def dense(self, images: Tensor, joint: bool) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, D]: the last block with each patch looking at itself alone (2112.01071), final norm,
        projection; else [B, h, w, W] after the final norm, which the library gives to the class token only."""
        tokens, grid = self._tokens(images)
        *blocks, last = self.vision.encoder.layers
        tokens = _through(blocks, tokens)
        if joint:
            patches = tokens[:, 1:]
            patches = patches + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(patches)))
            patches = patches + last.mlp(last.layer_norm2(patches))
            patches = self.projection(self.vision.post_layernorm(patches))
        else:
            patches = self.vision.post_layernorm(_through([last], tokens)[:, 1:])
        return patches.unflatten(1, grid)

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, 1 + N, W] that enter the first block, and (h, w)."""
        embeddings = self.vision.embeddings
        patches, grid = _patches(embeddings, images)
        positions = embeddings.position_embedding.weight
        resized = resize_positions(positions[1:], _trained_grid(embeddings), *grid)
        first = (embeddings.class_embedding + positions[0]).expand(len(images), 1, -1)
        return self.vision.pre_layrnorm(torch.cat([first, patches + resized], dim=1)), grid


class MapTower:
    """SigLIP, and SigLIP 2 of one resolution: a learned query pools the patches; nothing is projected after it."""

    def __init__(self, network: Any):
        self.vision = network.vision_model
        self.patch_size = int(self.vision.config.patch_size)
        width = self.vision.config.hidden_size
        self.feature_points = {"pooled": width, "mean_patch": width}

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, W]."""
        tokens, _ = self._tokens(images)
        return tokens.mean(dim=1) if point == "mean_patch" else self.vision.head(tokens)

    def dense(self, images: Tensor, joint: bool) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, W]: the pooling head as if all its attention lay on one patch, or the tokens themselves."""
        tokens, grid = self._tokens(images)
        if joint:
            head = self.vision.head
            tokens = value_path(head.attention, tokens)
            tokens = tokens + head.mlp(head.layernorm(tokens))
        return tokens.unflatten(1, grid)

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, N, W] after the final norm, and (h, w)."""
        embeddings = self.vision.embeddings
        patches, grid = _patches(embeddings, images)
        resized = resize_positions(embeddings.position_embedding.weight, _trained_grid(embeddings), *grid)
        tokens = _through(self.vision.encoder.layers, patches + resized)
        return self.vision.post_layernorm(tokens), grid


def embedding_of(output: Any) -> Tensor:
    """[B, D] from what `get_text_features` returns: a tensor in transformers 4, an output whose pooled part it is in 5."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _through(blocks: Any, tokens: Tensor) -> Tensor:
    for block in blocks:
        tokens = tokens + block.self_attn(block.layer_norm1(tokens))[0]
        tokens = tokens + block.mlp(block.layer_norm2(tokens))
    return tokens


def _patches(embeddings: Any, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """[B, 3, H, W] -> [B, N, W] without positions, and (h, w). What is left over at the trained size is not seen, as in the
    library (SigLIP So400m: 27 patches of 14 pixels in 384).

    Raises:
        UserError: another size that does not divide into patches.
    """
    conv: nn.Conv2d = embeddings.patch_embedding
    height, width, patch, size = *images.shape[-2:], embeddings.patch_size, embeddings.image_size
    if (height % patch or width % patch) and (height, width) != (size, size):
        raise UserError(f"pictures of {height} x {width} pixels do not divide into patches of {patch}")
    grid = height // patch, width // patch
    return conv(images).flatten(2).transpose(1, 2), grid


def _trained_grid(embeddings: Any) -> tuple[int, int]:
    side = math.isqrt(embeddings.position_embedding.weight.shape[0])  # one more for a class token leaves the root as it is
    return side, side
