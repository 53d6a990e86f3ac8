"""SigLIP of open_clip, in both directions: its towers as ours, and ours as a folder of its own.

Its image tower is one of timm's vision transformers with attention pooling, its text tower is
open_clip's own.

Reading: ``of_open_clip(model)`` of a model that ``silc_bench.models.load.load_model`` gave ->
``Towers``, or a sentence that says why not. Weights are renamed, never changed.

Writing: ``configs`` and ``weights`` are what makes a folder that
``open_clip.create_model_from_pretrained("local-dir:FOLDER")`` and ``open_clip.get_tokenizer`` load.
Needs open_clip 3.0 and timm 1.0.16 or newer to be read.

open_clip has no tower of its own with MAP pooling; it asks timm for one. timm's models of that kind
have fixed sizes, and most of them (all of base size with 16-pixel patches) have the exact GELU,
where ours is its tanh form. timm also builds what a config.json in a folder says, of any size: so
FOLDER/config.json describes the vision tower to timm, and open_clip_config.json names it. timm
finds a folder by its path alone, hence an export is tied to its place: after moving it, write the
new path into ``timm_model_name`` and delete the list of checksums
(``silc_bench.system.checksums.MANIFEST``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.trainer.checkpoints.libraries.exchange import (
    Towers,
    inverse,
    renamed,
    state,
    towers_from,
    unfit,
)
from silc_bench.trainer.checkpoints.model import NativeModel, tensors
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, of_transformers

# Our names and theirs; the first prefix that fits counts, N is the number of a block.
NAMES = {
    "log_scale": "logit_scale",
    "vision.patch.": "visual.trunk.patch_embed.proj.",
    "vision.positions": "visual.trunk.pos_embed",
    "vision.blocks.N.attention.qkv.": "visual.trunk.blocks.N.attn.qkv.",
    "vision.blocks.N.attention.out.": "visual.trunk.blocks.N.attn.proj.",
    "vision.blocks.": "visual.trunk.blocks.",
    "vision.norm.": "visual.trunk.norm.",
    "vision.pool.probe": "visual.trunk.attn_pool.latent",
    "vision.pool.out.": "visual.trunk.attn_pool.proj.",
    "vision.pool.": "visual.trunk.attn_pool.",
    "text.embedding.": "text.token_embedding.",
    "text.positions": "text.positional_embedding",
    "text.blocks.N.norm1.": "text.transformer.resblocks.N.ln_1.",
    "text.blocks.N.norm2.": "text.transformer.resblocks.N.ln_2.",
    "text.blocks.N.mlp.fc1.": "text.transformer.resblocks.N.mlp.c_fc.",
    "text.blocks.N.mlp.fc2.": "text.transformer.resblocks.N.mlp.c_proj.",
    "text.blocks.N.attention.out.": "text.transformer.resblocks.N.attn.out_proj.",
    # torch's MultiheadAttention has no layer for q, k, v, only these two parameters.
    "text.blocks.N.attention.qkv.": "text.transformer.resblocks.N.attn.in_proj_",
    "text.norm.": "text.ln_final.",
    "text.head.": "text.text_projection.",
}
WEIGHTS = "open_clip_model.safetensors"


# ---- reading ----


def of_open_clip(model: Any) -> Towers:
    """A SigLIP of open_clip. UserError where it is another kind of model."""
    network = model.network
    _check_kind(network)
    trunk = network.visual.trunk

    weights = renamed(state(network), inverse(NAMES))
    if "text.positions" in weights:
        weights["text.positions"] = weights["text.positions"][None]
    return towers_from(
        weights,
        _sizes(trunk, network.text),
        network=network,
        embed_dim=model.embed_dim,
        patch_size=int(trunk.patch_embed.patch_size[0]),
        tokenizer=_tokenizer(model.tokenizer, network.text.token_embedding.num_embeddings),
    )


def _check_kind(network: Any) -> None:
    """Raises UserError: its towers are built otherwise than ours."""
    trunk: Any = getattr(network.visual, "trunk", None)
    text: Any = getattr(network, "text", None)
    pool = getattr(trunk, "attn_pool", None)
    if text is None or pool is None or not hasattr(trunk, "blocks") or trunk.num_prefix_tokens:
        raise unfit(f"no SigLIP ({_differences(network)})")

    if (
        not hasattr(text, "token_embedding")
        or text.attn_mask is not None
        or text.pool_type != "last"
        or text.cls_emb is not None
    ):
        raise unfit("another kind of tower for texts (causal mask, or another pooling)")

    # Ours has one number for both.
    if {pool.num_heads} != {block.attn.num_heads for block in trunk.blocks}:
        raise unfit(f"{pool.num_heads} heads in the pooling and another number in the blocks")


def _sizes(trunk: Any, text: Any) -> dict[str, dict[str, Any]]:
    """Fields that both towers of ours have, by tower."""
    vision_blocks = trunk.blocks
    text_blocks = text.transformer.resblocks
    return {
        "vision": {
            "width": trunk.embed_dim,
            "depth": len(vision_blocks),
            "num_heads": trunk.attn_pool.num_heads,
            "mlp_dim": vision_blocks[0].mlp.fc1.out_features,
            "gelu": _gelu_of([*vision_blocks.modules(), *trunk.attn_pool.modules()]),
        },
        "text": {
            "width": text.token_embedding.embedding_dim,
            "depth": len(text_blocks),
            "num_heads": text_blocks[0].attn.num_heads,
            "mlp_dim": text_blocks[0].mlp.c_fc.out_features,
            "gelu": _gelu_of(text.modules()),
        },
    }


def _differences(network: Any) -> str:
    """What is otherwise in a model that is no SigLIP, in a few words."""
    if hasattr(network.visual, "attnpool"):
        return "a ResNet, and a causal mask over its texts"
    if not hasattr(network.visual, "trunk"):
        return "a class token, a causal mask over its texts, and QuickGELU where OpenAI trained it"
    return f"its image tower is timm's {type(network.visual.trunk).__name__}, pooled in another way"


def _gelu_of(modules: Iterable[nn.Module]) -> str:
    """The activation: "tanh", "exact", or the name of what else stands between the layers.

    Of several kinds it gives all names, joined by "+".
    """
    kinds = set()
    for module in modules:
        name = type(module).__name__
        if isinstance(module, nn.GELU):
            kinds.add("tanh" if module.approximate == "tanh" else "exact")
        elif re.search(r"(GELU|ReLU|SiLU|Swish)", name, re.IGNORECASE):
            # timm has classes of its own for both forms of GELU.
            kinds.add({"GELUTanh": "tanh", "GELU": "exact"}.get(name, name))
    return "+".join(sorted(kinds))


def _tokenizer(tokenizer: Any, vocab_size: int) -> AnyTokenizer:
    """Raises UserError: it is code of open_clip, and not a file of transformers."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None or tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
        raise UserError(
            f"open_clip's {type(tokenizer).__name__} in Python, which no checkpoint here can hold",
            about="its tokenizer",
            fix="export the model with a tokenizer of transformers (hf_tokenizer_name), or start"
            " from its transformers form (hf:FOLDER)",
        )

    # open_clip cleans texts before its tokenizer sees them, so the checkpoint must do the same.
    cleaning = f"open_clip {tokenizer.clean_fn.__name__.removeprefix('_clean_')}"
    return of_transformers(inner, cleaning, tokenizer.context_length, vocab_size)


