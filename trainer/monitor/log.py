"""What a run writes while it runs: files of rows in its folder, curves, and a progress line.

Flow: ``RunLog(run, step, ...)`` -> ``write_start`` -> ``write``, ``write_probe`` and
``write_note``, each a row in log.jsonl, probes.jsonl or notes.jsonl; numbers go into TensorBoard's
curves too. history.jsonl gets a row at the start and one at the end. The log is opened at the step
where training starts. Rows that a killed run wrote beyond that step are dropped, so a resumed log
reads as if nothing had happened.

Rows go to Weights & Biases too where ``silc-bench train --wandb PROJECT`` asks for it. Flow:
``check_place`` before anything else -> ``WandbLog(place, run, ...)`` -> ``log`` a row ->
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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from silc_bench.errors import RunError, UserError, first_line
from silc_bench.system.files import write_text_atomic
from silc_bench.system.terminal import say, shows_progress, warn
from silc_bench.trainer.monitor.history import end_of

QUIET_SECONDS = 15.0  # between two progress lines when the output is not a terminal
KEPT = "wandb.json"  # in the run's folder

# Begin the names of what a probe found: of the student, of the teacher, and their standard errors.
PROBE = "probe/"
TEACHER = "teacher/"
STDERR = "stderr/"


class RunLog:
    """Rows of numbers by step, sent to ``online`` too where it is given.

    Use as a context manager: leaving it closes everything.

    Raises:
        UserError: a new run would take the place of a log that is not one of ours.
        RunError: a row cannot be written.
    """

    def __init__(
        self, run: Path, step: int, num_steps: int, console: Console, online: WandbLog | None = None
    ):
        # TensorBoard takes long to import, and only a run needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._step = step
        self._num_steps = num_steps
        self._console = console
        self._online = online
        self._last_line = 0.0

        self._file = _opened(run / "log.jsonl", step)
        self._probes = _opened(run / "probes.jsonl", step)
        self._notes = _opened(run / "notes.jsonl", step)
        self._history = _opened(run / "history.jsonl", step)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

        # Where the terminal is narrow, the words alone are cut.
        words_column = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[words]}", table_column=words_column),
            expand=True,
            console=console,
            disable=not shows_progress(console),
        )
        self._task = self._bar.add_task("", total=num_steps, completed=step, words="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._bar.stop()

        # What could not be written before cannot be now. Where that is the error that ends the run,
        # it was said already.
        for opened in (self._file, self._probes, self._notes, self._board):
            with self._writing() if error is None else suppress(OSError):
                opened.close()
        with nullcontext() if error is None else suppress(RunError, OSError):
            self._append(self._history, {"step": self._step, **end_of(error)})
            self._history.close()

        if self._online is not None:
            self._online.finish(has_failed=error is not None)

    def write_start(self, start: dict[str, Any]) -> None:
        """Keep when, where and with which code this process begins to train."""
        self._append(self._history, {"step": self._step, **start})

    def advance(self, step: int) -> None:
        self._step = step
        self._bar.update(self._task, completed=step)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Keep a row, and show its losses, ``images_per_second`` and ``seconds_left``."""
        self._keep(self._file, step, row)

        losses = [
            f"{name} {row[name]:.3f}"
            for name in ("loss", "contrastive", "distillation", "masked")
            if name in row
        ]
        words = " · ".join([*losses, f"{row['images_per_second']:.0f} images/s"])
        left = timedelta(seconds=round(row["seconds_left"]))
        self._bar.update(self._task, words=words, left=f"{left} left")
        if self._console.is_terminal:
            return

        # Without a terminal there is no bar. A line now and then, and one for the last step, keep
        # the file that the output goes to short.
        now = time.monotonic()
        if now - self._last_line > QUIET_SECONDS or step == self._num_steps:
            self._last_line = now
            say(f"step {step}/{self._num_steps} · {words} · {left} left", self._console)

    def write_probe(self, step: int, scores: dict[str, float], errors: dict[str, float]) -> None:
        """Keep what a probe measured: a row in probes.jsonl, curves, and a line for people.

        ``errors``: standard errors of scores, which the row names "stderr/..." for "probe/..." and
        "stderr/teacher/..." for "teacher/...".
        """
        named = {STDERR + name.removeprefix(PROBE): error for name, error in errors.items()}
        self._keep(self._probes, step, scores | named)
        words = " · ".join(
            f"{name.removeprefix(PROBE)} {100 * value:.1f} %" for name, value in scores.items()
        )
        say(f"step {step}/{self._num_steps} · {words}", self._console)

    def write_note(self, sentence: str) -> None:
        """Keep a sentence that people were told: a row of its own in notes.jsonl."""
        self._append(self._notes, {"step": self._step, "note": sentence})

    def _keep(self, file: TextIO, step: int, row: dict[str, float]) -> None:
        self._append(file, {"step": step, **row})
        with self._writing():
            for name, value in row.items():
                self._board.add_scalar(name, value, step)

        # Last, because W&B has copies only: what it gets stands in the files already.
        if self._online is not None:
            self._online.log(step, row)

    def _append(self, file: TextIO, row: dict[str, Any]) -> None:
        with self._writing():
            file.write(json.dumps(row) + "\n")
            file.flush()  # so that a kill loses nothing but a part of one row

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"the log could not be written ({error.strerror or error})",
                about=self._run,
                fix="make room there, and continue with --resume where a checkpoint was written",
            ) from error


