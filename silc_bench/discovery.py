"""Which part of a picture is an object, by its cells alone: no label, no text, no threshold.

``foreground`` is the method of Melas-Kyriazi et al. ("Deep Spectral Methods", 2205.07839, section 3): cells are a graph whose
edges weigh the positive part of their cosine; the eigenvector of the second smallest eigenvalue of its normalised Laplacian
(Fiedler's) cuts the picture in two at 0, and the smaller part is the object. It is the same cut as TokenCut's (2202.11539),
without its threshold on edges, which the features of an image-text model rarely fall below. Two things differ from the paper:
the features are the tokens that leave the tower, as in every other task here, not the keys of its last attention; and a pixel
goes to the side that has more than half of its bilinear weights, without a conditional random field.

Shapes: gh x gw = n cells, D features, H x W pixels.
"""

from __future__ import annotations

import numpy as np

from silc_bench.errors import UserError
from silc_bench.metrics import normalize
from silc_bench.windows import Layout

MAX_CELLS = 6000  # an eigenvector of n x n takes n^3: about a minute here


def foreground(grid: np.ndarray, layout: Layout, height: int, width: int) -> np.ndarray:
    """bool [height, width]: the object in a picture with cells [gh, gw, D].

    Raises:
        UserError: the picture has too many cells for an eigenvector.
    """
    cells = grid.reshape(-1, grid.shape[-1])
    if len(cells) > MAX_CELLS:
        raise UserError(
            f"a picture of {width:,} x {height:,} pixels becomes {len(cells):,} patches, and object discovery takes"
            f" {MAX_CELLS:,} at most: it is too long and thin; cut it, or leave it out"
        )
    side = (fiedler_vector(cells) > 0).reshape(grid.shape[:2]).astype(np.float64)
    side = layout.rows(height) @ (layout.cols(width) @ side.T).T > 0.5
    if 2 * side.sum() > side.size or (
        2 * side.sum() == side.size and side[0, 0]
    ):  # of two halves the one without the first pixel
        side = ~side
    return side


def fiedler_vector(cells: np.ndarray) -> np.ndarray:
    """Cells [n, D] -> float64 [n]: the second eigenvector of L y = l D y, where W = max(cosine, 0), L = D - W; its sign is
    free.

    The first is constant. It is taken out of the matrix, so that the second is well defined where the graph falls into two
    parts.
    """
    from scipy.linalg import eigh

    unit = normalize(cells.astype(np.float64))
    weights = np.maximum(unit @ unit.T, 0)
    degree = weights.sum(axis=1)
    root = np.sqrt(np.where(degree > 0, degree, 1))  # a cell without any feature has no edge
    matrix = weights / root / root[:, None]
    first = np.sqrt(degree) / max(np.linalg.norm(np.sqrt(degree)), np.finfo(float).tiny)
    matrix -= np.outer(first, first)
    last = len(matrix) - 1
    _, vectors = eigh(matrix, subset_by_index=[last, last])
    return vectors[:, 0] / root


def placed_at_random(prediction: np.ndarray, truth: np.ndarray) -> float:
    """IoU of a foreground as large as ``prediction`` that knows nothing of ``truth``, as shares: a t / (a + t - a t)."""
    guessed, true = prediction.mean(), truth.mean()
    return float(guessed * true / (guessed + true - guessed * true))