# ---- writing ----


def configs(model: NativeModel, final: Path) -> dict[str, Any]:
    """By name of the file; ``final`` is the folder's place, which they hold."""
    return {"open_clip_config.json": _config(model, final), "config.json": _timm_config(model)}


def weights(model: NativeModel) -> dict[str, Tensor]:
    """The weights by the names of CustomTextCLIP over timm's VisionTransformer."""
    ours = tensors(model)
    ours["text.positions"] = ours["text.positions"][0]
    return renamed(ours, NAMES)


def _config(model: NativeModel, final: Path) -> dict[str, Any]:
    """What open_clip builds; the image tower is what timm builds from the folder."""
    vision = model.config.vision
    text = model.config.text
    pipeline = model.pipeline
    approximate = "tanh" if text.gelu == "tanh" else "none"
    return {
        "model_cfg": {
            "embed_dim": model.embed_dim,
            "custom_text": True,
            "init_logit_bias": model.logit_bias,
            "vision_cfg": {
                "image_size": vision.image_size,
                "timm_model_name": f"local-dir:{final.resolve()}",
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "hf_tokenizer_name": str(final.resolve()),
                "width": text.width,
                "layers": text.depth,
                "heads": text.num_heads,
                "mlp_ratio": ratio(text.mlp_dim, text.width),
                "no_causal_mask": True,
                "pool_type": "last",
                "proj_bias": True,
                "act_kwargs": {"approximate": approximate},
                "norm_kwargs": {"eps": model.text.norm.eps},
            },
        },
        "preprocess_cfg": {
            "size": pipeline.size,
            "mode": "RGB",
            "mean": list(pipeline.mean),
            "std": list(pipeline.std),
            "interpolation": pipeline.interpolation,
            "resize_mode": pipeline.resize,
        },
    }


def _timm_config(model: NativeModel) -> dict[str, Any]:
    """What timm builds: the class of its SigLIP towers with every size of ours."""
    vision = model.config.vision
    size = vision.image_size
    return {
        # Any name of that class does: model_args replaces every size.
        "architecture": "vit_base_patch16_siglip_256",
        "num_classes": 0,
        "num_features": vision.width,
        "global_pool": "map",
        "model_args": {
            "img_size": size,
            "patch_size": vision.patch_size,
            "embed_dim": vision.width,
            "depth": vision.depth,
            "num_heads": vision.num_heads,
            "mlp_ratio": ratio(vision.mlp_dim, vision.width),
            "act_layer": "gelu_tanh" if vision.gelu == "tanh" else "gelu",
        },
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "mean": list(model.pipeline.mean),
            "std": list(model.pipeline.std),
            "interpolation": model.pipeline.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "num_classes": 0,
        },
    }


def ratio(mlp_dim: int, width: int) -> float:
    """A factor by which both libraries come from ``width`` to ``mlp_dim`` exactly."""
    # They cut width * factor to a whole number, which a rounded quotient can miss by one.
    factor = mlp_dim / width
    return factor if int(width * factor) == mlp_dim else math.nextafter(factor, math.inf)
