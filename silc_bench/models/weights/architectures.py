"""Which architectures a set of weights could belong to, told by names and shapes alone.

No library is imported. ``fitting(shapes)`` -> names as they are written after ``--arch``.

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

# Width and depth of a ViT by the word in its name.
TIMM_SIZES = {
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

# Of open_clip's towers that are timm's: how the name begins -> a tensor that only this family has.
# The first that fits counts, so "vit_base_mci" stands before "vit".
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

# Blocks a stage of the towers that narrow, from timm's definitions; again the first that fits.
STAGES = {
    "convnext_tiny": [3, 3, 9, 3],
    "convnext_xxlarge": [3, 4, 30, 3],
    "convnext": [3, 3, 27, 3],
    "fastvit_mci0": [2, 6, 10, 2],
    "fastvit_mci1": [4, 12, 20, 4],
    "fastvit_mci2": [4, 12, 24, 4],
    "fastvit_mci3": [2, 12, 24, 4, 2],
    "fastvit_mci4": [2, 12, 24, 4, 4],
}

# Channels of the stem.
CONVNEXT_STEMS = {
    "tiny": 96,
    "small": 96,
    "base": 128,
    "large": 192,
    "xlarge": 256,
    "xxlarge": 384,
}

# (vision width, patch, patches, tokens of the vocabulary) -> a public checkpoint whose
# configuration and tokenizer the weights could use.
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
    """Architectures of open_clip, transformers and timm that have these shapes.

    Each is written as after ``--arch``.
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
    """Whether the text tower is the configuration's."""
    # CoCa alone has a second text tower, the decoder.
    text = config["text_cfg"]
    if (config.get("multimodal_cfg") is not None) != _has(r"text_decoder\.", shapes):
        return False

    # Of a tower that transformers builds, the configuration holds no more than its name.
    if "hf_model_name" in text:
        return _has(r"text\.transformer\.(embeddings|encoder|embed_tokens|shared)", shapes)

    # A class token at the end takes one position more. The defaults are open_clip's.
    width = text.get("width", 512)
    length = text.get("context_length", 77) + bool(text.get("embed_cls"))
    hidden = int(width * text.get("mlp_ratio", 4.0))
    expected = {
        "token_embedding.weight": (text.get("vocab_size", 49408), width),
        "positional_embedding": (length, width),
        "transformer.resblocks.0.mlp.c_fc.weight": (hidden, width),
    }

    # The text tower is a module "text", or, in models as OpenAI wrote them, the model itself.
    prefix = "text." if "text.token_embedding.weight" in shapes else ""
    depth = _depth(rf"{prefix}transformer\.resblocks\.", shapes)
    return depth == text.get("layers", 12) and all(
        shapes.get(prefix + name) == shape for name, shape in expected.items()
    )


