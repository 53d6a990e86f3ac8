"""Models of open_clip as towers of ours: timm's vision transformers with attention pooling, and open_clip's own text tower."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from silc_bench.errors import UserError
from silc_bench.export.open_clip import POOLING, TEXT, VISION
from trainer.foreign_tokenizer import AnyTokenizer, of_transformers
from trainer.foreign_towers import (
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
)


def of_open_clip(model: Any) -> Towers:
    """A SigLIP of open_clip. UserError where it is another kind of model."""
    network = model.network
    trunk: Any = getattr(network.visual, "trunk", None)
    text: Any = getattr(network, "text", None)
    pool = getattr(trunk, "attn_pool", None)
    if text is None or pool is None or not hasattr(trunk, "blocks") or trunk.num_prefix_tokens:
        raise UserError(f"it is no SigLIP ({_differences_of_open_clip(network)}), and {OURS}; {INSTEAD}")
    if (
        not hasattr(text, "token_embedding")
        or text.attn_mask is not None
        or text.pool_type != "last"
        or text.cls_emb is not None
    ):
        raise UserError(f"its texts are read by another kind of tower (causal mask, or another pooling), and {OURS}; {INSTEAD}")
    blocks, resblocks = list(trunk.blocks), list(text.transformer.resblocks)
    if {pool.num_heads} != {block.attn.num_heads for block in blocks}:
        raise UserError(f"its pooling has {pool.num_heads} heads and its blocks another number, and {OURS}; {INSTEAD}")
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
    check_sizes({"vision": vision_sizes, "text": text_sizes}, model.embed_dim, (m.eps for m in modules if is_norm(m)))
    weights = _open_clip_weights(network, len(blocks), len(resblocks))
    patch = int(trunk.patch_embed.patch_size[0])
    return Towers(
        {**vision_sizes, "patch_size": patch, "image_size": patch * round(weights["vision.positions"].shape[1] ** 0.5)},
        {**text_sizes, "vocab_size": text.token_embedding.num_embeddings, "context_length": text.context_length},
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
                weights |= taken(left, f"visual.trunk.blocks.{index}.{theirs}", f"vision.blocks.{index}.{ours}")
        for index in range(text_depth):
            prefix = f"text.transformer.resblocks.{index}"
            for ours, theirs in TEXT.items():
                weights |= taken(left, f"{prefix}.{theirs}", f"text.blocks.{index}.{ours}")
            for part in ("weight", "bias"):
                weights[f"text.blocks.{index}.attention.qkv.{part}"] = left.pop(f"{prefix}.attn.in_proj_{part}")
    except KeyError as error:
        raise UserError(f"its {type(trunk).__name__} has no {error.args[0]}, and {OURS}; {INSTEAD}") from None
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
