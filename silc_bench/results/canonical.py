"""One text for equal values, and its hash: how questions and setups are told apart (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical(value: Mapping[str, Any]) -> str:
    """JSON with keys sorted, no spaces, no NaN.

    Raises:
        ValueError: a field is no plain JSON (a NaN, an array, a set).
    """
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"every field must be plain JSON, but {error}: {value!r:.200}") from error


def hash_of(value: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of ``canonical``; the order of keys does not count."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as a reader of its JSON sees it: tuples have become lists, keys are sorted."""
    return json.loads(canonical(value))
