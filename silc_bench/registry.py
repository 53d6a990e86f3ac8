"""Tasks by name: ours and third parties' (entry-point group ``silc_bench.tasks``). No torch: listing tasks is instant.

A task is one measurement on one dataset: it loads data, says which features it needs, and scores them.
``select(["zeroshot", "shapes/*", "cifar100/knn"])`` resolves families, groups, globs and exact names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from silc_bench.errors import UserError, unknown_name

if TYPE_CHECKING:
    import numpy as np

    from silc_bench.datasets import ImageDataset
    from silc_bench.dense import DensePicture
    from silc_bench.windows import View


@dataclass(frozen=True)
class Scores:
    """What a task found. Metrics are fractions; a standard error stands beside each metric that has one."""

    metrics: dict[str, float]
    stderr: dict[str, float]
    n: int  # samples scored
    chance: float  # expected main metric of a model that knows nothing, on exactly these samples
    details: dict[str, Any] = field(default_factory=dict)  # per-class values, chosen hyper-parameters: JSON only
    outcomes: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    """What each sample scored, in the dataset's order: ``metrics`` and ``stderr`` follow from it, and two models can be paired.

    - a metric's own name: its hits [N] bool, or [N, S] for S draws of the training shots;
    - "labels" [N]: beside hits whose mean over classes is a metric too;
    - "text_retrieval_rank" [N] and "image_retrieval_rank" [Q], 0 is best, with "image_retrieval_picture" [Q], the picture
      whose caption asked;
    - "areas" [N, 3, C]: pixels of each class: in both, predicted, true; "boundary_areas" [N, 3, C]: of those near contours;
    - "named_areas" [N, 3, C]: as "areas", without the background, which is neither predicted nor scored;
    - "foreground_areas" [N, 2]: pixels in both, and in either, of the found and the true foreground;
    - "patch_recall@k" [N, 2, C]: of each class's patches those that found it, and those that asked.
    """


class Features(Protocol):
    """Encoded data, by role of the split ("train", "test"). Each is encoded at most once, however many tasks ask.

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
        """Every picture's dense features by a ``method`` of models.towers, shown as ``view`` says (None: the model's own), in
        order; bounded memory. Calling it again gives the same again."""
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
        """Everything the task itself decides (prompts, shots, seeds, l2 ...), as JSON: part of what is hashed."""
        ...

    def score(self, features: Features) -> Scores:
        """Pure: the same features give the same scores."""
        ...


@runtime_checkable
class DenseTask(Task, Protocol):
    """A task that reads ``features.grids``."""

    view: View | None  # how its pictures are shown; None: the model's own

    def dense_needs(self) -> Mapping[str, Sequence[str]]:
        """The methods of models.towers that it reads, by role: what tasks of one command share is encoded once."""
        ...


_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    assert task.name not in _TASKS, f"task {task.name!r} is registered twice"
    assert task.name.count("/") == 1, f"task {task.name!r} is not dataset/family"
    _TASKS[task.name] = task
    return task


def all_tasks() -> dict[str, Task]:
    """Every registered task by name. Our own families come from the package ``tasks``; others from entry points."""
    import tasks  # noqa: F401  registers on import

    for entry in entry_points(group="silc_bench.tasks"):
        entry.load()
    return dict(sorted(_TASKS.items()))


def current_version(name: str) -> int | None:
    """The version that a task of this name has today; of the user's own data, its family's. None: a task that is not known."""
    known = all_tasks()
    if name in known:
        return known[name].version
    family = {task.version for other, task in known.items() if other.split("/")[1] == name.split("/")[1]}
    return family.pop() if len(family) == 1 else None


def select(patterns: Iterable[str]) -> list[Task]:
    """Tasks named by exact name, family ("zeroshot"; "segmentation" covers "segmentation_*"), dataset, group or glob, and
    tasks of the user's own data: "folder:PATH", "captions:FILE", "wds:PATTERN", "seg:IMAGES,MASKS,CLASSES.json", with
    "#family" one of them (tasks/own_data.py).

    Raises:
        UserError: a pattern that matches nothing (the nearest names are given), or two sets that would share a name.
    """
    from tasks.own_data import own_tasks

    known = all_tasks()
    chosen: dict[str, Task] = {}
    named_by: dict[str, str] = {}
    for pattern in patterns:
        own = own_tasks(pattern)
        if own is not None:
            for task in own:
                word = pattern.rpartition("#")[0] or pattern
                if task.name in known or named_by.setdefault(task.name, word) != word:
                    other = named_by.get(task.name, "a registered task")
                    raise UserError(f"{word} would be called {task.name}, as is {other}; rename its folder or file")
                chosen[task.name] = task
            continue
        found = {name: task for name, task in known.items() if _matches(pattern, task)}
        if not found:
            words = set(known) | {part for name in known for part in name.split("/")} | {t.group for t in known.values()}
            raise unknown_name("task", pattern, words)
        chosen |= found
    if not chosen:
        raise UserError("no task was named; `silc-bench tasks` lists them")
    return [chosen[name] for name in sorted(chosen)]


def measurable(tasks: Sequence[Task], patterns: Sequence[str], data_root: Path | None) -> tuple[list[Task], dict[str, str]]:
    """(tasks whose data can be there and is enough, why each other one is left out, by name).

    A family, a dataset or a glob means what can be measured here. A task named in full is kept, to fail with what it lacks, and
    so are all when nothing would remain.
    """
    left_out: dict[str, str] = {}
    for task in tasks:
        if task.name in patterns:
            continue
        if (shortage := getattr(task, "shortage", None)) and (reason := shortage()):
            left_out[task.name] = f"as {reason}"
        elif not getattr(task, "needs_data_root", False):
            continue
        elif data_root is None:
            left_out[task.name] = "without --data-root"
        elif (missing := getattr(task, "missing", None)) and missing(data_root):
            left_out[task.name] = f"as not found under {data_root}"
    kept = [task for task in tasks if task.name not in left_out]
    return (kept, left_out) if kept else (list(tasks), {})


def words_of(text: str) -> list[str]:
    """The patterns of a command line, separated by commas; commas in braces ("wds:{a,b}.tar") separate nothing, nor do the two
    in "seg:IMAGES,MASKS,CLASSES.json"."""
    parts = [part.strip() for part in re.split(r",(?![^{}]*\})", text)]
    words = []
    while parts:
        count = 3 if parts[0].startswith("seg:") else 1
        words.append(",".join(parts[:count]))
        parts = parts[count:]
    return [word for word in words if word]


def _matches(pattern: str, task: Task) -> bool:
    dataset, family = task.name.split("/")
    words = (task.name, dataset, family, family.split("_")[0], task.group)
    return pattern in words or fnmatch.fnmatchcase(task.name, pattern)
