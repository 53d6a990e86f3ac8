"""Real data as a dataset: images stay in their files until somebody asks for them.

Flow: a reader lists ``ImageFile``s (where the bytes lie, the label, the captions) -> ``ImageSplit``
says how they lay there -> the counts are checked -> ``ImageFiles`` takes ``limit`` of them, evenly
spread -> its fingerprint is the hash of all of those.

In an evaluation set damage is an error, because a score over fewer samples than were promised is
no score.

Fingerprints are remembered between commands, because to read a set takes minutes and its files
rarely change. Inside ``with remembered(store): ...``, ``known_fingerprint`` looks the files up by
what the file system says of them (path, device, inode, size, and the times of the last change of
the content and of the file's entry; no program can set the last one back). It reads only what it
has not seen in exactly this state. Not remembered are pixels that were read already, and files
that changed in the last seconds: these can change again within one tick of the clock.

What was not read is not known to be whole, so ``data check`` always reads. Masks that are
remembered were right when they were read, under the same rule of what their values mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from silc_bench.datasets.dataset import spread
from silc_bench.datasets.files.shards import (
    DamagedImageError,
    Place,
    cannot_read,
    decode_image,
    open_image,
    read_member,
)
from silc_bench.datasets.masks import NO_MASKS, Mask, MaskRule
from silc_bench.errors import FETCH_AGAIN, DataError, UserError
from silc_bench.system.cache import Store
from silc_bench.system.terminal import notes, progress_bar


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One sample: encoded bytes in a file, or raw pixels where the format stores them so."""

    path: Path
    place: Place
    where: str  # for messages: file, or shard:key
    label: int | None = None
    captions: tuple[str, ...] = ()
    pixels: np.ndarray | None = None  # [H, W, 3] uint8
    mask: Mask | None = None

    def read(self) -> bytes:
        """The encoded bytes, or the raw pixels where there are no others."""
        return read_member(self.path, self.place) if self.pixels is None else self.pixels.tobytes()

    def decode(self) -> Image.Image:
        """RGB. Raises DataError for bytes that are no whole image, naming the file."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels)
        try:
            return decode_image(self.read())
        except DamagedImageError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: DamagedImageError) -> DataError:
        return DataError(f"the image is damaged: {error}", about=self.where, fix=FETCH_AGAIN)

    def labels(self) -> np.ndarray:
        """The label of each pixel, [H, W].

        Raises:
            DataError: a mask that cannot be read, or that has another size than its image.
        """
        assert self.mask is not None, f"{self.where} has no mask"
        labels = self.mask.labels()

        # the header alone: to decode the image would cost far more than the comparison
        try:
            width, height = open_image(self.read()).size
        except DamagedImageError as error:
            raise self._damaged(error) from error

        if labels.shape != (height, width):
            mask_size = f"{labels.shape[1]:,} x {labels.shape[0]:,}"
            problem = (
                f"the mask is {mask_size} pixels, and its image {self.where} {width:,} x {height:,}"
            )
            fix = "save the mask at the size of its image"
            raise DataError(problem, about=self.mask.where, fix=fix)
        return labels


def image_file(path: Path, **fields: Any) -> ImageFile:
    """An image in a file of its own."""
    return ImageFile(path, (0, path.stat().st_size), str(path), **fields)


@dataclass(frozen=True)
class ImageSplit:
    """What a reader found, in the order that is scored."""

    images: Sequence[ImageFile]
    folder: Path
    layout: str  # "class folders", for people
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()  # prompts that lay beside the data
    notes: list[str] = field(default_factory=list)  # what was passed over
    rule: MaskRule = NO_MASKS

    @property
    def names(self) -> tuple[str, ...]:
        """Of classes, then of mask labels: those that the fingerprint hashes."""
        return (*self.class_names, *self.rule.names)


class ImageFiles:
    """The samples as an ImageDataset."""

    def __init__(
        self, name: str, split: str, content: ImageSplit, limit: int | None = None
    ) -> None:
        self.name = name
        self.split = split
        self.content = content
        self.class_names = content.class_names
        self.mask_names = content.rule.names
        self.has_background = content.rule.has_background
        self.mask_policy = content.rule.policy()
        self.images = [content.images[i] for i in spread(len(content.images), limit)]

        labels = [image.label for image in self.images if image.label is not None]
        assert len(labels) in (0, len(self.images)), "all have a label, or none"
        self.labels = np.array(labels, np.int64) if labels else None
        self.captions = self._all_captions()

    def _all_captions(self) -> list[tuple[str, ...]] | None:
        """None where no image has one. Raises UserError where only some have."""
        without = [image for image in self.images if not image.captions]
        if len(without) == len(self.images):
            return None
        if without:
            problem = f"{len(without)} of {len(self.images)} samples have no caption"
            fix = "give each image a caption, or none"
            raise UserError(problem, about=without[0].where, fix=fix)
        return [image.captions for image in self.images]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over everything that is scored, see ``fingerprint`` below.

        It may have to read every image, so it is made when somebody asks for it.
        """
        return known_fingerprint(self.content.names, self.images, f"{self.name} {self.split}")

    def hashed(self) -> ImageFiles:
        """The same set, with every image read once, so that what is damaged or gone shows now."""
        assert self.fingerprint
        return self

    def part(self, indices: Sequence[int]) -> ImageFiles:
        """These samples, in this order."""
        images = [self.images[i] for i in indices]
        return ImageFiles(self.name, self.split, replace(self.content, images=images))

    def image(self, index: int) -> Image.Image:
        """RGB. Raises DataError for an image that cannot be decoded, naming it."""
        try:
            return self.images[index].decode()
        except DataError as error:
            raise self._cannot_be_scored(error) from error

    def mask(self, index: int) -> np.ndarray:
        """[H, W] labels of the pixels.

        Raises:
            DataError: a mask that cannot be read or does not fit its image; names it.
        """
        if not self.mask_names:
            raise ValueError(f"{self.name} has no masks")
        try:
            return self.images[index].labels()
        except DataError as error:
            raise self._cannot_be_scored(error) from error

    def _cannot_be_scored(self, error: DataError) -> DataError:
        problem = f"{error.problem}, so {self.name} {self.split} cannot be scored"
        return DataError(problem, about=error.about, fix=error.fix)


