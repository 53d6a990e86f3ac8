"""Which architectures a set of weights could belong to, told by names and shapes alone; no library
is imported.

Shapes do not tell all (heads, activation, preprocessing, tokenizer): several architectures may fit,
and only whoever trained the weights knows which. open_clip's are compared with the JSON
configurations that it installs, the others with the rule by which their names are made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
TIMM_SIZES = {  # width and depth of a ViT by the word in its name
    "tiny": (192, 12),
    "small": (384, 12),
    "medium": (512, 12),
    "base": (768, 12),
    "large": (1024, 24),
    "so400m": (1152, 27),
    "huge": (1280, 32),
    "giant": (1408, 40),
    "giantopt": (1536, 40),
}
# of open_clip's towers that are timm's: how the name begins, and a tensor that only this family has
TRUNKS = {
    "convnext": "visual.trunk.stem.0.weight",
    "swin": "visual.trunk.layers.0.blocks.0.norm1.weight",
    "vitamin": "visual.trunk.patch_embed.backbone.stem.conv1.weight",
    "vit_base_mci": "visual.trunk.patch_embed.backbone.0.conv.weight",
    "vit_relpos": "visual.trunk.blocks.0.attn.rel_pos.mlp.fc1.weight",
    "eva": "visual.trunk.pos_embed",
    "vit": "visual.trunk.blocks.0.attn.qkv.weight",
}
VITAMIN_WIDTHS = {"small": 384, "large2": 1024, "xlarge": 1152}  # where they differ from TIMM_SIZES
STAGES = {  # blocks a stage of the towers that narrow, from timm's definitions
    "convnext_tiny": [3, 3, 9, 3],
    "convnext_xxlarge": [3, 4, 30, 3],
    "convnext": [3, 3, 27, 3],
    "fastvit_mci0": [2, 6, 10, 2],
    "fastvit_mci1": [4, 12, 20, 4],
    "fastvit_mci2": [4, 12, 24, 4],
    "fastvit_mci3": [2, 12, 24, 4, 2],
    "fastvit_mci4": [2, 12, 24, 4, 4],
}
CONVNEXT_STEMS = {
    "tiny": 96,
    "small": 96,
    "base": 128,
    "large": 192,
    "xlarge": 256,
    "xxlarge": 384,
}  # channels
# (vision width, patch, patches, tokens): a public checkpoint whose configuration and tokenizer it
# could use
HF_NAMES = {
    (768, 32, 49, 49408): "openai/clip-vit-base-patch32",
    (768, 16, 196, 49408): "openai/clip-vit-base-patch16",
    (1024, 14, 256, 49408): "openai/clip-vit-large-patch14",
    (1024, 14, 576, 49408): "openai/clip-vit-large-patch14-336",
    (768, 16, 196, 32000): "google/siglip-base-patch16-224",
    (768, 16, 256, 32000): "google/siglip-base-patch16-256",
    (768, 16, 576, 32000): "google/siglip-base-patch16-384",
    (1024, 16, 256, 32000): "google/siglip-large-patch16-256",
    (1024, 16, 576, 32000): "google/siglip-large-patch16-384",
    (1152, 14, 256, 32000): "google/siglip-so400m-patch14-224",
    (1152, 14, 729, 32000): "google/siglip-so400m-patch14-384",
    (768, 16, 196, 256000): "google/siglip2-base-patch16-224",
    (768, 16, 256, 256000): "google/siglip2-base-patch16-256",
    (1024, 16, 256, 256000): "google/siglip2-large-patch16-256",
    (1152, 14, 256, 256000): "google/siglip2-so400m-patch14-224",
    (1152, 14, 729, 256000): "google/siglip2-so400m-patch14-384",
}


def fitting(shapes: Shapes) -> list[str]:
    """Architectures of open_clip, transformers and timm that have these shapes, each as it is
    written after ``--arch``.
    """
    return _open_clip(shapes) + _hf(shapes) + _timm(shapes)


# ---- open_clip ----


def _open_clip(shapes: Shapes) -> list[str]:
    if not any(name.startswith("visual.") for name in shapes):
        return []
    configs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in _config_files()}
    return [
        f"open_clip:{name}"
        for name, config in sorted(configs.items())
        if _has_text(config, shapes) and _sees(config, shapes)
    ]


def _config_files() -> list[Path]:
    """open_clip's configurations, without importing it (seconds)."""
    spec = find_spec("open_clip")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [path for folder in folders for path in Path(folder, "model_configs").glob("*.json")]


