"""What ``silc-bench leaderboard`` parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from silc_bench.cli.options import RESULTS, AsJson, Results, formats_of
from silc_bench.errors import RunError, UserError
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, tell, warn


@answering
def leaderboard(
    results: Results = RESULTS,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write leaderboard.md, .csv, .json and .html here."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; fail if a file in --out is not up to date."),
    ] = False,
    formats: Annotated[
        str,
        typer.Option(
            "--format", help="Of --out, commas between: md, csv, json, html, tex, parquet."
        ),
    ] = "",
    tasks: Annotated[
        str,
        typer.Option(
            help="Names, families, datasets, groups or globs, separated by commas; all if empty."
        ),
    ] = "",
    models: Annotated[
        str,
        typer.Option(
            help="Names, NAME@REVISION, globs or what eval --ckpt took, separated by commas."
        ),
    ] = "",
    sort: Annotated[
        str,
        typer.Option(help="Order of the rows: name, params, TASK or TASK:METRIC."),
    ] = "",
    group_by: Annotated[
        str, typer.Option(help="What has a table of its own: family, dataset or protocol.")
    ] = "family",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of a table.")] = None,
    group_seeds: Annotated[
        bool,
        typer.Option(
            "--group-seeds",
            help="One row a method: mean over its seeds ± half of the 95 % interval.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tables from the records; with --out also as files, among them a self-contained page."""
    from silc_bench.reports import leaderboard as boards
    from silc_bench.reports.forms.terminal import to_terminal
    from silc_bench.reports.view import View
    from silc_bench.results.folders import uncollected
    from silc_bench.tasks.selection import current_version, words_of

    chosen_formats = formats_of(formats, list(boards.FORMATS), boards.USUAL_FORMATS)
    for option, is_given in (("--check", check), ("--format", bool(formats))):
        if is_given and out is None:
            problem = "there is no --out whose files are meant"
            raise UserError(problem, about=option, fix="add --out FOLDER")
    if out and not check:
        check_writable(out)

    with uncollected():
        # Reports know no tasks (imports point one way), so we tell them which version is current.
        view = View(words_of(tasks), words_of(models), sort, group_by, limit, group_seeds)
        board = boards.build(results, view, current_version=current_version)
        for sentence in board.remarks:
            warn(sentence)
        if check and out:
            names = boards.stale(board, out, chosen_formats)
            if names:
                problem = f"not up to date: {', '.join(names)}"
                fix = "the same command without --check writes them"
                raise RunError(problem, about=out, fix=fix)
            if as_json:
                print(boards.FORMATS["json"](board), end="")
            tell(f"{out} is up to date", as_json)
            return

        if as_json:
            print(boards.FORMATS["json"](board), end="")
        else:
            console.print(to_terminal(board))
        for path in boards.write(board, out, chosen_formats) if out else ():
            tell(f"wrote {path}", as_json)
