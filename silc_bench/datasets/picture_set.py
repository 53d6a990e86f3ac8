"""A dataset whose pictures stay in their files until asked for: what every reader of real data gives back.

Flow: a reader finds ``Picture``s (where the bytes lie, the label, the captions) -> ``Found`` says how they lay there -> the
counts are checked -> ``PictureSet`` takes ``limit`` of them, evenly spread; asked for its fingerprint, it hashes all of those.

In an evaluation set damage is an error: a score over fewer samples than were promised is no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from silc_bench.datasets import spread
from silc_bench.datasets.fingerprints import known_fingerprint
from silc_bench.datasets.shards import DamagedImageError, Place, decode_image, image_size, read_member
from silc_bench.errors import UserError

if TYPE_CHECKING:
    from silc_bench.datasets.masks import MaskRule

FETCH_AGAIN = "fetch that file again, or take it out of a list of your own; a set with a hole is not scored"


class DataError(UserError):
    """What is wrong with the data, and the one line that mends it."""

    def __init__(self, problem: str, fix: str = "") -> None:  # made again from its message alone where a worker raised it
        super().__init__(f"{problem}; {fix}" if fix else problem)
        self.problem, self.fix = problem, fix


class Mask(Protocol):
    """Where the labels of a picture's pixels come from (silc_bench.datasets.masks)."""

    @property
    def where(self) -> str:
        """For messages; no two masks of a set have the same."""
        ...

    @property
    def path(self) -> Path:
        """The file that they are read from, or drawn from."""
        ...

    @property
    def rule(self) -> MaskRule:
        """What the file's values mean."""
        ...

    def labels(self) -> np.ndarray:
        """[H, W] uint8 or uint16. Raises DataError for what is no mask of the set, naming it."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One sample: encoded bytes in a file, or pixels [H, W, 3] uint8 where the format stores them raw."""

    path: Path
    place: Place
    where: str  # for messages: file, or shard:key
    label: int | None = None
    captions: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    mask: Mask | None = None

    @property
    def num_bytes(self) -> int:
        return self.place[1]

    def read(self) -> bytes:
        return read_member(self.path, self.place) if self.pixels is None else self.pixels.tobytes()

    def decode(self) -> Image.Image:
        """RGB. Raises DataError for bytes that are no whole picture, naming the file."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels)
        try:
            return decode_image(self.read())
        except DamagedImageError as error:
            raise DataError(f"{self.where} is damaged: {error}", FETCH_AGAIN) from error

    def labels(self) -> np.ndarray:
        """Of each pixel, [H, W]. Raises DataError for a mask that cannot be read, or is not of the picture's size."""
        assert self.mask is not None, f"{self.where} has no mask"
        labels = self.mask.labels()
        try:
            width, height = image_size(self.read())
        except DamagedImageError as error:
            raise DataError(f"{self.where} is damaged: {error}", FETCH_AGAIN) from error
        if labels.shape != (height, width):
            own = f"{labels.shape[1]:,} x {labels.shape[0]:,}"
            problem = f"{self.mask.where} is {own} pixels, and its picture {self.where} {width:,} x {height:,}"
            raise DataError(problem, "a mask says what each pixel of its picture is: save it at the picture's size")
        return labels


@dataclass(frozen=True)
class Found:
    """What a reader found, in the order that is scored."""

    pictures: Sequence[Picture]
    folder: Path
    layout: str  # "class folders", for people
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()  # prompts that lay beside the data
    notes: list[str] = field(default_factory=list)  # what was passed over
    mask_names: tuple[str, ...] = ()  # of labels 0..C-1 in the masks
    has_background: bool = False  # whether label 0 is all that no class names
    mask_policy: Mapping[str, str] = field(default_factory=dict)  # what is not scored, for the protocol

    @property
    def names(self) -> tuple[str, ...]:
        """Of classes, then of mask labels: those that the fingerprint hashes."""
        return (*self.class_names, *self.mask_names)


class PictureSet:
    """The samples as an ImageDataset."""

    def __init__(self, name: str, split: str, found: Found, limit: int | None = None) -> None:
        self.name, self.split = name, split
        self.found, self.class_names, self.mask_names = found, found.class_names, found.mask_names
        self.has_background, self.mask_policy = found.has_background, found.mask_policy
        self.pictures = [found.pictures[i] for i in spread(len(found.pictures), limit)]
        labels = [picture.label for picture in self.pictures if picture.label is not None]
        assert len(labels) in (0, len(self.pictures)), "all have a label, or none"
        self.labels = np.array(labels, np.int64) if labels else None
        without = [picture for picture in self.pictures if not picture.captions]
        if 0 < len(without) < len(self.pictures):
            having = len(self.pictures) - len(without)
            raise UserError(f"{having} of {len(self.pictures)} samples have a caption; {without[0].where} has none")
        self.captions = [picture.captions for picture in self.pictures] if not without and self.pictures else None

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def fingerprint(self) -> str:
        """See `silc_bench.datasets.fingerprints`. It can take reading every picture, so it is made when it is asked for."""
        return known_fingerprint(self.found.names, self.pictures, f"{self.name} {self.split}")

    def hashed(self) -> PictureSet:
        """The same, with every picture read once: what is damaged or gone is found now."""
        assert self.fingerprint
        return self

    def part(self, indices: Sequence[int]) -> PictureSet:
        """These samples, in this order."""
        pictures = [self.pictures[i] for i in indices]
        return PictureSet(self.name, self.split, replace(self.found, pictures=pictures))

    def image(self, index: int) -> Image.Image:
        """Raises DataError for a picture that cannot be decoded, naming it."""
        try:
            return self.pictures[index].decode()
        except DataError as error:
            raise self._cannot_be_scored(error) from error

    def mask(self, index: int) -> np.ndarray:
        """[H, W] labels. Raises DataError for a mask that cannot be read or does not fit its picture, naming it."""
        if not self.mask_names:
            raise ValueError(f"{self.name} has no masks")
        try:
            return self.pictures[index].labels()
        except DataError as error:
            raise self._cannot_be_scored(error) from error

    def _cannot_be_scored(self, error: DataError) -> DataError:
        return DataError(f"{self.name} {self.split} cannot be scored, {error.problem}", error.fix)
