"""Real data as a dataset: images stay in their files until somebody asks for them.

Flow: a reader lists ``ImageFile``s (where the bytes lie, the label, the captions) -> ``ImageSplit``
says how they lay there -> the counts are checked -> ``ImageFiles`` takes ``limit`` of them, evenly
spread -> its fingerprint is the hash of all of those.

In an evaluation set damage is an error, because a score over fewer samples than were promised is
no score. What was passed over or changed and is no error is a note: ``ImageFiles.notes`` says it
with its count and its first place, and a command prints it.

The user's own images are turned as their EXIF says, as every viewer shows them (``is_upright``);
those of the public sets stay as they are stored, as the papers read them.

Fingerprints, and what else one look at every file tells, are remembered between commands, because
to read a set takes minutes and its files rarely change. Inside ``with remembered(store): ...``,
``known_findings`` looks the files up by what the file system says of them (path, device, inode,
size, and the times of the last change of the content and of the file's entry; no program can set
the last one back). It reads only what it has not seen in exactly this state. Not remembered are
pixels that were read already, and files that changed in the last seconds: these can change again
within one tick of the clock.

What was not read is not known to be whole, so ``data check`` always reads. Masks that are
remembered were right when they were read, under the same rule of what their values mean.
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
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from silc_bench.datasets.dataset import ImageDataset, ignore_of, notes_of, spread
from silc_bench.datasets.files.images import (
    DamagedImageError,
    decode_image,
    has_several,
    open_image,
    orientation_of,
    size_of,
)
from silc_bench.datasets.files.shards import Place, cannot_read, read_member
from silc_bench.datasets.masks import NO_MASKS, Mask, MaskRule
from silc_bench.errors import DataError, UserError
from silc_bench.later import np
from silc_bench.system.cache import Store
from silc_bench.system.terminal import counted, notes, progress_bar


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
    is_upright: bool = False  # turned as its EXIF says

    def read(self) -> bytes:
        """The encoded bytes, or the raw pixels where there are no others."""
        return read_member(self.path, self.place) if self.pixels is None else self.pixels.tobytes()

    def decode(self) -> Image.Image:
        """RGB. Raises DataError for bytes that are no whole image, naming the file."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels)
        try:
            return decode_image(self.read(), self.is_upright)
        except DamagedImageError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: DamagedImageError) -> DataError:
        return DataError(error.problem, about=self.where, fix=error.fix)

    def labels(self) -> np.ndarray:
        """The label of each pixel, [H, W].

        Raises:
            DataError: a mask that cannot be read, or that has another size than its image.
        """
        assert self.mask is not None, f"{self.where} has no mask"
        labels = self.mask.labels()

        # the header alone: to decode the image would cost far more than the comparison
        try:
            content = self.read()
            width, height = size_of(content, self.is_upright)
        except DamagedImageError as error:
            raise self._unusable(error) from error

        if labels.shape == (height, width):
            return labels
        mask_size = f"{labels.shape[1]:,} x {labels.shape[0]:,}"
        problem = (
            f"the mask is {mask_size} pixels, and its image {self.where} {width:,} x {height:,}"
        )
        fix = "save the mask at the size of its image"
        if labels.shape[::-1] == (height, width) != size_of(content)[::-1]:
            problem += ", turned as its EXIF orientation says"
            fix = "turn the mask as viewers show the image, or save the image without EXIF"
        raise DataError(problem, about=self.mask.where, fix=fix)


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
    class_folders: tuple[str, ...] = ()  # of each class, where a list beside them gives its name

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
        self.is_whole = len(self.images) == len(content.images)

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
        return self.findings.fingerprint

    @cached_property
    def findings(self) -> Findings:
        """What one look at every file tells."""
        return known_findings(self.content.names, self.images, f"{self.name} {self.split}")

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was passed over, cut or changed, for people: a sentence each."""
        found = (*self.content.notes, *self.findings.notes(self.images, self.mask_names))
        return tuple(f"{self.name} {self.split}: {note}" for note in found)

    def hashed(self) -> ImageFiles:
        """The same set, with every image read once, so that what is damaged or gone shows now."""
        assert self.fingerprint
        return self

    def part(self, indices: Sequence[int]) -> ImageFiles:
        """These samples, in this order."""
        if list(indices) == list(range(len(self))):
            return self
        images = [self.images[i] for i in indices]
        part = ImageFiles(self.name, self.split, replace(self.content, images=images))
        part.is_whole = False
        return part

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
VERSION = 2  # of what is hashed, and of how files are looked up
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


@dataclass(frozen=True)
class Tally:
    """How many samples have something, and the index of the first."""

    count: int = 0
    first: int = 0

    def and_(self, index: int) -> Tally:
        return Tally(self.count + 1, self.first if self.count else index)


@dataclass(frozen=True)
class Findings:
    """What one look at every file of a set tells."""

    fingerprint: str
    turned: Tally = Tally()  # by their EXIF
    several: Tally = Tally()  # files of several images, of which the first is read
    unlabelled: Tally = Tally()  # masks without a pixel that is scored
    has_ignored: bool = False  # some pixel is not scored
    is_present: tuple[bool, ...] = ()  # of each name of the masks

    @property
    def absent(self) -> list[int]:
        """Labels that are in no mask."""
        return [label for label, is_there in enumerate(self.is_present) if not is_there]

    def notes(self, images: Sequence[ImageFile], mask_names: Sequence[str]) -> Iterator[str]:
        """For people, with the first place of each."""
        kinds = (
            (self.turned, ("image was", "images were"), "turned as EXIF's orientation says"),
            (self.several, ("file holds", "files hold"), "several images; the first is read"),
            (self.unlabelled, ("mask has", "masks have"), "no pixel that is scored"),
        )
        for tally, words, what in kinds:
            if tally.count:
                count = counted(tally.count, *words)
                yield f"{count} {what}, the first: {images[tally.first].where}"
        if self.absent and mask_names:
            first = mask_names[self.absent[0]]
            yield (
                f"{len(self.absent):,} of the {len(mask_names):,} classes are in no mask,"
                f" the first: {first}"
            )

    def numbers(self) -> np.ndarray:
        """All but the fingerprint, as a row that a store keeps; a float holds them exactly."""
        tallies = (self.turned, self.several, self.unlabelled)
        counts = [number for tally in tallies for number in (tally.count, tally.first)]
        return np.array([[*counts, self.has_ignored, *self.is_present]], np.float32)

    @classmethod
    def of(cls, fingerprint: str, numbers: np.ndarray) -> Findings:
        """What ``numbers`` gave."""
        values = [int(number) for number in numbers[0]]
        turned, several, unlabelled = (Tally(*values[start : start + 2]) for start in (0, 2, 4))
        is_present = tuple(map(bool, values[7:]))
        return cls(fingerprint, turned, several, unlabelled, bool(values[6]), is_present)


def known_fingerprint(names: Iterable[str], images: Sequence[ImageFile], title: str) -> str:
    """`fingerprint`, without reading the files where ``remembered`` knows them as they are now."""
    return known_findings(names, images, title).fingerprint


def known_findings(names: Iterable[str], images: Sequence[ImageFile], title: str) -> Findings:
    """`look_through`, without reading the files where ``remembered`` knows them as they are now."""
    names = list(names)
    store = _STORE.get()
    if store is None or not images or any(image.pixels is not None for image in images):
        return look_through(names, images, title)

    files = _state(names, images)
    if files is None:
        return look_through(names, images, title)
    description = {"kind": "fingerprint", "version": VERSION, "title": title, "files": files}
    entry = store.entry(description)
    width = Findings("", is_present=(False,) * _num_labels(images)).numbers().shape[1]
    numbers, is_known = entry.rows(1, width)
    if (known := entry.word()) and is_known.all():
        return Findings.of(known, numbers)

    # a file that changed while it was read has a hash of neither state: that is not kept
    findings = look_through(names, images, title)
    if _state(names, images) == files:
        entry.save(0, findings.numbers())
        entry.save_word(findings.fingerprint)
    return findings


def fingerprint(names: Iterable[str], images: Sequence[ImageFile], title: str) -> str:
    """That of `look_through`."""
    return look_through(names, images, title).fingerprint


def look_through(names: Iterable[str], images: Sequence[ImageFile], title: str) -> Findings:
    """Read every image and mask once.

    The fingerprint is 16 hex digits over names, labels, captions, encoded images and what their
    masks say. The order counts. File names and layout do not, nor how masks are stored. That an
    image is turned counts. Images are read at the speed of the disk. Masks are decoded, and so each
    is checked. A progress bar on the error stream shows where that takes a while.

    Raises:
        DataError: a mask that cannot be read, that has a value without a class, or that has
            another size than its image.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    turned, several, unlabelled = Tally(), Tally(), Tally()
    has_ignored = False
    is_present = np.zeros(_num_labels(images), bool)

    is_long = sum(image.place[1] for image in images) > LONG
    for index, image in enumerate(tracked(images, f"hashing {title}", is_long)):
        content = image.read()

        # a single caption is written as itself, none as null
        captions: list[str] | str | None = list(image.captions)
        if len(image.captions) < 2:
            captions = next(iter(image.captions), None)
        digest.update(json.dumps([image.label, captions, len(content)]).encode())
        digest.update(content)

        # an image that is turned is another one than the same bytes as they are stored
        if image.is_upright:
            orientation, is_one_of_several = _header(content)
            if orientation > 1:
                digest.update(json.dumps({"orientation": orientation}).encode())
                turned = turned.and_(index)
            if is_one_of_several:
                several = several.and_(index)

        # little-endian on every machine; shape and type stand before, so that no two masks that
        # differ give the same bytes
        if image.mask is not None:
            labels = image.labels()
            digest.update(json.dumps([labels.shape, labels.dtype.name]).encode())
            digest.update(np.ascontiguousarray(labels, labels.dtype.newbyteorder("<")).tobytes())

            counts = np.bincount(labels.ravel(), minlength=ignore_of(labels) + 1)
            scored = counts[: len(is_present)] > 0
            is_present |= scored
            has_ignored |= bool(counts[ignore_of(labels)])
            if not scored.any():
                unlabelled = unlabelled.and_(index)

    digits = digest.hexdigest()[:16]
    present = tuple(map(bool, is_present))
    return Findings(digits, turned, several, unlabelled, has_ignored, present)


