"""What every command of the command line shares: one sentence for a mistake, one look for tables
and bars (no torch).
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from silc_bench.errors import RunError, UserError

NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory"
)  # of torch: CUDA, and allocators of a CPU
console = Console(emoji=False)
notes = Console(
    stderr=True, emoji=False
)  # bars, and lines between them: of two consoles neither knows where the other stands


def answering(command: Callable[..., None]) -> Callable[..., None]:
    """A mistake or a failure is one sentence and an exit code, never a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:  # `silc-bench tasks | head`: nobody reads on, which Typer answers
            raise
        except (UserError, RunError) as error:
            _complain("error:", str(error))
            raise typer.Exit(2 if isinstance(error, UserError) else 1) from None
        except (OSError, MemoryError, RuntimeError) as error:
            words = _of_the_system(error)
            if words is None:
                raise
            _complain("error:", words)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _complain("stopped", "by Ctrl-C; everything that was finished is saved")
            raise typer.Exit(1) from None

    return wrapped


def _of_the_system(error: OSError | MemoryError | RuntimeError) -> str | None:
    """In words: a full disk, a file that may not be read, no memory left on CPU or GPU. None for
    other errors.
    """
    if isinstance(error, OSError):
        where = " -> ".join(
            str(name) for name in (error.filename, error.filename2) if name is not None
        )
        room = (
            "; make room there, and start the command again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ""
        )
        return (
            f"{where}: {error.strerror or error}{room}"
            if where
            else f"{error.strerror or error}{room}"
        )
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or NO_MEMORY.search(
        first
    ):  # torch has a class of its own for GPUs only
        return (
            f"out of memory ({first or 'no allocation of its own'}). A training step needs less with --set micro_batch=N or"
            " --set checkpointing=blocks, and `silc-bench train --dry-run` counts it by part; an evaluation with a smaller"
            " --batch-size"
        )
    return None


def _complain(verdict: str, words: str) -> None:
    """One line on the error stream. ``words`` may quote a file: no markup, no terminal codes."""
    line = "".join(letter if letter.isprintable() else " " for letter in words)
    notes.print(Text.assemble((verdict, "bold red"), " ", line), soft_wrap=True)


def table_of(*heads: str, title: str | None = None) -> Table:
    """In a narrow terminal the names keep their line, and long words go on in the next one instead
    of being cut.
    """
    columns = [Column(head, no_wrap=head is heads[0], overflow="fold") for head in heads]
    return Table(*columns, title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


@contextmanager
def progress_bar(is_shown: bool, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the error stream with the number a second and the time left; yields the function
    that advances it by a count.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=notes, transient=True, disable=not is_shown or not total
    ) as bar:
        task_id = bar.add_task(title, total=total, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[task_id].speed
            bar.update(task_id, advance=count, rate=f"{speed:.0f}/s" if speed else "")

        yield advance
