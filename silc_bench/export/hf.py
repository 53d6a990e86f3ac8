"""A folder that ``transformers.AutoModel``, ``AutoTokenizer`` and ``AutoImageProcessor`` load: a SiglipModel.

SigLIP's towers there and ours are the same computation: pre-norm blocks, GELU by its tanh or exact, LayerNorm with epsilon
1e-6, MAP pooling, last token pooled, no mask. Ours keep q, k and v stacked; a text tower of another width than the vision tower
has its head's width in ``projection_size``. Needs transformers 4.51 or newer to be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.export.tensor_file import write_tensors
from silc_bench.export.tokenizer import end_of_text, write_json, write_tokenizer
from silc_bench.models.native import NativeModel

BICUBIC = 3  # Pillow's number
PARTS = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def write(model: NativeModel, folder: Path, final: Path) -> None:
    """config.json, weights, tokenizer and image processor into ``folder``; it may be moved from ``final`` to anywhere."""
    write_json(folder / "config.json", _config(model))
    write_json(folder / "preprocessor_config.json", _preprocessor(model))
    write_tokenizer(model, folder)
    write_tensors(folder / "model.safetensors", weights(model), {"format": "pt", "name": model.name})


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
