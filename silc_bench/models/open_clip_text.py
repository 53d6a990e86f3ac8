"""Texts of open_clip: what its tokenizers do, as JSON, and its text towers without the padding that no answer depends on.

A causal tower reads left to right and is pooled at the end of the text: what stands behind the longest text of a batch changes
nothing. A batch is cut there (77 tokens to a dozen, for prompts), exactly; towers that see their padding are left whole.

Shapes: B texts, L tokens, W width, D embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.models.hf_text import PROBES

Network = Any  # a CLIP, CustomTextCLIP or CoCa of open_clip
POOLS = ("argmax", "eos")  # at the end of the text: the largest id, or a given one


def encoder_of(network: Network) -> Callable[[Tensor], Tensor]:
    """[B, L] -> [B, D], as ``network.encode_text(tokens, normalize=False)``."""
    tower: Any = getattr(network, "text", network)
    pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    eos_id: Any = getattr(tower, "text_eos_id", None) if tower is network else getattr(tower, "eos_id", None)
    sees_padding = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
    if pool not in POOLS or sees_padding or getattr(tower, "attn_mask", None) is None:
        return lambda tokens: network.encode_text(tokens, normalize=False)

    def encode(tokens: Tensor) -> Tensor:
        ends = tokens.argmax(dim=-1) if pool == "argmax" else tokens.eq(eos_id).int().argmax(dim=-1)
        length = int(ends.max()) + 1
        x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    return encode


def text_protocol(tokenizer: Any) -> dict[str, Any]:
    """All that ``tokenize`` does, as JSON: the options by their names, and, in "reads", by what comes out.

    Some leave no trace but that (a language that changes the special tokens, the library's own release).
    """
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers
    vocabulary = tokenizer.encoder if inner is None else inner.get_vocab()
    clean, reduce = getattr(tokenizer, "clean_fn", None), getattr(tokenizer, "reduction_fn", None)
    ids = tokenizer([*PROBES, "a text that is too long " * tokenizer.context_length]).tolist()
    return {
        "cleaning": clean.__name__.removeprefix("_clean_") if clean else "canonicalize",
        "length": tokenizer.context_length,
        "tokenizer": type(inner or tokenizer).__name__,
        "vocabulary": _digest(sorted(vocabulary.items())),
        "padding": 0 if inner is None else inner.pad_token_id,
        "mode": getattr(tokenizer, "tokenizer_mode", ""),
        "strip_sep_token": bool(getattr(tokenizer, "strip_sep_token", False)),
        "reduction": reduce.__name__ if reduce else "end of text kept",
        "reads": _digest(ids),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
