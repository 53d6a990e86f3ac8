"""Measure several models on the same tasks, one after the other.

Flow: ``sweep([Checkpoint("runs/a", load), ...], tasks, settings, ...)`` -> for each: load, measure
(`silc_bench.evaluation.evaluate`), free -> a ``Sweep``: the records, and why each other model has
none. One model is in memory at a time. A model that fails does not stop the others; data that fails
stops all, because it would fail every one of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from silc_bench.errors import ExplainedError, RunError, UserError, first_line
from silc_bench.evaluation.evaluate import Data, evaluate
from silc_bench.evaluation.features import Extractor
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.interface import ImageModel
from silc_bench.results.record import Record
from silc_bench.system.processes import rank
from silc_bench.system.terminal import counted, duration, say, warn
from silc_bench.task import Task


@dataclass(frozen=True)
class Checkpoint:
    source: str  # what the user asked for
    load: Callable[[], ImageModel]


@dataclass
class Sweep:
    """What came of it."""

    records: list[Record] = field(default_factory=list)
    num_known: int = 0  # of them: read, not measured
    failures: dict[str, str] = field(default_factory=dict)  # source -> a sentence
    is_input: bool = True  # whether all failures are of the input

    def counts(self) -> str:
        """ "12 measured, 3 known before and not measured again"."""
        parts = [f"{len(self.records) - self.num_known} measured"]
        if self.num_known:
            parts.append(f"{self.num_known} known before and not measured again")
        return ", ".join(parts)

    def error(self, num_models: int) -> UserError | RunError:
        """What to raise where there are failures; each reason is said once."""
        sources: dict[str, list[str]] = {}
        for source, reason in self.failures.items():
            sources.setdefault(reason, []).append(source)
        reasons = [
            reason if all(source in reason for source in own) else f"{', '.join(own)}: {reason}"
            for reason, own in sources.items()
        ]
        return (UserError if self.is_input else RunError)(
            "; ".join(reasons),
            about=f"{len(self.failures)} of {num_models} checkpoints failed",
            fix="the other records are saved: mend these, and start the command again",
        )


def sweep(
    checkpoints: Sequence[Checkpoint],
    tasks: Sequence[Task],
    settings: EvalSettings,
    *,
    data_root: Path | None,
    results_dir: Path,
    also_known_in: Sequence[Path] = (),
    on_result: Callable[[Record, bool], None] = lambda record, is_new: None,
    tell: Callable[[str], None] = say,
) -> Sweep:
    """The records of all ``checkpoints``, in their order.

    Of several it says how long they may take, before the first and after each.

    Args:
        tell: is given the sentences about time. The others are as of ``evaluate``.

    Raises:
        UserError, RunError: as ``evaluate``, where there is one checkpoint or the data is wrong. Of
            several checkpoints each failure is kept in ``failures``.
    """
    found = Sweep()
    data = _Data(data_root, settings.limit)
    is_single = len(checkpoints) == 1
    started = time.perf_counter()

    def plan(extract: Extractor, wanted: Sequence[Data]) -> None:
        if not data.is_announced and not is_single and wanted and rank() == 0:
            data.is_announced = True
            # an image that cannot be read is said where it is measured
            with suppress(ExplainedError):
                tell(_estimate(extract, wanted, len(checkpoints)))

    def count(record: Record, is_new: bool) -> None:
        found.records.append(record)
        found.num_known += not is_new
        on_result(record, is_new)

    for number, checkpoint in enumerate(checkpoints, start=1):
        try:
            evaluate(
                checkpoint.load(),
                tasks,
                settings,
                model_source=checkpoint.source,
                data_root=data_root,
                results_dir=results_dir,
                also_known_in=also_known_in,
                on_result=count,
                load=data.load,
                on_plan=plan,
            )
        except Exception as error:
            if is_single or data.is_faulty:
                raise

            # the sentence alone is kept: an error holds on to the model that failed
            is_explained = isinstance(error, ExplainedError)
            reason = str(error) if is_explained else first_line(error)
            found.failures[checkpoint.source] = reason
            found.is_input = found.is_input and isinstance(error, UserError)
            if rank() == 0:
                warn(f"{checkpoint.source} failed, and the others go on; why stands at the end")

        _free()
        num_left = len(checkpoints) - number
        if num_left and rank() == 0:
            left = (time.perf_counter() - started) / number * num_left
            tell(f"{number} of {len(checkpoints)} checkpoints done, about {duration(left)} left")
    return found


class _Data:
    """Loads the data of each task once, whatever the number of models."""

    def __init__(self, data_root: Path | None, limit: int | None) -> None:
        self.data_root = data_root
        self.limit = limit
        self.is_faulty = False  # whether it could not be loaded
        self.is_announced = False  # whether an estimate was said
        self._loaded: dict[str, Data] = {}

    def load(self, task: Task) -> Data:
        if task.name not in self._loaded:
            self.is_faulty = True
            self._loaded[task.name] = task.load(self.data_root, self.limit)
            self.is_faulty = False
        return self._loaded[task.name]


def _estimate(extract: Extractor, wanted: Sequence[Data], num_models: int) -> str:
    """A sentence: what all models take if they are as fast as this one."""
    # tasks share datasets, and each is encoded once
    every = [dataset for data in wanted for dataset in data.values()]
    datasets = {(data.name, data.split, data.fingerprint): data for data in every}
    num_images = sum(map(len, datasets.values()))
    each = [len(data) * extract.seconds_an_image(data) for data in datasets.values()]
    seconds = num_models * sum(each)
    return (
        f"{counted(num_models, 'checkpoint')}, {counted(num_images, 'image')} each: about"
        f" {duration(seconds)} to encode"
        f" if all are as fast as {extract.model.name} on a few images; windows of dense tasks"
        " and probes come on top, and embeddings that the cache holds cost nothing"
    )


def _free() -> None:
    """What the last model held is free before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
