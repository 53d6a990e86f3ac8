"""The pool that few shots are drawn from, and which numbers of shots it allows: no number is scored under another one's name.

Flow: ``ShotTask.load`` -> pool and scored pictures -> ``scored_shots`` -> the numbers of shots that every class has.

- A class that the pool holds no picture of is not learned, and is counted in the details.
- A number of shots is left out, and the details say why, where a class has fewer pictures. Where that is the main metric's
  number the task is refused.
- ``--limit`` thins out the scored pictures. The pool keeps POOL pictures of each class, as many as the most shots: fewer
  would give other numbers than their names say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from silc_bench.datasets import spread
from silc_bench.errors import UserError
from tasks.classification import labels_of
from tasks.sources import OwnSource, SourcedTask

if TYPE_CHECKING:
    from silc_bench.datasets import ImageDataset, Pool

SHOTS = (1, 5, 10, 25)
MAIN_SHOTS = 10  # of the main metric
POOL = max(SHOTS)


@dataclass(kw_only=True, eq=False)
class ShotTask(SourcedTask):
    """A task that learns from some pictures of each class."""

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        if limit is None:
            return super().load(data_root, None)
        pool = cast("Pool", self.sources["train"](data_root, None))
        return {"train": pool.part(spread_by_class(labels_of(pool), POOL)), "test": self.sources["test"](data_root, limit)}

    def shortage(self) -> str | None:
        """Why the user's own data does not allow the main metric; None where it does, and for sets whose size is known."""
        source = self.sources["train"]
        if not isinstance(source, OwnSource):
            return None
        pool = source(None, None)
        return too_few(labels_of(pool), pool.class_names)


def spread_by_class(labels: np.ndarray, count: int) -> list[int]:
    """Indices of ``count`` samples of each class, or all that it has, spread evenly over its samples; in ascending order."""
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return sorted(int(own[i]) for own in by_class for i in spread(len(own), count))


def scored_shots(
    task_name: str, labels: np.ndarray, class_names: Sequence[str], shots: Sequence[int]
) -> tuple[list[int], dict[str, Any]]:
    """Those of ``shots`` that every class of the pool has pictures for, and what the record says of the pool.

    Raises:
        UserError: the main metric's number is not among them; names the class and its count.
    """
    reason = too_few(labels, class_names)
    if reason is not None:
        raise UserError(f"{task_name}: {reason}; add pictures, or leave the task out")
    name, fewest = _scarcest(labels, class_names)
    return [number for number in shots if number <= fewest], {
        "left_out": {metric(k): f"{name!r} has {fewest} training pictures" for k in shots if k > fewest},
        "fewest_pictures_of_a_class": fewest,
        "classes_without_pictures": len(class_names) - len(np.unique(labels)),
    }


def too_few(labels: np.ndarray, class_names: Sequence[str]) -> str | None:
    """ "'cat' has 3 training pictures, and acc1_10shot needs 10 of each class", or None."""
    name, fewest = _scarcest(labels, class_names)
    if fewest >= MAIN_SHOTS:
        return None
    return f"{name!r} has {fewest} training pictures, and {metric(MAIN_SHOTS)} needs {MAIN_SHOTS} of each class"


def metric(shots: int) -> str:
    return f"acc1_{shots}shot"


def _scarcest(labels: np.ndarray, class_names: Sequence[str]) -> tuple[str, int]:
    """The class that is there with the fewest pictures."""
    counts = np.bincount(labels, minlength=len(class_names))
    there = np.flatnonzero(counts)
    scarcest = there[counts[there].argmin()]
    return class_names[scarcest], int(counts[scarcest])
