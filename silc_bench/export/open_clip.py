"""A folder that ``open_clip.create_model_from_pretrained("local-dir:FOLDER")`` and ``open_clip.get_tokenizer`` load.

open_clip has no tower of its own with MAP pooling; it asks timm for one. timm's models of that kind have fixed sizes, and most
of them (all of base size with 16-pixel patches) have the exact GELU, where ours is its tanh form. timm also builds what a
config.json in a folder says, of any size: so FOLDER/config.json describes the vision tower to timm, and open_clip_config.json
names it. timm finds a folder by its path alone, hence an export is tied to its place: after moving it, write the new path into
``timm_model_name`` and delete the list of checksums (``silc_bench.checksums.MANIFEST``). Needs open_clip 3.0 and timm 1.0.16 or
newer to be read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.export.tensor_file import write_tensors
from silc_bench.export.tokenizer import write_json, write_tokenizer
from silc_bench.models.native import NativeModel

WEIGHTS = "open_clip_model.safetensors"
VISION = {
    "norm1": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
POOLING = {"q": "q", "kv": "kv", "out": "proj", "norm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
TEXT = {"norm1": "ln_1", "attention.out": "attn.out_proj", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def write(model: NativeModel, folder: Path, final: Path) -> None:
    """Both configurations, weights and tokenizer into ``folder``, which will be moved to ``final``."""
    write_json(folder / "open_clip_config.json", _config(model, final))
    write_json(folder / "config.json", _timm_config(model))
    write_tokenizer(model, folder)
    write_tensors(folder / WEIGHTS, weights(model), {"format": "pt", "name": model.name})


def weights(model: NativeModel) -> dict[str, Tensor]:
    """The weights by the names of CustomTextCLIP over timm's VisionTransformer."""
    vision, text = model.vision, model.text
    named = {
        **_renamed("visual.trunk.patch_embed.proj", vision.patch),
        "visual.trunk.pos_embed": vision.positions,
        **_renamed("visual.trunk.norm", vision.norm),
        "visual.trunk.attn_pool.latent": vision.pool.probe,
        **_parts("visual.trunk.attn_pool", vision.pool, POOLING),
        "text.token_embedding.weight": text.embedding.weight,
        "text.positional_embedding": text.positions[0],
        **_renamed("text.ln_final", text.norm),
        **_renamed("text.text_projection", text.head),
        "logit_scale": torch.tensor(model.log_scale),
        "logit_bias": torch.tensor(model.logit_bias),  # 0 after training with the softmax loss
    }
    for index, block in enumerate(vision.blocks):
        named |= _parts(f"visual.trunk.blocks.{index}", block, VISION)
    for index, block in enumerate(text.blocks):
        prefix = f"text.transformer.resblocks.{index}"
        named |= _parts(prefix, block, TEXT)
        for part, value in block.get_submodule("attention.qkv").state_dict().items():
            named[f"{prefix}.attn.in_proj_{part}"] = value
    return named


def _renamed(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{part}": value for part, value in module.state_dict().items()}


def _parts(prefix: str, module: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    return {
        name: value
        for ours, theirs in names.items()
        for name, value in _renamed(f"{prefix}.{theirs}", module.get_submodule(ours)).items()
    }


def _config(model: NativeModel, final: Path) -> dict[str, Any]:
    vision, text, pipeline = model.config.vision, model.config.text, model.pipeline
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
                "act_kwargs": {"approximate": "tanh" if text.gelu == "tanh" else "none"},
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
    return {
        "architecture": "vit_base_patch16_siglip_256",
        "num_classes": 0,
        "num_features": vision.width,
        "global_pool": "map",
        "model_args": {
            "img_size": vision.image_size,
            "patch_size": vision.patch_size,
            "embed_dim": vision.width,
            "depth": vision.depth,
            "num_heads": vision.num_heads,
            "mlp_ratio": ratio(vision.mlp_dim, vision.width),
            "act_layer": "gelu_tanh" if vision.gelu == "tanh" else "gelu",
        },
        "pretrained_cfg": {
            "input_size": [3, vision.image_size, vision.image_size],
            "mean": list(model.pipeline.mean),
            "std": list(model.pipeline.std),
            "interpolation": model.pipeline.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "num_classes": 0,
        },
    }


def ratio(mlp_dim: int, width: int) -> float:
    """A factor by which both libraries, which cut to whole numbers, come from ``width`` to ``mlp_dim`` exactly."""
    factor = mlp_dim / width
    return factor if int(width * factor) == mlp_dim else math.nextafter(factor, math.inf)
