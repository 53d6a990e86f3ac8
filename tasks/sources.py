"""Where tasks take their data: one function a dataset, called with the command's data root and limit.

``shapes("test", 1000)`` is a source; ``source(data_root, limit)`` an ImageDataset. Tasks that name the same source get equal
fingerprints, so a picture that five of them score is encoded once. ``limit`` thins out every role, training pools too.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from silc_bench.datasets import ImageDataset

Source = Callable[[Path | None, int | None], "ImageDataset"]


@dataclass(kw_only=True, eq=False)
class SourcedTask:
    """The part of `silc_bench.registry.Task` that is the same for every family."""

    name: str
    sources: Mapping[str, Source]  # by role: "test" is scored, "train" is learned from
    needs_data_root: bool = False  # its data is read from files

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        return {role: source(data_root, limit) for role, source in self.sources.items()}


def shapes(split: str, num_samples: int) -> Source:
    """Generated scenes at 64 pixels."""

    def load(data_root: Path | None, limit: int | None) -> ImageDataset:
        from silc_bench.datasets.shapes import Shapes

        return Shapes(split, num_samples, limit=limit)

    return load


@cache
def cifar100(split: str) -> Source:
    """Real photographs, 32 pixels, read from the data root."""

    @lru_cache(maxsize=1)  # to hash 25,000 pictures takes seconds, and four tasks of a command ask for the same
    def load(data_root: Path | None, limit: int | None) -> ImageDataset:
        from silc_bench.datasets.cifar import load_cifar100

        return load_cifar100(data_root, split, limit)

    return load


def own_templates(name: str) -> tuple[str, ...]:
    """Prompts written here (tasks/assets/prompts.json); ``{c}`` is the name of a class.

    "shapes" is how its captions begin. "shapes_segmentation" averages a shape over the colours, because no
    caption names a shape without one.
    """
    return tuple(json.loads((files("tasks") / "assets" / "prompts.json").read_text(encoding="utf-8"))[name])


def openai_templates(dataset: str) -> tuple[str, ...]:
    """OpenAI's prompts as clip_benchmark ships them (CLIP, notebooks/Prompt_Engineering); read as data, nothing is imported."""
    return tuple(_clip_benchmark("en_zeroshot_classification_templates.json")[dataset])


@cache
def _clip_benchmark(name: str) -> dict[str, Any]:
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None, "clip-benchmark is a dependency of silc-bench"
    return json.loads((Path(str(spec.origin)).parent / "datasets" / name).read_text(encoding="utf-8"))
