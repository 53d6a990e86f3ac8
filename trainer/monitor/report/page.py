"""One self-contained page of the curves of a run, or of several runs in the same charts.

Flow: ``write_report(folders)`` -> ``read_run`` of each -> its facts, curves and events as one JSON
document -> the page, with the looks and the libraries of the leaderboard's. It may be called while
a run goes on.

    silc-bench report RUN
    silc-bench report RUN OTHER_RUN --out both.html
    silc-bench report RUN --results results
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import silc_bench
from silc_bench.errors import UserError
from silc_bench.reports.page.render import ASSETS as SHARED
from silc_bench.reports.page.render import assembled
from silc_bench.system.files import write_text_atomic
from silc_bench.system.terminal import warn
from silc_bench.trainer.monitor.report.charts import Chart, charts_of
from silc_bench.trainer.monitor.report.measured import GROUP, Measured, measured
from silc_bench.trainer.monitor.report.run import (
    Run,
    best_checkpoint,
    curves,
    date_of,
    facts,
    flat_config,
    names_in,
    read_run,
    seconds_of,
    thinned,
)

ASSETS = Path(__file__).parent / "assets"
PAGE = "report.html"


def write_report(
    folders: Sequence[Path], out: Path | None = None, results_dirs: Sequence[Path] = ()
) -> Path:
    """The page of these runs: ``out``, or report.html in the one run's folder or the current one.

    Args:
        results_dirs: folders of records; what they hold of these runs is drawn over the steps, and
            what is left out of it is said.

    Raises:
        UserError: a folder without a log or with a damaged one; one that is named twice; a folder
            in the place of the page.
    """
    path = out or (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    if path.is_dir():
        raise UserError(
            "is a folder, and the page is a file", about=path, fix=f"write --out {path / PAGE}"
        )

    names = _names(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    found = measured(runs, results_dirs) if results_dirs else None
    for remark in found.remarks if found else ():
        warn(remark)
    write_text_atomic(path, render(runs, time.time(), found))
    return path


def render(runs: Sequence[Run], now: float, found: Measured | None = None) -> str:
    """``now``: seconds since 1970."""
    groups = charts_of(set().union(*map(names_in, runs)))
    drawn = [_drawn(run) for run in runs]
    if found and found.charts:
        groups[GROUP] = found.charts
        for run, more in zip(drawn, found.curves, strict=True):
            run["curves"] |= more
    about = [facts(run) for run in runs]
    configs = [flat_config(run) for run in runs]
    document = {
        "runs": drawn,
        "groups": [
            {"title": title, "charts": [_as_json(chart) for chart in charts]}
            for title, charts in groups.items()
        ],
    }
    written = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = assembled(
        ASSETS / "report.html.j2",
        document,
        styles=(SHARED / "style.css", ASSETS / "report.css"),
        packages=("d3", "@observablehq/plot"),
        scripts=(
            SHARED / "elements.js",
            SHARED / "address.js",
            SHARED / "theme.js",
            ASSETS / "report.js",
        ),
        names=[run.name for run in runs],
        facts=_table(about),
        config=_table(configs),
        differences=[row for row in _table(configs) if len(set(row[1])) > 1],
        notes=[(run.name, _said(*note)) for run in runs for note in run.notes],
        written=written,
        version=silc_bench.__version__,
    )
    # names of files and texts may hold what is no character, which UTF-8 cannot say
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _names(folders: Sequence[Path]) -> list[str]:
    """What each run is called: its folder, with as many of those above as tell it from the others.

    UserError where a run is named twice.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise UserError("is named twice", about=folders[place], fix="name each run once")

    names = []
    for path in paths:
        others = [other for other in paths if other != path]
        depth = 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in others):
            depth += 1
        names.append("/".join(path.parts[-depth:]))
    return names


def _table(columns: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """(name, the text in each column, "" where it has none), in the order of the first columns."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def _drawn(run: Run) -> dict[str, Any]:
    best = best_checkpoint(run)
    checkpoints = []
    for name, record in run.checkpoints:
        if isinstance(record.get("step"), int):
            words = f"checkpoint {name}{', the best one' if name == best else ''}"
            checkpoints.append([record["step"], words])
    starts = [row for row in run.history if row.get("event") == "start"]
    return {
        "name": run.name,
        "batch": run.batch_size,
        "clock": thinned([list(point) for point in seconds_of(run)]),
        "curves": curves(run),
        "notes": [[step, _said(step, note)] for step, note in run.notes],
        "checkpoints": checkpoints,
        "resumptions": [
            [row["step"], f"resumed after step {row['step']:,}, {date_of(row)}"]
            for row in starts[1:]
        ],
    }


def _said(step: int, note: str) -> str:
    return note if note.startswith("step ") else f"step {step:,}: {note}"


def _as_json(chart: Chart) -> dict[str, Any]:
    return {
        "name": chart.name,
        "title": chart.title,
        "unit": chart.unit,
        "meaning": chart.meaning,
        "is_log": chart.is_log,
        "ends": chart.ends,
        "percent": chart.percent,
        "teacher": chart.teacher,
        "bounds": [[bound.value, bound.side, bound.words] for bound in chart.bounds],
    }
