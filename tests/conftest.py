"""No test touches the user's own folders, and every machine draws the same examples.

What tests write is removed after them.
"""

import os
import sys
import tempfile
from pathlib import Path

from hypothesis import settings

# A file has one name: silc_bench.trainer.loop, never trainer.loop, though the checkout may be on
# the path.
sys.modules["tasks"] = sys.modules["trainer"] = None  # type: ignore[assignment]

sys.path.insert(0, str(Path(__file__).parent))  # forked, pretended_gpu

# Before any test module is imported; each process of xdist has its own, and it goes with the
# process that made it.
_CACHE = tempfile.TemporaryDirectory(prefix="silc-bench-test-cache-")
os.environ["SILC_BENCH_CACHE"] = _CACHE.name

# A suite that is red on one clone and green on the next teaches everyone to look away; `make fuzz`
# draws new examples.
settings.register_profile("same everywhere", derandomize=True, database=None, print_blob=True)
settings.register_profile("fuzz", derandomize=False, print_blob=True)
settings.load_profile("same everywhere")


def pytest_unconfigure():
    _CACHE.cleanup()
