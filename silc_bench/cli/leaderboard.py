"""What ``silc-bench leaderboard`` parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from silc_bench.cli.options import Results
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console


@answering
def leaderboard(
    results: Results = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="Also write leaderboard.md, .csv and .html here.")
    ] = None,
) -> None:
    """Tables from the records; with --out also as Markdown, CSV and a self-contained page."""
    from silc_bench.reports import leaderboard as boards
    from silc_bench.reports.tables import to_terminal
    from silc_bench.tasks.selection import current_version

    if out:
        check_writable(out)

    # Reports know no tasks (imports point one way), so we tell them which version is current.
    board = boards.build(results, current_version=current_version)
    console.print(to_terminal(board))
    for path in boards.write(board, out) if out else ():
        print(f"wrote {path}")
