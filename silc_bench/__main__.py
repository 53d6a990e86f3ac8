"""``python -m silc_bench`` runs the same commands as ``silc-bench``."""

from __future__ import annotations

from silc_bench.cli.app import main

main()
