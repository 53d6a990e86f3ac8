"""``silc-bench compare A B [C ...]``: is B better than A, on the same samples, task by task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from silc_bench.cli.options import RESULTS, AsJson, Results, formats_of
from silc_bench.errors import UserError
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, tell, warn
from silc_bench.system.terminal_table import hanging, visible


@answering
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="What eval --ckpt took, names as in the leaderboard, or NAME@REVISION;"
            " the first is the baseline."
        ),
    ],
    results: Results = RESULTS,
    tasks: Annotated[
        str,
        typer.Option(
            help="Names, families, datasets, groups or globs, separated by commas; all if empty."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Also write compare.md, .csv, .json and .png here.")
    ] = None,
    group_seeds: Annotated[
        bool,
        typer.Option(
            "--group-seeds",
            help="Compare methods: all seeds of each run's method, paired by seed.",
        ),
    ] = False,
    formats: Annotated[
        str,
        typer.Option("--format", help="Of --out, with commas: md, csv, json, tex, png, svg, pdf."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Paired differences with standard errors, and one sentence a task.

    The sentences are corrected for the number of tests.
    """
    from silc_bench.reports.comparison import compare as comparing
    from silc_bench.reports.comparison import report
    from silc_bench.tasks.selection import words_of

    chosen_formats = formats_of(formats, report.FORMATS, report.USUAL_FORMATS)
    if out is None and formats:
        raise UserError("there is no --out to write to", about="--format", fix="add --out DIR")
    if out:
        check_writable(out)
        # Our compare.json would be taken for a damaged record by the next command.
        for folder in results:
            if out.resolve().is_relative_to(folder.resolve()):
                problem = f"{out} lies in {folder}, where every JSON file is a record"
                raise UserError(problem, about="--out", fix="choose another folder")

    comparison = comparing.compare(results, models, words_of(tasks), has_seeds_grouped=group_seeds)
    for sentence in comparison.remarks:
        warn(sentence)
    if as_json:
        print(report.to_json(comparison), end="")
    else:
        _print_lines([*report.sentences(comparison), *report.setup_lines(comparison)])
        if comparison.results:
            console.print(report.to_terminal(comparison))
        # Last, because it is long; also where nothing could be compared: it then says why.
        _print_lines(report.omission_lines(comparison))
    if not comparison.results:
        raise UserError(
            "no task was compared",
            about=", ".join(str(folder) for folder in results),
            fix=f"see the {len(comparison.omissions)} reasons above",
        )

    for path in report.write(comparison, out, chosen_formats) if out else ():
        tell(f"wrote {path}", as_json)


def _print_lines(texts: Iterable[str]) -> None:
    """A line each for a file or the next program; a terminal would break them within words."""
    for text in texts:
        for line in hanging(visible(text), console.width) if console.is_terminal else [text]:
            print(line)