def _opened(path: Path, step: int) -> TextIO:
    """A file to append to, after its rows up to ``step``."""
    write_text_atomic(path, "".join(_rows_up_to(path, step)))
    return open(path, "a", encoding="utf-8")


def _rows_up_to(path: Path, step: int) -> list[str]:
    """Whole rows of steps <= ``step``; a row cut off by a kill is dropped too.

    A new run, for which all of them are dropped (those of step 0 too, which one that died early
    left), refuses lines that no run can have written; a resumed one leaves them out.
    """
    if not path.exists():
        return []

    kept = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        row = row_of(line) if line.endswith(b"\n") else None

        # The last line may have been cut off by a kill, so it proves nothing.
        if row is None and step == 0 and number < len(lines):
            raise UserError(
                "is no row of a run's log, and a new run would overwrite it",
                about=f"{path}:{number}",
                fix="choose another --out",
            )
        if row is not None and step > 0 and row["step"] <= step:
            kept.append(line.decode())
    return kept


def row_of(line: bytes) -> dict[str, Any] | None:
    """What a line of a log holds; None where it is no row, with a step."""
    try:
        row = json.loads(line)
    except ValueError:
        return None

    # type() and not isinstance: true is no step.
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


# ---- Weights & Biases ----


def check_place(place: str) -> None:
    """UserError where it names no project, or W&B is not installed."""
    if not place.rpartition("/")[2].strip():
        raise UserError(
            f"{place!r} names no project", about="--wandb", fix="write PROJECT or ENTITY/PROJECT"
        )
    if find_spec("wandb") is None:
        raise UserError(
            "the package wandb is missing",
            about="--wandb",
            fix="pip install 'silc-bench[wandb]'",
        )


class WandbLog:
    """One run of W&B. ``place``: PROJECT or ENTITY/PROJECT."""

    def __init__(
        self, place: str, run: Path, config: dict[str, Any], is_resumed: bool, console: Console
    ) -> None:
        """UserError where W&B does not take the run: a name that it refuses, no key, no answer."""
        import wandb

        entity, _, project = place.rpartition("/")
        kept_id = _kept(run / KEPT) if is_resumed else None
        run_id = kept_id or secrets.token_hex(4)
        run.mkdir(parents=True, exist_ok=True)  # else W&B warns that a git root is missing
        try:
            self._run: Any = wandb.init(
                entity=entity or None,
                project=project,
                name=run.name,
                id=run_id,
                resume="allow" if kept_id else None,
                dir=str(run),
                config=config,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # its errors have no base class of their own
            raise UserError(
                first_line(error),
                about=f"--wandb {place}",
                fix="`wandb login` once, or set WANDB_MODE=offline, or leave --wandb out",
            ) from error

        write_text_atomic(run / KEPT, json.dumps({"id": run_id, "place": place}) + "\n")
        self._console = console
        where = f"kept in {run / 'wandb'}, for `wandb sync`" if self._run.offline else self._run.url
        say(f"W&B: {where}", console)

    def log(self, step: int, row: dict[str, float]) -> None:
        self._try("log", dict(row), step=step)

    def finish(self, has_failed: bool) -> None:
        self._try("finish", exit_code=int(has_failed))

    def _try(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of W&B's run; where it fails, the copies end and the run goes on."""
        if self._run is None:
            return
        try:
            getattr(self._run, method)(*args, **kwargs)
        except Exception as error:  # whatever it is, it is no reason to lose a run
            self._run = None
            warn(
                f"W&B failed and gets no more rows ({first_line(error)}); the run goes on, and its"
                " own files hold everything",
                self._console,
            )


def _kept(path: Path) -> str | None:
    """The id of the run that was begun there."""
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "holds no id of a W&B run", about=path, fix="remove it to begin a new one"
        ) from error
