"""A small evaluation while a run goes on, through the same code as ``silc-bench eval``: same tasks, same features, same scores.

``--set probe.every=1000`` measures the student on ``probe.tasks`` (generated scenes by default) and saves a checkpoint; the
one with the best mean of the main metrics is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from silc_bench.datasets import ImageDataset
from silc_bench.errors import RunError, UserError
from silc_bench.features import Extractor
from silc_bench.models.native import NativeModel
from silc_bench.registry import Scores, Task, select, words_of
from trainer.sections import ProbeConfig
from trainer.train import TrainState

BATCH_SIZE = 128


class Probe:
    """Loads its data once. UserError for an unknown task, or data that is not there.

    A task that cannot be scored on what ``limit`` leaves of its data is left out from then on, which ``say`` is told in a
    sentence: a run of days does not end over it. Where the student's features are not finite, ``diverged`` says so until the
    next call, and what could be scored is returned.
    """

    def __init__(self, config: ProbeConfig, device: torch.device, say: Callable[[str], None]) -> None:
        root = Path(config.data_root) if config.data_root else None
        self._device, self._say = device, say
        self.errors: dict[str, float] = {}  # of what the last call found, where a task gives them
        self.diverged: str | None = None  # why the last call could not score all
        self._tasks: list[tuple[Task, Mapping[str, ImageDataset]]] = [
            (task, task.load(root, config.limit)) for task in select(words_of(config.tasks))
        ]

    def __call__(self, state: TrainState) -> dict[str, float]:
        """{"probe/DATASET/FAMILY": main metric} of the student as it is; nothing of the run is touched."""
        student = state.student
        model = NativeModel(f"{state.config.name}:student", student, student.vision, state.tokenizer)
        extract = Extractor(
            model, device=self._device, precision="fp32", batch_size=BATCH_SIZE, num_workers=0, progress=False, store=None
        )
        for task, data in self._tasks:
            extract.expect(task, data)
        scores: list[tuple[Task, Scores]] = []
        self.diverged = None
        for task, data in list(self._tasks):
            try:
                scores.append((task, task.score(extract(data))))
            except UserError as error:
                self._tasks.remove((task, data))
                self._say(f"step {state.step}: {task.name} is left out of probe.tasks from here on: {error}")
            except RunError as error:
                self.diverged = f"{error}; lower optim.lr (now {state.config.optim.lr:g}), or start from an earlier checkpoint"
        student.train()
        self.errors = {
            f"probe/{task.name}": scored.stderr[task.main_metric]
            for task, scored in scores
            if task.main_metric in scored.stderr
        }
        return {f"probe/{task.name}": scored.metrics[task.main_metric] for task, scored in scores}
