"""Object discovery: do the patches alone set apart the part of an image that is an object?

Nothing is learned, no label or text is read and no threshold chosen. The score is the mean over
images of the IoU of the found foreground with all labelled objects, as unsupervised saliency is
scored (TokenCut, 2202.11539). Images without an object, or without anything else, are left out.
Chance is a foreground of the same size in each image, laid down without looking.

``foreground`` is the method of Melas-Kyriazi et al. ("Deep Spectral Methods", 2205.07839, section
3): cells are a graph whose edges weigh the positive part of their cosine; the eigenvector of the
second smallest eigenvalue of its normalised Laplacian (Fiedler's) cuts the image in two at 0, and
the smaller part is the object. It is the same cut as TokenCut's (2202.11539), without its threshold
on edges, which the features of an image-text model rarely fall below.

Two things differ from the paper: the features are the tokens that leave the tower, as in every
other task here, not the keys of its last attention; and a pixel goes to the side that has more than
half of its bilinear weights, without a conditional random field.

Shapes: gh x gw = n cells, D features, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from silc_bench.datasets.dataset import ignore_of
from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.metrics import statistics
from silc_bench.metrics.accuracy import normalize
from silc_bench.models.windows import Layout
from silc_bench.task import Features, Scores
from silc_bench.tasks.dense.scores import CellsTask

MAX_CELLS = 6000  # an eigenvector of n x n takes n^3: about a minute here


@dataclass(kw_only=True, eq=False)
class Discovery(CellsTask):
    """Of data with a background: everything else is an object."""

    needs: ClassVar = frozenset({"masks", "background"})

    main_metric: str = "foreground_iou"

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "foreground": "smaller side of the Fiedler vector of the patches' positive cosines,"
            " cut at 0, then up-sampled",
            "scored": "mean over pictures with an object and a background of the foreground's IoU",
        }

    def score(self, features: Features) -> Scores:
        assert features.data["test"].has_background, (
            f"{self.name}: without a background there is no foreground"
        )

        areas: list[list[int]] = []  # intersection and union of each image
        chances: list[float] = []
        for grid, layout, mask in self.labelled(features, "test"):
            valid = mask != ignore_of(mask)
            truth = mask[valid] > 0
            # without an object, or without anything else, there is nothing to set apart
            if not truth.any() or truth.all():
                continue

            guess = foreground(grid, layout, *mask.shape)[valid]
            areas.append([np.sum(truth & guess), np.sum(truth | guess)])
            chances.append(placed_at_random(guess, truth))
        if not areas:
            raise UserError(
                "no image has both an object and a background",
                about=self.name,
                fix="leave the task out, or raise --limit",
            )

        # the mean over images, not over pixels: small objects count as much as large ones
        counts = np.array(areas)
        iou = counts[:, 0] / counts[:, 1]
        stderr = statistics.bootstrap_stderr(iou[:, None], lambda sums: sums[..., 0] / len(iou))
        return Scores(
            metrics={"foreground_iou": float(iou.mean())},
            stderr={"foreground_iou": stderr},
            n=len(counts),
            chance=float(np.mean(chances)),
            outcomes={"foreground_areas": counts},
        )


def foreground(grid: np.ndarray, layout: Layout, height: int, width: int) -> np.ndarray:
    """bool [height, width]: the object in an image with cells [gh, gw, D].

    Raises:
        UserError: the image has too many cells for an eigenvector.
    """
    cells = grid.reshape(-1, grid.shape[-1])
    if len(cells) > MAX_CELLS:
        raise UserError(
            f"becomes {len(cells):,} patches, and object discovery takes {MAX_CELLS:,} at most",
            about=f"an image of {width:,} x {height:,} pixels",
            fix="it is too long and thin: cut it, or leave it out",
        )

    # each pixel goes to the side that has more than half of its bilinear weights
    side = (fiedler_vector(cells) > 0).reshape(grid.shape[:2]).astype(np.float64)
    side = layout.rows(height) @ (layout.cols(width) @ side.T).T > 0.5

    # the smaller side; of two halves the one without the first pixel, as the vector's sign is free
    twice = 2 * side.sum()
    if twice > side.size or (twice == side.size and side[0, 0]):
        side = ~side
    return side


def fiedler_vector(cells: np.ndarray) -> np.ndarray:
    """Cells [n, D] -> float64 [n]: the second eigenvector of L y = l D y; its sign is free.

    W = max(cosine, 0) are the weights of the graph, D its degrees, L = D - W.

    The first eigenvector is constant. It is taken out of the matrix, so that the second is well
    defined where the graph falls into two parts.
    """
    from scipy.linalg import eigh

    unit = normalize(cells.astype(np.float64))
    weights = np.maximum(unit @ unit.T, 0)
    degree = weights.sum(axis=1)

    # symmetric, so that eigh applies: D^-1/2 W D^-1/2 has the eigenvectors D^1/2 y
    root = np.sqrt(np.where(degree > 0, degree, 1))  # a cell without any feature has no edge
    matrix = weights / root / root[:, None]

    # its largest eigenvalues are the smallest of L; the first of them is known and subtracted
    first = np.sqrt(degree) / max(np.linalg.norm(np.sqrt(degree)), np.finfo(float).tiny)
    matrix -= np.outer(first, first)

    last = len(matrix) - 1
    _, vectors = eigh(matrix, subset_by_index=[last, last])
    return vectors[:, 0] / root


def placed_at_random(prediction: np.ndarray, truth: np.ndarray) -> float:
    """IoU of a foreground as large as ``prediction`` that knows nothing of ``truth``.

    With the shares a and t of the two it is a t / (a + t - a t).
    """
    guessed = prediction.mean()
    true = truth.mean()
    return float(guessed * true / (guessed + true - guessed * true))
