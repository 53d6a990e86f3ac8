"""Networks of timm under open_clip's projection, at any picture size that they take, pooled and dense.

Flow: ``TimmTower(model.visual)`` -> ``pooled``, ``pre_projection`` and ``dense``, as the towers of ``open_clip_towers``.

Tokens (SigLIP, EVA, PE, ViTamin) go through ``towers``, up to the last block by ``timm_tokens``; a transformer of
another course than timm's own two gives what needs no change of its last block. Maps (ConvNeXt, FastViT, Swin) have
one path alone.

Shapes: B pictures, h x w patches, W width of the trunk, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from silc_bench.models import towers
from silc_bench.models.timm_tokens import trunk_tokens
from silc_bench.models.towers import CHANGED, JOINT, joint_methods, methods_of

Network = Any  # a module of open_clip or timm, whose parts their base class does not declare


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
        self.inner = trunk_tokens(trunk) if self.is_tokens else None
        self.block = None if self.inner is None else self.inner.block
        self.num_prefix = trunk.num_prefix_tokens if self.is_tokens else 0
        self.is_attention_pooled = self.is_tokens and getattr(trunk, "attn_pool", None) is not None
        joint, self.lacking = self._what_meets_text()
        self.dense_methods = methods_of(0 if self.inner is None else len(self.inner.blocks), joint)
        self.points = {"mean_patch": trunk.num_features}
        has_projection = bool(visual.head) or isinstance(trunk.get_classifier(), torch.nn.Linear)
        if has_projection and not hasattr(visual.head, "pool"):
            self.points["pre_projection"] = getattr(trunk, "head_hidden_size", None) or trunk.num_features

    def pooled(self, images: Tensor) -> Tensor:
        return self.visual.head(self.trunk.forward_head(self._features(images)))

    def pre_projection(self, images: Tensor) -> Tensor:
        return self.trunk.forward_head(self._features(images), pre_logits=True)

    def dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D or W]}."""
        if self.inner is not None:
            return towers.dense(self, images, methods)
        features = self._features(images)
        if self.is_tokens:
            tokens = features[:, self.num_prefix :].unflatten(1, self._grid(images))
        else:
            tokens = features if self._is_channels_last() else features.permute(0, 2, 3, 1)
        return {method: (tokens if method == "tokens" else self.joint(tokens)).float() for method in methods}

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], Any, tuple[int, int]]:
        assert self.inner is not None
        self._turn(images)
        return *self.inner.enter(images, count), self._grid(images)

    def last(self, tokens: Tensor, rope: Any) -> Tensor:
        assert self.inner is not None
        return self.inner.last(tokens, rope)

    def normed(self, patches: Tensor) -> Tensor:
        return self.trunk.norm(patches)

    def joint(self, patches: Tensor) -> Tensor:
        """[..., W] as they leave the last block, or with the norm where there are no blocks -> [..., D]."""
        if not self.is_tokens:  # the head pools a map of one position
            alone = patches.flatten(0, -2)
            alone = alone[:, None, None, :] if self._is_channels_last() else alone[:, :, None, None]
            return self.visual.head(self.trunk.forward_head(alone)).unflatten(0, patches.shape[:-1])
        if self.inner is not None:
            patches = self.normed(patches)
        if self.is_attention_pooled:
            pool = self.trunk.attn_pool
            patches = pool.proj(pool.kv(patches)[..., pool.kv.out_features // 2 :])
            patches = patches if pool.mlp is None else patches + pool.mlp(pool.norm(patches))
        return self.visual.head(self.trunk.get_classifier()(self.trunk.fc_norm(patches)))

    def _what_meets_text(self) -> tuple[tuple[str, ...], dict[str, str]]:
        trunk, pool = self.trunk, getattr(self.trunk, "attn_pool", None)
        if hasattr(self.visual.head, "pool"):
            return _none("its attention pooling adds positions of its own")
        if not self.is_tokens:
            return ("plain",), dict.fromkeys(
                ("maskclip", *CHANGED), "it pools the mean of a map and has no attention to change; ask for plain"
            )
        if pool is not None and (not hasattr(pool, "kv") or pool.pos_embed is not None):
            return _none(f"its pooling, {type(pool).__name__}, is no plain attention")
        if pool is None and trunk.global_pool not in ("avg", "token"):
            return _none(f"its pooling {trunk.global_pool!r} says nothing of a patch alone")
        return joint_methods(pool is not None, self.block, type(trunk.blocks[-1]).__name__)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _features(self, images: Tensor) -> Tensor:
        """[B, N, W], or a map in the network's own order."""
        self._turn(images)
        return self.trunk.forward_features(images)

    def _turn(self, images: Tensor) -> None:
        """Rotary positions for this grid: a trunk that keeps those of the last one computes none by itself."""
        rope = getattr(self.trunk, "rope", None)
        if rope is not None and hasattr(rope, "update_feat_shape"):
            rope.update_feat_shape(self._grid(images))

    def _is_channels_last(self) -> bool:
        return str(getattr(self.trunk, "output_fmt", "NCHW")) == "NHWC"


def _none(reason: str) -> tuple[tuple[str, ...], dict[str, str]]:
    return (), dict.fromkeys(JOINT, reason)


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
