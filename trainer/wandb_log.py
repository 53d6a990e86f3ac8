"""The rows of a run in Weights & Biases too, where ``silc-bench train --wandb PROJECT`` asks for it.

Flow: ``check_place`` before anything else -> ``WandbLog(place, run, ...)`` -> ``log`` a row -> ``finish``. The files in the
run's folder stay the whole truth: W&B gets copies, of the first process only, and what goes wrong there ends the copies and
not the run. ``wandb.json`` in the folder keeps the id, so that ``--resume`` goes on in the same curves; rows after the last
checkpoint, which a killed run had sent and a resumed one makes again, W&B leaves as they are.
Without a network: ``WANDB_MODE=offline``, then ``wandb sync RUN/wandb/offline-*``.
"""

from __future__ import annotations

import json
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from silc_bench.atomic import write_text_atomic
from silc_bench.errors import UserError

KEPT = "wandb.json"  # in the run's folder


def check_place(place: str) -> None:
    """UserError where it names no project, or W&B is not installed."""
    if not place.rpartition("/")[2].strip():
        raise UserError(f"--wandb {place!r} names no project; write PROJECT or ENTITY/PROJECT")
    if find_spec("wandb") is None:
        raise UserError("--wandb: the package wandb is missing; pip install 'silc-bench[wandb]'")


class WandbLog:
    """One run of W&B. ``place``: PROJECT or ENTITY/PROJECT."""

    def __init__(self, place: str, run: Path, config: dict[str, Any], is_resumed: bool, console: Console) -> None:
        """UserError where W&B does not take the run at all: a name that it refuses, no key, no answer."""
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