def _header(content: bytes) -> tuple[int, bool]:
    """EXIF's orientation, and whether there are several images; a damaged one says nothing."""
    try:
        image = open_image(content)
    except DamagedImageError:
        return 1, False  # whoever decodes it names it
    # Pillow turns a TIFF, whoever reads it
    orientation = 1 if image.format == "TIFF" else orientation_of(image, content)
    return orientation, has_several(image)


def _num_labels(images: Sequence[ImageFile]) -> int:
    """How many names the masks have."""
    return max(
        (len(image.mask.rule.names) for image in images if image.mask is not None), default=0
    )


def notes_on(data: Mapping[str, ImageDataset]) -> list[str]:
    """The notes of all splits that a task reads, by role, and of what two of them share."""
    notes = [note for split in data.values() for note in notes_of(split)]
    test, train = data.get("test"), data.get("train")
    if isinstance(test, ImageFiles) and isinstance(train, ImageFiles):
        notes += _shared(test, train)
    return list(dict.fromkeys(notes))


@lru_cache(maxsize=4)  # the tasks of a command ask for the same pairs
def _shared(test: ImageFiles, train: ImageFiles) -> list[str]:
    """A note where the user's own data has an image in both splits, byte for byte."""
    images = [*test.images, *train.images]
    if not all(image.is_upright for image in images):
        return []  # a public set is as it was published

    count, first, second = _known_twins(test, train, images)
    if not count:
        return []
    return [
        f"{test.name}: {count:,} of the {len(test.images):,} images that are scored are learned"
        f" from too, the first: {test.images[first].where} is {train.images[second].where}"
    ]


