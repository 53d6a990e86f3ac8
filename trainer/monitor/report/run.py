"""What a report knows of a run, from the files in its folder.

Flow: ``read_run(folder, name)`` -> a Run; ``facts`` says what it was, ``curves`` its numbers. A run
may go on while it is read: the last row of a file may be cut off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from silc_bench.errors import UserError
from silc_bench.system.checksums import read_sealed
from silc_bench.system.lock import is_in_use
from silc_bench.system.terminal import counted, duration
from silc_bench.trainer.config.config import flatten
from silc_bench.trainer.monitor.history import FINISHED
from silc_bench.trainer.monitor.log import PROBE, STDERR, TEACHER, row_of

MOST_POINTS = 1000  # of a curve; of a longer one the least and the largest of each stretch stay
OURS = "name a run made by `silc-bench train --out`"
NOT_RECORDED = "not recorded"
LARGEST_STEP = 2**53  # beyond it a browser's numbers have gaps

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    folder: Path
    name: str
    rows: list[Row]  # of log.jsonl, by step; never empty
    probes: list[Row]
    notes: list[tuple[int, str]]  # what it said of itself: (step, sentence), each once
    history: list[Row]
    checkpoints: list[tuple[str, Row]]  # (name, the record beside it), oldest first
    damaged: list[str]  # names of records that cannot be read
    config: Row  # as it was saved; {} where nothing holds it yet
    brought: Any = field(default_factory=dict)  # beside it, for ``identity.by_content``

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"])

    @property
    def samples_seen(self) -> float:
        seen = float(self.rows[-1].get("samples_seen", 0))
        return seen if math.isfinite(seen) else 0.0

    @property
    def batch_size(self) -> float:
        """Images a step, from the log itself: it is there before any configuration is."""
        return self.samples_seen / max(1, self.step)

    @property
    def num_steps(self) -> int:
        """0 where no configuration is known."""
        samples, batch_size = self.config.get("samples"), self.config.get("batch_size")
        if type(samples) is not int or type(batch_size) is not int or batch_size < 1:
            return 0
        return max(1, samples // batch_size)


def read_run(folder: Path, name: str) -> Run:
    """UserError for a folder without a log, or with a damaged one."""
    rows = _rows(folder / "log.jsonl")
    if not rows:
        raise UserError("has no rows in log.jsonl", about=folder, fix=OURS)

    history = _lines(folder / "history.jsonl")
    checkpoints, damaged = _checkpoints(folder)
    known = [row for row in history if row.get("event") == "start"]
    known += [record for _, record in checkpoints]
    known = [row for row in known if isinstance(row.get("config"), dict)]
    last = known[-1] if known else {}
    notes = [
        (row["step"], str(row["note"])) for row in _lines(folder / "notes.jsonl") if "note" in row
    ]

    # A sentence that each start repeats is shown once, where it was first said.
    first_said = {sentence: step for step, sentence in reversed(notes)}
    return Run(
        folder,
        name,
        rows,
        _rows(folder / "probes.jsonl"),
        sorted((step, sentence) for sentence, step in first_said.items()),
        history,
        checkpoints,
        damaged,
        last.get("config", {}),
        last.get("brought", {}),
    )


# ---- what it was ----


def facts(run: Run) -> dict[str, str]:
    """In words, by what is asked."""
    config = run.config
    starts = [row for row in run.history if row.get("event") == "start"]
    last: Row = starts[-1] if starts else {}
    begun = date_of(starts[0]) if starts else NOT_RECORDED
    resumed = [f"{row['step']:,}" for row in starts[1:]]
    if resumed:
        begun += f", resumed after step {', '.join(resumed)}"
    if run.history and run.history[-1].get("event") == "end":
        begun += f", ended {date_of(run.history[-1])}"

    samples = config.get("samples")
    of_all = f" of {samples:,}" if type(samples) is int else ""
    shown = {
        "state": _state(run),
        "preset": _known(config.get("preset")),
        "objective": _known(config.get("objective")),
        "data": _known(_inner(config, "data").get("source")),
        "seed": _known(config.get("seed")),
        "begun from": str(config.get("init") or "random weights") if config else NOT_RECORDED,
        "images seen": f"{run.samples_seen:,.0f}{of_all}",
        "duration": f"{duration(seconds_of(run)[-1][1])} of training steps",
        "started": begun,
        "machine": _machine(last),
        "commit": _commit(last),
        "versions": _versions(last),
        "best checkpoint": best_checkpoint(run) or "no probe chose one",
    }
    if run.damaged:
        shown["left out"] = f"damaged records of checkpoints: {', '.join(run.damaged)}"
    return shown


def best_checkpoint(run: Run) -> str:
    scored = []
    for name, record in run.checkpoints:
        score = record.get("score")
        if isinstance(score, int | float):
            scored.append((score, name))
    return max(scored)[1] if scored else ""


def _state(run: Run) -> str:
    num_steps = run.num_steps
    of_all = f" of {num_steps:,}" if num_steps else ""
    if num_steps and run.step >= num_steps:
        return f"finished: {counted(num_steps, 'step')}"
    if is_in_use(run.folder):
        return f"running: step {run.step:,}{of_all}"

    last = run.history[-1] if run.history else {}
    if last.get("event") == "end" and last.get("how") != FINISHED:
        return f"ended at step {last['step']:,}{of_all}: {last.get('how')}"

    where = f"step {run.step:,}{of_all}"
    if not run.history:
        return f"{where}; whether it goes on was not recorded"
    return f"ended without a word, as after a kill: {where}"


def date_of(row: Row) -> str:
    """Of "2026-11-30T19:00:00Z": "2026-11-30 19:00 UTC"."""
    date = row.get("date")
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ", str(date))
    return f"{match[1]} {match[2]} UTC" if match else _known(date)


def _machine(start: Row) -> str:
    parts = [str(start[name]) for name in ("device", "processor", "platform") if name in start]
    processes = start.get("processes", 1)
    if processes != 1:
        parts.insert(0, f"{processes} processes")
    return ", ".join(parts) or NOT_RECORDED


def _commit(start: Row) -> str:
    if not start.get("commit"):
        return NOT_RECORDED
    changed = " with changes that were not committed" if start.get("dirty") else ""
    return f"{str(start['commit'])[:12]}{changed}"


def _versions(start: Row) -> str:
    versions = _inner(start, "versions").items()
    return ", ".join(f"{name} {version}" for name, version in versions) or NOT_RECORDED


def _known(value: Any) -> str:
    return NOT_RECORDED if value in (None, "") else str(value)


def _inner(row: Row, name: str) -> Row:
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def flat_config(run: Run) -> dict[str, str]:
    return {name: str(value) for name, value in flatten(run.config).items()}


# ---- its numbers ----


def seconds_of(run: Run) -> list[tuple[int, float]]:
    """(step, seconds of training steps until then) of each row, from the speeds in the log.

    Probes and what starts a process take are not in it.
    """
    total, before = 0.0, 0
    clock = []
    for row in run.rows:
        speed = float(row.get("images_per_second", 0.0))
        if math.isfinite(speed) and speed > 0:
            seconds = (row["step"] - before) * run.batch_size / speed
            # A damaged log can name a speed so small that the time is more than a float holds.
            total += seconds if math.isfinite(total + seconds) else 0.0
        before = row["step"]
        clock.append((before, total))
    return clock


def names_in(run: Run) -> set[str]:
    """Names of the numbers that have a curve."""
    names = {name for row in (*run.rows, *run.probes) for name in row}
    return names | ({"left_out_share"} if "left_out" in names else set())


def curves(run: Run) -> dict[str, dict[str, Any]]:
    """By name: its points [step, value], or [step, value, standard error] of a probe.

    ``odd``: [step, "nan"] and the like, which no line goes through; ``rows``: how many points there
    were before the curve was thinned.
    """
    series: dict[str, list[list[Any]]] = {}
    for row in run.rows:
        for name, value in _numbers(row):
            series.setdefault(name, []).append([row["step"], value])
    for row in run.probes:
        for name, value in row.items():
            if name.startswith((PROBE, TEACHER)):
                error = row.get(STDERR + name.removeprefix(PROBE))
                errors = [] if error is None or not math.isfinite(error) else [error]
                series.setdefault(name, []).append([row["step"], value, *errors])

    found = {}
    for name, points in series.items():
        finite = [point for point in points if math.isfinite(point[1])]
        odd = [[step, str(value)] for step, value, *_ in points if not math.isfinite(value)]
        found[name] = {
            "points": [_rounded(point) for point in thinned(finite)],
            "odd": odd[:MOST_POINTS],
            "rows": len(points),
        }
    return found


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if name not in ("step", "left_out"):
            yield name, value
    if "left_out" in row and "samples_seen" in row:
        read = row["left_out"] + row["samples_seen"]
        yield "left_out_share", row["left_out"] / read if read > 0 else 0.0


def thinned(points: list[list[Any]]) -> list[list[Any]]:
    """At most MOST_POINTS of them: no peak and no dip is lost, and both ends stay."""
    if len(points) <= MOST_POINTS:
        return points

    size = math.ceil(2 * len(points) / (MOST_POINTS - 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept.add(min(stretch, key=lambda place: points[place][1]))
        kept.add(max(stretch, key=lambda place: points[place][1]))
    return [points[place] for place in sorted(kept)]


def _rounded(point: list[Any]) -> list[Any]:
    step, *values = point
    return [step, *(float(f"{value:.6g}") for value in values)]


# ---- its files ----


def _rows(path: Path) -> list[Row]:
    """Rows of numbers, by step. UserError as ``_lines``."""
    rows = _lines(path, lambda row: all(map(_is_number, row.values())))
    return sorted(rows, key=lambda row: int(row["step"]))


def _lines(path: Path, is_row: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Whole rows; the last one may have been cut off by a kill. UserError where another is none."""
    if not path.is_file():
        return []

    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        row = row_of(line)
        if row and 0 <= row["step"] < LARGEST_STEP and is_row(row):
            rows.append(row)
        elif number < len(lines):
            raise UserError(
                "is no row of a log",
                about=f"{path}:{number}",
                fix=f"{OURS}; where this is one, remove the line",
            )
    return rows


def _is_number(value: Any) -> bool:
    """type() and not isinstance: true is no number. An integer may be too large for a float."""
    return type(value) is float or (type(value) is int and abs(value) < LARGEST_STEP)


def _checkpoints(folder: Path) -> tuple[list[tuple[str, Row]], list[str]]:
    """The records beside the checkpoints, and the names of those that are damaged."""
    checkpoints, damaged = [], []
    for path in sorted((folder / "checkpoints").glob("step_*.json")):
        record = read_sealed(path)
        if record is None:
            damaged.append(path.name)
        else:
            checkpoints.append((path.stem, record))
    return checkpoints, damaged
