"""What every command shares: one sentence for a mistake, one look for tables and bars.

Imports no torch, so that ``silc-bench --help`` answers at once.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from silc_bench.errors import RunError, UserError

# What torch says: of CUDA, and of the allocators of a CPU.
NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # a full disk, a used-up quota
WARNING = "yellow"  # the style of a warning
console = Console(emoji=False)
# Bars and the lines between them go through one console: of two consoles neither knows where the
# other one stands.
notes = Console(stderr=True, emoji=False)
LOUDNESS = {"is_quiet": False, "is_verbose": False}  # of this process


def set_loudness(is_quiet: bool, is_verbose: bool) -> None:
    """``--quiet``: no progress and no notes, but warnings and errors; ``--verbose``: details too.

    Raises:
        UserError: both are asked for.
    """
    if is_quiet and is_verbose:
        raise UserError("contradicts --verbose", about="--quiet", fix="leave one of them out")
    # Of torchrun's processes the first one tells details.
    is_first = os.environ.get("RANK", "0") == "0"
    LOUDNESS.update(is_quiet=is_quiet, is_verbose=is_verbose and is_first)


def shows_progress(stream: Console = console) -> bool:
    """Whether bars belong there: it is a terminal, and nobody asked for quiet."""
    return stream.is_terminal and not LOUDNESS["is_quiet"]


def answering(command: Callable[..., None]) -> Callable[..., None]:
    """A mistake or a failure is one sentence and an exit code, never a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        _take_every_letter()
        if notes.is_terminal and _WATCH not in sys.meta_path:
            sys.meta_path.insert(0, _WATCH)
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            # `silc-bench tasks | head`: nobody reads on. Typer answers that.
            raise
        except (UserError, RunError) as error:
            _complain("error:", str(error))
            code = 2 if isinstance(error, UserError) else 1
            raise typer.Exit(code) from None
        except (OSError, MemoryError, RuntimeError) as error:
            # Anything else of these classes is a mistake of ours, and its traceback is wanted.
            sentence = _of_the_system(error)
            if sentence is None:
                raise
            _complain("error:", sentence)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _complain("stopped", "by Ctrl-C; everything that was finished is saved")
            raise typer.Exit(1) from None

    return wrapped


def _of_the_system(error: OSError | MemoryError | RuntimeError) -> str | None:
    """A sentence about a full disk, a file that may not be read, or memory that is used up.

    None for other errors.
    """
    if isinstance(error, OSError):
        paths = (error.filename, error.filename2)
        where = " -> ".join(str(path) for path in paths if path is not None)
        reason = str(error.strerror or error)
        if error.errno in NO_ROOM:
            reason += "; make room there, and start the command again"
        return f"{where}: {reason}" if where else reason

    # torch has a class of its own for GPUs only, so the message decides.
    first_line = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or NO_MEMORY.search(first_line):
        return (
            f"out of memory ({first_line or 'no allocation of its own'}). A training step needs"
            " less with --set micro_batch=N or --set checkpointing=blocks, and"
            " `silc-bench train --dry-run` counts it by part; an evaluation with a smaller"
            " --batch-size"
        )
    return None


def say(sentence: str, to: Console = notes, style: str | None = None) -> None:
    """A sentence for the user; what stands in it is never taken for markup.

    With ``--quiet`` it is not said.
    """
    if not LOUDNESS["is_quiet"]:
        _write(sentence, to, style)


def warn(sentence: str, to: Console = notes) -> None:
    """As ``say``, in a color that is seen: something may be wrong, and the command goes on."""
    _write(sentence, to, WARNING)


def tell(sentence: str, is_aside: bool) -> None:
    """What a command answers, a line on the output; a note where a document stands there."""
    if is_aside:
        say(sentence)
    else:
        print(one_line(sentence))


