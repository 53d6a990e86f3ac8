"""What generated scenes are painted with: stripes, checks and dots, soft at their edges.

Only correctly rounded arithmetic, no sine, so that every machine draws the same bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from silc_bench.later import np

Plane: TypeAlias = "np.ndarray"  # [H, W] float32


@lru_cache(maxsize=8)
def pixel_centres(size: int) -> np.ndarray:
    """[size] positions in image sides; read-only, as all callers share one array."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    centres.flags.writeable = False
    return centres


def texture(name: str, a: Plane, b: Plane, cell: float) -> Plane:
    """Where the second colour shows, 0..1.

    ``a`` and ``b`` count cells; a cell is ``cell`` pixels, which makes the edges soft.
    """
    if name == "striped":
        return bands(a, cell)
    if name == "checkered":
        # one of the two, not both: "exclusive or" for shares
        p, q = bands(a, cell), bands(b, cell)
        return p + q - 2 * p * q

    # discs around the middle of each cell
    assert name == "dotted", name
    p, q = a - np.floor(a) - 0.5, b - np.floor(b) - 0.5
    return np.clip((0.3 - np.sqrt(p * p + q * q)) * cell + 0.5, 0, 1)


def bands(a: Plane, cell: float) -> Plane:
    """Stripes across ``a``, half a cell wide."""
    return np.clip((np.abs(a - np.floor(a) - 0.5) - 0.25) * cell + 0.5, 0, 1)
