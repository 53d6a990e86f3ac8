"""What ``silc-bench demo`` parses, says at once and calls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, say


@answering
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for runs, records, images and the page; demo, or demo/full, if not given."
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Twice the scenes and all tasks of the generated scenes."),
    ] = False,
) -> None:
    """Train SILC and its contrastive twin on generated scenes, and compare the two, in minutes.

    Two models that are packaged come first, so that there is a page within a minute.
    """
    started = time.perf_counter()
    from silc_bench.cli.demo_progress import plan

    # A folder each: with one for both, the second demo would find the runs of the first.
    folder = out or Path("demo/full" if full else "demo")
    check_writable(folder)
    for line in plan(full, str(folder)):
        say(line, console)

    from silc_bench.cli.run_demo import run_demo

    run_demo(folder, is_full=full, console=console, started=started)
