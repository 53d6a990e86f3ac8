"""Masks as they are stored and what their values mean: a file -> the label of each pixel.

What cannot be read with certainty is a sentence and no score.

Flow: ``read_values(data, where)`` -> the numbers of a grey or palette image ->
``MaskRule.labels`` -> labels 0..C-1, with the pixels that are not scored marked as
`silc_bench.datasets.dataset.ignore_of` says. A palette's indices are the labels, as in Pascal VOC.
Colours are refused: which colour would be which class is not in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.files.images import (
    MAX_PIXELS,
    DamagedImageError,
    open_image,
    what_broke,
)
from silc_bench.datasets.files.shards import read_member
from silc_bench.errors import FETCH_AGAIN, DataError
from silc_bench.later import np

MOST_IN_8_BITS = 254  # classes
FORMATS = ("PNG", "TIFF", "BMP", "PPM")  # that keep each value as it was
# also of files that are refused: whoever wrote a mask as GIF is told so, not that there is none
MASK_EXTENSIONS = ("png", "tif", "tiff", "bmp", "pgm", "ppm", "pnm", "gif", "webp", "avif")
_GREY = {"1", "L", "P"}
_GREY_16 = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
_SCALED = {"L;2": 85, "L;4": 17}  # Pillow spreads grey of 2 and 4 bits over 0 to 255
_LOSSY = ("jpeg", "tiff_jpeg", "webp", "lerc")
SAVE_ANEW = "save the mask as PNG from its source: this file has lost the values"
SAVE_AS_GREY = "save the number of each pixel's class as a grey PNG (Pillow mode L)"


@dataclass(frozen=True)
class MaskRule:
    """What the values of a set's masks mean.

    Attributes:
        names: of labels 0..C-1.
        has_background: whether label 0 is everything that no class names.
        stored: the value of each class in the files, in label order; empty: 0..C-1.
        ignored: values of pixels that are not scored.
        not_scored: the same in words, for the protocol.
        fix: what to do about other values.
        is_usual: ``ignored`` is what is usual, and nobody wrote it for these masks.
    """

    names: tuple[str, ...]
    has_background: bool = False
    stored: tuple[int, ...] = ()
    ignored: tuple[int, ...] = (IGNORE,)
    not_scored: str = "value 255"
    fix: str = "fetch the masks again, or look whether they are those of another set"
    is_usual: bool = False

    @property
    def values(self) -> tuple[int, ...]:
        """The value of each class in the files, in label order."""
        return self.stored or tuple(range(len(self.names)))

    def policy(self) -> dict[str, str]:
        """For the protocol: what is a class although nobody names it, and what is not scored."""
        if not self.names:
            return {}
        return {
            "background": "label 0" if self.has_background else "none",
            "not_scored": self.not_scored,
        }

    def labels(self, values: np.ndarray, where: str) -> np.ndarray:
        """[H, W] stored values -> [H, W] labels: uint8, or uint16 for more than 254 classes.

        Raises:
            DataError: a value that is neither a class nor ignored, with the file, the value and
                how many pixels have it.
        """
        assert len(self.values) == len(self.names), (len(self.values), len(self.names))
        dtype = np.uint8 if len(self.names) <= MOST_IN_8_BITS else np.uint16

        # a table over all values that the file could hold; what is ignored keeps the greatest
        # value of its type, as ``ignore_of`` says
        size = 256 if values.dtype.itemsize == 1 else 65536
        table = np.full(size, np.iinfo(dtype).max, dtype)
        is_known = np.zeros(size, bool)
        for label, value in enumerate(self.values):
            if value < size:
                table[value] = label
                is_known[value] = True
        is_known[[value for value in self.ignored if value < size]] = True

        if not is_known[values].all():
            counts = np.bincount(values.ravel(), minlength=size)
            unknown = np.flatnonzero((counts > 0) & ~is_known)
            raise DataError(self._problem(unknown, counts), about=where, fix=self.fix)
        return table[values]

    def _problem(self, unknown: np.ndarray, counts: np.ndarray) -> str:
        first = int(unknown[0])
        others = f" (and {len(unknown) - 1} other values)" if len(unknown) > 1 else ""
        ignored = f", and {_ranges(self.ignored)} is not scored" if self.ignored else ""
        return (
            f"the mask has the value {first}{others} in {counts[first]:,} pixels: the"
            f" {len(self.names)} classes have the values {_ranges(self.values)}{ignored}"
        )


NO_MASKS = MaskRule(())


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A mask in a file of its own."""

    path: Path
    rule: MaskRule

    @property
    def where(self) -> str:
        return str(self.path)

    def labels(self) -> np.ndarray:
        """[H, W]. Raises DataError for what is no mask of the set."""
        size = self.path.stat().st_size
        data = read_member(self.path, (0, size))
        return self.rule.labels(read_values(data, self.where), self.where)


