"""A small evaluation while a run goes on, and whether it destroys what the start could do.

It goes through the same code as ``silc-bench eval``: same tasks, same features, same scores.
``--set probe.every=1000`` measures the student on ``probe.tasks`` (generated scenes by default) and
saves a checkpoint; the one with the best mean of the main metrics is kept.

A run that starts from other weights may lose what they could do without training: zero-shot and
retrieval. Flow: before the first step ``remembered`` keeps the start's probe scores with the run
(in its checkpoints); after each later probe ``destroyed`` gives a verdict where one of them has
fallen.

The rule: a metric has fallen when start - now > 2 * sqrt(s0^2 + s1^2), where s0 and s1 are its two
standard errors over the probe's images. Both are measured on the same images, so their errors go
together, and the true error of the difference is smaller. A fall that is named is therefore real; a
smaller one, which is not named, may be real too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from silc_bench.datasets.dataset import ImageDataset
from silc_bench.errors import RunError, UserError
from silc_bench.evaluation.features import Extractor
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.task import Task
from silc_bench.tasks.selection import select, words_of
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.config.config import OptimConfig, ProbeConfig
from silc_bench.trainer.monitor.health import Verdict
from silc_bench.trainer.monitor.log import PROBE, TEACHER
from silc_bench.trainer.silc.towers import VisionTower
from silc_bench.trainer.train import TrainState

BATCH_SIZE = 128
ERRORS = 2.0  # standard errors of the difference


class Probe:
    """Loads its data once. UserError for an unknown task, or data that is not there.

    A task that cannot be scored on what ``limit`` leaves of its data is left out from then on,
    which ``say`` is told in a sentence: a run of days does not end over it. Where the student's
    features are not finite, ``diverged`` says so until the next call, and what could be scored is
    returned.
    """

    def __init__(
        self, config: ProbeConfig, device: torch.device, say: Callable[[str], None]
    ) -> None:
        root = Path(config.data_root) if config.data_root else None
        self._device = device
        self._say = say
        self._is_of_teacher = config.teacher
        self.errors: dict[str, float] = {}  # of what the last call found, where a task gives them
        self.teacher: dict[str, float] = {}  # {"teacher/DATASET/FAMILY": ...} of the last call
        self.diverged: Verdict | None = None  # why the last call could not score all
        if root is not None and not root.is_dir():
            problem = "is a file" if root.exists() else "no such folder"
            fix = "name the folder that holds the datasets of probe.tasks"
            raise UserError(problem, about=f"probe.data_root {root}", fix=fix)
        try:
            self._tasks: list[tuple[Task, Mapping[str, ImageDataset]]] = [
                (task, task.load(root, config.limit)) for task in select(words_of(config.tasks))
            ]
        except UserError as error:
            # The loaders speak of an option of `silc-bench eval`.
            fix = error.fix.replace("--data-root DIR", "--set probe.data_root=DIR")
            about = ": ".join(filter(None, ("probe.tasks", error.about)))
            raise UserError(error.problem, about=about, fix=fix) from error

    def __call__(self, state: TrainState) -> dict[str, float]:
        """{"probe/DATASET/FAMILY": main metric} of the student as it is.

        Nothing of the run is touched.
        """
        student = state.student
        self.errors, self.teacher, self.diverged = {}, {}, None
        scores = self._scores(state, "student", student.vision, PROBE)

        # Before its first lesson it is a copy of the student, or not even that.
        is_teaching = state.config.is_taught_at(state.step - 1)
        if self._is_of_teacher and is_teaching and not self.diverged:
            self.teacher = self._scores(state, "teacher", state.teacher.vision, TEACHER)

        student.train()  # NativeModel had set it to evaluation
        return scores

    def _scores(
        self, state: TrainState, branch: str, vision: VisionTower, prefix: str
    ) -> dict[str, float]:
        """Main metrics, named "PREFIX/DATASET/FAMILY"; ``errors`` gets theirs, ``diverged`` why."""
        model = NativeModel(f"{state.config.name}:{branch}", state.student, vision, state.tokenizer)

        # No store: these features are of weights that nobody will ask for again.
        settings = EvalSettings(device=self._device, precision="fp32", batch_size=BATCH_SIZE)
        extract = Extractor(model, settings)

        # Dense features that several tasks read are encoded in one pass, if all are known before.
        for task, data in self._tasks:
            extract.expect(task, data)

        scores: dict[str, float] = {}
        for task, data in list(self._tasks):
            try:
                scored = task.score(extract(data))
            except UserError as error:
                self._tasks.remove((task, data))
                self._say(
                    f"step {state.step}: {task.name} is left out of probe.tasks from here on:"
                    f" {error}"
                )
            except RunError as error:
                self.diverged = Verdict(
                    error.problem,
                    f"lower optim.lr (now {state.config.optim.lr:g}), or start from an earlier"
                    " checkpoint",
                )
            else:
                name = f"{prefix}{task.name}"
                scores[name] = scored.metrics[task.main_metric]
                if task.main_metric in scored.stderr:
                    self.errors[name] = scored.stderr[task.main_metric]
        return scores


# ---- what the start could do ----


def remembered(scores: dict[str, float], errors: dict[str, float]) -> dict[str, dict[str, float]]:
    """What is kept of the start: of each zero-shot probe its score and standard error."""
    return {
        name: {"score": scores[name], "stderr": errors[name]}
        for name in scores
        if name in errors and is_zeroshot(name)
    }


def is_zeroshot(name: str) -> bool:
    """Of "probe/DATASET/FAMILY", whether the family asks what was never trained for it."""
    family = name.rpartition("/")[2]
    return "zeroshot" in family or family == "retrieval"


def destroyed(
    start: dict[str, Any] | None,
    scores: dict[str, float],
    errors: dict[str, float],
    optim: OptimConfig,
) -> Verdict | None:
    """The deepest fall below the start, with the settings to change.

    ``start``: what the run keeps of the weights it began with, or None. The answer is None where
    nothing fell by the rule.
    """
    falls = {}
    for name, before in (start or {}).get("probes", {}).items():
        if name in scores and name in errors:
            allowed = ERRORS * math.hypot(before["stderr"], errors[name])
            fall = before["score"] - scores[name]
            if fall > allowed:
                falls[name] = (fall, allowed, before["score"])
    if not falls:
        return None

    name, (fall, allowed, start_score) = max(falls.items(), key=lambda item: item[1][0])
    at_start = f"{100 * start_score:.1f} %"
    now = f"{100 * (start_score - fall):.1f} %"
    lock = "" if optim.locked else ", lock a tower (--set optim.locked=text)"
    return Verdict(
        f"{name.removeprefix('probe/')} fell from {at_start} at the start to {now}, and its"
        f" standard errors allow {100 * allowed:.1f} points: fine-tuning destroys what the source"
        " could do",
        f"lower optim.lr (now {optim.lr:g}){lock}, or lower optim.layer_decay (now"
        f" {optim.layer_decay:g})",
    )