LONG = 256 << 20  # bytes: to hash more takes a second or longer, and shows a progress bar
VERSION = 1  # of what is hashed, and of how files are looked up
SETTLED = 2.0  # seconds since its last change after which a file that changes again shows it
_STORE: ContextVar[Store | None] = ContextVar("fingerprints", default=None)


@contextmanager
def remembered(store: Store | None) -> Iterator[None]:
    """While it lasts, fingerprints are looked up and kept in ``store``; with None they are not."""
    token = _STORE.set(store)
    try:
        yield
    finally:
        _STORE.reset(token)


def known_fingerprint(names: Iterable[str], images: Sequence[ImageFile], title: str) -> str:
    """`fingerprint`, without reading the files where ``remembered`` knows them as they are now."""
    names = list(names)
    store = _STORE.get()
    if store is None or not images or any(image.pixels is not None for image in images):
        return fingerprint(names, images, title)

    files = _state(names, images)
    if files is None:
        return fingerprint(names, images, title)
    description = {"kind": "fingerprint", "version": VERSION, "title": title, "files": files}
    entry = store.entry(description)
    if known := entry.word():
        return known

    # a file that changed while it was read has a hash of neither state: that is not kept
    digits = fingerprint(names, images, title)
    if _state(names, images) == files:
        entry.save_word(digits)
    return digits


def fingerprint(names: Iterable[str], images: Sequence[ImageFile], title: str) -> str:
    """16 hex digits over names, labels, captions, encoded images and what their masks say.

    The order counts. File names and layout do not, nor how masks are stored. Images are read at
    the speed of the disk. Masks are decoded, and so each is checked. A progress bar on the error
    stream shows where that takes a while.

    Raises:
        DataError: a mask that cannot be read, that has a value without a class, or that has
            another size than its image.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    is_long = sum(image.place[1] for image in images) > LONG
    for image in tracked(images, f"hashing {title}", is_long):
        content = image.read()

        # a single caption is written as itself, none as null
        captions: list[str] | str | None = list(image.captions)
        if len(image.captions) < 2:
            captions = next(iter(image.captions), None)
        digest.update(json.dumps([image.label, captions, len(content)]).encode())
        digest.update(content)

        # little-endian on every machine; shape and type stand before, so that no two masks that
        # differ give the same bytes
        if image.mask is not None:
            labels = image.labels()
            digest.update(json.dumps([labels.shape, labels.dtype.name]).encode())
            digest.update(np.ascontiguousarray(labels, labels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def _state(names: Sequence[str], images: Sequence[ImageFile]) -> str | None:
    """Hash of all that the fingerprint follows from; what the system says of a file stands for it.

    None where a file changed a moment ago.

    Raises:
        UserError: a file is gone.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode())

    # the rule decides which label a stored value becomes, so it counts like content
    rules = dict.fromkeys(image.mask.rule for image in images if image.mask is not None)
    digest.update("".join(map(repr, rules)).encode())

    # a shard holds thousands of images: each file is asked about once
    paths = [image.path for image in images]
    paths += [image.mask.path for image in images if image.mask is not None]
    state: dict[Path, list[int]] = {}
    for path in dict.fromkeys(paths):
        try:
            stat = os.stat(path)
        except OSError as error:
            raise cannot_read(path, error) from error
        if time.time() - max(stat.st_mtime, stat.st_ctime) < SETTLED:
            return None
        state[path] = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    for image in images:
        image_path = os.path.abspath(image.path)
        sample = [image.label, image.captions, image.place, image_path, state[image.path]]
        if image.mask is not None:
            mask_path = os.path.abspath(image.mask.path)
            sample += [image.mask.where, mask_path, state[image.mask.path]]
        # file names may hold bytes that are no UTF-8; Python carries them as surrogates
        digest.update(json.dumps(sample).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def tracked(images: Sequence[ImageFile], title: str, is_long: bool = True) -> Iterator[ImageFile]:
    """Each image, with a progress bar on a terminal where it takes long."""
    with progress_bar(is_long and notes.is_terminal, title, len(images)) as advance:
        for image in images:
            yield image
            advance(1)
