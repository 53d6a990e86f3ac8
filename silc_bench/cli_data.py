"""``silc-bench data check NAME PATH``: is this the data it should be. Exit codes: 0 yes, 2 no, with the line that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from silc_bench.errors import UserError
from silc_bench.terminal import answering

app = typer.Typer(help="Look at evaluation data before measuring on it.", no_args_is_help=True)


@app.callback()
def data() -> None:
    pass


@app.command()
@answering
def check(
    name: Annotated[
        str, typer.Argument(help="imagenet1k, voc20 ... or folder:PATH, captions:FILE, wds:PATTERN, seg:A,B,C.json.")
    ],
    path: Annotated[Path | None, typer.Argument(help="Folder of a named set, or the data root it lies under.")] = None,
    every_picture: Annotated[bool, typer.Option("--every-picture", help="Decode all pictures, not 500 a split.")] = False,
) -> None:
    """Say what is there (layout, classes, counts, fingerprint), what is wrong, and what mends it. Writes nothing."""
    from silc_bench.datasets import check as looking

    report = looking.check(name, path, every_picture)
    for line in report.found:
        print(_plain(line))
    for problem in report.problems:
        print(_plain(f"wrong: {problem.what}"))
        if problem.fix:
            print(_plain(f"fix:   {problem.fix}"))
    if report.problems:
        raise UserError(f"{name} cannot be measured as it is")
    print("ready to be measured")


def _plain(line: str) -> str:
    """File names may hold anything: no terminal codes, one line."""
    return "".join(letter if letter.isprintable() else " " for letter in line)
