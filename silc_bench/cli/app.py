"""The command line: ``silc-bench train | eval | leaderboard | compare | ...``.

Each command parses, calls and prints in a file of its own; here they get their names and their
order in ``--help``. Torch is imported by the commands that compute, not here.

Exit codes: 0 done, 1 the run failed, 2 the user's input was wrong.
"""

from __future__ import annotations

from typing import Annotated

import typer

from silc_bench import __version__
from silc_bench.cli import (
    cache,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    leaderboard,
    show,
    train,
)

app = typer.Typer(
    help="How good is this image-text checkpoint, exactly - and does SILC help on my data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"silc-bench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(train.train)
app.command("eval")(evaluate.evaluate_command)
app.command()(leaderboard.leaderboard)
app.command("tasks")(evaluate.list_tasks)
app.command()(demo.demo)
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")
app.command()(compare.compare)
app.command()(doctor.doctor)
app.command()(export.export)
app.command()(show.show)
app.command()(train.report)


def main() -> None:
    """The entry point of ``silc-bench`` and of ``python -m silc_bench``."""
    # With a fixed name, ``--help`` reads the same however it was started.
    app(prog_name="silc-bench")
