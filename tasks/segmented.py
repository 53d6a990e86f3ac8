"""Which families measure a set of pictures with masks: the named ones (catalog.py) and the user's own (own_data.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from silc_bench.registry import Task
from tasks.prompts import Prompts, named_prompts
from tasks.segmentation import ZeroShotSegmentation
from tasks.segmentation_linear import LinearSegmentation
from tasks.sources import Source

if TYPE_CHECKING:
    from silc_bench.datasets import ImageDataset


def segmentation_tasks(
    name: str, sources: Mapping[str, Source], prompts: Prompts | None = None, needs_data_root: bool = False
) -> list[Task]:
    """Zero-shot of "test"; with "train" also what is learned. ``prompts``: instead of OpenAI's 80, which SCLIP takes."""
    asked = prompts or named_prompts()["openai80"]
    test = {"test": sources["test"]}
    tasks: list[Task] = [
        ZeroShotSegmentation(name=f"{name}/segmentation_zeroshot", needs_data_root=needs_data_root, sources=test, prompts=asked)
    ]
    if "train" in sources:
        tasks.append(LinearSegmentation(name=f"{name}/segmentation_linear", needs_data_root=needs_data_root, sources=sources))
    return tasks


def families() -> tuple[str, ...]:
    """All of them by name."""

    def nothing(data_root: Path | None, limit: int | None) -> ImageDataset:
        raise AssertionError("never loaded")

    return tuple(task.name.split("/")[1] for task in segmentation_tasks("any", {"test": nothing, "train": nothing}))


def prompts_of_words(names: Sequence[str], words: Sequence[Sequence[str]]) -> Prompts:
    """OpenAI's 80 prompts with each of a class's words: the class is the mean of all of them."""
    templates = named_prompts()["openai80"].templates
    per_class = {
        name: tuple(template.replace("{c}", word) for word in own for template in templates)
        for name, own in zip(names, words, strict=True)
    }
    return Prompts("openai80_of_words", per_class=per_class)
