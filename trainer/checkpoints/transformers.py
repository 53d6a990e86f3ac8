"""Models of other libraries as towers of ours: sizes, weights by our names and tokenizer, or a
sentence that says why not.

Flow: ``towers_of(model)`` of a model that ``silc_bench.models.load.load_model`` gave -> ``Towers``.
It is the inverse of ``silc_bench.trainer.checkpoints.export``: weights are renamed and regrouped,
never changed. Whatever names or numbers are left over, or whatever the towers here cannot be set
to, refuses the model; ``silc_bench.trainer.checkpoints.init`` then compares embeddings before a run
begins.

Shapes: W width, D embedding.

A folder that ``transformers.AutoModel``, ``AutoTokenizer`` and ``AutoImageProcessor`` load: a
SiglipModel.

SigLIP's towers there and ours are the same computation: pre-norm blocks, GELU by its tanh or exact,
LayerNorm with epsilon 1e-6, MAP pooling, last token pooled, no mask. Ours keep q, k and v stacked;
a text tower of another width than the vision tower has its head's width in ``projection_size``.
Needs transformers 4.51 or newer to be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.trainer.checkpoints.exchange import (
    INSTEAD,
    OURS,
    Towers,
    check_nothing_left,
    check_sizes,
    end_of_text,
    is_norm,
    scalars,
    state,
    taken,
    write_json,
    write_tensors,
    write_tokenizer,
)
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, of_pieces, of_transformers

NAMES = {"clip": "a CLIP", "altclip": "an AltCLIP", "chinese_clip": "a Chinese-CLIP"}


# ---- transformers and big_vision ----


def _of_hf(model: Any) -> Towers:
    kind = model.network.config.model_type
    if kind == "siglip2":
        raise UserError(
            f"it is a NaFlex SigLIP 2, which takes patches of pictures of any shape, and {OURS}; {INSTEAD}"
        )
    if kind != "siglip":
        raise UserError(
            f"it is {NAMES[kind]} ({_differences_of_clip(kind)}), and {OURS}; {INSTEAD}"
        )
    reader = model.reader
    tokenizer = of_transformers(reader.tokenizer, reader.cleaning, reader.length, reader.vocab_size)
    return _of_siglip(
        model.network.vision_model, model.network.text_model, model.network, tokenizer
    )


def _differences_of_clip(kind: str) -> str:
    return {
        "clip": "a class token, a causal mask over its texts, another embedding than the width, QuickGELU in OpenAI's",
        "altclip": "a class token, and XLM-R reads its texts",
        "chinese_clip": "a class token, and BERT reads its texts",
    }[kind]


def _of_big_vision(model: Any) -> Towers:
    reader = model.tokenizer
    shared = {
        "cleaning": reader.cleaning,
        "length": reader.length,
        "vocab_size": model.parts["text"].config.vocab_size,
    }
    tokenizer = of_pieces(
        reader.file.read_bytes(), eos=reader.eos, padding=reader.padding, **shared
    )
    numbers = nn.Module()
    numbers.logit_scale = nn.Parameter(torch.tensor(model.logit_scale).log())
    numbers.logit_bias = nn.Parameter(torch.tensor(model.logit_bias))
    return _of_siglip(model.parts["vision"], model.parts["text"], numbers, tokenizer)


def _of_siglip(vision: Any, text: Any, numbers: Any, tokenizer: AnyTokenizer) -> Towers:
    """From the two towers of transformers' SigLIP."""
    sizes = {"vision": _sizes(vision.config), "text": _sizes(text.config)}
    embed_dim = text.head.out_features
    check_sizes(
        sizes,
        embed_dim,
        (module.eps for part in (vision, text) for module in part.modules() if is_norm(module)),
    )
    left = {
        f"{side}.{name}": value
        for side, part in (("vision", vision), ("text", text))
        for name, value in state(part)
    }
    weights = {
        **taken(left, "vision.embeddings.patch_embedding", "vision.patch"),
        "vision.positions": left.pop("vision.embeddings.position_embedding.weight")[None],
        **taken(left, "vision.post_layernorm", "vision.norm"),
        "vision.pool.probe": left.pop("vision.head.probe"),
        **taken(left, "vision.head.attention.out_proj", "vision.pool.out"),
        **taken(left, "vision.head.layernorm", "vision.pool.norm"),
        **taken(left, "vision.head.mlp.fc1", "vision.pool.mlp.fc1"),
        **taken(left, "vision.head.mlp.fc2", "vision.pool.mlp.fc2"),
        "text.embedding.weight": left.pop("text.embeddings.token_embedding.weight"),
        "text.positions": left.pop("text.embeddings.position_embedding.weight")[None],
        **taken(left, "text.final_layer_norm", "text.norm"),
        **taken(left, "text.head", "text.head"),
        **scalars(numbers),
    }
    width = sizes["vision"]["width"]
    for part in ("weight", "bias"):
        packed = left.pop(f"vision.head.attention.in_proj_{part}")
        weights[f"vision.pool.q.{part}"], weights[f"vision.pool.kv.{part}"] = (
            packed[:width],
            packed[width:],
        )
    for side in sizes:
        for index in range(sizes[side]["depth"]):
            theirs, ours = f"{side}.encoder.layers.{index}", f"{side}.blocks.{index}"
            for our_part, their_part in PARTS.items():
                weights |= taken(left, f"{theirs}.{their_part}", f"{ours}.{our_part}")
            weights |= taken(left, f"{theirs}.self_attn.out_proj", f"{ours}.attention.out")
            for part in ("weight", "bias"):
                parts = [
                    left.pop(f"{theirs}.self_attn.{projection}_proj.{part}") for projection in "qkv"
                ]
                weights[f"{ours}.attention.qkv.{part}"] = torch.cat(parts)
    check_nothing_left(left)
    patch = int(vision.config.patch_size)
    return Towers(
        {
            **sizes["vision"],
            "patch_size": patch,
            "image_size": patch * round(weights["vision.positions"].shape[1] ** 0.5),
        },
        {
            **sizes["text"],
            "vocab_size": text.config.vocab_size,
            "context_length": text.config.max_position_embeddings,
        },
        weights,
        tokenizer,
    )