def _sees(config: dict[str, Any], shapes: Shapes) -> bool:
    """Whether the image tower is the configuration's."""
    vision = config["vision_cfg"]
    embed_dim = config["embed_dim"]
    if "timm_model_name" in vision:
        return _is_trunk(vision, embed_dim, shapes)

    # A list of layers is a ResNet, of four stages, whose map is 32 times smaller than the image.
    side = vision.get("image_size", 224)
    width = vision.get("width", 768)
    if isinstance(vision.get("layers"), list):
        expected = {
            "visual.conv1.weight": (width // 2, 3, 3, 3),
            "visual.attnpool.positional_embedding": ((side // 32) ** 2 + 1, width * 32),
            "visual.attnpool.c_proj.weight": (embed_dim, width * 32),
        }
        depths = [_depth(rf"visual\.layer{stage}\.", shapes) for stage in range(1, 5)]
        return depths == vision["layers"] and all(
            shapes.get(name) == shape for name, shape in expected.items()
        )

    # else a ViT: one position for the class token, and one a patch
    patch = vision.get("patch_size", 16)
    hidden = int(width * vision.get("mlp_ratio", 4.0))
    expected = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (hidden, width),
    }
    return (
        _depth(r"visual\.transformer\.resblocks\.", shapes) == vision.get("layers", 12)
        and all(shapes.get(name) == shape for name, shape in expected.items())
        and shapes.get("visual.proj", (embed_dim,))[-1] == embed_dim
        and ("visual.ln_pre.weight" in shapes) != bool(vision.get("no_ln_pre"))
        and ("visual.attn_pool.query" in shapes) == bool(vision.get("attentional_pool"))
        and _has(r"visual\..*ls_1\.gamma", shapes) == (vision.get("ls_init_value") is not None)
    )


def _is_trunk(vision: dict[str, Any], embed_dim: int, shapes: Shapes) -> bool:
    """One of timm's models, as far as its name tells what it is made of.

    Compared are family, depths, width, patch and positions.
    """
    name = vision["timm_model_name"]
    heads = ("visual.head.proj.weight", "visual.head.fc2.weight")
    projected = next((shapes[key][0] for key in heads if key in shapes), embed_dim)
    mark = next((mark for family, mark in TRUNKS.items() if name.startswith(family)), None)
    if projected != embed_dim or (mark is not None and mark not in shapes):
        return False

    # "vit_base_patch16_...", "convnext_xxlarge", but "vit_pe_core_base_patch16_..."
    is_pe_core = name.startswith("vit_pe_core")
    size = name.removeprefix("vit_pe_core_").split("_")[0 if is_pe_core else 1]

    # One stage more than expected is counted, and must be empty: a longer tower is another one.
    stages = next((depths for family, depths in STAGES.items() if name.startswith(family)), None)
    if stages is not None:
        depths = [
            _depth(rf"visual\.trunk\.stages\.{stage}\.blocks\.", shapes)
            for stage in range(len(stages) + 1)
        ]
        is_wide = True
        if name.startswith("convnext"):
            is_wide = shapes["visual.trunk.stem.0.weight"][0] == CONVNEXT_STEMS[size]
        return depths == [*stages, 0] and is_wide

    positions = shapes.get("visual.trunk.pos_embed")
    if positions is None:
        return name.startswith(("swin", "vit_relpos", "vitamin_xlarge"))

    # an EVA has biases of query and value alone, under other names
    if name.startswith("eva") and "visual.trunk.blocks.0.attn.qkv.bias" in shapes:
        return False

    widths = {word: width for word, (width, _) in TIMM_SIZES.items()}
    if name.startswith("vitamin"):
        widths |= VITAMIN_WIDTHS

    # Where the name says no patch, 16 is what the towers of this list have.
    stem = shapes.get("visual.trunk.patch_embed.proj.weight")
    patch = re.search(r"patch(\d+)", name)
    side = int(patch[1]) if patch else 16
    patches = (vision["image_size"] // side) ** 2
    return (
        positions[-1] == widths.get(size, positions[-1])
        and patches <= positions[1] <= patches + 8  # class and register tokens
        and (patch is None or (stem is not None and stem[-1] == side))
    )


# ---- transformers and timm ----


def _hf(shapes: Shapes) -> list[str]:
    """CLIP and SigLIP in the layout of transformers."""
    patch = shapes.get("vision_model.embeddings.patch_embedding.weight")
    positions = shapes.get("vision_model.embeddings.position_embedding.weight")
    tokens = shapes.get("text_model.embeddings.token_embedding.weight")
    if not patch or not tokens:
        return []

    # SigLIP has no class token, so all its positions are patches. SigLIP 2 with images of any shape
    # has a linear layer in place of the convolution, and then no public name is told.
    is_siglip = "vision_model.head.probe" in shapes
    num_patches = 0
    if positions:
        num_patches = positions[0] - (0 if is_siglip else 1)
    name = ""
    if len(patch) == 4:
        name = HF_NAMES.get((patch[0], patch[-1], num_patches, tokens[0]), "")
    if name:
        return [f"hf:{name}"]

    layout = "SigLIP" if is_siglip else "CLIP"
    return [
        f"hf:FOLDER (a transformers {layout} of width {patch[0]} "
        "with its config.json and tokenizer)"
    ]


def _timm(shapes: Shapes) -> list[str]:
    """Vision transformers in timm's own layout."""
    patch = shapes.get("patch_embed.proj.weight")
    positions = shapes.get("pos_embed")
    if not patch or len(patch) != 4 or not positions or len(positions) != 3:
        return []

    depth = _depth(r"blocks\.", shapes)
    size = next((word for word, shape in TIMM_SIZES.items() if shape == (patch[0], depth)), None)

    # Prefix tokens may have positions or not: what is left must be a square of patches.
    num_prefix = sum(name in shapes for name in ("cls_token", "dist_token"))
    sides = []
    for without in (num_prefix, 0):
        num_patches = positions[1] - without
        along = round(num_patches**0.5)
        if along**2 == num_patches:
            sides.append(patch[-1] * along)  # pixels of the image

    if size is None or not sides:
        return [
            f"timm:NAME (a vision transformer of width {patch[0]}, depth {depth} "
            f"and patch {patch[-1]})"
        ]

    # Layer scales and patches of 14 pixels are DINOv2's alone among timm's names of this form.
    begin = f"timm:vit_{size}_patch{patch[-1]}_"
    if any(name.endswith("ls1.gamma") for name in shapes) and patch[-1] == 14:
        registers = "reg4_" if "reg_token" in shapes else ""
        return [f"{begin}{registers}dinov2"]

    family = ""
    if "attn_pool.latent" in shapes:
        family = "siglip_"
    elif "norm_pre.weight" in shapes:
        family = "clip_"
    return [f"{begin}{family}{sides[0]}"]


def _has(pattern: str, shapes: Shapes) -> bool:
    return any(re.match(pattern, name) for name in shapes)


def _depth(prefix: str, shapes: Shapes) -> int:
    """Number of blocks: one more than the largest index after ``prefix``."""
    matches = [re.match(prefix + r"(\d+)\.", name) for name in shapes]
    return max((int(match[1]) + 1 for match in matches if match), default=0)
