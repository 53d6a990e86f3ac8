"""No test touches the user's own feature store."""

import os
import tempfile

os.environ["SILC_BENCH_CACHE"] = tempfile.mkdtemp(prefix="silc-bench-test-cache-")
