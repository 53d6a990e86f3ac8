"""Which families measure a set of pictures with masks: the named ones (catalog.py) and the user's own (own_data.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from silc_bench.registry import Task
from tasks.correspondence import Correspondence
from tasks.discovery import Discovery
from tasks.prompts import named_prompts
from tasks.segmentation_knn import KnnSegmentation
from tasks.segmentation_linear import LinearSegmentation
from tasks.segmentation_sgd import SgdSegmentation
from tasks.segmentation_zeroshot import ZeroShotSegmentation
from tasks.sources import Source

if TYPE_CHECKING:
    from silc_bench.datasets import ImageDataset


def segmentation_tasks(
    name: str,
    sources: Mapping[str, Source],
    has_background: bool,
    words: tuple[tuple[str, ...], ...] | None = None,
    needs_data_root: bool = False,
) -> list[Task]:
    """What needs "test" alone, objects where the first label is a background; with "train" also what is learned.

    Args:
        words: of each label, asked for instead of its name.
    """
    prompts = named_prompts()["openai80"]
    home: dict[str, Any] = {"needs_data_root": needs_data_root}
    test = {"test": sources["test"]}
    tasks: list[Task] = [  # zero-shot chooses a background's threshold on "train" where it is there
        ZeroShotSegmentation(name=f"{name}/segmentation_zeroshot", sources=sources, prompts=prompts, words=words, **home),
        Correspondence(name=f"{name}/correspondence", sources=test, **home),
    ]
    if has_background:
        tasks.append(Discovery(name=f"{name}/discovery", sources=test, **home))
    if "train" in sources:
        tasks += [
            LinearSegmentation(name=f"{name}/segmentation_linear", sources=sources, **home),
            SgdSegmentation(name=f"{name}/segmentation_sgd", sources=sources, **home),
            KnnSegmentation(name=f"{name}/segmentation_knn", sources=sources, **home),
        ]
    return tasks


def families() -> tuple[str, ...]:
    """All of them by name."""

    def nothing(data_root: Path | None, limit: int | None) -> ImageDataset:
        raise AssertionError("never loaded")

    return tuple(task.name.split("/")[1] for task in segmentation_tasks("any", {"test": nothing, "train": nothing}, True))
