"""``silc-bench results ls | validate | merge | rm | import``: folders of records, kept in order.

Exit codes: 0 done, 1 where ``validate`` finds a file that is not sound or ``merge`` keeps two
measurements apart, 2 where the input was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silc_bench.cli.command import App
from silc_bench.cli.options import RESULTS, AsJson, Results
from silc_bench.errors import RunError, UserError
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, counted, one_line, print_json, warn
from silc_bench.system.terminal_table import Column, Grid, Paragraph, Span, visible

if TYPE_CHECKING:
    from silc_bench.results.folders import Located, Reading
    from silc_bench.results.setup import Setup

app = App(
    help="Records: list, check, merge and remove them, and import published numbers.",
    no_args_is_help=True,
    examples=(
        "silc-bench results ls",
        "silc-bench results validate --results results",
        "silc-bench results merge node1/results node2/results --into results",
    ),
)
Models = Annotated[
    str, typer.Option(help="As eval took them, names or globs, separated by commas; all if empty.")
]
Tasks = Annotated[
    str,
    typer.Option(
        help="Names, families, datasets, groups or globs, separated by commas; all if empty."
    ),
]


@app.command(
    examples=(
        "silc-bench results ls --tasks zeroshot",
        "silc-bench results ls --models 'runs/*' --json",
    )
)
@answering
def ls(
    results: Results = RESULTS, models: Models = "", tasks: Tasks = "", as_json: AsJson = False
) -> None:
    """List records, by model and task."""
    reading, chosen = _chosen(results, models, tasks)
    if as_json:
        setups = _setups(chosen)
        rows = [_as_json(found, setup) for found, setup in zip(chosen, setups, strict=True)]
        print_json(rows)
    else:
        _print_tables(chosen)
        places = ", ".join(str(folder) for folder in results)
        print(one_line(f"{counted(len(chosen), 'record')} in {places}"))
    for sentence in reading.remarks:
        warn(sentence)


@app.command(
    examples=(
        "silc-bench results validate",
        "silc-bench results validate --results results --results shared",
    )
)
@answering
def validate(results: Results = RESULTS, as_json: AsJson = False) -> None:
    """Read every record, what each sample scored, and published numbers; name what is not sound."""
    from silc_bench.results.folders import check

    reading = check(results)
    if as_json:
        document = {
            "folders": [str(folder) for folder in reading.folders],
            "records": len(reading.located),
            "in_two_folders": reading.num_twice,
            "problems": [
                {"path": str(problem.path), "problem": problem.sentence}
                for problem in reading.problems
            ],
            "no_records": [str(path) for path in reading.strays],
        }
        print_json(document)
    else:
        for problem in reading.problems:
            print(one_line(f"wrong: {problem.sentence}"))
        for path in reading.strays:
            print(one_line(f"no record: {path}"))
        print(_summary(reading))

    if reading.problems:
        count = counted(len(reading.problems), "file")
        verb = "is" if len(reading.problems) == 1 else "are"
        places = ", ".join(str(folder) for folder in results)
        fix = "mend, delete or move what is named above"
        raise RunError(f"{count} {verb} not sound", about=places, fix=fix)


@app.command(
    examples=(
        "silc-bench results merge node1/results --into results",
        "silc-bench results merge node1/results node2/results --into results",
    )
)
@answering
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Folders of records.")],
    into: Annotated[Path, typer.Option(help="The folder that gets what it has not.")],
) -> None:
    """Copy records, with what each sample scored, into one folder; overwrites nothing."""
    from silc_bench.results import folders

    check_writable(into)
    merged = folders.merge(sources, into)
    print(one_line(f"copied {counted(len(merged.copied), 'record')} into {into}"))
    if merged.num_known:
        print(f"{counted(merged.num_known, 'record')} known already, with the same result")
    for source in sources:
        for name in folders.BESIDE:
            if (source / name).exists():
                print(one_line(f"not copied: {source / name}, which holds no records"))
    for sentence in folders.left_out(merged.problems, merged.strays):
        warn(sentence)

    for path, known in merged.apart:
        print(one_line(f"kept apart: {path} measured the same as {known}, with another result"))
    if merged.apart:
        problem = f"{counted(len(merged.apart), 'record')} kept apart"
        fix = "remove one of each two above (`silc-bench results rm`), and merge again"
        raise RunError(problem, about=into, fix=fix)


@app.command(
    examples=(
        "silc-bench results rm --models 'runs/old:*'",
        "silc-bench results rm --models 'runs/old:*' --tasks zeroshot --yes",
    )
)
@answering
def rm(
    results: Results = RESULTS,
    models: Models = "",
    tasks: Tasks = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete; without it, say what would be.")
    ] = False,
) -> None:
    """Delete records, with what each sample scored; --models and --tasks say which."""
    from silc_bench.results.folders import remove, row_of

    if not models and not tasks:
        fix = "say which with --models or --tasks; --models '*' means all"
        raise UserError("would delete every record", about="results rm", fix=fix)

    reading, chosen = _chosen(results, models, tasks)
    for sentence in reading.remarks:
        warn(sentence)
    num_models = len({row_of(found.record) for found in chosen})
    num_tasks = len({found.record.task.name for found in chosen})
    count = counted(len(chosen), "record")
    count += f" ({counted(num_models, 'model')}, {counted(num_tasks, 'task')})"
    if not chosen:
        raise UserError("no record is meant", about="results rm", fix="see `silc-bench results ls`")

    if not yes:
        print(f"would delete {count}:")
        for found in chosen:
            print(one_line(f"  {found.path}"))
        raise UserError("nothing was deleted", about="results rm", fix="add --yes to delete them")
    remove(chosen)
    print(f"deleted {count}")


@app.command(
    "import",
    examples=(
        "silc-bench results import benchmark.csv --source https://example.org/benchmark",
        "silc-bench results import tables --source https://example.org/tables --name others",
    ),
)
@answering
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="CLIP_benchmark's JSON or CSV, open_clip's results tables; or folders of them."
        ),
    ],
    source: Annotated[str, typer.Option(help="The address at which the numbers were published.")],
    name: Annotated[
        str, typer.Option(help="Of the table in the leaderboard; without it, of the first file.")
    ] = "",
    results: Results = RESULTS,
) -> None:
    """Write other programs' results as published numbers, into results/reported/NAME.json."""
    from silc_bench.results import imported, published

    if Path(name).name != name:
        raise UserError(f"{name!r} is no plain name", about="--name", fix="leave out the folders")
    path = results[0] / published.FOLDER / f"{name or files[0].resolve().stem}.json"
    check_writable(path.parent)
    found = imported.read(files, source)
    imported.save(found, path)
    counts = f"{counted(len(found.rows), 'model')}, {counted(found.num_values, 'value')}"
    print(one_line(f"wrote {path}: {counts}"))
    for reason, places in found.left_out.items():
        times = "once, in" if len(places) == 1 else f"{len(places):,} times, first in"
        print(one_line(f"left out: {reason}, {times} {places[0]}"))