def detail(sentence: str) -> None:
    """What is only said with ``--verbose``: what is loaded, from where, how long it took."""
    if LOUDNESS["is_verbose"]:
        _write(sentence, notes, "dim")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """With ``--verbose``: ``what`` and the seconds that the lines within it took."""
    started = time.perf_counter()
    yield
    detail(f"{what}: {time.perf_counter() - started:.1f} s")


# ---- what takes long to load ----

# Libraries whose import may take seconds.
LARGE = ("torch", "torchvision", "transformers", "open_clip", "timm", "pandas", "scipy", "sklearn")
PATIENCE = 1.0  # seconds without a word


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Say ``what`` is being loaded where the lines within take longer than a second.

    It is said by commands, on a terminal alone: a log needs no such line, and ``--json`` none.
    """
    timer = _after_a_second(lambda: _write(f"loading {what} ...", notes, "dim"))
    try:
        yield
    finally:
        timer.cancel()


def _after_a_second(speak: Callable[[], None]) -> threading.Timer:
    def if_asked() -> None:
        if _WATCH in sys.meta_path and not LOUDNESS["is_quiet"]:
            speak()

    timer = threading.Timer(PATIENCE, if_asked)
    timer.daemon = True  # the end of the program does not wait for it
    timer.start()
    return timer


class _Watch:
    """Sees each import begin; finds nothing itself, so that the usual finders go on."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in LARGE:
            _after_a_second(lambda: self._say_if_unfinished(name))

    @staticmethod
    def _say_if_unfinished(name: str) -> None:
        # What importlib itself goes by, to warn of circles.
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            _write(f"loading {name} ...", notes, "dim")


_WATCH = cast(Any, _Watch())  # on ``sys.meta_path`` where a command speaks to a terminal


def _write(sentence: str, to: Console, style: str | None) -> None:
    to.print(one_line(sentence), style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """``--json``: one document on the output, in which NaN and infinities are null."""
    # In ASCII, so that a terminal that knows no other letters changes nothing of it.
    print(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _complain(verdict: str, message: str) -> None:
    """One line on the error stream, if anybody listens: the exit code says the rest."""
    # Text, not str: rich would take brackets in the message for markup.
    with notes.capture() as said:
        notes.print(Text.assemble((verdict, "bold red"), " ", one_line(message)), soft_wrap=True)

    # Written here: what rich cannot write it keeps, and says with the next sentence.
    with suppress(OSError, ValueError):
        sys.stderr.write(said.get())
        sys.stderr.flush()


# ---- streams that are not what they should be ----


def _take_every_letter() -> None:
    """A terminal that knows ASCII alone gets other letters as escapes, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within it, an output that is closed or full is no reason to stop: what is said is lost.

    For work of hours, which keeps in files what it finds.
    """
    before = (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = (stream and cast(TextIO, _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream whose writes never fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # the latter where it is closed
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """What is still in the stream's buffer goes nowhere, or the end of the program fails."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def one_line(text: str) -> str:
    """``text`` without line breaks and terminal codes: names in a file may hold anything."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun: "1 image", "1,234 images", "2 indexes of a shard" (``plural``)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """As people say it: "50 s", "12 min", "3 h 20 min", "4 days 6 h", "3 years"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    if days >= 1000:
        return f"{days / 365:,.0f} years"
    return f"{days} days {hours} h" if hours else f"{days} days"


@contextmanager
def progress_bar(is_shown: bool, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the error stream, with the number a second and the time left.

    Yields the function that advances it by a count.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    is_hidden = not is_shown or not total or LOUDNESS["is_quiet"]
    with Progress(*columns, console=notes, transient=True, disable=is_hidden) as bar:
        task_id = bar.add_task(title, total=total, rate="")

        def advance(count: int) -> None:
            # None at first: rich needs two advances to know a speed.
            speed = bar.tasks[task_id].speed
            rate = f"{speed:.0f}/s" if speed else ""
            bar.update(task_id, advance=count, rate=rate)

        yield advance
