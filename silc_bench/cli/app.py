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
    env,
    evaluate,
    export,
    leaderboard,
    results,
    show,
    train,
)
from silc_bench.cli.command import App, Root, take_defaults
from silc_bench.system.terminal import answering, set_loudness

app = App(
    cls=Root,
    help="How good is this image-text checkpoint, exactly - and does SILC help on my data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    examples=(
        "silc-bench demo",
        "silc-bench eval --ckpt open_clip:ViT-B-32/openai --tasks 'shapes/*'",
        "silc-bench eval --help",
    ),
)


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"silc-bench {__version__}")
        raise typer.Exit


@app.callback()
@answering
def options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Warnings and errors, but no notes and no progress."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Also what is loaded, from where, and how long it took."),
    ] = False,
) -> None:
    # Of each command line anew: a test runs many in one process.
    set_loudness(quiet, verbose)
    take_defaults(ctx)


# name, function, how it is used
COMMANDS = (
    (
        "train",
        train.train,
        "--out runs/first",
        "--preset b16 --data 'shards/{000..999}.tar' --out runs/b16",
        "--preset b16 --data 'shards/*.tar' --dry-run",
    ),
    (
        "eval",
        evaluate.evaluate_command,
        "--ckpt runs/b16 --tasks 'shapes/*'",
        "--ckpt open_clip:ViT-B-32/openai --tasks imagenet1k/zeroshot --data-root data",
        "--ckpt 'runs/*:teacher' --ckpt runs/b16@all --tasks folder:photos,captions:list.jsonl",
    ),
    (
        "leaderboard",
        leaderboard.leaderboard,
        "--results results --out results",
        "--tasks zeroshot --sort imagenet1k/zeroshot",
    ),
    ("tasks", evaluate.list_tasks, "", "--json"),
    ("demo", demo.demo, "", "--full"),
    (
        "compare",
        compare.compare,
        "runs/contrastive runs/b16 --tasks retrieval",
        "contrastive silc --out comparison --format md,pdf",
    ),
    ("doctor", doctor.doctor, "open_clip:ViT-B-32/openai", "runs/b16:teacher --json"),
    (
        "export",
        export.export,
        "runs/b16:teacher --to hf --out exports/b16",
        "runs/b16 --to safetensors --out b16.safetensors",
    ),
    (
        "show",
        show.show,
        "runs/b16 cat.jpg --classes cat,grass --out cat.png",
        "--ckpt runs/contrastive --ckpt runs/b16 cat.jpg dog.jpg --classes cat,dog,grass",
    ),
    (
        "report",
        train.report,
        "runs/b16",
        "runs/contrastive runs/b16 --out report.html",
        "runs/b16 --results results",
    ),
    ("env", env.env, "", "--json"),
)
for _name, _command, *_lines in COMMANDS:
    _examples = tuple(f"silc-bench {_name} {_words}".rstrip() for _words in _lines)
    app.command(_name, examples=_examples)(_command)
app.add_typer(cache.app, name="cache")
app.add_typer(results.app, name="results")
app.add_typer(data.app, name="data")


def main() -> None:
    """The entry point of ``silc-bench`` and of ``python -m silc_bench``."""
    # With a fixed name, ``--help`` reads the same however it was started.
    app(prog_name="silc-bench")
