"""Models of open_clip as towers of ours: timm's vision transformers with attention pooling, and
open_clip's own text tower.

A folder that ``open_clip.create_model_from_pretrained("local-dir:FOLDER")`` and
``open_clip.get_tokenizer`` load.

open_clip has no tower of its own with MAP pooling; it asks timm for one. timm's models of that kind
have fixed sizes, and most of them (all of base size with 16-pixel patches) have the exact GELU,
where ours is its tanh form. timm also builds what a config.json in a folder says, of any size: so
FOLDER/config.json describes the vision tower to timm, and open_clip_config.json names it. timm
finds a folder by its path alone, hence an export is tied to its place: after moving it, write the
new path into ``timm_model_name`` and delete the list of checksums
(``silc_bench.system.checksums.MANIFEST``). Needs open_clip 3.0 and timm 1.0.16 or newer to be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.trainer.checkpoints.exchange import (
    INSTEAD,
    OURS,
    Towers,
    Weights,
    check_nothing_left,
    check_sizes,
    is_norm,
    scalars,
    state,
    taken,
    write_json,
    write_tensors,
    write_tokenizer,
)
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, of_transformers


def of_open_clip(model: Any) -> Towers:
    """A SigLIP of open_clip. UserError where it is another kind of model."""
    network = model.network
    trunk: Any = getattr(network.visual, "trunk", None)
    text: Any = getattr(network, "text", None)
    pool = getattr(trunk, "attn_pool", None)
    if text is None or pool is None or not hasattr(trunk, "blocks") or trunk.num_prefix_tokens:
        raise UserError(
            f"it is no SigLIP ({_differences_of_open_clip(network)}), and {OURS}; {INSTEAD}"
        )
    if (
        not hasattr(text, "token_embedding")
        or text.attn_mask is not None
        or text.pool_type != "last"
        or text.cls_emb is not None
    ):
        raise UserError(
            f"its texts are read by another kind of tower (causal mask, or another pooling), and {OURS}; {INSTEAD}"
        )
    blocks, resblocks = list(trunk.blocks), list(text.transformer.resblocks)
    if {pool.num_heads} != {block.attn.num_heads for block in blocks}:
        raise UserError(
            f"its pooling has {pool.num_heads} heads and its blocks another number, and {OURS}; {INSTEAD}"
        )
    vision_sizes = {
        "width": trunk.embed_dim,
        "depth": len(blocks),
        "num_heads": pool.num_heads,
        "mlp_dim": blocks[0].mlp.fc1.out_features,
        "gelu": _gelu_of(module for part in (*blocks, pool) for module in part.modules()),
    }
    text_sizes = {
        "width": text.token_embedding.embedding_dim,
        "depth": len(resblocks),
        "num_heads": resblocks[0].attn.num_heads,
        "mlp_dim": resblocks[0].mlp.c_fc.out_features,
        "gelu": _gelu_of(text.modules()),
    }
    modules = (module for part in (trunk, text) for module in part.modules())
    check_sizes(
        {"vision": vision_sizes, "text": text_sizes},
        model.embed_dim,
        (m.eps for m in modules if is_norm(m)),
    )
    weights = _open_clip_weights(network, len(blocks), len(resblocks))
    patch = int(trunk.patch_embed.patch_size[0])
    return Towers(
        {
            **vision_sizes,
            "patch_size": patch,
            "image_size": patch * round(weights["vision.positions"].shape[1] ** 0.5),
        },
        {
            **text_sizes,
            "vocab_size": text.token_embedding.num_embeddings,
            "context_length": text.context_length,
        },
        weights,
        _open_clip_tokenizer(model.tokenizer, text.token_embedding.num_embeddings),
    )


def _open_clip_weights(network: Any, vision_depth: int, text_depth: int) -> Weights:
    trunk, text = network.visual.trunk, network.text
    left = {f"visual.{name}": value for name, value in state(network.visual)}
    left |= {f"text.{name}": value for name, value in state(text)}
    try:
        weights = {
            **taken(left, "visual.trunk.patch_embed.proj", "vision.patch"),
            "vision.positions": left.pop("visual.trunk.pos_embed"),
            **taken(left, "visual.trunk.norm", "vision.norm"),
            "vision.pool.probe": left.pop("visual.trunk.attn_pool.latent"),
            "text.embedding.weight": left.pop("text.token_embedding.weight"),
            "text.positions": left.pop("text.positional_embedding")[None],
            **taken(left, "text.ln_final", "text.norm"),
            **taken(left, "text.text_projection", "text.head"),
            **scalars(network),
        }
        for ours, theirs in POOLING.items():
            weights |= taken(left, f"visual.trunk.attn_pool.{theirs}", f"vision.pool.{ours}")
        for index in range(vision_depth):
            for ours, theirs in VISION.items():
                weights |= taken(
                    left, f"visual.trunk.blocks.{index}.{theirs}", f"vision.blocks.{index}.{ours}"
                )
        for index in range(text_depth):
            prefix = f"text.transformer.resblocks.{index}"
            for ours, theirs in TEXT.items():
                weights |= taken(left, f"{prefix}.{theirs}", f"text.blocks.{index}.{ours}")
            for part in ("weight", "bias"):
                weights[f"text.blocks.{index}.attention.qkv.{part}"] = left.pop(
                    f"{prefix}.attn.in_proj_{part}"
                )
    except KeyError as error:
        raise UserError(
            f"its {type(trunk).__name__} has no {error.args[0]}, and {OURS}; {INSTEAD}"
        ) from None
    check_nothing_left(left)
    return weights


def _differences_of_open_clip(network: Any) -> str:
    if hasattr(network.visual, "attnpool"):
        return "a ResNet, and a causal mask over its texts"
    if not hasattr(network.visual, "trunk"):
        return "a class token, a causal mask over its texts, and QuickGELU where OpenAI trained it"
    return f"its image tower is timm's {type(network.visual.trunk).__name__}, pooled in another way"


def _gelu_of(modules: Iterable[nn.Module]) -> str:
    """ "tanh", "exact", or the name of what else the towers have between their layers."""
    kinds = set()
    for module in modules:
        name = type(module).__name__
        if isinstance(module, nn.GELU):
            kinds.add("tanh" if module.approximate == "tanh" else "exact")
        elif re.search(r"(GELU|ReLU|SiLU|Swish)", name, re.IGNORECASE):
            kinds.add({"GELUTanh": "tanh", "GELU": "exact"}.get(name, name))  # timm's own classes
    return "+".join(sorted(kinds))


def _open_clip_tokenizer(tokenizer: Any, vocab_size: int) -> AnyTokenizer:
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None or tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
        raise UserError(
            f"its tokenizer is open_clip's {type(tokenizer).__name__} in Python, which no checkpoint here can hold; export the"
            " model with a tokenizer of transformers (hf_tokenizer_name), or start from its transformers form (hf:FOLDER)"
        )
    cleaning = f"open_clip {tokenizer.clean_fn.__name__.removeprefix('_clean_')}"
    return of_transformers(inner, cleaning, tokenizer.context_length, vocab_size)


WEIGHTS = "open_clip_model.safetensors"
VISION = {
    "norm1": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
POOLING = {
    "q": "q",
    "kv": "kv",
    "out": "proj",
    "norm": "norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
TEXT = {
    "norm1": "ln_1",
    "attention.out": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write(model: NativeModel, folder: Path, final: Path) -> None:
    """Both configurations, weights and tokenizer into ``folder``, which will be moved to
    ``final``.
    """
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
    """A factor by which both libraries, which cut to whole numbers, come from ``width`` to
    ``mlp_dim`` exactly.
    """
    factor = mlp_dim / width
    return factor if int(width * factor) == mlp_dim else math.nextafter(factor, math.inf)
