"""Where tasks take their data: one function a dataset, called with the data root and the limit.

``shapes("test", 1000)`` is a source; ``source(data_root, limit)`` an ImageDataset. Tasks that name
the same source get equal fingerprints, so an image that five of them score is encoded once.
``limit`` thins out every role, training pools too.

``TaskData`` is a dataset as the families see it; ``FAMILY.of(data, "knn")`` a task on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from silc_bench.task import Task

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset
    from silc_bench.datasets.generated.places.dataset import Places
    from silc_bench.datasets.generated.shapes.dataset import Shapes
    from silc_bench.datasets.own_data import OwnData, OwnMasks
    from silc_bench.evaluation.prompts import Prompts

Source = Callable[[Path | None, int | None], "ImageDataset"]


@dataclass(frozen=True)
class TaskData:
    """A dataset as the families see it."""

    name: str
    sources: Mapping[str, Source]  # by role: "test" is scored, "train" is learned from
    prompts: Prompts
    words: tuple[tuple[str, ...], ...] | None = None  # of each label, in place of its name
    scores_background: bool = True  # of masks that have one, in zero-shot segmentation
    needs_data_root: bool = False


@dataclass(kw_only=True, eq=False)
class SourcedTask(Task):
    """The part of `silc_bench.task.Task` that is the same for every family."""

    # What data must hold to be measured so: "labels", "captions" or "masks"; "train", a split to
    # learn from; "background", a label that is no object.
    needs: ClassVar[frozenset[str]]
    takes: ClassVar[tuple[str, ...]] = ()  # fields of the data that are the task's too

    name: str
    sources: Mapping[str, Source]
    needs_data_root: bool = False
    version: int = 1

    @classmethod
    def of(cls, data: TaskData, family: str) -> Self:
        """The task of this family on ``data``; it has "train" only where it learns."""
        roles = {"test", *cls.needs}
        fields: dict[str, Any] = {
            "sources": {role: load for role, load in data.sources.items() if role in roles},
            "needs_data_root": data.needs_data_root,
        }
        fields |= {name: getattr(data, name) for name in cls.takes}
        return cls(name=f"{data.name}/{family}", **fields)

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        return {role: source(data_root, limit) for role, source in self.sources.items()}

    def find(self, data_root: Path | None) -> None:
        from silc_bench.datasets.public.load import find_site

        for source in self.sources.values():
            if isinstance(source, NamedSource):
                find_site(source.name, source.split, data_root)

    def is_there(self, data_root: Path | None) -> bool:
        return all(is_there(source, data_root) for source in self.sources.values())


@dataclass(frozen=True)
class NamedSource:
    """A split of a named set (silc_bench.datasets.public.load).

    The set is counted in whole before ``limit`` images of it are taken.
    """

    name: str
    split: str

    def __call__(self, data_root: Path | None, limit: int | None) -> ImageDataset:
        return _load_named(self.name, self.split, data_root, limit)


def is_there(source: Source, data_root: Path | None) -> bool:
    """Whether the data root holds it, if it is a named set; other data needs no data root."""
    from silc_bench.datasets.public.find import NotFoundError
    from silc_bench.datasets.public.load import find_site

    if not isinstance(source, NamedSource):
        return True
    if data_root is None:
        return False
    try:
        find_site(source.name, source.split, data_root)
    except NotFoundError:
        return False
    return True


# to hash a set takes seconds or minutes, and the families of a command ask for the same
@lru_cache(maxsize=4)
def _load_named(name: str, split: str, data_root: Path | None, limit: int | None) -> ImageDataset:
    from silc_bench.datasets.public.load import find_set

    return find_set(name, split, data_root, limit)


def shapes(split: str, num_samples: int, are_colours: bool = False) -> Source:
    """Generated scenes at 64 pixels, as ``Shapes`` or ``ShapesColours``."""
    return lambda data_root, limit: _load_shapes(split, num_samples, are_colours, limit)


# one object for all families of a command, so that labels and captions are made once
@lru_cache(maxsize=8)
def _load_shapes(split: str, num_samples: int, are_colours: bool, limit: int | None) -> Shapes:
    from silc_bench.datasets.generated.shapes.dataset import Shapes, ShapesColours

    return (ShapesColours if are_colours else Shapes)(split, num_samples, limit=limit)


def places(split: str, num_samples: int, are_things: bool = False) -> Source:
    """Generated scenes with structure at 64 pixels, as ``Places`` or ``PlacesThings``."""
    return lambda data_root, limit: _load_places(split, num_samples, are_things, limit)


@lru_cache(maxsize=8)
def _load_places(split: str, num_samples: int, are_things: bool, limit: int | None) -> Places:
    from silc_bench.datasets.generated.places.dataset import Places, PlacesThings

    return (PlacesThings if are_things else Places)(split, num_samples, limit=limit)


@dataclass(frozen=True)
class OwnSource:
    """A split of the user's own images; the data root does not matter."""

    own: OwnData | OwnMasks
    split: str

    def __call__(self, data_root: Path | None, limit: int | None) -> ImageDataset:
        return _load_own(self.own, self.split, limit)


@lru_cache(maxsize=4)
def _load_own(own: OwnData | OwnMasks, split: str, limit: int | None) -> ImageDataset:
    return own.load(split, limit)
