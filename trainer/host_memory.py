"""What becomes of memory that a step on a CPU frees (Linux with glibc).

A step makes and frees the same large tensors again and again. glibc gives blocks of 32 MB and more back to the system at once,
so that each page of the next one is new: it has to be found and cleared, 0.7 ms a MB on the virtual machine of
`benchmarks/README.md`, a tenth of a step of `b16`'s width.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, for itself; whether its C library can.

    The process then stays as large as it was at its peak, a little larger than that (8 % for `b16`'s width).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: another system's malloc has other habits
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1
