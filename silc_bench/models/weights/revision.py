"""Which weights, exactly: 16 hex digits that change when any of them does.

The rule: SHA-256 over every tensor of the modules behind the embeddings - name, shape, value as
fp32 - in the order of their names, then over ``settings``: what changes the embeddings without
being a weight (activation, heads, epsilon of a norm). The dtype of the file and the device do not
count. Names are those of the library that runs the model, so the same weights loaded through two
libraries are two revisions; their metrics are equal where pixels, tokens and activation agree,
which they do not for every model (docs/checkpoints.md, "Known traps").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn


def revision_of(modules: Mapping[str, nn.Module], settings: Mapping[str, Any] | None = None) -> str:
    """First 16 hex digits; ``settings`` is plain JSON, and adds nothing where it is empty."""
    named = (
        (f"{prefix}.{name}", value)
        for prefix, module in sorted(modules.items())
        for name, value in sorted(module.state_dict().items())
    )
    return _hash_of(named, json.dumps(settings, sort_keys=True) if settings else "")


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits over tensors by their names, by the same rule."""
    return _hash_of(sorted(tensors.items()))


def _hash_of(named: Iterable[tuple[str, Tensor]], ending: str = "") -> str:
    digest = hashlib.sha256()
    for name, value in named:
        # Name and shape come first: the same bytes in another shape are other weights.
        digest.update(f"{name} {tuple(value.shape)}".encode())
        flat = value.detach().float().cpu().contiguous().numpy().reshape(-1)
        digest.update(flat.data.cast("B"))
    digest.update(ending.encode())
    return digest.hexdigest()[:16]
