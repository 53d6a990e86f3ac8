"""A dataset whose pictures stay in their files until asked for: what every reader of real data
gives back.

Flow: a reader finds ``Picture``s (where the bytes lie, the label, the captions) -> ``Found`` says
how they lay there -> the counts are checked -> ``PictureSet`` takes ``limit`` of them, evenly
spread; asked for its fingerprint, it hashes all of those.

In an evaluation set damage is an error: a score over fewer samples than were promised is no score.

What exactly is scored, hashed; and remembered between commands: the files of a set rarely change
and take minutes to read.

Flow: ``fingerprint(names, pictures, title)`` reads everything. ``with remembered(store): ...``
around it: ``known_fingerprint`` looks the files up by what the file system says of them - path,
device, inode, size, times of the last change of content and of the file's own entry (which no
program can set back) - and reads only what it has not seen in exactly this state.

What was not read is not known to be whole: ``data check`` always reads. Not remembered: pixels that
were read already; files changed in the last seconds, which can change again within a tick of the
clock. Masks that are remembered were right when they were read, under the same rule of what their
values mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from silc_bench.datasets.dataset import spread
from silc_bench.datasets.files.shards import (
    DamagedImageError,
    Place,
    decode_image,
    image_size,
    read_member,
)
from silc_bench.datasets.masks import Mask
from silc_bench.errors import FETCH_AGAIN, DataError, UserError
from silc_bench.system.cache import Store


@dataclass(frozen=True, slots=True)
class Picture:
    """One sample: encoded bytes in a file, or pixels [H, W, 3] uint8 where the format stores them
    raw.
    """

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
        """Of each pixel, [H, W]. Raises DataError for a mask that cannot be read, or is not of the
        picture's size.
        """
        assert self.mask is not None, f"{self.where} has no mask"
        labels = self.mask.labels()
        try:
            width, height = image_size(self.read())
        except DamagedImageError as error:
            raise DataError(f"{self.where} is damaged: {error}", FETCH_AGAIN) from error
        if labels.shape != (height, width):
            own = f"{labels.shape[1]:,} x {labels.shape[0]:,}"
            problem = f"{self.mask.where} is {own} pixels, and its picture {self.where} {width:,} x {height:,}"
            raise DataError(
                problem,
                "a mask says what each pixel of its picture is: save it at the picture's size",
            )
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
    mask_policy: Mapping[str, str] = field(
        default_factory=dict
    )  # what is not scored, for the protocol

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
            raise UserError(
                f"{having} of {len(self.pictures)} samples have a caption; {without[0].where} has none"
            )
        self.captions = (
            [picture.captions for picture in self.pictures]
            if not without and self.pictures
            else None
        )

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def fingerprint(self) -> str:
        """See `silc_bench.datasets.image_set`. It can take reading every picture, so it is made
        when it is asked for.
        """
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
        """[H, W] labels. Raises DataError for a mask that cannot be read or does not fit its
        picture, naming it.
        """
        if not self.mask_names:
            raise ValueError(f"{self.name} has no masks")
        try:
            return self.pictures[index].labels()
        except DataError as error:
            raise self._cannot_be_scored(error) from error

    def _cannot_be_scored(self, error: DataError) -> DataError:
        return DataError(f"{self.name} {self.split} cannot be scored, {error.problem}", error.fix)


LONG = 256 << 20  # bytes: to hash more takes a second or longer, and says so
VERSION = 1  # of what is hashed, and of how files are looked up
SETTLED = 2.0  # seconds since its last change after which a file that changes again shows it
_STORE: ContextVar[Store | None] = ContextVar("fingerprints", default=None)


@contextmanager
def remembered(store: Store | None) -> Iterator[None]:
    """While it lasts, fingerprints are looked up in ``store`` and kept there; None: they are
    not.
    """
    token = _STORE.set(store)
    try:
        yield
    finally:
        _STORE.reset(token)


def known_fingerprint(names: Iterable[str], pictures: Sequence[Picture], title: str) -> str:
    """`fingerprint`, without reading the files where ``remembered`` knows them as they are now."""
    names, store = list(names), _STORE.get()
    if store is None or not pictures or any(picture.pixels is not None for picture in pictures):
        return fingerprint(names, pictures, title)
    before = _state(pictures)
    entry = None
    if before is not None:
        files = _digest(names, pictures, before)
        entry = store.entry(
            {"kind": "fingerprint", "version": VERSION, "title": title, "files": files}
        )
        if known := entry.word():
            return known
    found = fingerprint(names, pictures, title)
    if entry is not None and _state(pictures) == before:  # nothing changed while it was read
        entry.save_word(found)
    return found


def fingerprint(names: Iterable[str], pictures: Sequence[Picture], title: str) -> str:
    """16 hex digits over names, labels, captions, encoded pictures and what their masks say, in
    order.

    File names and layout do not count, nor how masks are stored. Pictures are read at the speed of
    the disk; masks are decoded, and so each is checked. A progress bar on the error stream where
    that takes a while.

    Raises:
        DataError: a mask that cannot be read, has a value without a class, or is not of its
        picture's size.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    for picture in _with_progress(pictures, f"hashing {title}"):
        content = picture.read()
        # a single caption is written as itself, none as null
        captions = (
            list(picture.captions)
            if len(picture.captions) > 1
            else next(iter(picture.captions), None)
        )
        digest.update(json.dumps([picture.label, captions, len(content)]).encode())
        digest.update(content)
        if picture.mask is not None:
            labels = picture.labels()
            digest.update(json.dumps([labels.shape, labels.dtype.name]).encode())
            digest.update(np.ascontiguousarray(labels, labels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def _state(pictures: Sequence[Picture]) -> dict[Path, list[int]] | None:
    """What the file system says of each file; None where one changed a moment ago.

    Raises:
        UserError: a file is gone.
    """
    state = {}
    now = time.time()
    masks = [picture.mask.path for picture in pictures if picture.mask is not None]
    for path in dict.fromkeys([*(picture.path for picture in pictures), *masks]):
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if now - max(stat.st_mtime, stat.st_ctime) < SETTLED:
            return None
        state[path] = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return state


def _digest(names: Sequence[str], pictures: Sequence[Picture], state: dict[Path, list[int]]) -> str:
    """Of all that the fingerprint follows from, with the state of the files in place of their
    content.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    rules = dict.fromkeys(picture.mask.rule for picture in pictures if picture.mask is not None)
    digest.update("".join(map(repr, rules)).encode())
    for picture in pictures:
        own = [
            picture.label,
            picture.captions,
            picture.place,
            os.path.abspath(picture.path),
            state[picture.path],
        ]
        if picture.mask is not None:
            own += [
                picture.mask.where,
                os.path.abspath(picture.mask.path),
                state[picture.mask.path],
            ]
        digest.update(json.dumps(own).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _with_progress(pictures: Sequence[Picture], title: str) -> Iterator[Picture]:
    console = Console(stderr=True)
    total = sum(picture.num_bytes for picture in pictures)
    with Progress(
        console=console, transient=True, disable=total < LONG or not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=total)
        for picture in pictures:
            yield picture
            bar.advance(task, picture.num_bytes)
