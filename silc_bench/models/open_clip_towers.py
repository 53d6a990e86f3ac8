"""The image towers of open_clip at any picture size, pooled and dense: its own ViT and ResNet, and networks of timm.

Flow: ``tower_of(model.visual, image_size)`` -> ``pooled``, ``pre_projection`` and ``patches`` of a batch of pictures.

At the trained size and at every other one ``pooled`` is the library's own forward; only position embeddings are resized, and
no weight is changed. In the space shared with text a patch is what the tower would give if it alone were pooled:
- class token (CLIP, EVA): the last block with each patch attending to itself alone, norm, projection (MaskCLIP, 2112.01071);
- attention pooling (SigLIP, CoCa, CLIP's ResNets): the value path of the pooling, then norm and projection;
- mean (CLIPA, ConvNeXt, FastViT): norm and projection of each patch.

Shapes: B pictures, H x W pixels, P pixels a patch, h x w patches, W width of the tower, D embedding.
"""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from silc_bench.errors import UserError
from silc_bench.models.positions import resize_positions
from silc_bench.models.towers import each_token_alone, value_path

Network = Any  # a module of open_clip or timm, whose parts their base class does not declare


class VitTower:
    """open_clip's VisionTransformer: pooled by its class token, by the mean of its patches, or by attention (CoCa)."""

    is_fixed_size = False

    def __init__(self, visual: Network):
        if getattr(visual, "attn_pool_contrastive", None) is not None:  # a second pooling, of which patches would see one
            raise UserError(f"an image tower pooled twice (attentional_pool {visual.attn_pool_type!r}) is not supported")
        if visual.pool_type == "none":
            raise UserError("an image tower that gives tokens instead of one embedding (pool_type 'none') is not supported")
        self.visual = visual
        self.patch_size = int(visual.patch_size[0])
        self.points = {"pre_projection": visual.proj.shape[0], "mean_patch": visual.transformer.width}

    def pooled(self, images: Tensor) -> Tensor:
        return self._forward(images, {})

    def pre_projection(self, images: Tensor) -> Tensor:
        return self._forward(images, {"proj": torch.eye(len(self.visual.proj)).to(self.visual.proj)})

    def patches(self, images: Tensor, joint: bool) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, D or W]."""
        visual = self.visual
        is_class_token = visual.attn_pool is None and visual.pool_type == "tok"
        tokens = self._tokens(images, last_alone=joint and is_class_token)[:, 1:]
        if joint and visual.attn_pool is not None:
            tokens = value_path(visual.attn_pool.attn, visual.attn_pool.ln_k(tokens))
        if joint:
            tokens = visual.ln_post(tokens) @ visual.proj
        elif visual.attn_pool is None and not visual.final_ln_after_pool:  # elsewhere the norm never saw a patch
            tokens = visual.ln_post(tokens)
        return tokens.unflatten(1, self._grid(images))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _positions(self, images: Tensor) -> Tensor:
        """[1 + h * w, W]."""
        positions = self.visual.positional_embedding
        if self._grid(images) == self.visual.grid_size:
            return positions
        return torch.cat([positions[:1], resize_positions(positions[1:], self.visual.grid_size, *self._grid(images))])

    def _forward(self, images: Tensor, instead: dict[str, Tensor]) -> Tensor:
        output = functional_call(self.visual, {"positional_embedding": self._positions(images), **instead}, (images,))
        return output[0] if isinstance(output, tuple) else output  # CoCa gives its tokens too

    def _tokens(self, images: Tensor, last_alone: bool) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + h * w, W] as they leave the last block."""
        visual = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = visual.ln_pre(x + self._positions(images).to(x.dtype))
        with each_token_alone(visual.transformer.resblocks[-1]) if last_alone else nullcontext():
            return visual.transformer(x)


