"""Which families measure a set of pictures with masks: the named ones (catalog.py) and the user's own (own_data.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from silc_bench.registry import Task
from tasks.correspondence import Correspondence
from tasks.discovery import Discovery
from tasks.prompts import Prompts, named_prompts
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
    prompts: Prompts | None = None,
    needs_data_root: bool = False,
) -> list[Task]:
    """What needs "test" alone, objects where the first label is a background; with "train" also what is learned.

    ``prompts``: instead of OpenAI's 80, which SCLIP takes.
    """
    asked = prompts or named_prompts()["openai80"]
    home: dict[str, Any] = {"needs_data_root": needs_data_root}
    test = {"test": sources["test"]}
    tasks: list[Task] = [  # zero-shot chooses a background's threshold on "train" where it is there
        ZeroShotSegmentation(name=f"{name}/segmentation_zeroshot", sources=sources, prompts=asked, **home),
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


def prompts_of_words(names: Sequence[str], words: Sequence[Sequence[str]]) -> Prompts:
    """OpenAI's 80 prompts with each of a class's words: the class is the mean of all of them."""
    templates = named_prompts()["openai80"].templates
    per_class = {
        name: tuple(template.replace("{c}", word) for word in own for template in templates)
        for name, own in zip(names, words, strict=True)
    }
    return Prompts("openai80_of_words", per_class=per_class)
