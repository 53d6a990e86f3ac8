"""Generated samples that stay in memory: each task asks for them again, and so does each model."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

# Bytes that a process keeps of one size: 4,096 samples of 64 pixels, so all that ``shapes/*`` asks.
MEMORY = 1 << 26
BYTES_PER_PIXEL = 4  # three of the image, one of the mask
SIZES = 2  # in use at once

Drawn: TypeAlias = "tuple[np.ndarray, np.ndarray]"


def kept(draw: Callable[..., Drawn]) -> Callable[..., Drawn]:
    """``draw(size, *sample)`` -> image [size, size, 3] and mask [size, size], drawn once.

    The samples asked for last are kept, as many as MEMORY holds.
    """

    @lru_cache(maxsize=SIZES)
    def of_size(size: int) -> Callable[..., Drawn]:
        count = MEMORY // max(1, BYTES_PER_PIXEL * size**2)
        return lru_cache(maxsize=max(1, count))(partial(draw, size))

    def drawn(size: int, *sample: Any) -> Drawn:
        return of_size(size)(*sample)

    return drawn
