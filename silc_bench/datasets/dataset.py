"""What every dataset is: samples by index, counted, named and fingerprinted.

Tasks and models see real and generated data through ``ImageDataset`` alone. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from silc_bench.errors import UserError
from silc_bench.later import np

if TYPE_CHECKING:
    from PIL import Image

IGNORE = 255  # mask value of pixels that are never scored


@runtime_checkable
class ImageDataset(Protocol):
    """N samples read by index, always in the same order.

    What a dataset lacks is None or empty, never invented.
    """

    name: str  # "shapes"
    split: str  # "val"

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that is scored.

        Equal data has an equal fingerprint, wherever it lies.
        """
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of ``labels``."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """[N] int64."""
        ...

    @property
    def captions(self) -> Sequence[tuple[str, ...]] | None:
        """One or several for each image."""
        ...

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of mask values 0..C-1; what ``ignore_of`` says is not scored."""
        ...

    @property
    def has_background(self) -> bool:
        """Whether mask value 0 is everything that no class names.

        It is then a value of the masks, but no word for an image.
        """
        ...

    @property
    def mask_policy(self) -> Mapping[str, str]:
        """For the protocol: whether the "background" is a label, and what is "not_scored".

        A dataset without masks gives an empty mapping.
        """
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The image, RGB."""
        ...

    def mask(self, index: int) -> np.ndarray:
        """[H, W] of the image's size: uint8, or uint16 for more than 254 classes."""
        ...


def ignore_of(mask: np.ndarray) -> int:
    """The value in ``mask`` of pixels that are never scored.

    It is IGNORE, and 65,535 in masks of 16 bits, where 255 is a class.
    """
    return int(np.iinfo(np.uint16).max) if mask.dtype == np.uint16 else IGNORE


def notes_of(data: ImageDataset) -> tuple[str, ...]:
    """What a dataset passed over, cut, merged or turned, a sentence each.

    A dataset that does such a thing has a field ``notes``; most do not.
    """
    return tuple(getattr(data, "notes", ()))


def is_cut(data: ImageDataset) -> bool:
    """Whether a dataset that was loaded under a limit lacks samples for it.

    One that is smaller than the limit says so in a field ``is_whole``.
    """
    return not getattr(data, "is_whole", False)


def is_drawn(data: ImageDataset) -> bool:
    """Whether its images are drawn by this process, which keeps them in memory.

    Such a dataset has a field ``is_drawn``; others read their images from files.
    """
    return getattr(data, "is_drawn", False)


@runtime_checkable
class Pool(ImageDataset, Protocol):
    """A dataset of which a part can be taken before anything in it is hashed."""

    def part(self, indices: Sequence[int]) -> ImageDataset:
        """These samples, in this order."""
        ...


def spread(n: int, limit: int | None) -> list[int]:
    """Indices of ``limit`` samples spread evenly over 0..n-1, all of them without a limit.

    The part looks like the whole. The first samples would not: data sorted by class would
    leave classes out.

    Raises:
        UserError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{limit} leaves no sample", about="limit", fix="give 1 or more")

    # integers, so that every platform takes the same samples
    count = n if limit is None else min(limit, n)
    return [i * n // count for i in range(count)]
