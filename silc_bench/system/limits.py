"""What Linux control groups leave of a machine to this process, as a container's limits do
(standard library only).

Flow: ``/proc/self/cgroup`` names the groups of this process, ``/proc/self/mountinfo`` where their
files lie -> the least limit of its own group and of all above it. Version 2, version 1, and both
beside each other.

Formats: cgroups(7) and proc(5); Linux's admin-guide/cgroup-v2, admin-guide/cgroup-v1/memory and
scheduler/sched-bwc.

What becomes of memory that a step on a CPU frees (Linux with glibc).

A step makes and frees the same large tensors again and again. glibc gives blocks of 32 MB and more
back to the system at once, so that each page of the next one is new: it has to be found and
cleared, 0.7 ms a MB on the virtual machine of `benchmarks/README.md`, a tenth of a step of `b16`'s
width.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


def memory_limit(proc: Path = PROC) -> float:
    """Bytes; infinite, or more than any machine has, where nothing limits them."""
    found = [
        _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        for folder in _groups("memory", proc)
    ]
    return min(
        (float(words[0]) for words in found if words and words[0] != "max"), default=math.inf
    )


def core_limit(proc: Path = PROC) -> float:
    """Cores' worth of time, as in 1.5; infinite where nothing limits it."""
    found = [
        _words(folder / "cpu.max")
        or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        for folder in _groups("cpu", proc)
    ]
    return min(
        (
            int(words[0]) / int(words[1])
            for words in found
            if words and words[0] not in ("max", "-1")
        ),
        default=math.inf,
    )


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Folders of the groups that this process is in: its own, and each above it that is mounted
    here.
    """
    own: dict[str, str] = {}  # path of its group, by controller; of version 2 by ""
    for line in _lines(proc / "cgroup"):
        _, names, path = line.split(":", 2)
        own |= dict.fromkeys(names.split(","), path)
    for line in _lines(proc / "mountinfo"):
        mount, _, source = line.partition(" - ")
        root, point = mount.split()[3:5]
        kind, *_, options = source.split()
        is_first = kind == "cgroup" and controller in options.split(",")
        group = own.get(controller) if is_first else own.get("") if kind == "cgroup2" else None
        if group is None:
            continue
        inner = PurePosixPath(group)  # of a mount that begins elsewhere only the top is known
        parts = inner.relative_to(root).parts if inner.is_relative_to(root) else ()
        yield from (Path(point, *parts[:depth]) for depth in range(len(parts), -1, -1))


def _lines(path: Path) -> list[str]:
    """Nothing on other systems."""
    return path.read_text().splitlines() if path.exists() else []


def _words(path: Path) -> list[str]:
    """Nothing where the group has no such file: the topmost one, and one without this
    controller.
    """
    return path.read_text().split() if path.exists() else []


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, for itself; whether its C library can.

    The process then stays as large as it was at its peak, a little larger than that (8 % for
    `b16`'s width).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (
        OSError,
        AttributeError,
        TypeError,
    ):  # no glibc: another system's malloc has other habits
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1
