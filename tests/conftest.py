"""No test touches the user's own feature store, and property tests draw the same examples everywhere."""

import os
import tempfile

from hypothesis import settings

os.environ["SILC_BENCH_CACHE"] = tempfile.mkdtemp(prefix="silc-bench-test-cache-")

# A suite that is red on one clone and green on the next teaches everyone to look away; `make fuzz` draws new examples.
settings.register_profile("same everywhere", derandomize=True, database=None, print_blob=True)
settings.register_profile("fuzz", derandomize=False, print_blob=True)
settings.load_profile("same everywhere")
