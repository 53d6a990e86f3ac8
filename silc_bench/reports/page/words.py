"""A question or a setup as a reader would say it: names in words, values as text, no hashes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What follows from the other fields, or that only a program can read.
LEFT_OUT = ("hash", "sha256", "fingerprint", "pools", "task_version", "protocol_version")
_HASH = re.compile(r"[0-9a-f]{8,64}")
_NAMES = {
    "n": "samples",
    "std": "standard deviation",
    "l2": "L2 penalty",
    "asks": "",  # its fields are those of the task: they need no prefix
    "main_metric": "main metric",
}


def in_words(value: Mapping[str, Any]) -> list[list[Any]]:
    """[name, text or list of texts] of each field; nested names are joined: "image: size"."""
    return list(_flat(value, ""))


def _flat(value: Mapping[str, Any], prefix: str) -> Any:
    for key, item in value.items():
        if key in LEFT_OUT or _is_empty(item) or _is_hash(item):
            continue
        own = _NAMES.get(key, key.replace("_", " "))
        name = ": ".join(part for part in (prefix, own) if part)
        if isinstance(item, Mapping):
            yield from _flat(item, name)
        elif isinstance(item, list) and any(isinstance(part, str) for part in item):
            yield [name, [_text(part) for part in item]]
        else:
            yield [name, _text(item)]


def _is_empty(item: Any) -> bool:
    return item is None or item == "" or item == {} or item == []


def _is_hash(item: Any) -> bool:
    """A fingerprint: 8 to 64 hexadecimal digits, some of them letters and some not."""
    if not isinstance(item, str) or not _HASH.fullmatch(item):
        return False
    return any(letter.isdigit() for letter in item) and any(letter.isalpha() for letter in item)


def _text(item: Any) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, list):
        return ", ".join(_text(part) for part in item)
    if isinstance(item, Mapping):
        return ", ".join(f"{key}: {_text(part)}" for key, part in item.items())
    return str(item)
