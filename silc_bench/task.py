"""Tasks by name: ours and third parties' (entry-point group ``silc_bench.tasks``). No torch:
listing tasks is instant.

A task is one measurement on one dataset: it loads data, says which features it needs, and scores
them. ``select(["zeroshot", "shapes/*", "cifar100/knn"])`` resolves families, groups, globs and
exact names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from silc_bench.datasets.dataset import ImageDataset
    from silc_bench.models.windows import DensePicture, View


@dataclass(frozen=True)
class Scores:
    """What a task found. Metrics are fractions; a standard error stands beside each metric that has
    one.
    """

    metrics: dict[str, float]
    stderr: dict[str, float]
    n: int  # samples scored
    chance: float  # expected main metric of a model that knows nothing, on exactly these samples
    details: dict[str, Any] = field(
        default_factory=dict
    )  # per-class values, chosen hyper-parameters: JSON only
    outcomes: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """What each sample scored, in the dataset's order: ``metrics`` and ``stderr`` follow from it,
    and two models can be paired.

    - a metric's own name: its hits [N] bool, or [N, S] for S draws of the training shots;
    - "labels" [N]: beside hits whose mean over classes is a metric too;
    - "text_retrieval_rank" [N] and "image_retrieval_rank" [Q], 0 is best, with
      "image_retrieval_picture" [Q], the picture whose caption asked;
    - "areas" [N, 3, C]: pixels of each class: in both, predicted, true; "boundary_areas" [N, 3, C]:
      of those near contours;
    - "named_areas" [N, 3, C]: as "areas", without the background, which is neither predicted nor
      scored;
    - "foreground_areas" [N, 2]: pixels in both, and in either, of the found and the true
      foreground;
    - "patch_recall@k" [N, 2, C]: of each class's patches those that found it, and those that asked.
    """


class Features(Protocol):
    """Encoded data, by role of the split ("train", "test"). Each is encoded at most once, however
    many tasks ask.

    N samples, D embedding, h x w patches. fp32 and not normalised, in the dataset's order.
    """

    data: Mapping[str, ImageDataset]
    device: str  # where a probe may compute: "cpu", "cuda"

    def image(self, role: str) -> np.ndarray:
        """[N, D] pooled image embeddings."""
        ...

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), D]."""
        ...

    def grids(self, role: str, view: View | None, method: str) -> Iterator[DensePicture]:
        """Every picture's dense features by a ``method`` of models.patch_features, shown as
        ``view`` says (None: the model's own), in order; bounded memory. Calling it again gives the
        same again."""
        ...


@runtime_checkable
class Task(Protocol):
    name: str  # "cifar100/zeroshot": dataset/family
    version: int  # bumped by any change that moves a number
    group: str  # heading of the leaderboard: "zero-shot", "dense", ...
    main_metric: str
    requires: frozenset[str]  # of {"image", "text", "dense"}

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        """Datasets by role; "test" is the one that is scored."""
        ...

    def protocol(self) -> dict[str, Any]:
        """Everything the task itself decides (prompts, shots, seeds, l2 ...), as JSON: part of what
        is hashed.
        """
        ...

    def score(self, features: Features) -> Scores:
        """Pure: the same features give the same scores."""
        ...


@runtime_checkable
class DenseTask(Task, Protocol):
    """A task that reads ``features.grids``."""

    view: View | None  # how its pictures are shown; None: the model's own

    def dense_needs(self) -> Mapping[str, Sequence[str]]:
        """The methods of models.patch_features that it reads, by role: what tasks of one command
        share is encoded once.
        """
        ...


_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    assert task.name not in _TASKS, f"task {task.name!r} is registered twice"
    assert task.name.count("/") == 1, f"task {task.name!r} is not dataset/family"
    _TASKS[task.name] = task
    return task


def registered() -> dict[str, Task]:
    """The tasks that were registered so far, by name."""
    return dict(sorted(_TASKS.items()))
