"""What a mask says of the cells of a grid: how much of each class lies in each cell.

Any way of giving pixels to cells is allowed, and two are used. An image's ``layout.rows,
layout.cols`` are the weights by which cells give their logits to pixels; turned round, they collect
what the pixels want of each cell. ``members`` gives each pixel to the cell of every window in which
its middle lies: that is what a patch shows.

Shapes: H x W pixels, gh x gw cells of all windows, P classes that occur in the mask.
"""

from __future__ import annotations

from functools import lru_cache

from silc_bench.datasets.dataset import ignore_of
from silc_bench.later import np, sparse
from silc_bench.models.windows import Layout


def class_sums(
    mask: np.ndarray, rows: sparse.csr_array, cols: sparse.csr_array
) -> tuple[np.ndarray, np.ndarray]:
    """For each class of a mask [H, W] the weight of its pixels in each cell.

    Args:
        mask: class indices.
        rows: [H, gh]; a pixel weighs ``rows[y, i] * cols[x, j]`` in cell (i, j).
        cols: [W, gw].

    Returns:
        The classes that occur [P], in order and without what is not scored, and float64 sums
        [gh * gw, P].
    """
    classes = np.unique(mask)
    classes = classes[classes != ignore_of(mask)].astype(np.int64)

    # class by class: the products are sparse, and a one-hot mask of all classes would be large
    sums = np.empty((rows.shape[1] * cols.shape[1], len(classes)))
    for column, index in enumerate(classes):
        sums[:, column] = weigh((mask == index).astype(np.float64), rows, cols).ravel()
    return classes, sums


def weigh(pixels: np.ndarray, rows: sparse.csr_array, cols: sparse.csr_array) -> np.ndarray:
    """rows^T @ pixels @ cols: float64 [H, W] -> [gh, gw]."""
    return (cols.T @ (rows.T @ pixels).T).T


def sample(labelled: np.ndarray, number: int, num_images: int, most: int, seed: int) -> np.ndarray:
    """Which of the cells ``labelled`` of image ``number`` are kept.

    ``num_images`` images keep ``most`` cells together at most.

    Each image is due evenly many, and the same whatever the others hold; which, is drawn by the
    seed and its number.
    """
    # the differences of rounded parts: they sum to ``most`` whatever the number of images
    due = most * (number + 1) // num_images - most * number // num_images
    return np.sort(np.random.default_rng((seed, number)).permutation(labelled)[:due])


def members(layout: Layout, height: int, width: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """float64 [height, gh] and [width, gw]: which cell holds a row, or column, of the mask.

    It is 1 where the middle of the row, or column, lies in the cell.
    """
    return (
        _members(height, layout.height, layout.tops, layout.cells, layout.patch),
        _members(width, layout.width, layout.lefts, layout.cells, layout.patch),
    )


@lru_cache(maxsize=64)
def _members(
    size: int, resized: int, starts: tuple[int, ...], cells: int, patch: int
) -> sparse.csr_array:
    """One axis of ``members``; cached, as the images of a set often have few sizes."""
    # the middle of each pixel of the mask, in pixels of the resized image
    middles = (np.arange(size) + 0.5) * resized / size

    pixels: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    for number, start in enumerate(starts):
        # windows overlap: a pixel can lie in a cell of each of several
        place = np.floor((middles - start) / patch).astype(np.int64)
        is_inside = (place >= 0) & (place < cells)
        pixels.append(np.flatnonzero(is_inside))
        columns.append(place[is_inside] + number * cells)

    rows = np.concatenate(pixels)
    return sparse.csr_array(
        (np.ones(len(rows)), (rows, np.concatenate(columns))), shape=(size, len(starts) * cells)
    )
