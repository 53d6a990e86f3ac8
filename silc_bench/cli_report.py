"""``silc-bench report RUN``: a run's curves as one page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from silc_bench.terminal import answering


@answering
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html if not given.")] = None,
) -> None:
    """Write a self-contained page with the curves of a run: losses, health, gradients, speed, probes."""
    from trainer.report import write_report

    print(f"wrote {write_report(run, out)}")
