"""Where tasks take their data: one function a dataset, called with the data root and the limit.

``shapes("test", 1000)`` is a source; ``source(data_root, limit)`` an ImageDataset. Tasks that name
the same source get equal fingerprints, so an image that five of them score is encoded once.
``limit`` thins out every role, training pools too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset
    from silc_bench.datasets.own_data import OwnData, OwnMasks

Source = Callable[[Path | None, int | None], "ImageDataset"]


@dataclass(kw_only=True, eq=False)
class SourcedTask:
    """The part of `silc_bench.task.Task` that is the same for every family."""

    name: str
    sources: Mapping[str, Source]  # by role: "test" is scored, "train" is learned from
    needs_data_root: bool = False  # its data is read from files

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        return {role: source(data_root, limit) for role, source in self.sources.items()}

    def missing(self, data_root: Path) -> str | None:
        """What the data root does not hold, as "imagenet1k/train".

        None when all is there, whatever may be wrong with it.
        """
        for source in self.sources.values():
            if isinstance(source, NamedSource) and not source.is_there(data_root):
                return f"{source.name}/{source.split}"
        return None


@dataclass(frozen=True)
class NamedSource:
    """A split of a named set (silc_bench.datasets.public.load).

    The set is counted in whole before ``limit`` images of it are taken.
    """

    name: str
    split: str

    def __call__(self, data_root: Path | None, limit: int | None) -> ImageDataset:
        return _load_named(self.name, self.split, data_root, limit)

    def is_there(self, data_root: Path) -> bool:
        from silc_bench.datasets.public.find import NotFoundError, find

        try:
            find(self.name, self.split, data_root)
        except NotFoundError:
            return False
        return True


# to hash a set takes seconds or minutes, and the families of a command ask for the same
@lru_cache(maxsize=4)
def _load_named(name: str, split: str, data_root: Path | None, limit: int | None) -> ImageDataset:
    from silc_bench.datasets.public.load import find_set

    return find_set(name, split, data_root, limit)


def shapes(split: str, num_samples: int) -> Source:
    """Generated scenes at 64 pixels."""

    def load(data_root: Path | None, limit: int | None) -> ImageDataset:
        from silc_bench.datasets.shapes.dataset import Shapes

        return Shapes(split, num_samples, limit=limit)

    return load


def cifar100(split: str) -> Source:
    """Real photographs, 32 pixels, read from the data root."""
    return NamedSource("cifar100", split)


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
