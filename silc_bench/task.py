"""The contract of a task, and the tasks that were registered, by name.

A task is one measurement on one dataset: it loads data, says which features it needs, and scores
them. Our tasks and those of third parties (entry-point group ``silc_bench.tasks``) call
``register``. ``silc_bench.tasks.selection.select(["zeroshot", "shapes/*", "cifar100/knn"])``
resolves families, groups, globs and exact names.

This module imports neither torch nor numpy, so that listing tasks is instant.

Shapes: N samples, D embedding, C classes, h x w patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from silc_bench.datasets.dataset import ImageDataset
    from silc_bench.models.windows import DenseImage, View


@dataclass(frozen=True)
class Scores:
    """What a task measured: metrics as fractions, with a standard error where a metric has one."""

    metrics: dict[str, float]
    stderr: dict[str, float]
    n: int  # samples scored
    chance: float  # expected main metric of a model that knows nothing, on exactly these samples

    # Values of each class, chosen hyper-parameters ...: only what JSON can hold.
    details: dict[str, Any] = field(default_factory=dict)

    # Sentences for the user: what was left out, merged or guessed, with its count and first place.
    notes: tuple[str, ...] = ()

    # Large arrays: they take no part in comparisons and are not printed.
    outcomes: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """What each sample scored, in the dataset's order.

    ``metrics`` and ``stderr`` follow from these arrays, and two models can be compared sample by
    sample.

    - a metric's own name: its hits [N] bool, or [N, S] for S draws of the training shots;
    - "labels" [N]: stands beside hits whose mean over classes is a metric too;
    - "text_retrieval_rank" [N] and "image_retrieval_rank" [Q] for Q captions, 0 is best, with
      "image_retrieval_picture" [Q], the image that the caption belongs to;
    - "areas" [N, 3, C]: pixels of each class that are in both, predicted, true;
    - "boundary_areas" [N, 3, C]: the same for pixels near contours;
    - "named_areas" [N, 3, C]: as "areas", without the background, which is neither predicted nor
      scored;
    - "foreground_areas" [N, 2]: pixels in both the predicted and the true foreground, and pixels in
      either of them;
    - "patch_recall@k" [N, 2, C]: how many patches of each class found their class, and how many
      patches of it were looked up.
    """


class Features(Protocol):
    """Encoded data, by role of the split ("train", "test").

    Each split is encoded at most once, however many tasks ask for it. All features are fp32, not
    normalised, and in the dataset's order.
    """

    data: Mapping[str, ImageDataset]
    device: str  # where a probe may compute: "cpu", "cuda"

    def image(self, role: str) -> np.ndarray:
        """Pooled image embeddings [N, D]."""
        ...

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """Text embeddings [len(texts), D]."""
        ...

    def same_text(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts)] int64: of each text the place of the first that the model reads alike."""
        ...

    def grids(self, role: str, view: View | None, method: str) -> Iterator[DenseImage]:
        """Dense features of every image, in order and in bounded memory.

        A second call gives the same features again.

        Args:
            view: how images are shown to the model; None: the model's own way.
            method: one of ``silc_bench.models.patch_features``.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """One measurement on one dataset.

    A class that inherits from it takes over what it leaves open here.
    """

    name: str  # "cifar100/zeroshot": dataset/family
    version: int  # bumped by any change that moves a number
    group: str  # heading of the leaderboard: "zero-shot", "dense", ...
    main_metric: str
    requires: frozenset[str]  # of {"image", "text", "dense"}
    needs_data_root: bool  # its data is read from files below the data root

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        """Datasets by role; "test" is the one that is scored."""
        ...

    def protocol(self) -> dict[str, Any]:
        """Everything that the task itself decides (prompts, shots, seeds, l2 ...), as JSON.

        It is part of what the record's protocol hash covers.
        """
        ...

    def score(self, features: Features) -> Scores:
        """Pure: the same features give the same scores."""
        ...

    def under(self, protocol: Any) -> Self:
        """The same task as a `silc_bench.evaluation.protocols.NamedProtocol` wants it asked."""
        return self

    def find(self, data_root: Path | None) -> None:
        """Raise what ``load`` raises where the data is not there; none of it is read."""

    def is_there(self, data_root: Path) -> bool:
        """Whether the data root holds its data, whatever may be wrong with it."""
        return True

    def shortage(self) -> str | None:
        """Why the user's own data does not allow the main metric; None where it does."""
        return None

    @property
    def view(self) -> View | None:
        """How a dense task shows its images; None: the model's own way."""
        return None

    def dense_needs(self) -> Mapping[str, Sequence[str]]:
        """The methods of ``silc_bench.models.patch_features`` that it reads, by role.

        They are asked for before any work, so that tasks of one command share one encoding.
        """
        return {}


_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make ``task`` known by its name, and give it back."""
    # Wrong names are mistakes of a programmer, not of a user: an assertion, no UserError.
    assert task.name not in _TASKS, f"task {task.name!r} is registered twice"
    assert task.name.count("/") == 1, f"task {task.name!r} is not dataset/family"
    _TASKS[task.name] = task
    return task


def registered() -> dict[str, Task]:
    """The tasks that were registered so far, by name."""
    return dict(sorted(_TASKS.items()))
