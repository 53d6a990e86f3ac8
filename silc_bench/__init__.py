"""silc-bench: how good is this image-text checkpoint, exactly - and does SILC help on my data."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What ``import silc_bench`` offers, and the module that has it. It is imported when it is asked
# for, so that the import stays light; for readers of types the same stands in __init__.pyi.
OFFERED = {
    "evaluate": "silc_bench.api",
    "Results": "silc_bench.api",
    "compare": "silc_bench.api",
    "leaderboard": "silc_bench.api",
    "train": "silc_bench.api",
    "load_model": "silc_bench.models.load",
    "load_results": "silc_bench.reports.forms.frame",
    "wrap": "silc_bench.models.adapters.in_memory",
    "UserError": "silc_bench.errors",
    "DataError": "silc_bench.errors",
    "RunError": "silc_bench.errors",
}


def __getattr__(name: str) -> Any:
    if name not in OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *OFFERED))
