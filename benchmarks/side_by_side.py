"""What the comparisons share: the machine in words, two sides timed in turn, a ratio's range."""

from __future__ import annotations

import importlib
import os
import platform
import shlex
import statistics
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def print_header(*packages: str) -> None:
    """The command, the machine, the versions of ``packages``."""
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    print(f"$ {f'OMP_NUM_THREADS={threads} ' if threads else ''}python {shlex.join(sys.argv)}")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    when = time.strftime("%Y-%m-%d")
    print(
        f"{when}, {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(", ".join(f"{package} {version(package)}" for package in packages), flush=True)


def peer(name: str) -> types.ModuleType:
    """A module of clip_benchmark.metrics, without the packages that it forgets to declare."""
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    module = importlib.import_module(f"clip_benchmark.metrics.{name}")
    module.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    return module


def compare(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    repeats: int,
    check: Callable[[Any, Any], None],
) -> None:
    """Both sides in turn, ``repeats`` times; no time counts before the answers pass ``check``."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        found = []
        for side, taken in zip((ours, theirs), seconds, strict=True):
            started = time.perf_counter()
            found.append(side())
            taken.append(time.perf_counter() - started)
        check(*found)
    report(name, *seconds)


def report(name: str, ours: list[float], theirs: list[float]) -> None:
    """Seconds or bytes of either side, and how many times ours the other is, repeat by repeat."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    words = [spread(x) for x in (ours, theirs, ratios)]
    print(
        (
            f"{name} (min / median / max of {len(ours)}): ours {words[0]}, the other {words[1]}, "
            f"RATIO {words[2]}"
        ),
        flush=True,
    )


def spread(values: list[float]) -> str:
    """Smallest / median / largest."""
    return f"{min(values):.3g} / {statistics.median(values):.3g} / {max(values):.3g}"
