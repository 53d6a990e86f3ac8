"""The memory and cores that a container leaves to this process, and memory that is kept for reuse.

Flow of the limits, which are those of Linux control groups: ``/proc/self/cgroup`` names the groups
of this process, ``/proc/self/mountinfo`` says where their files lie -> the least limit of its own
group and of all groups above it. Version 2, version 1, and both beside each other are read.

Formats: cgroups(7) and proc(5); Linux's admin-guide/cgroup-v2, admin-guide/cgroup-v1/memory and
scheduler/sched-bwc. Standard library only.

``keep_freed_memory`` is about a training step on a CPU, with Linux and glibc. A step makes and
frees the same large tensors again and again. glibc gives blocks of 32 MB and more back to the
system at once, so that each page of the next block is new: the system has to find and clear it,
0.7 ms a MB on the virtual machine of `benchmarks/README.md`. Kept, because a step of `b16`'s width
takes 14.1 s instead of 15.9 (docs/log.md).
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


def memory_limit(proc: Path = PROC) -> float:
    """Bytes; infinite, or more than any machine has, where nothing limits them."""
    limits = []
    for folder in _groups("memory", proc):
        # Version 2, or else version 1. Only version 2 has a word, "max", for no limit.
        content = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if content and content != "max":
            limits.append(float(content))
    return min(limits, default=math.inf)


def core_limit(proc: Path = PROC) -> float:
    """Cores' worth of time, as in 1.5; infinite where nothing limits it."""
    limits = []
    for folder in _groups("cpu", proc):
        # Microseconds of work in a period of so many: version 2 has both in one file, version 1
        # each in its own.
        content = _text(folder / "cpu.max").split()
        if not content:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            content = " ".join(_text(folder / name) for name in names).split()

        # No limit is "max" in version 2 and -1 in version 1.
        if content and content[0] not in ("max", "-1"):
            limits.append(int(content[0]) / int(content[1]))
    return min(limits, default=math.inf)


def num_cores() -> int:
    """Cores that this process may use, also in a container with a quota.

    A share of a core counts as one.
    """
    # The affinity is what `taskset` or a scheduler allows; macOS has no such call.
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return math.ceil(min(available, core_limit()))


def shared_memory() -> float:
    """Bytes that are free in /dev/shm; infinite where the system has no such folder."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else math.inf


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Folders of this process's groups: its own, and each one above it that is mounted here."""
    group_of: dict[str, str] = {}  # path of the process's group, by controller; of version 2 by ""
    for line in _text(proc / "cgroup").splitlines():
        _, names, path = line.split(":", 2)
        group_of |= dict.fromkeys(names.split(","), path)

    for line in _text(proc / "mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        root, mount_point = mount.split()[3:5]
        kind, *_, options = source.split()

        if kind == "cgroup" and controller in options.split(","):
            group = group_of.get(controller)
        elif kind == "cgroup2":
            group = group_of.get("")
        else:
            group = None
        if group is None:
            continue

        # A container mounts a part of the tree. Where the process's group lies outside of that
        # part, only the top of the mount is known.
        inner = PurePosixPath(group)
        parts = inner.relative_to(root).parts if inner.is_relative_to(root) else ()
        for depth in range(len(parts), -1, -1):
            yield Path(mount_point, *parts[:depth])


def _text(path: Path) -> str:
    """Of a file; "" on other systems, and where a group has no such file.

    The topmost group has none, and neither has a group without this controller.
    """
    return path.read_text().strip() if path.exists() else ""


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, in glibc's malloc.h


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, for itself; whether its C library can.

    The process then stays as large as it was at its peak, a little larger than that (8 % for
    `b16`'s width).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        # No glibc: the malloc of another system has other habits, and other names for them.
        return False

    # Large blocks come from the heap instead of mappings of their own, and the heap never shrinks.
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1
