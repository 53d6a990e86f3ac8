"""The image towers of open_clip at any image size, pooled and dense.

They are its own ViT and ResNet, and networks of timm under its projection.

Flow: ``tower_of(model.visual)`` -> one of ``TOWERS`` -> ``encode`` and ``dense`` of a batch of
images, as ``adapters.loaded`` asks of a tower.

At the trained size and at every other one "pooled" is the library's own forward; only position
embeddings are resized, and no weight is changed. How a patch meets text depends on the pooling, as
``silc_bench.models.patch_features`` says:

- class token or mean of tokens (CLIP, EVA; CLIPA): the last block as it is or changed, norm,
  projection;
- attention (SigLIP, CoCa; CLIP's ResNets, whose last layers are no block): the value path of the
  pooling, norm, projection;
- mean of a map (ConvNeXt, FastViT): norm and projection of each position, and no attention that a
  method could change.

Networks of timm with tokens (SigLIP, EVA, PE, ViTamin) are run up to their last block by
``silc_bench.models.adapters.blocks``. A transformer whose forward is none of timm's two known ones
gives only what needs no change of its last block. Maps (ConvNeXt, FastViT, Swin) have one path
alone.

Shapes: B images, H x W pixels, h x w patches, N tokens, W width of the tower, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from silc_bench.errors import UserError
from silc_bench.models.adapters.blocks import block_of, is_channels_last, places_of, trunk_tokens
from silc_bench.models.patch_features import (
    CHANGED,
    JOINT,
    POOLED_BY_ATTENTION,
    dense,
    joint_methods,
    methods_of,
    resize_positions,
    value_path,
)

Network = Any  # a module of open_clip or timm, whose parts their base class does not declare


class VitTower:
    """open_clip's VisionTransformer: pooled by class token, patch mean, or attention (CoCa)."""

    num_prefix = 1

    def __init__(self, visual: Network):
        # there is a second pooling, and patches could go through one of the two only
        if getattr(visual, "attn_pool_contrastive", None) is not None:
            raise _unsupported(f"pools twice (attentional_pool {visual.attn_pool_type!r})")
        if visual.pool_type == "none":
            raise _unsupported("gives tokens instead of one embedding (pool_type 'none')")

        self.visual = visual
        self.patch_size = self.step = int(visual.patch_size[0])
        self.feature_points = {
            "pre_projection": visual.proj.shape[0],
            "mean_patch": visual.transformer.width,
        }

        self.blocks = visual.transformer.resblocks
        self.block = block_of(self.blocks[-1])
        self.is_attention_pooled = visual.attn_pool is not None
        kind = type(self.blocks[-1]).__name__
        joint, self.lacking = joint_methods(self.is_attention_pooled, self.block, kind)
        self.dense_methods = methods_of(len(self.blocks), joint)

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, D], or [B, width before the projection]."""
        weights = {"positional_embedding": self._positions(images)}

        # the library's forward with the identity in the projection's place
        if point == "pre_projection":
            weights["proj"] = torch.eye(len(self.visual.proj)).to(self.visual.proj)
        output = functional_call(self.visual, weights, (images,))
        return output[0] if isinstance(output, tuple) else output  # CoCa gives its tokens too

    def dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        return dense(self, images, methods)

    # The next four are what patch_features.dense asks of a tower (its TokenTower).

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], None, tuple[int, int]]:
        visual = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)

        # only the last ``count`` are kept, so that memory does not grow with the depth
        entered = [visual.ln_pre(x + self._positions(images).to(x.dtype))]
        for block in self.blocks[:-1]:
            entered = [*entered, block(entered[-1])][-count:]
        return entered, None, _grid(images, self.patch_size)

    def last(self, tokens: Tensor, rope: None) -> Tensor:
        return self.blocks[-1](tokens)

    def normed(self, patches: Tensor) -> Tensor:
        # a norm behind the pooling, or behind one by attention, was never trained on a patch
        is_normed = not self.is_attention_pooled and not self.visual.final_ln_after_pool
        return self.visual.ln_post(patches) if is_normed else patches

    def joint(self, patches: Tensor) -> Tensor:
        visual = self.visual
        if self.is_attention_pooled:
            patches = value_path(visual.attn_pool.attn, visual.attn_pool.ln_k(patches))
        return visual.ln_post(patches) @ visual.proj

    def _positions(self, images: Tensor) -> Tensor:
        """[1 + h * w, W]."""
        grid = _grid(images, self.patch_size)
        return _resized(self.visual.positional_embedding, self.visual.grid_size, grid)


class ResNetTower:
    """open_clip's ModifiedResNet, pooled by attention over its 1 / 32 map and the map's mean."""

    patch_size = step = 32
    dense_methods = ("tokens", "maskclip")

    def __init__(self, visual: Network):
        self.visual = visual
        self.pool = visual.attnpool

        # positions a side of the trained map, without the one of the mean
        self.side = math.isqrt(len(self.pool.positional_embedding) - 1)

        width = self.pool.c_proj.in_features
        self.feature_points = {"pre_projection": width, "mean_patch": width}
        reason = "its last layers are convolutions, which attend to nothing; ask for maskclip"
        self.lacking = {"plain": POOLED_BY_ATTENTION, **dict.fromkeys(CHANGED, reason)}

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, D or W]."""
        features = self._map(images)
        weights = {"positional_embedding": self._positions(features)}

        # the library's pooling with the identity in the projection's place
        if point == "pre_projection":
            last = self.pool.c_proj.weight
            weights["c_proj.weight"] = torch.eye(last.shape[1]).to(last)
            weights["c_proj.bias"] = last.new_zeros(last.shape[1])
        return functional_call(self.pool, weights, (features,))

    def dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D or W]}."""
        features = self._map(images)
        tokens = features.permute(0, 2, 3, 1)
        by_method = {"tokens": tokens.float()}

        # A patch that gets all the attention of the pooling: its value, through the projection.
        if "maskclip" in methods:
            positions = self._positions(features)[1:].unflatten(0, features.shape[-2:])
            values = self.pool.v_proj(tokens + positions.to(tokens.dtype))
            by_method["maskclip"] = self.pool.c_proj(values).float()

        return {method: by_method[method] for method in methods}

    def _map(self, images: Tensor) -> Tensor:
        """[B, W, h, w]."""
        visual = self.visual
        x = visual.stem(images)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        return x

    def _positions(self, features: Tensor) -> Tensor:
        """[1 + h * w, W]."""
        height, width = features.shape[-2:]
        trained = (self.side, self.side)
        return _resized(self.pool.positional_embedding, trained, (height, width))


class TimmTower:
    """A network of timm under open_clip's projection: tokens or a map.

    Tokens come from SigLIP, EVA and ViTamin, maps from ConvNeXt, FastViT and Swin.
    """

    def __init__(self, visual: Network):
        trunk = visual.trunk
        self.visual = visual
        self.trunk = trunk
        self.is_tokens = hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks")
        self.patch_size = int(trunk.feature_info[-1]["reduction"])

        # Two kinds are taken at their trained size only: windows (Swin), which are cut for one
        # size, and patches that leave a rest of the image (So400m/14 at 384).
        has_rest = self.is_tokens and not _divides(trunk)
        is_open = self.is_tokens and not has_rest and hasattr(trunk, "dynamic_img_size")
        if is_open:
            _open_to_any_size(trunk)
        is_one_size = not is_open and bool(trunk.pretrained_cfg.get("fixed_input_size"))
        self.step = 0 if has_rest or is_one_size else self.patch_size

        self.inner = trunk_tokens(trunk) if self.is_tokens else None
        self.block = None if self.inner is None else self.inner.block
        self.num_prefix = trunk.num_prefix_tokens if self.is_tokens else 0
        self.is_attention_pooled = self.is_tokens and getattr(trunk, "attn_pool", None) is not None

        num_blocks = len(self.inner.blocks) if self.inner else 0
        joint, self.lacking = self._what_meets_text()
        self.dense_methods = methods_of(num_blocks, joint)

        # A head with a pooling of its own has no vector between pooling and projection.
        self.feature_points = {"mean_patch": trunk.num_features}
        has_projection = bool(visual.head) or isinstance(trunk.get_classifier(), torch.nn.Linear)
        if has_projection and not hasattr(visual.head, "pool"):
            width = getattr(trunk, "head_hidden_size", None) or trunk.num_features
            self.feature_points["pre_projection"] = width

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, D], or [B, width before the projection]."""
        features = self._features(images)
        if point == "pre_projection":
            return self.trunk.forward_head(features, pre_logits=True)
        return self.visual.head(self.trunk.forward_head(features))

    def dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D or W]}."""
        if self.inner is not None:
            return dense(self, images, methods)

        features = self._features(images)
        tokens = places_of(self.trunk, features, _grid(images, self.patch_size))

        # without blocks, whatever is no tokens is their one path to the text
        by_method = {method: self.joint(tokens) for method in methods if method != "tokens"}
        return {method: by_method.get(method, tokens).float() for method in methods}

    # The next four are what patch_features.dense asks of a tower (its TokenTower).

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], Any, tuple[int, int]]:
        assert self.inner is not None
        self._set_rotary_grid(images)
        return *self.inner.enter(images, count), _grid(images, self.patch_size)

    def last(self, tokens: Tensor, rope: Any) -> Tensor:
        assert self.inner is not None
        return self.inner.last(tokens, rope)

    def normed(self, patches: Tensor) -> Tensor:
        return self.trunk.norm(patches)

    def joint(self, patches: Tensor) -> Tensor:
        """[..., W] -> [..., D] in the space shared with text.

        ``patches`` are as they leave the last block, or, where there are no blocks, with the norm.
        """
        if not self.is_tokens:
            # the head pools a map, so each position goes through it as a map of one position
            alone = patches.flatten(0, -2)
            alone = alone[:, None, None] if is_channels_last(self.trunk) else alone[..., None, None]
            return self.visual.head(self.trunk.forward_head(alone)).unflatten(0, patches.shape[:-1])

        if self.inner is not None:
            patches = self.normed(patches)

        if self.is_attention_pooled:
            # kv gives keys, then values: the value path takes the second half
            pool = self.trunk.attn_pool
            patches = pool.proj(pool.kv(patches)[..., pool.kv.out_features // 2 :])
            patches = patches if pool.mlp is None else patches + pool.mlp(pool.norm(patches))

        return self.visual.head(self.trunk.get_classifier()(self.trunk.fc_norm(patches)))

    def _what_meets_text(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """The methods in the space shared with text, and why each of the others is not possible."""
        trunk = self.trunk
        pool = getattr(trunk, "attn_pool", None)

        reason = ""
        possible: tuple[str, ...] = ()
        if hasattr(self.visual.head, "pool"):
            reason = "its attention pooling adds positions of its own"
        elif not self.is_tokens:
            possible = ("plain",)
            reason = "it pools the mean of a map and has no attention to change; ask for plain"
        elif pool is not None and (not hasattr(pool, "kv") or pool.pos_embed is not None):
            reason = f"its pooling, {type(pool).__name__}, is no plain attention"
        elif pool is None and trunk.global_pool not in ("avg", "token"):
            reason = f"its pooling {trunk.global_pool!r} says nothing of a patch alone"
        else:
            return joint_methods(pool is not None, self.block, type(trunk.blocks[-1]).__name__)
        impossible = [method for method in JOINT if method not in possible]
        return possible, dict.fromkeys(impossible, reason)

    def _features(self, images: Tensor) -> Tensor:
        """[B, N, W], or a map in the network's own order."""
        self._set_rotary_grid(images)
        return self.trunk.forward_features(images)

    def _set_rotary_grid(self, images: Tensor) -> None:
        """Rotary positions for this grid: a trunk that keeps the last ones computes none itself."""
        rope = getattr(self.trunk, "rope", None)
        if rope is not None and hasattr(rope, "update_feat_shape"):
            rope.update_feat_shape(_grid(images, self.patch_size))


