"""What was loaded, read off the model: protocol, towers, numbers. ``facts_of(subject)`` -> {name: value}, JSON.

Pooling and activation are no part of the protocol of a model; they are read from the library's own modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from silc_bench.doctor.subject import Subject

ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "GELUTanhActivation": "gelu_tanh",
    "SiLU": "silu",
    "ReLU": "relu",
}
OURS = "trainer.layers"  # whose towers call GELU as a function
ATTENTION, MEAN, TOKEN = "attention over the patches", "mean of the patches", "class token"
PATCHES_ALONE = (ATTENTION, MEAN)  # poolings that have nothing but patches to pool


def facts_of(subject: Subject, pixel_hash: str, pipeline: str | None) -> dict[str, Any]:
    """All that is printed before the checks, in that order."""
    model = subject.model
    found = {
        "name": model.name,
        "revision": model.revision,
        "parameters": model.num_params,
        "image size": model.image_size,
        "patch size": getattr(model, "patch_size", "none: no dense features"),
        "pooling": pooling_of(subject),
        "activation": activation_of(subject),
        "feature points": dict(model.feature_points),
        **{key.replace("_", " "): value for key, value in model.image_protocol.items() if key not in ("size", "patch_size")},
        "pixels": f"{pixel_hash}, {pipeline or 'none of the known pipelines'}",
    }
    if subject.reads:
        protocol = model.text_protocol
        found |= {
            "text cleaning": protocol.get("cleaning"),
            "text length": protocol.get("length"),
            "tokenizer": protocol.get("tokenizer"),
            "padding": protocol.get("padding", "not said"),
            "logit scale": model.logit_scale,
            "logit bias": model.logit_bias,
        }
    else:
        found["text"] = getattr(model, "lacking", {}).get("text", "no text tower")
    return found


def activation_of(subject: Subject) -> str:
    """Of all networks, with commas: "quick_gelu"; "relu, quick_gelu" where two towers differ."""
    kinds: dict[str, None] = {}
    for layer in subject.layers():
        kind = type(layer)
        if kind is nn.GELU:
            kinds["gelu_tanh" if layer.approximate == "tanh" else "gelu"] = None
        elif kind.__name__ in ACTIVATIONS:
            kinds[ACTIVATIONS[kind.__name__]] = None
        elif kind.__module__ == OURS and kind.__name__ == "Mlp":
            kinds["gelu_tanh" if layer.approximate == "tanh" else "gelu"] = None
    return ", ".join(kinds) or "not told"


def pooling_of(subject: Subject) -> str:
    """How patches become one embedding; ATTENTION and MEAN only where nothing but patches is pooled."""
    layers = {f"{network}.{name}": layer for network, root in subject.modules.items() for name, layer in root.named_modules()}
    for name, layer in layers.items():
        if name.endswith(".attnpool"):
            return "attention over the positions and their mean (ResNet)"
        if name.endswith("visual.head") and hasattr(layer, "pool"):
            return "attention over the positions and their mean (timm)"
        if isinstance(getattr(layer, "probe", None), torch.Tensor):
            return ATTENTION
    for name, layer in layers.items():
        if hasattr(layer, "forward_head") and hasattr(layer, "forward_features"):  # timm
            return _timm_pooling(layer)
        if name.endswith(".visual") and hasattr(layer, "pool_type"):  # open_clip
            if layer.attn_pool is not None:
                return "attention over class token and patches"
            return {"tok": TOKEN, "avg": MEAN}.get(layer.pool_type, layer.pool_type)
        if name.endswith(".visual_projection"):  # transformers' CLIP
            return TOKEN
    return "not told"


def _timm_pooling(trunk: Any) -> str:
    pool = getattr(trunk, "global_pool", "")
    how = str(getattr(pool, "pool_type", pool) or "")  # of a network with maps it is a layer
    if getattr(trunk, "attn_pool", None) is not None:
        is_plain = getattr(trunk, "num_prefix_tokens", 0) == 0 and getattr(trunk.attn_pool, "pos_embed", None) is None
        return ATTENTION if is_plain else "attention over prefix tokens and patches"
    if how == "token":
        return TOKEN
    if how == "avg" or hasattr(getattr(trunk, "head", None), "global_pool"):
        return MEAN if not getattr(trunk, "pool_include_prefix", False) else "mean of prefix tokens and patches"
    return how or "not told"
