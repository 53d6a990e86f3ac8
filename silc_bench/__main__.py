""""""

from __future__ import annotations

from silc_bench.cli.app import main

main()
