"""SigLIP of transformers, in both directions: its towers as ours, and ours as a folder of its own.

Reading: ``of_hf`` and ``of_big_vision`` take a model that ``silc_bench.models.load.load_model``
gave and return ``Towers`` (sizes, weights by our names, tokenizer), or raise a sentence that says
why not. (We run big_vision's checkpoints in transformers' towers, so both are read here.) Weights
are renamed and regrouped, never changed. Whatever names or numbers are left over, or whatever the
towers here cannot be set to, refuses the model; ``silc_bench.trainer.checkpoints.init`` then
compares embeddings before a run begins.

Writing: ``configs`` and ``weights`` are what makes a folder that ``transformers.AutoModel``,
``AutoTokenizer`` and ``AutoImageProcessor`` load: a SiglipModel. Needs transformers 4.51 or newer
to be read.

SigLIP's towers there and ours are the same computation: pre-norm blocks, GELU by its tanh or exact,
LayerNorm with epsilon 1e-6, MAP pooling, last token pooled, no mask. Ours keep q, k and v stacked;
a text tower of another width than the vision tower has its head's width in ``projection_size``.

Shapes: W width, D embedding, L tokens, N patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from silc_bench.trainer.checkpoints.libraries.exchange import (
    Towers,
    Weights,
    end_of_text,
    inverse,
    renamed,
    state,
    towers_from,
    unfit,
)
from silc_bench.trainer.checkpoints.model import NativeModel, tensors
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, of_pieces, of_transformers

# What is no SigLIP of one resolution, by the model_type of its configuration.
OTHERS = {
    "siglip2": "a NaFlex SigLIP 2, which takes patches of images of any shape",
    "clip": (
        "a CLIP (a class token, a causal mask over its texts, another embedding than the width,"
        " QuickGELU in OpenAI's)"
    ),
    "altclip": "an AltCLIP (a class token, and XLM-R reads its texts)",
    "chinese_clip": "a Chinese-CLIP (a class token, and BERT reads its texts)",
}
WEIGHTS = "model.safetensors"
BICUBIC = 3  # Pillow's number
GELUS = {"tanh": "gelu_pytorch_tanh", "exact": "gelu"}  # ours and theirs, as all tables here
SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}

# Our names and theirs; N is the number of a block. Here q, k and v are one layer, "qkv", in the
# blocks and in the pooling: see ``_our_weights``.
NAMES = {
    "log_scale": "logit_scale",
    "vision.patch.": "vision_model.embeddings.patch_embedding.",
    "vision.positions": "vision_model.embeddings.position_embedding.weight",
    "vision.norm.": "vision_model.post_layernorm.",
    "vision.pool.probe": "vision_model.head.probe",
    "vision.pool.qkv.": "vision_model.head.attention.in_proj_",
    "vision.pool.out.": "vision_model.head.attention.out_proj.",
    "vision.pool.norm.": "vision_model.head.layernorm.",
    "vision.pool.": "vision_model.head.",
    "text.embedding.": "text_model.embeddings.token_embedding.",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm.": "text_model.final_layer_norm.",
    "text.head.": "text_model.head.",
}
for _side in ("vision", "text"):
    NAMES |= {
        f"{_side}.blocks.N.norm": f"{_side}_model.encoder.layers.N.layer_norm",
        f"{_side}.blocks.N.attention.qkv.": f"{_side}_model.encoder.layers.N.self_attn.qkv_proj.",
        f"{_side}.blocks.N.attention.out.": f"{_side}_model.encoder.layers.N.self_attn.out_proj.",
        f"{_side}.blocks.": f"{_side}_model.encoder.layers.",
    }


# ---- reading ----


def of_hf(model: Any) -> Towers:
    """A SigLIP of transformers. Raises UserError where it is another kind of model."""
    kind = model.network.config.model_type
    if kind != "siglip":
        raise unfit(OTHERS[kind])

    reader = model.reader
    tokenizer = of_transformers(reader.tokenizer, reader.cleaning, reader.length, reader.vocab_size)
    return _of_siglip(model.network, tokenizer)


def of_big_vision(model: Any) -> Towers:
    """A SigLIP of big_vision, which runs in transformers' towers. UserError as ``of_hf``."""
    reader = model.tokenizer
    text = model.parts["text"]
    tokenizer = of_pieces(
        reader.file.read_bytes(),
        eos=reader.eos,
        padding=reader.padding,
        cleaning=reader.cleaning,
        length=reader.length,
        vocab_size=text.config.vocab_size,
    )

    # As transformers' SiglipModel, whose parts these are.
    network = nn.Module()
    network.vision_model = model.parts["vision"]
    network.text_model = text
    network.logit_scale = nn.Parameter(torch.tensor(model.logit_scale).log())
    network.logit_bias = nn.Parameter(torch.tensor(model.logit_bias))
    return _of_siglip(network, tokenizer)