class ResNetTower:
    """open_clip's ModifiedResNet, pooled by attention over its 1 / 32 map and the map's mean."""

    is_fixed_size = False
    patch_size = 32

    def __init__(self, visual: Network):
        self.visual = visual
        self.side = math.isqrt(len(visual.attnpool.positional_embedding) - 1)
        width = visual.attnpool.c_proj.in_features
        self.points = {"pre_projection": width, "mean_patch": width}

    def pooled(self, images: Tensor) -> Tensor:
        return self._pool(self._map(images), {})

    def pre_projection(self, images: Tensor) -> Tensor:
        last = self.visual.attnpool.c_proj
        identity = {
            "c_proj.weight": torch.eye(last.in_features).to(last.weight),
            "c_proj.bias": last.weight.new_zeros(last.in_features),
        }
        return self._pool(self._map(images), identity)

    def patches(self, images: Tensor, joint: bool) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, D or W]."""
        features = self._map(images)
        tokens = features.permute(0, 2, 3, 1)
        if not joint:
            return tokens
        pool = self.visual.attnpool
        positions = self._positions(*features.shape[-2:])[1:].unflatten(0, features.shape[-2:])
        return pool.c_proj(pool.v_proj(tokens + positions.to(tokens.dtype)))

    def _map(self, images: Tensor) -> Tensor:
        """[B, W, h, w]."""
        x = self.visual.stem(images)
        for layer in (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4):
            x = layer(x)
        return x

    def _positions(self, height: int, width: int) -> Tensor:
        """[1 + h * w, W]."""
        positions = self.visual.attnpool.positional_embedding
        if (height, width) == (self.side, self.side):
            return positions
        return torch.cat([positions[:1], resize_positions(positions[1:], (self.side, self.side), height, width)])

    def _pool(self, features: Tensor, instead: dict[str, Tensor]) -> Tensor:
        weights = {"positional_embedding": self._positions(*features.shape[-2:]), **instead}
        return functional_call(self.visual.attnpool, weights, (features,))


class TimmTower:
    """A network of timm under open_clip's projection: tokens (SigLIP, EVA, ViTamin) or maps (ConvNeXt, FastViT, Swin)."""

    def __init__(self, visual: Network):
        trunk = visual.trunk
        self.visual, self.trunk = visual, trunk
        self.is_tokens = hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks")
        self.patch_size = int(trunk.feature_info[-1]["reduction"])
        # windows (Swin) are cut for one size, and what does not divide into patches (So400m/14 at 384) is taken at its own only
        is_cut = self.is_tokens and not _divides(trunk)
        is_open = self.is_tokens and not is_cut and hasattr(trunk, "dynamic_img_size")
        if is_open:
            _open_to_any_size(trunk)
        self.is_fixed_size = is_cut or (not is_open and bool(trunk.pretrained_cfg.get("fixed_input_size")))
        self.joint, self.reason = _joint_path(visual, self.is_tokens)
        self.points = {"mean_patch": trunk.num_features}
        has_projection = bool(visual.head) or isinstance(trunk.get_classifier(), torch.nn.Linear)
        if has_projection and not hasattr(visual.head, "pool"):
            self.points["pre_projection"] = getattr(trunk, "head_hidden_size", None) or trunk.num_features

    def pooled(self, images: Tensor) -> Tensor:
        return self.visual.head(self.trunk.forward_head(self._features(images)))

    def pre_projection(self, images: Tensor) -> Tensor:
        return self.trunk.forward_head(self._features(images), pre_logits=True)

    def patches(self, images: Tensor, joint: bool) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, D or W]."""
        if joint and not self.joint:
            raise UserError(f"this checkpoint has no patch features in the space shared with text: {self.reason}")
        with each_token_alone(self.trunk.blocks[-1]) if joint and self.joint == "class token" else nullcontext():
            features = self._features(images)
        if self.is_tokens:
            tokens = features[:, self.trunk.num_prefix_tokens :].unflatten(1, self._grid(images))
        else:
            tokens = features if self._is_channels_last() else features.permute(0, 2, 3, 1)
        return self._project(tokens) if joint else tokens

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _features(self, images: Tensor) -> Tensor:
        """[B, N, W], or a map in the network's own order."""
        rope = getattr(self.trunk, "rope", None)
        if rope is not None and hasattr(
            rope, "update_feat_shape"
        ):  # it keeps the rotations of the last grid, and computes none for another
            rope.update_feat_shape(self._grid(images))
        return self.trunk.forward_features(images)

    def _project(self, tokens: Tensor) -> Tensor:
        """[B, h, w, W] -> [B, h, w, D]."""
        if not self.is_tokens:  # the head pools a map of one position
            alone = tokens.flatten(0, 2)
            alone = alone[:, None, None, :] if self._is_channels_last() else alone[:, :, None, None]
            return self.visual.head(self.trunk.forward_head(alone)).unflatten(0, tokens.shape[:3])
        pool = self.trunk.attn_pool if self.joint == "attention" else None
        if pool is not None:
            tokens = pool.proj(pool.kv(tokens)[..., pool.kv.out_features // 2 :])
            tokens = tokens if pool.mlp is None else tokens + pool.mlp(pool.norm(tokens))
        return self.visual.head(self.trunk.get_classifier()(self.trunk.fc_norm(tokens)))

    def _is_channels_last(self) -> bool:
        return str(getattr(self.trunk, "output_fmt", "NCHW")) == "NHWC"


Tower = VitTower | ResNetTower | TimmTower


def tower_of(visual: Network) -> Tower:
    """The tower of an open_clip model.

    Raises:
        UserError: a pooling that gives no single embedding.
    """
    if hasattr(visual, "trunk"):
        return TimmTower(visual)
    return ResNetTower(visual) if hasattr(visual, "attnpool") else VitTower(visual)


def _joint_path(visual: Network, is_tokens: bool) -> tuple[str, str]:
    """How a patch alone would be pooled, or "" and why nobody can say."""
    trunk, pool = visual.trunk, getattr(visual.trunk, "attn_pool", None)
    if hasattr(visual.head, "pool"):
        return "", "its attention pooling adds positions of its own"
    if not is_tokens:
        return "mean", ""
    if pool is not None:
        is_value_path = hasattr(pool, "kv") and pool.pos_embed is None
        return ("attention", "") if is_value_path else ("", f"its pooling, {type(pool).__name__}, is no plain attention")
    if trunk.global_pool == "avg":
        return "mean", ""
    if trunk.global_pool == "token" and "attn_mask" in inspect.signature(trunk.blocks[-1].forward).parameters:
        return "class token", ""
    kind = type(trunk.blocks[-1]).__name__
    return "", f"pooling {trunk.global_pool!r} over blocks of the kind {kind} has no path for a patch alone"


def _divides(trunk: Network) -> bool:
    """Whether the trained size is a whole number of patches; timm drops the rest of it, at the trained size alone."""
    patches = trunk.patch_embed
    if getattr(patches, "img_size", None) is None or not hasattr(patches, "patch_size"):
        return True
    return not any(side % patch for side, patch in zip(patches.img_size, patches.patch_size, strict=True))


def _open_to_any_size(trunk: Network) -> None:
    """What timm's own ``dynamic_img_size=True`` sets when it builds: positions are resized in the forward, weights stay."""
    from timm.layers import Format

    trunk.dynamic_img_size = True
    trunk.patch_embed.strict_img_size = False
    trunk.patch_embed.flatten = False
    trunk.patch_embed.output_fmt = Format.NHWC