def _sizes(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_dim": config.intermediate_size,
        "gelu": {"gelu_pytorch_tanh": "tanh", "gelu": "exact"}.get(
            config.hidden_act, config.hidden_act
        ),
    }


BICUBIC = 3  # Pillow's number
PARTS = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def write(model: NativeModel, folder: Path, final: Path) -> None:
    """config.json, weights, tokenizer and image processor into ``folder``; it may be moved from
    ``final`` to anywhere.
    """
    write_json(folder / "config.json", _config(model))
    write_json(folder / "preprocessor_config.json", _preprocessor(model))
    write_tokenizer(model, folder)
    write_tensors(
        folder / "model.safetensors", weights(model), {"format": "pt", "name": model.name}
    )


def weights(model: NativeModel) -> dict[str, Tensor]:
    """The weights by SiglipModel's names."""
    vision, text = model.vision, model.text
    return {
        **_linear("vision_model.embeddings.patch_embedding", vision.patch),
        "vision_model.embeddings.position_embedding.weight": vision.positions[0],
        **_blocks("vision_model", vision.blocks),
        **_linear("vision_model.post_layernorm", vision.norm),
        **_pooling("vision_model.head", vision.pool),
        "text_model.embeddings.token_embedding.weight": text.embedding.weight,
        "text_model.embeddings.position_embedding.weight": text.positions[0],
        **_blocks("text_model", text.blocks),
        **_linear("text_model.final_layer_norm", text.norm),
        **_linear("text_model.head", text.head),
        "logit_scale": torch.tensor([model.log_scale]),
        "logit_bias": torch.tensor([model.logit_bias]),  # 0 after training with the softmax loss
    }


def _linear(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The weight and bias of a linear layer, a convolution or a norm."""
    return {f"{name}.{part}": value for part, value in module.state_dict().items()}


def _blocks(tower: str, blocks: nn.ModuleList) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for index, block in enumerate(blocks):
        prefix = f"{tower}.encoder.layers.{index}"
        for ours, theirs in PARTS.items():
            named |= _linear(f"{prefix}.{theirs}", block.get_submodule(ours))
        for part, value in block.get_submodule("attention.qkv").state_dict().items():
            for projection, values in zip("qkv", value.chunk(3), strict=True):
                named[f"{prefix}.self_attn.{projection}_proj.{part}"] = values
        named |= _linear(f"{prefix}.self_attn.out_proj", block.get_submodule("attention.out"))
    return named


def _pooling(name: str, pool: nn.Module) -> dict[str, Tensor]:
    q, kv = pool.get_submodule("q").state_dict(), pool.get_submodule("kv").state_dict()
    return {
        f"{name}.probe": pool.get_parameter("probe"),
        f"{name}.attention.in_proj_weight": torch.cat([q["weight"], kv["weight"]]),
        f"{name}.attention.in_proj_bias": torch.cat([q["bias"], kv["bias"]]),
        **_linear(f"{name}.attention.out_proj", pool.get_submodule("out")),
        **_linear(f"{name}.layernorm", pool.get_submodule("norm")),
        **_linear(f"{name}.mlp", pool.get_submodule("mlp")),
    }


def _config(model: NativeModel) -> dict[str, Any]:
    vision, text = model.config.vision, model.config.text
    eos = end_of_text(model)["id"]
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            **_tower(vision, model.vision.norm.eps),
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "projection_size": model.embed_dim,
            "bos_token_id": None,
            "eos_token_id": eos,
            "pad_token_id": eos,
            **_tower(text, model.text.norm.eps),
        },
    }


def _tower(size: Any, eps: float) -> dict[str, Any]:
    """``size``: the configuration of either tower."""
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "intermediate_size": size.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh" if size.gelu == "tanh" else "gelu",
        "layer_norm_eps": eps,
    }


def _preprocessor(model: NativeModel) -> dict[str, Any]:
    pipeline = model.pipeline
    assert (pipeline.resize, pipeline.crop, pipeline.interpolation) == ("squash", "none", "bicubic")
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": pipeline.size, "width": pipeline.size},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pipeline.mean),
        "image_std": list(pipeline.std),
    }