def _chosen(results: Sequence[Path], models: str, tasks: str) -> tuple[Reading, list[Located]]:
    """What the folders hold, and the records that are meant, by model and task."""
    from silc_bench.results import folders
    from silc_bench.tasks.selection import words_of

    reading = folders.read(results)
    chosen = folders.chosen(reading.located, words_of(models), words_of(tasks))
    return reading, sorted(
        chosen, key=lambda found: (folders.row_of(found.record), found.record.task.name)
    )


def _print_tables(chosen: Sequence[Located]) -> None:
    """One for each model under each setup: their names in every row would leave no room."""
    from silc_bench.reports.titles import metric_title
    from silc_bench.results.folders import row_of
    from silc_bench.results.names import shown as shown_row
    from silc_bench.results.schema import is_fraction

    heads = ("task", "value", "protocol", "measured", "metric")
    columns = [Column(head, is_numeric=head == "value") for head in heads]
    tables: dict[tuple[str, str], list[list[tuple[Span, ...]]]] = {}
    for found, setup in zip(chosen, _setups(chosen), strict=True):
        record = found.record
        metric = record.task.main_metric
        value = record.metrics[metric]
        words = metric_title(metric)
        if record.limit:
            words += f", limited to {record.limit:,}"

        shown = f"{100 * value:.1f} %" if is_fraction(metric) else f"{value:g}"
        cells = (record.task.name, shown, record.question.protocol, record.created[:10], words)
        rows = tables.setdefault((shown_row(row_of(record)), setup), [])
        rows.append([((visible(cell), ""),) for cell in cells])

    for (model, setup), rows in tables.items():
        console.print(Paragraph(visible(f"{model}, {setup}"), "bold"), Grid(columns, rows), "")


def _as_json(found: Located, setup: str) -> dict[str, object]:
    record = found.record
    metric = record.task.main_metric
    return {
        "path": str(found.path),
        "model": record.model.name,
        "revision": record.model.revision,
        "task": record.task.name,
        "protocol": record.question.protocol,
        "setup": setup,
        "metric": metric,
        "value": record.metrics[metric],
        "stderr": record.stderr.get(metric),
        "n": record.n,
        "limit": record.limit,
        "created": record.created,
    }


def _setups(chosen: Sequence[Located]) -> list[str]:
    """Precision and device of each record; of a model under several setups, what parts them."""
    from silc_bench.reports.titles import setup_labels
    from silc_bench.results.folders import row_of

    by_model: dict[tuple[str, str], dict[str, Setup]] = {}
    for found in chosen:
        setup = found.record.setup
        by_model.setdefault(row_of(found.record), {}).setdefault(setup.row, setup)
    labels: dict[tuple[tuple[str, str], str], str] = {}
    for model, setups in by_model.items():
        for row, label in zip(setups, setup_labels(list(setups.values())), strict=True):
            labels[model, row] = label

    shown = []
    for found in chosen:
        setup = found.record.setup
        usual = f"{setup.precision}, {setup.device}"
        shown.append(labels[row_of(found.record), setup.row] or usual)
    return shown


def _summary(reading: Reading) -> str:
    twice = ""
    if reading.num_twice:
        twice = f", {reading.num_twice:,} of them in two folders with the same result"
    return f"{counted(len(reading.located), 'record')} can be used{twice}"