ONE_EMBEDDING = "name a model whose image tower gives one embedding an image"

# the part that only such a network has, the first that is there -> its tower
TOWERS = {"trunk": TimmTower, "attnpool": ResNetTower, "transformer": VitTower}


def tower_of(visual: Network) -> Any:
    """The ``loaded.DenseTower`` of an open_clip model; its "pooled" width is the model's own.

    Raises:
        UserError: a pooling that gives no single embedding.
    """
    kind = next(tower for part, tower in TOWERS.items() if hasattr(visual, part))
    return kind(visual)


def _grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    return images.shape[2] // patch_size, images.shape[3] // patch_size


def _resized(positions: Tensor, trained: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """[1 + N, W] of the trained grid -> [1 + h * w, W]; the first one has no place in the image."""
    return torch.cat([positions[:1], resize_positions(positions[1:], trained, *grid)])


def _unsupported(reason: str) -> UserError:
    return UserError(
        f"its image tower {reason}",
        about="open_clip",
        fix=ONE_EMBEDDING,
    )


def _divides(trunk: Network) -> bool:
    """Whether the trained size is a whole number of patches.

    timm drops the rest of it, at the trained size alone.
    """
    embed = trunk.patch_embed
    if getattr(embed, "img_size", None) is None or not hasattr(embed, "patch_size"):
        return True

    sides = zip(embed.img_size, embed.patch_size, strict=True)
    return not any(side % patch for side, patch in sides)


def _open_to_any_size(trunk: Network) -> None:
    """Sets what timm's own ``dynamic_img_size=True`` sets when it builds.

    Positions are resized in the forward; the weights stay.
    """
    from timm.layers import Format

    trunk.dynamic_img_size = True
    trunk.patch_embed.strict_img_size = False
    trunk.patch_embed.flatten = False
    trunk.patch_embed.output_fmt = Format.NHWC
