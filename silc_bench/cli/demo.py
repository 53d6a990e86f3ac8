"""What ``silc-bench demo`` parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from silc_bench.cli.evaluate import _print_record
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console


@answering
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for runs, records, images and the page; demo, or demo/fast, if not given."
        ),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A minute: every part runs, the numbers mean little.")
    ] = False,
) -> None:
    """Train SILC and its contrastive twin on generated scenes, and compare the two.

    Evaluates both, and shows what self-distillation changed.
    """
    from silc_bench.cli.run_demo import run_demo

    # A folder each: with one for both, the second demo would find the runs of the first.
    default = "demo/fast" if fast else "demo"
    folder = out or Path(default)
    check_writable(folder)
    run_demo(folder, is_fast=fast, console=console, on_result=_print_record)
