"""What a run says while it runs: log.jsonl, probes.jsonl, notes.jsonl and TensorBoard curves in its
folder, a progress line.

``RunLog`` is opened at the step where training starts; rows that a killed run wrote beyond that
step are dropped, so a resumed log reads as if nothing had happened.

The rows of a run in Weights & Biases too, where ``silc-bench train --wandb PROJECT`` asks for it.

Flow: ``check_place`` before anything else -> ``WandbLog(place, run, ...)`` -> ``log`` a row ->
``finish``. The files in the run's folder stay the whole truth: W&B gets copies, of the first
process only, and what goes wrong there ends the copies and not the run. ``wandb.json`` in the
folder keeps the id, so that ``--resume`` goes on in the same curves; rows after the last
checkpoint, which a killed run had sent and a resumed one makes again, W&B leaves as they are.
Without a network: ``WANDB_MODE=offline``, then ``wandb sync RUN/wandb/offline-*``.
"""

from __future__ import annotations

import json
import secrets
import time
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from silc_bench.errors import RunError, UserError
from silc_bench.system.files import write_text_atomic

QUIET_SECONDS = 15.0  # between two progress lines when the output is not a terminal


class RunLog:
    """Rows of numbers by step, ``online`` too where it is given. Use as a context manager: leaving
    it closes everything.

    Raises:
        UserError: a new run would take the place of a log that is not one of ours.
        RunError: a row cannot be written.
    """

    def __init__(
        self, run: Path, step: int, num_steps: int, console: Console, online: WandbLog | None = None
    ):
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._step = step
        self._file, self._probes, self._notes = (
            _opened(run / f"{name}.jsonl", step) for name in ("log", "probes", "notes")
        )
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._online = online
        self._num_steps = num_steps
        self._console = console
        self._last_line = 0.0
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            BarColumn(bar_width=10),
            TextColumn(
                "{task.fields[words]}",
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,  # where the terminal is narrow, the words alone are cut
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=num_steps, completed=step, words="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        for opened in (self._file, self._probes, self._notes, self._board):
            try:
                opened.close()
            except (
                OSError
            ) as failure:  # what could not be written before cannot be now, and was said
                if error is None:
                    raise self._unwritten(failure) from failure
        if self._online is not None:
            self._online.finish(has_failed=error is not None)

    def advance(self, step: int) -> None:
        self._step = step
        self._bar.update(self._task, completed=step)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Keep a row: ``loss``, ``images_per_second`` and ``seconds_left`` are shown, everything is
        kept.
        """
        self._keep(self._file, step, row)
        parts = [
            f"{name} {row[name]:.3f}"
            for name in ("loss", "contrastive", "distillation", "masked")
            if name in row
        ]
        left = timedelta(seconds=round(row["seconds_left"]))
        words = " · ".join([*parts, f"{row['images_per_second']:.0f} images/s"])
        self._bar.update(self._task, words=words, left=f"{left} left")
        now = time.monotonic()
        if not self._console.is_terminal and (
            now - self._last_line > QUIET_SECONDS or step == self._num_steps
        ):
            self._last_line = now
            self._console.print(
                f"step {step}/{self._num_steps} · {words} · {left} left",
                highlight=False,
                soft_wrap=True,
            )

    def write_probe(self, step: int, found: dict[str, float]) -> None:
        """Keep what a probe measured: a row of its own in probes.jsonl, curves, and a line for
        people.
        """
        self._keep(self._probes, step, found)
        words = " · ".join(
            f"{name.removeprefix('probe/')} {100 * value:.1f} %" for name, value in found.items()
        )
        self._console.print(
            f"step {step}/{self._num_steps} · {words}", highlight=False, soft_wrap=True
        )

    def write_note(self, sentence: str) -> None:
        """Keep a sentence that people were told: a row of its own in notes.jsonl."""
        self._append(self._notes, {"step": self._step, "note": sentence})

    def _keep(self, file: TextIO, step: int, row: dict[str, float]) -> None:
        self._append(file, {"step": step, **row})
        try:
            for name, value in row.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise self._unwritten(error) from error
        if self._online is not None:
            self._online.log(step, row)

    def _append(self, file: TextIO, row: dict[str, Any]) -> None:
        try:
            file.write(json.dumps(row) + "\n")
            file.flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> RunError:
        return RunError(
            f"the log could not be written to {self._run} ({error.strerror or error}); make room, and continue with --resume"
            " where a checkpoint was written"
        )


def _opened(path: Path, step: int) -> TextIO:
    """To append to, after the rows up to ``step``."""
    kept = _rows_up_to(path, step)
    write_text_atomic(path, "".join(kept))
    return open(path, "a", encoding="utf-8")


def _rows_up_to(path: Path, step: int) -> list[str]:
    """Whole rows of steps <= ``step``; a row cut off by a kill is dropped too.

    A new run, for which all of them are dropped, refuses lines that no run can have written; a
    resumed one leaves them out.
    """
    if not path.exists():
        return []
    kept = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        row = row_of(line) if line.endswith(b"\n") else None
        if row is None and step == 0 and number < len(lines):
            raise UserError(
                f"{path}:{number} is no row of a run's log, and a new run would overwrite it; choose another --out"
            )
        if row is not None and row["step"] <= step:
            kept.append(line.decode())
    return kept


def row_of(line: bytes) -> dict[str, Any] | None:
    """What a line of a log holds; None where it is no row, with a step."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


KEPT = "wandb.json"  # in the run's folder


def check_place(place: str) -> None:
    """UserError where it names no project, or W&B is not installed."""
    if not place.rpartition("/")[2].strip():
        raise UserError(f"--wandb {place!r} names no project; write PROJECT or ENTITY/PROJECT")
    if find_spec("wandb") is None:
        raise UserError("--wandb: the package wandb is missing; pip install 'silc-bench[wandb]'")


class WandbLog:
    """One run of W&B. ``place``: PROJECT or ENTITY/PROJECT."""

    def __init__(
        self, place: str, run: Path, config: dict[str, Any], is_resumed: bool, console: Console
    ) -> None:
        """UserError where W&B does not take the run at all: a name that it refuses, no key, no
        answer.
        """
        import wandb

        entity, _, project = place.rpartition("/")
        kept = _kept(run / KEPT) if is_resumed else None
        number = kept or secrets.token_hex(4)
        run.mkdir(parents=True, exist_ok=True)  # else W&B warns that a git root is missing
        try:
            self._run: Any = wandb.init(
                entity=entity or None,
                project=project,
                name=run.name,
                id=number,
                resume="allow" if kept else None,
                dir=str(run),
                config=config,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # its errors have no base class of their own
            raise UserError(
                f"--wandb {place}: {_words(error)}; `wandb login` once, or set WANDB_MODE=offline, or leave --wandb out"
            ) from error
        write_text_atomic(run / KEPT, json.dumps({"id": number, "place": place}) + "\n")
        self._console = console
        where = f"kept in {run / 'wandb'}, for `wandb sync`" if self._run.offline else self._run.url
        console.print(f"W&B: {where}", markup=False, highlight=False, soft_wrap=True)

    def log(self, step: int, row: dict[str, float]) -> None:
        self._try("log", dict(row), step=step)

    def finish(self, has_failed: bool) -> None:
        self._try("finish", exit_code=int(has_failed))

    def _try(self, what: str, *args: Any, **kwargs: Any) -> None:
        if self._run is None:
            return
        try:
            getattr(self._run, what)(*args, **kwargs)
        except Exception as error:  # whatever it is, it is no reason to lose a run
            self._run = None
            self._console.print(
                f"W&B failed and gets no more rows ({_words(error)}); the run goes on, and its own files hold everything",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def _kept(path: Path) -> str | None:
    """The id of the run that was begun there."""
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no id of a W&B run; remove it to begin a new one") from error


def _words(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
