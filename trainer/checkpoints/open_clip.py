"""SigLIP of open_clip, in both directions: its towers as ours, and ours as a folder of its own.

Its image tower is one of timm's vision transformers with attention pooling, its text tower is
open_clip's own.

Reading: ``of_open_clip(model)`` of a model that ``silc_bench.models.load.load_model`` gave ->
``Towers``, or a sentence that says why not. Weights are renamed, never changed.

Writing: ``write`` makes a folder that
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

# Layers with a weight and a bias, by our names and theirs: of a block of the image tower, of its
# pooling, and of a block of the text tower.
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
WEIGHTS = "open_clip_model.safetensors"


# ---- reading ----


def of_open_clip(model: Any) -> Towers:
    """A SigLIP of open_clip. UserError where it is another kind of model."""
    network = model.network
    _check_kind(network)
    trunk = network.visual.trunk
    text = network.text

    vision_sizes, text_sizes = _sizes(trunk, text)
    modules = [*trunk.modules(), *text.modules()]
    epsilons = [module.eps for module in modules if is_norm(module)]
    check_sizes({"vision": vision_sizes, "text": text_sizes}, model.embed_dim, epsilons)

    weights = _our_weights(network, vision_sizes["depth"], text_sizes["depth"])
    vocab_size = text.token_embedding.num_embeddings

    # Told by the positions, one a patch: they are what the tower was trained with.
    patch_size = int(trunk.patch_embed.patch_size[0])
    grid = round(weights["vision.positions"].shape[1] ** 0.5)
    return Towers(
        {**vision_sizes, "patch_size": patch_size, "image_size": patch_size * grid},
        {**text_sizes, "vocab_size": vocab_size, "context_length": text.context_length},
        weights,
        _tokenizer(model.tokenizer, vocab_size),
    )


def _check_kind(network: Any) -> None:
    """Raises UserError: its towers are built otherwise than ours."""
    trunk: Any = getattr(network.visual, "trunk", None)
    text: Any = getattr(network, "text", None)
    pool = getattr(trunk, "attn_pool", None)
    if text is None or pool is None or not hasattr(trunk, "blocks") or trunk.num_prefix_tokens:
        raise UserError(f"it is no SigLIP ({_differences(network)}), and {OURS}; {INSTEAD}")

    if (
        not hasattr(text, "token_embedding")
        or text.attn_mask is not None
        or text.pool_type != "last"
        or text.cls_emb is not None
    ):
        raise UserError(
            "its texts are read by another kind of tower (causal mask, or another pooling),"
            f" and {OURS}; {INSTEAD}"
        )

    # Ours has one number for both.
    if {pool.num_heads} != {block.attn.num_heads for block in trunk.blocks}:
        raise UserError(
            f"its pooling has {pool.num_heads} heads and its blocks another number,"
            f" and {OURS}; {INSTEAD}"
        )


def _sizes(trunk: Any, text: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields that both towers of ours have: of the image tower, of the text tower."""
    blocks = list(trunk.blocks)
    pool = trunk.attn_pool
    vision_modules = [module for part in (*blocks, pool) for module in part.modules()]
    vision_sizes = {
        "width": trunk.embed_dim,
        "depth": len(blocks),
        "num_heads": pool.num_heads,
        "mlp_dim": blocks[0].mlp.fc1.out_features,
        "gelu": _gelu_of(vision_modules),
    }

    blocks = list(text.transformer.resblocks)
    text_sizes = {
        "width": text.token_embedding.embedding_dim,
        "depth": len(blocks),
        "num_heads": blocks[0].attn.num_heads,
        "mlp_dim": blocks[0].mlp.c_fc.out_features,
        "gelu": _gelu_of(text.modules()),
    }
    return vision_sizes, text_sizes


def _our_weights(network: Any, vision_depth: int, text_depth: int) -> Weights:
    """Both towers by the names of Student. Raises UserError: one is missing, or has no place."""
    trunk = network.visual.trunk
    text = network.text

    # Every weight is taken out of this table when it finds its place.
    left = {f"visual.{name}": value for name, value in state(network.visual)}
    left |= {f"text.{name}": value for name, value in state(text)}

    # Another transformer of timm has other names, which taken and pop miss.
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
            prefix = f"visual.trunk.blocks.{index}"
            for ours, theirs in VISION.items():
                weights |= taken(left, f"{prefix}.{theirs}", f"vision.blocks.{index}.{ours}")

        for index in range(text_depth):
            prefix = f"text.transformer.resblocks.{index}"
            for ours, theirs in TEXT.items():
                weights |= taken(left, f"{prefix}.{theirs}", f"text.blocks.{index}.{ours}")

            # torch's MultiheadAttention has no layer for q, k, v, only these two parameters.
            for part in ("weight", "bias"):
                values = left.pop(f"{prefix}.attn.in_proj_{part}")
                weights[f"text.blocks.{index}.attention.qkv.{part}"] = values
    except KeyError as error:
        raise UserError(
            f"its {type(trunk).__name__} has no {error.args[0]}, and {OURS}; {INSTEAD}"
        ) from None
    check_nothing_left(left)
    return weights


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
            f"its tokenizer is open_clip's {type(tokenizer).__name__} in Python, which no"
            " checkpoint here can hold; export the model with a tokenizer of transformers"
            " (hf_tokenizer_name), or start from its transformers form (hf:FOLDER)"
        )

    # open_clip cleans texts before its tokenizer sees them, so the checkpoint must do the same.
    cleaning = f"open_clip {tokenizer.clean_fn.__name__.removeprefix('_clean_')}"
    return of_transformers(inner, cleaning, tokenizer.context_length, vocab_size)


# ---- writing ----


def write(model: NativeModel, folder: Path, final: Path) -> None:
    """Both configurations, weights and tokenizer into ``folder``.

    It will be moved to ``final``, the path that the configurations hold.
    """
    write_json(folder / "open_clip_config.json", _config(model, final))
    write_json(folder / "config.json", _timm_config(model))
    write_tokenizer(model, folder)
    write_tensors(folder / WEIGHTS, weights(model), {"format": "pt", "name": model.name})


def weights(model: NativeModel) -> dict[str, Tensor]:
    """The weights by the names of CustomTextCLIP over timm's VisionTransformer."""
    vision = model.vision
    text = model.text
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

        # No layer of theirs, so not in the table: see _our_weights.
        for part, value in block.get_submodule("attention.qkv").state_dict().items():
            named[f"{prefix}.attn.in_proj_{part}"] = value
    return named


def _renamed(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The weight and bias of a linear layer, a convolution or a norm."""
    return {f"{name}.{part}": value for part, value in module.state_dict().items()}


def _parts(prefix: str, module: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The layers of one of the tables above."""
    named: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        named |= _renamed(f"{prefix}.{theirs}", module.get_submodule(ours))
    return named


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
