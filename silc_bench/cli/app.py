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
    results,
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


# name, function, how it is used
COMMANDS = (
    ("train", train.train, "--preset b16 --data 'shards/{000..999}.tar' --out runs/b16"),
    ("eval", evaluate.evaluate_command, "--ckpt runs/b16 --tasks zeroshot,knn --data-root data"),
    ("leaderboard", leaderboard.leaderboard, "--results results --out results"),
    ("tasks", evaluate.list_tasks, "--json"),
    ("demo", demo.demo, "--fast"),
    ("compare", compare.compare, "runs/contrastive runs/b16 --tasks retrieval"),
    ("doctor", doctor.doctor, "open_clip:ViT-B-32/openai"),
    ("export", export.export, "runs/b16:teacher --to hf --out exports/b16"),
    ("show", show.show, "runs/b16 cat.jpg --classes cat,grass --out cat.png"),
    ("report", train.report, "runs/b16"),
)
for _name, _command, _words in COMMANDS:
    app.command(_name, epilog=f"Example: silc-bench {_name} {_words}")(_command)
app.add_typer(cache.app, name="cache", epilog="Example: silc-bench cache prune --max-size 5GB")
app.add_typer(
    results.app, name="results", epilog="Example: silc-bench results validate --results results"
)
app.add_typer(data.app, name="data", epilog="Example: silc-bench data check photos")


def main() -> None:
    """The entry point of ``silc-bench`` and of ``python -m silc_bench``."""
    # With a fixed name, ``--help`` reads the same however it was started.
    app(prog_name="silc-bench")
