"""The libraries whose checkpoints are read: each is imported when a spec asks for it."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from silc_bench.errors import UserError, first_line

# what libraries raise where the parts of a checkpoint do not fit each other
MISFITS = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)


def library(package: str, kind: str) -> Any:
    """The module ``package``, which checkpoints written ``kind:`` need.

    The extra of silc-bench that installs the package has the kind's name.

    Raises:
        UserError: the package is not installed. A missing package that *it* imports stays the
            ModuleNotFoundError that it is, because our extra would not mend it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise

        problem = f"checkpoints need the package {package}"
        fix = f"pip install 'silc-bench[{kind}]'"
        raise UserError(problem, about=kind, fix=fix) from None


@contextmanager
def explained(
    problem: str, *, about: object, fix: str, kinds: type[Exception] | tuple = Exception
) -> Iterator[None]:
    """What a library raises within becomes a UserError with the library's own words.

    Args:
        kinds: where something is fetched, every kind: the cache, the hub, a proxy and a broken
            download each raise their own.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{problem} ({first_line(error)})", about=about, fix=fix) from None


def digest(value: object) -> str:
    """16 hex digits of a value's JSON. They stand in records: how they come about never changes."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@contextmanager
def seeded() -> Iterator[None]:
    """Weights are drawn from seed 0; the caller's random numbers go on as if none were drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