def _of_siglip(network: Any, tokenizer: AnyTokenizer) -> Towers:
    vision = network.vision_model.config
    text = network.text_model
    return towers_from(
        _our_weights(network),
        {"vision": _sizes(vision), "text": _sizes(text.config)},
        network=network,
        embed_dim=text.head.out_features,
        patch_size=int(vision.patch_size),
        tokenizer=tokenizer,
    )


def _our_weights(network: nn.Module) -> Weights:
    """Both towers by the names of Student."""
    theirs = state(network)

    # In the blocks three layers there are one here.
    for name in [name for name in theirs if ".q_proj." in name]:
        parts = [theirs.pop(name.replace(".q_", f".{letter}_")) for letter in "qkv"]
        theirs[name.replace(".q_", ".qkv_")] = torch.cat(parts)
    ours = renamed(theirs, inverse(NAMES))

    # torch's MultiheadAttention stacks q, k, v [3W, W]; our pooling has q [W, W], kv [2W, W].
    for part in ("weight", "bias"):
        packed = ours.pop(f"vision.pool.qkv.{part}")
        width = len(packed) // 3
        ours[f"vision.pool.q.{part}"] = packed[:width]
        ours[f"vision.pool.kv.{part}"] = packed[width:]
    for side in ("vision", "text"):
        ours[f"{side}.positions"] = ours[f"{side}.positions"][None]
    return ours


def _sizes(config: Any) -> dict[str, Any]:
    """Fields that both towers of ours have."""
    sizes = {ours: getattr(config, theirs) for ours, theirs in SIZES.items()}
    # Another activation keeps its name, by which it is refused.
    return {**sizes, "gelu": inverse(GELUS).get(config.hidden_act, config.hidden_act)}


# ---- writing ----


def configs(model: NativeModel, final: Path) -> dict[str, Any]:
    """By name of the file; the folder may be moved from ``final`` to anywhere."""
    return {"config.json": _config(model), "preprocessor_config.json": _preprocessor(model)}


def weights(model: NativeModel) -> Weights:
    """The weights by SiglipModel's names: what ``_our_weights`` does, backwards."""
    ours = tensors(model)
    for side in ("vision", "text"):
        ours[f"{side}.positions"] = ours[f"{side}.positions"][0]
    for part in ("weight", "bias"):
        packed = [ours.pop(f"vision.pool.{layer}.{part}") for layer in ("q", "kv")]
        ours[f"vision.pool.qkv.{part}"] = torch.cat(packed)
    for name in ("log_scale", "logit_bias"):
        ours[name] = ours[name].reshape(1)

    # Views of the stacked tensor: nothing is copied.
    theirs = renamed(ours, NAMES)
    for name in [name for name in theirs if ".qkv_proj." in name]:
        for letter, values in zip("qkv", theirs.pop(name).chunk(3), strict=True):
            theirs[name.replace(".qkv_", f".{letter}_")] = values
    return theirs


def _config(model: NativeModel) -> dict[str, Any]:
    vision = model.config.vision
    text = model.config.text

    # No token begins a text here; left out, transformers would fill in its own number.
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
    """What both towers have in common; ``size`` is the configuration of either."""
    sizes = {theirs: getattr(size, ours) for ours, theirs in SIZES.items()}
    return {**sizes, "hidden_act": GELUS[size.gelu], "layer_norm_eps": eps}


def _preprocessor(model: NativeModel) -> dict[str, Any]:
    pipeline = model.pipeline
    assert (pipeline.resize, pipeline.crop, pipeline.interpolation) == ("squash", "none", "bicubic")
    return {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",  # what AutoProcessor puts around both
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
