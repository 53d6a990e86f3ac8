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
    from silc_bench.datasets.own import OwnData
    from silc_bench.datasets.own_masks import OwnMasks

Source = Callable[[Path | None, int | None], "ImageDataset"]


@dataclass(kw_only=True, eq=False)
class SourcedTask:
    """The part of `silc_bench.registry.Task` that is the same for every family."""

    name: str
    sources: Mapping[str, Source]  # by role: "test" is scored, "train" is learned from
    needs_data_root: bool = False  # its data is read from files

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        return {role: source(data_root, limit) for role, source in self.sources.items()}

    def missing(self, data_root: Path) -> str | None:
        """What the data root does not hold, as "imagenet1k/train"; None when all is there, whatever may be wrong with it."""
        for source in self.sources.values():
            if isinstance(source, NamedSource) and not source.is_there(data_root):
                return f"{source.name}/{source.split}"
        return None


@dataclass(frozen=True)
class NamedSource:
    """A split of a named set (silc_bench.datasets.named), counted in whole before ``limit`` pictures of it are taken."""

    name: str
    split: str

    def __call__(self, data_root: Path | None, limit: int | None) -> ImageDataset:
        return _load_named(self.name, self.split, data_root, limit)

    def is_there(self, data_root: Path) -> bool:
        from silc_bench.datasets.places import NotFoundError, find

        try:
            find(self.name, self.split, data_root)
        except NotFoundError:
            return False
        return True


@lru_cache(maxsize=4)  # to hash a set takes seconds or minutes, and the families of a command ask for the same
def _load_named(name: str, split: str, data_root: Path | None, limit: int | None) -> ImageDataset:
    from silc_bench.datasets.named import find_set

    return find_set(name, split, data_root, limit)


def shapes(split: str, num_samples: int) -> Source:
    """Generated scenes at 64 pixels."""

    def load(data_root: Path | None, limit: int | None) -> ImageDataset:
        from silc_bench.datasets.shapes import Shapes

        return Shapes(split, num_samples, limit=limit)

    return load


def cifar100(split: str) -> Source:
    """Real photographs, 32 pixels, read from the data root."""
    return NamedSource("cifar100", split)


@dataclass(frozen=True)
class OwnSource:
    """A split of the user's own pictures; the data root does not matter."""

    own: OwnData | OwnMasks
    split: str

    def __call__(self, data_root: Path | None, limit: int | None) -> ImageDataset:
        return _load_own(self.own, self.split, limit)


@lru_cache(maxsize=4)
def _load_own(own: OwnData | OwnMasks, split: str, limit: int | None) -> ImageDataset:
    return own.load(split, limit)


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