def _has_text(config: dict[str, Any], shapes: Shapes) -> bool:
    """Whether the text tower is the configuration's; a file may name it with "text." before it or
    without.
    """
    text = config["text_cfg"]
    if (config.get("multimodal_cfg") is not None) != _has(r"text_decoder\.", shapes):
        return False
    if "hf_model_name" in text:
        return _has(r"text\.transformer\.(embeddings|encoder|embed_tokens|shared)", shapes)
    width, length = (
        text.get("width", 512),
        text.get("context_length", 77) + bool(text.get("embed_cls")),
    )
    wanted = {
        "token_embedding.weight": (text.get("vocab_size", 49408), width),
        "positional_embedding": (length, width),
        "transformer.resblocks.0.mlp.c_fc.weight": (int(width * text.get("mlp_ratio", 4.0)), width),
    }
    prefix = "text." if "text.token_embedding.weight" in shapes else ""
    depth = _depth(rf"{prefix}transformer\.resblocks\.", shapes)
    return depth == text.get("layers", 12) and all(
        shapes.get(prefix + name) == shape for name, shape in wanted.items()
    )


def _sees(config: dict[str, Any], shapes: Shapes) -> bool:
    """Whether the image tower is the configuration's."""
    vision, embed_dim = config["vision_cfg"], config["embed_dim"]
    if "timm_model_name" in vision:
        return _is_trunk(vision, embed_dim, shapes)
    side, width = vision.get("image_size", 224), vision.get("width", 768)
    if isinstance(vision.get("layers"), list):
        wanted = {
            "visual.conv1.weight": (width // 2, 3, 3, 3),
            "visual.attnpool.positional_embedding": ((side // 32) ** 2 + 1, width * 32),
            "visual.attnpool.c_proj.weight": (embed_dim, width * 32),
        }
        depths = [_depth(rf"visual\.layer{stage}\.", shapes) for stage in range(1, 5)]
        return depths == vision["layers"] and all(
            shapes.get(name) == shape for name, shape in wanted.items()
        )
    patch = vision.get("patch_size", 16)
    wanted = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (
            int(width * vision.get("mlp_ratio", 4.0)),
            width,
        ),
    }
    return (
        _depth(r"visual\.transformer\.resblocks\.", shapes) == vision.get("layers", 12)
        and all(shapes.get(name) == shape for name, shape in wanted.items())
        and shapes.get("visual.proj", (embed_dim,))[-1] == embed_dim
        and ("visual.ln_pre.weight" in shapes) != bool(vision.get("no_ln_pre"))
        and ("visual.attn_pool.query" in shapes) == bool(vision.get("attentional_pool"))
        and _has(r"visual\..*ls_1\.gamma", shapes) == (vision.get("ls_init_value") is not None)
    )


def _is_trunk(vision: dict[str, Any], embed_dim: int, shapes: Shapes) -> bool:
    """One of timm's models, as far as its name tells what it is made of: family, depths, width,
    patch, positions.
    """
    name = vision["timm_model_name"]
    projected = next(
        (
            shapes[key][0]
            for key in ("visual.head.proj.weight", "visual.head.fc2.weight")
            if key in shapes
        ),
        embed_dim,
    )
    mark = next((mark for family, mark in TRUNKS.items() if name.startswith(family)), None)
    if projected != embed_dim or (mark is not None and mark not in shapes):
        return False
    size = name.removeprefix("vit_pe_core_").split("_")[0 if name.startswith("vit_pe_core") else 1]
    stages = next((depths for family, depths in STAGES.items() if name.startswith(family)), None)
    if stages is not None:
        found = [
            _depth(rf"visual\.trunk\.stages\.{stage}\.blocks\.", shapes)
            for stage in range(len(stages) + 1)
        ]
        is_wide = (
            not name.startswith("convnext")
            or shapes["visual.trunk.stem.0.weight"][0] == CONVNEXT_STEMS[size]
        )
        return found == [*stages, 0] and is_wide
    positions = shapes.get("visual.trunk.pos_embed")
    if positions is None:
        return name.startswith(("swin", "vit_relpos", "vitamin_xlarge"))
    if (
        name.startswith("eva") and "visual.trunk.blocks.0.attn.qkv.bias" in shapes
    ):  # of query and value alone, in an EVA
        return False
    widths = {word: width for word, (width, _) in TIMM_SIZES.items()} | (
        VITAMIN_WIDTHS if name.startswith("vitamin") else {}
    )
    stem, patch = shapes.get("visual.trunk.patch_embed.proj.weight"), re.search(r"patch(\d+)", name)
    side = int(patch[1]) if patch else 16
    patches = (vision["image_size"] // side) ** 2
    return (
        positions[-1] == widths.get(size, positions[-1])
        and patches <= positions[1] <= patches + 8  # class and register tokens
        and (patch is None or (stem is not None and stem[-1] == side))
    )


# ---- transformers and timm ----


def _hf(shapes: Shapes) -> list[str]:
    patch = shapes.get("vision_model.embeddings.patch_embedding.weight")
    positions = shapes.get("vision_model.embeddings.position_embedding.weight")
    tokens = shapes.get("text_model.embeddings.token_embedding.weight")
    if not patch or not tokens:
        return []
    is_siglip = "vision_model.head.probe" in shapes
    num_patches = positions[0] - (0 if is_siglip else 1) if positions else 0
    name = (
        HF_NAMES.get((patch[0], patch[-1], num_patches, tokens[0]), "") if len(patch) == 4 else ""
    )
    layout = "SigLIP" if is_siglip else "CLIP"
    return [
        f"hf:{name or f'FOLDER (a transformers {layout} of width {patch[0]} with its config.json and tokenizer)'}"
    ]


def _timm(shapes: Shapes) -> list[str]:
    """Vision transformers in timm's own layout."""
    patch, positions = shapes.get("patch_embed.proj.weight"), shapes.get("pos_embed")
    if not patch or len(patch) != 4 or not positions or len(positions) != 3:
        return []
    depth = _depth(r"blocks\.", shapes)
    size = next((word for word, shape in TIMM_SIZES.items() if shape == (patch[0], depth)), None)
    extra = sum(name in shapes for name in ("cls_token", "dist_token"))
    sides = [
        patch[-1] * round((positions[1] - n) ** 0.5)
        for n in (extra, 0)
        if round((positions[1] - n) ** 0.5) ** 2 == positions[1] - n
    ]
    if size is None or not sides:
        return [
            f"timm:NAME (a vision transformer of width {patch[0]}, depth {depth} and patch {patch[-1]})"
        ]
    dino = any(name.endswith("ls1.gamma") for name in shapes) and patch[-1] == 14
    siglip = "attn_pool.latent" in shapes
    clip = "norm_pre.weight" in shapes
    if dino:
        return [
            f"timm:vit_{size}_patch{patch[-1]}_{'reg4_' if 'reg_token' in shapes else ''}dinov2"
        ]
    return [
        f"timm:vit_{size}_patch{patch[-1]}_{'siglip_' if siglip else 'clip_' if clip else ''}{sides[0]}"
    ]


def _has(pattern: str, shapes: Shapes) -> bool:
    return any(re.match(pattern, name) for name in shapes)


def _depth(prefix: str, shapes: Shapes) -> int:
    """Number of blocks: one more than the largest index after ``prefix``."""
    found = [re.match(prefix + r"(\d+)\.", name) for name in shapes]
    return max((int(match[1]) + 1 for match in found if match), default=0)