def read_values(data: bytes, where: str) -> np.ndarray:
    """[H, W] uint8 or uint16: the numbers that a mask's file holds, not what a viewer would show.

    Raises:
        DataError: no image, a damaged one, one in colours, or a format that does not keep values.
    """
    try:
        image = open_image(data)
        if image.width * image.height > MAX_PIXELS:
            problem = f"the mask claims {image.width:,} x {image.height:,} pixels"
            raise DataError(problem, about=where, fix=FETCH_AGAIN)
        _check_kind(image, where)

        # how the file packs its pixels is known only before they are decoded
        raw_mode, greatest = _raw_mode(image), _greatest(image)
        values = np.asarray(image)
    except (DataError, MemoryError):
        raise
    except DamagedImageError as error:
        problem = f"the mask cannot be read: {error}"
        raise DataError(problem, about=where, fix=error.fix) from error
    except Exception as error:
        # each decoder raises what it likes
        problem = f"the mask is damaged: {what_broke(error)}"
        raise DataError(problem, about=where, fix=FETCH_AGAIN) from error

    if values.dtype == np.bool_:
        return values.astype(np.uint8)

    # Pillow opens some files of 16 bits in 32
    if values.dtype.itemsize > 2:
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            problem = f"the mask has values from {low} to {high}, beyond 16 bits"
            raise DataError(problem, about=where, fix=SAVE_AS_GREY)
        values = values.astype(np.uint16)

    # Pillow spreads what has fewer bits, or a smaller greatest value, over the whole range
    if greatest is not None:
        full = int(np.iinfo(values.dtype).max)
        return ((values.astype(np.uint32) * greatest + full // 2) // full).astype(values.dtype)
    scale = _SCALED.get(raw_mode, 1)
    return values // scale if scale > 1 else values


def check_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Names of labels, stripped.

    Raises:
        DataError: no names, an empty one, or one twice.
    """
    stripped = tuple(name.strip() for name in names)
    if not stripped or not all(stripped):
        problem = "it has an empty name" if stripped else "it has no names"
        raise DataError(problem, about=source, fix="give each class a name")

    twice = next((name for name in stripped if stripped.count(name) > 1), None)
    if twice is not None:
        problem = f"two classes are called {twice!r}, and cannot be told apart"
        raise DataError(problem, about=source, fix="rename one")
    return stripped


def _check_kind(image: Image.Image, where: str) -> None:
    """Raise DataError for an image whose numbers may not be those that were meant."""
    if image.format not in FORMATS:
        problem = f"{image.format} does not keep the values of a mask as they were"
        raise DataError(problem, about=where, fix=SAVE_ANEW)

    # a TIFF may hold a JPEG
    compression = image.info.get("compression")
    if compression in _LOSSY:
        problem = f"{image.format} with the compression {compression!r} does not keep the values"
        raise DataError(problem, about=where, fix=SAVE_ANEW)

    if image.mode not in _GREY | _GREY_16:
        kind = "an alpha channel" if image.mode in ("LA", "PA", "La") else f"colours ({image.mode})"
        problem = f"the mask has {kind}, and a mask has one number a pixel"
        raise DataError(problem, about=where, fix=SAVE_AS_GREY)

    # TIFF's "white is zero", which Pillow turns over while it decodes
    if _raw_mode(image).endswith(("L;I", "1;I")):
        problem = "the mask is stored inverted (white is 0), so it may be meant either way"
        raise DataError(problem, about=where, fix=SAVE_AS_GREY)


def _raw_mode(image: Image.Image) -> str:
    """How the file packs its pixels, such as "L;4"."""
    # a decoder's arguments: the raw mode, or a tuple that begins with it
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    first = next(iter(args), "") if isinstance(args, tuple) else args
    return first if isinstance(first, str) else ""


def _greatest(image: Image.Image) -> int | None:
    """The greatest value that a PGM's header allows, where Pillow scales by it."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ()
    values: list[Any] = list(args) if image.format == "PPM" and isinstance(args, tuple) else []
    return values[1] if len(values) == 2 and isinstance(values[1], int) else None


def _ranges(values: Sequence[int]) -> str:
    """Values in words: "0 to 18", "7, 8, 11 to 13"; six ranges at most."""
    ranges: list[list[int]] = []
    for value in sorted(values):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])

    shown = [str(low) if low == high else f"{low} to {high}" for low, high in ranges]
    more = ", ..." if len(shown) > 6 else ""
    return ", ".join(shown[:6]) + more


class Mask(Protocol):
    """Where the labels of an image's pixels come from: a file, or outlines that are drawn."""

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
