"""silc-bench: how good is this image-text checkpoint, exactly - and does SILC help on my data."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What ``import silc_bench`` offers, and the module that has it. It is imported when it is asked
# for, so that the import stays light.
OFFERED = {"load_results": "silc_bench.reports.forms.frame"}


def __getattr__(name: str) -> Any:
    if name not in OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *OFFERED))
