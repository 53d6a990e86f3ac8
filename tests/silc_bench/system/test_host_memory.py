"""Memory that was freed is used again, in a process of its own: the setting is for all of it."""

import platform
import subprocess
import sys

import pytest

from silc_bench.system import limits as host_memory

pytestmark = pytest.mark.timing
PROGRAM = """
import ctypes, resource, sys
import numpy as np
from silc_bench.system.limits import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(80 * 2**20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of 4 kB on every machine
assert sys.argv[1] == "default" or keep_freed_memory()
new_pages()
print(new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_pages_are_not_new_again():
    default, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, word], check=True, capture_output=True
            ).stdout
        )
        for word in ("default", "kept")
    )
    assert default > 15_000
    assert kept < 500


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed_memory()
