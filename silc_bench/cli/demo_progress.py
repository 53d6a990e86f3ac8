"""The parts of the demo, how long each takes, and the one bar over all of them.

Imports no torch: what is about to be done is said before torch is loaded.

Seconds are those of the reference, two idle cores of an AMD EPYC without bf16
(`benchmarks/README.md`); ``slowness`` says how many times longer this machine takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

from silc_bench.system.limits import num_cores
from silc_bench.system.terminal import say, shows_progress

OBJECTIVES = ("contrastive", "silc")
SAMPLES = 24_000  # scenes that each model learns from
FULL_SAMPLES = 48_000

# ---- on the reference ----
SECONDS_TO_LOAD = 8.0
SECONDS_TO_MEASURE = 12.0  # a model
SECONDS_TO_MEASURE_ALL = 150.0  # with the tasks that only --full has; not measured on idle cores
SECONDS_TO_WRITE = 6.0  # image and page
SECONDS_TO_TRAIN = {"contrastive": 1.7, "silc": 4.8}  # on 1,000 scenes
SECONDS_TO_COUNT = 0.058
SECOND_CORE = 1.8  # times faster than one

COUNTED = 1_000_000  # additions in Python
LEAST_SHARE = 0.05  # of the work, before its own speed says what is left


@dataclass(frozen=True)
class Part:
    """One of the things that the demo does."""

    words: str
    seconds: float  # on the reference


def parts_of(is_full: bool) -> list[Part]:
    """What is measured first, what is trained, and what is measured then."""
    samples = FULL_SAMPLES if is_full else SAMPLES
    of_a_model = SECONDS_TO_MEASURE_ALL if is_full else SECONDS_TO_MEASURE
    measuring = len(OBJECTIVES) * of_a_model + SECONDS_TO_WRITE
    training = [
        Part(f"training {objective}", SECONDS_TO_TRAIN[objective] * samples / 1000)
        for objective in OBJECTIVES
    ]
    return [
        Part("measuring the packaged models", SECONDS_TO_LOAD + measuring),
        *training,
        Part("measuring the models trained here", measuring),
    ]


def plan(is_full: bool, folder: str) -> list[str]:
    """What will be done, and how long it takes here: a line each."""
    samples = FULL_SAMPLES if is_full else SAMPLES
    cores = num_cores()
    seconds = slowness(cores) * sum(part.seconds for part in parts_of(is_full))
    on = "one core" if cores == 1 else f"{cores} cores"
    return [
        "1. Measure two small models that silc-bench brings: a first page.",
        f"2. Train one here by the contrastive loss alone, on {samples:,} generated scenes.",
        "3. Train its twin on the same scenes, with self-distillation (SILC).",
        f"4. Measure these too: page, image and table in {folder}.",
        f"About {minutes(seconds)} on {on}. Ctrl-C stops it, and the same command goes on.",
    ]


def slowness(cores: int) -> float:
    """How many times longer than the reference this machine takes, by a short loop and its cores.

    A guess, before torch is loaded; the bar goes by what was done.
    """
    counted = []
    for _ in range(3):
        started = time.perf_counter()
        total = 0
        for number in range(COUNTED):
            total += number
        counted.append(time.perf_counter() - started)
    return min(counted) / SECONDS_TO_COUNT * (SECOND_CORE if cores == 1 else 1.0)


def minutes(seconds: float) -> str:
    """Rounded up: nobody minds that it was less."""
    count = math.ceil(seconds / 60)
    return "a minute" if count <= 1 else f"{count} minutes"


class WholeBar:
    """One bar for all ``parts``, and without a terminal a line for each.

    Flow: ``begin`` -> ``done`` as often as there is news -> ``begin`` of the next part ... What was
    known before the demo began (``know``) counts for nothing in the time that is left.
    """

    def __init__(self, parts: Sequence[Part], console: Console) -> None:
        self._parts = list(parts)
        self._console = console
        self._number = 0  # of the part under way, from 1
        self._before = 0.0  # reference seconds of the parts before it
        self._now = 0.0  # of this one, done
        self._skipped = 0.0  # of all that was known
        self._started = time.perf_counter()

        words = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._bar = Progress(
            TextColumn("{task.description}", table_column=words),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not shows_progress(console),
            transient=True,
            expand=True,
            refresh_per_second=2,  # a redraw takes time from the training
        )
        total = sum(part.seconds for part in self._parts)
        self._task = self._bar.add_task("", total=total, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, detail: str = "") -> None:
        """The next part; the one before it is done."""
        if self._number:
            self._before += self._parts[self._number - 1].seconds
        self._number += 1
        self._now = 0.0
        words = self._words(detail)
        self._show(words)
        if not self._console.is_terminal:
            say(words, self._console)

    def done(self, share: float, detail: str = "") -> None:
        """So much of this part, of 1."""
        self._now = share * self._parts[self._number - 1].seconds
        self._show(self._words(detail))

    def know(self, share: float) -> None:
        """As ``done``, for what took no time since it was known before."""
        before = self._now
        self.done(share)
        self._skipped += self._now - before

    def _words(self, detail: str) -> str:
        part = self._parts[self._number - 1]
        return ", ".join(filter(None, (f"{self._number}/{len(self._parts)} {part.words}", detail)))

    def _show(self, words: str) -> None:
        finished = self._before + self._now
        left = seconds_left(
            sum(part.seconds for part in self._parts),
            finished,
            self._skipped,
            time.perf_counter() - self._started,
        )
        text = "" if left is None else f"{int(left) // 60}:{int(left) % 60:02} left"
        self._bar.update(self._task, completed=finished, description=words, left=text)


def seconds_left(total: float, finished: float, skipped: float, elapsed: float) -> float | None:
    """By the speed so far; None as long as too little was done.

    Args:
        total: reference seconds of all parts.
        finished: of what is done, with what was known before.
        skipped: of what was known before, which took no time.
        elapsed: seconds that passed.
    """
    worked = finished - skipped
    if worked < LEAST_SHARE * (total - skipped):
        return None
    return (total - finished) * elapsed / worked
