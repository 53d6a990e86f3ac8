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
from collections.abc import Mapping
from typing import Any

from torch import nn


def revision_of(modules: Mapping[str, nn.Module], settings: Mapping[str, Any] | None = None) -> str:
    """First 16 hex digits; ``settings`` is plain JSON, and adds nothing where it is empty."""
    digest = hashlib.sha256()
    for prefix, module in sorted(modules.items()):
        for name, value in sorted(module.state_dict().items()):
            # Name and shape come first: the same bytes in another shape are other weights.
            digest.update(f"{prefix}.{name} {tuple(value.shape)}".encode())
            flat = value.detach().float().cpu().contiguous().numpy().reshape(-1)
            digest.update(memoryview(flat).cast("B"))

    if settings:
        digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]
