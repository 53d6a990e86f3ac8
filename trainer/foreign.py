"""Models of other libraries as towers of ours: sizes, weights by our names and tokenizer, or a sentence that says why not.

Flow: ``towers_of(model)`` of a model that ``silc_bench.models.load_model`` gave -> ``Towers``. It is the inverse of
``silc_bench.export``: weights are renamed and regrouped, never changed. Whatever names or numbers are left over, or whatever
the towers here cannot be set to, refuses the model; ``trainer.start`` then compares embeddings before a run begins.

Shapes: W width, D embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from silc_bench.errors import UserError
from silc_bench.export.hf import PARTS
from silc_bench.models import ImageModel
from trainer.foreign_open_clip import of_open_clip
from trainer.foreign_tokenizer import AnyTokenizer, of_pieces, of_transformers
from trainer.foreign_towers import INSTEAD, OURS, Towers, check_nothing_left, check_sizes, is_norm, scalars, state, taken

NAMES = {"clip": "a CLIP", "altclip": "an AltCLIP", "chinese_clip": "a Chinese-CLIP"}


def towers_of(model: ImageModel) -> Towers:
    """What a run can start from.

    Raises:
        UserError: a model that our towers do not represent exactly, or whose tokenizer a checkpoint cannot hold.
    """
    from silc_bench.models.big_vision import BigVisionModel, BigVisionTextModel
    from silc_bench.models.hf import HfModel
    from silc_bench.models.open_clip import OpenClipModel

    if isinstance(model, HfModel):
        found = _of_hf(model)
    elif isinstance(model, OpenClipModel):
        found = of_open_clip(model)
    elif isinstance(model, BigVisionTextModel):
        found = _of_big_vision(model)
    elif isinstance(model, BigVisionModel):
        raise UserError(f"a run needs both towers and the tokenizer: {model.lacking['text']}")
    else:
        raise UserError(f"it reads no texts, and a run learns from pictures with texts; {INSTEAD}")
    pipeline: Any = model.pipeline
    if tuple(pipeline.mean) != (0.5,) * 3 or tuple(pipeline.std) != (0.5,) * 3:
        raise UserError(
            f"it was trained on pixels with mean {list(pipeline.mean)} and deviation {list(pipeline.std)}, a run here gives its"
            f" towers pixels from -1 to 1; {INSTEAD}"
        )
    theirs = (pipeline.resize, pipeline.crop, pipeline.interpolation)
    if theirs == ("squash", "none", "bicubic"):
        return found
    return replace(
        found,
        note=f"its pictures were made by {' / '.join(theirs)} (resize / crop / interpolation); those of this run are measured"
        " squashed, whole and bicubic, so its scores may differ from the source's by that",
    )


# ---- transformers and big_vision ----


def _of_hf(model: Any) -> Towers:
    kind = model.network.config.model_type
    if kind == "siglip2":
        raise UserError(f"it is a NaFlex SigLIP 2, which takes patches of pictures of any shape, and {OURS}; {INSTEAD}")
    if kind != "siglip":
        raise UserError(f"it is {NAMES[kind]} ({_differences_of_clip(kind)}), and {OURS}; {INSTEAD}")
    reader = model.reader
    tokenizer = of_transformers(reader.tokenizer, reader.cleaning, reader.length, reader.vocab_size)
    return _of_siglip(model.network.vision_model, model.network.text_model, model.network, tokenizer)


def _differences_of_clip(kind: str) -> str:
    return {
        "clip": "a class token, a causal mask over its texts, another embedding than the width, QuickGELU in OpenAI's",
        "altclip": "a class token, and XLM-R reads its texts",
        "chinese_clip": "a class token, and BERT reads its texts",
    }[kind]


def _of_big_vision(model: Any) -> Towers:
    reader = model.tokenizer
    shared = {"cleaning": reader.cleaning, "length": reader.length, "vocab_size": model.parts["text"].config.vocab_size}
    tokenizer = of_pieces(reader.file.read_bytes(), eos=reader.eos, padding=reader.padding, **shared)
    numbers = nn.Module()
    numbers.logit_scale = nn.Parameter(torch.tensor(model.logit_scale).log())
    numbers.logit_bias = nn.Parameter(torch.tensor(model.logit_bias))
    return _of_siglip(model.parts["vision"], model.parts["text"], numbers, tokenizer)


def _of_siglip(vision: Any, text: Any, numbers: Any, tokenizer: AnyTokenizer) -> Towers:
    """From the two towers of transformers' SigLIP."""
    sizes = {"vision": _sizes(vision.config), "text": _sizes(text.config)}
    embed_dim = text.head.out_features
    check_sizes(sizes, embed_dim, (module.eps for part in (vision, text) for module in part.modules() if is_norm(module)))
    left = {f"{side}.{name}": value for side, part in (("vision", vision), ("text", text)) for name, value in state(part)}
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
        weights[f"vision.pool.q.{part}"], weights[f"vision.pool.kv.{part}"] = packed[:width], packed[width:]
    for side in sizes:
        for index in range(sizes[side]["depth"]):
            theirs, ours = f"{side}.encoder.layers.{index}", f"{side}.blocks.{index}"
            for our_part, their_part in PARTS.items():
                weights |= taken(left, f"{theirs}.{their_part}", f"{ours}.{our_part}")
            weights |= taken(left, f"{theirs}.self_attn.out_proj", f"{ours}.attention.out")
            for part in ("weight", "bias"):
                parts = [left.pop(f"{theirs}.self_attn.{projection}_proj.{part}") for projection in "qkv"]
                weights[f"{ours}.attention.qkv.{part}"] = torch.cat(parts)
    check_nothing_left(left)
    patch = int(vision.config.patch_size)
    return Towers(
        {**sizes["vision"], "patch_size": patch, "image_size": patch * round(weights["vision.positions"].shape[1] ** 0.5)},
        {**sizes["text"], "vocab_size": text.config.vocab_size, "context_length": text.config.max_position_embeddings},
        weights,
        tokenizer,
    )


def _sizes(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_dim": config.intermediate_size,
        "gelu": {"gelu_pytorch_tanh": "tanh", "gelu": "exact"}.get(config.hidden_act, config.hidden_act),
    }