def _known_twins(
    test: ImageFiles, train: ImageFiles, images: Sequence[ImageFile]
) -> tuple[int, int, int]:
    """``_twins``, remembered as fingerprints are."""
    store = _STORE.get()
    files = None if store is None else _state((), images)
    if store is None or files is None:
        return _twins(test, train)

    # the state of all files says where the first of the two splits ends, too
    description = {"kind": "twins", "version": VERSION, "scored": len(test), "files": files}
    entry = store.entry(description)
    if known := entry.word():
        count, first, second = map(int, known.split())
        return count, first, second
    twins = _twins(test, train)
    if _state((), images) == files:
        entry.save_word(" ".join(map(str, twins)))
    return twins


def _twins(test: ImageFiles, train: ImageFiles) -> tuple[int, int, int]:
    """How many images of ``test`` are in ``train``, and the place of the first in both."""
    # equal files have equal sizes: only those are read
    sizes = {image.place[1] for image in train.images} & {image.place[1] for image in test.images}
    learned: dict[bytes, int] = {}
    for index, image in enumerate(train.images):
        if image.place[1] in sizes:
            learned.setdefault(hashlib.sha256(image.read()).digest(), index)

    twins = []
    for index, image in enumerate(test.images):
        if image.place[1] in sizes:
            twin = learned.get(hashlib.sha256(image.read()).digest())
            twins += [] if twin is None else [(index, twin)]
    return (len(twins), *twins[0]) if twins else (0, 0, 0)


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
