"""A linear probe of cells in closed form, from sums over one pass of the training images.

Flow: ``sums = PixelSums(num_pictures, num_classes, seed)``; ``sums.add(grid, layout, mask)`` for
each training image; then ``probe, details = sums.solve(penalties)``.

The probe is the linear discriminant of up-sampled features, ridge-regularised: over all pixels that
are scored, with features x that are standardised by their moments over all cells (variance + 1e-5,
as batch norm) and up-sampled bilinearly,

    logit_c(x) = x^T (S + l2 I)^-1 m_c - m_c^T (S + l2 I)^-1 m_c / 2 + log(share of class c)

with m_c the mean over the pixels of class c and S the covariance within classes. Its directions
span those of ridge regression on one-hot masks, and ask for the same sums; but the argmax of
regressed one-hots hides small classes behind large ones, which this does not (Hastie, Tibshirani
and Buja, "Flexible discriminant analysis by optimal scoring", 1994; docs/log.md has the figures).

Up-sampling is linear and separable, x = U f with U = rows (x) cols (`silc_bench.models.windows`),
so all that is needed of an image is U^T diag(valid) U and U^T onehot: small, since cells share
pixels with their neighbours only. No feature is ever up-sampled, no mask reduced, and nothing kept
but sums, and a sample of cells on which the penalty is chosen: each fold of images by the sums of
the others, which are those of all less its own. Float64, and the same on every run.

Shapes: gh x gw = n cells, D features, C classes, H x W pixels, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from silc_bench.datasets.dataset import ignore_of
from silc_bench.metrics import iou
from silc_bench.models.windows import Layout
from silc_bench.probes.closed_form import BATCH_NORM_EPSILON, LinearMap
from silc_bench.probes.patch_labels import class_sums, sample

FOLDS = 5
SAMPLE = 1 << 13  # cells kept for choosing the penalty
NEVER = -1e30  # the logit of a class without a training pixel; finite, since logits are averaged


class PixelSums:
    """What the probe needs, summed over images, apart for each fold.

    Image i is in fold i modulo ``num_folds``.
    """

    def __init__(self, num_pictures: int, num_classes: int, seed: int, device: str = "cpu") -> None:
        self.num_pictures, self.num_classes, self.seed, self.device = (
            num_pictures,
            num_classes,
            seed,
            device,
        )
        self.num_folds = min(FOLDS, num_pictures)
        self._seen, self._num_cells = 0, 0
        self._gram = self._target = torch.zeros(
            0
        )  # [F, D + 1, D + 1] and [F, D + 1, C] from the first image on
        self._total = self._square = np.zeros(0)  # [D]
        self._samples: list[
            tuple[int, np.ndarray, np.ndarray]
        ] = []  # fold, cells [s, D], pixels of each class [s, C]

    def add(self, grid: np.ndarray, layout: Layout, mask: np.ndarray) -> None:
        """The next picture: cells [gh, gw, D] and mask [H, W]."""
        dim = grid.shape[-1]
        if not self._seen:
            shapes = ((self.num_folds, dim + 1, width) for width in (dim + 1, self.num_classes))
            self._gram, self._target = (
                torch.zeros(shape, dtype=torch.float64, device=self.device) for shape in shapes
            )
            self._total, self._square = np.zeros((2, dim))
        cells = grid.reshape(-1, dim).astype(np.float64)
        self._total += cells.sum(axis=0)
        self._square += (cells**2).sum(axis=0)
        cells = np.pad(cells, ((0, 0), (0, 1)), constant_values=1)  # up-sampling keeps the ones

        fold = self._seen % self.num_folds
        classes, sums = class_sums(mask, layout.rows(mask.shape[0]), layout.cols(mask.shape[1]))
        across = torch.from_numpy(cells).to(self.device).T
        half = across @ torch.from_numpy(_half_pixel_products(layout, mask) @ cells).to(self.device)
        self._gram[fold] += half + half.T
        self._target[fold][:, torch.from_numpy(classes).to(self.device)] += (
            across @ torch.from_numpy(sums).to(self.device)
        )

        kept = sample(
            np.flatnonzero(sums.sum(axis=1)), self._seen, self.num_pictures, SAMPLE, self.seed
        )
        pixels = np.zeros((len(kept), self.num_classes), np.float32)
        pixels[:, classes] = sums[kept]
        self._samples.append((fold, cells[kept, :-1].astype(np.float32), pixels))
        self._seen += 1
        self._num_cells += len(cells)

    def solve(self, penalties: Sequence[float]) -> tuple[LinearMap, dict[str, Any]]:
        """The map to class logits with the penalty that does best on the folds that were left out.

        Of equals the strongest penalty is kept.

        Args:
            penalties: values of l2; a single one is taken as it is. Several need two images.

        The details name the penalty taken, and the mIoU of each on the sampled cells of the folds
        left out.
        """
        assert self._seen == self.num_pictures > 0, (self._seen, self.num_pictures)
        fold_in, gram, target = self._standardised()
        penalties = sorted(penalties, reverse=True)
        details: dict[str, Any] = {"l2": penalties[0]}
        if len(penalties) > 1:
            scores = self._left_out(fold_in, gram, target, penalties)
            best = int(np.argmax(scores))
            details = {
                "l2": penalties[best],
                "held_out_mIoU": dict(zip(map("{:g}".format, penalties), scores, strict=True)),
            }
        (solution,) = _discriminants(gram.sum(dim=0), target.sum(dim=0), [details["l2"]])
        *weight, bias = (fold_in @ solution).cpu().numpy()
        return LinearMap(np.array(weight), bias), details

    def _standardised(self) -> tuple[Tensor, Tensor, Tensor]:
        """What takes [f, 1] to [z, 1], and the sums over [z, 1] of each fold.

        They follow from those over [f, 1].
        """
        mean = self._total / self._num_cells
        std = np.sqrt(np.maximum(self._square / self._num_cells - mean**2, 0) + BATCH_NORM_EPSILON)
        fold_in = np.diag([*(1 / std), 1.0])
        fold_in[-1, :-1] = -mean / std
        matrix = torch.from_numpy(fold_in).to(self.device)
        return matrix, matrix.T @ self._gram @ matrix, matrix.T @ self._target

    def _left_out(
        self, fold_in: Tensor, gram: Tensor, target: Tensor, penalties: Sequence[float]
    ) -> list[float]:
        """mIoU of each penalty over the sampled cells of every fold, by the sums of all others."""
        assert self.num_folds > 1, "nothing is left out of a single fold"
        found = np.zeros((len(penalties), 3, self.num_classes))
        for fold in range(self.num_folds):
            cells, pixels = (
                np.concatenate(parts) for parts in zip(*self._of_fold(fold), strict=True)
            )
            rest = gram.sum(dim=0) - gram[fold], target.sum(dim=0) - target[fold]
            for index, solution in enumerate(_discriminants(*rest, penalties)):
                weight = (fold_in @ solution).cpu().numpy()
                found[index] += _soft_areas(
                    (cells @ weight[:-1] + weight[-1]).argmax(axis=1), pixels
                )
        return (
            [float(score) for score in iou.mean_iou(found)]
            if found.any()
            else [0.0] * len(penalties)
        )

    def _of_fold(self, fold: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(cells, pixels) for own, cells, pixels in self._samples if own == fold]


def _discriminants(gram: Tensor, target: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """The solution [D + 1, C] for each l2, the bias last.

    From sums [D + 1, D + 1] and [D + 1, C] over standardised features and a one.
    """
    counts, pixels = target[-1].round(), gram[-1, -1].clamp(min=1)
    means = target[:-1] / counts.clamp(min=1)
    within = (gram[:-1, :-1] - (means * counts) @ means.T) / pixels
    shares = torch.where(counts > 0, (counts.clamp(min=1) / pixels).log(), NEVER)
    solutions = []
    for l2 in penalties:
        loaded = within.clone()
        loaded.diagonal().add_(l2)
        weight = torch.cholesky_solve(means, torch.linalg.cholesky(loaded))
        solutions.append(torch.cat([weight, (shares - (means * weight).sum(dim=0) / 2)[None]]))
    return solutions


def _soft_areas(guess: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """As metrics.areas, of cells that hold ``pixels`` [s, C] of each class: [3, C]."""
    guessed = np.eye(pixels.shape[1])[guess]
    return np.stack(
        [(guessed * pixels).sum(axis=0), guessed.T @ pixels.sum(axis=1), pixels.sum(axis=0)]
    )


def _half_pixel_products(layout: Layout, mask: np.ndarray) -> sparse.csr_array:
    """[n, n] that added to its transpose is U^T diag(valid) U, where U = rows (x) cols."""
    (height, width), (gh, gw) = mask.shape, layout.grid
    valid = (mask != ignore_of(mask)).astype(np.float64)
    above, below, down = _pairs(layout, height, 0)
    left, right, along = _pairs(layout, width, 1)
    products = along.T @ (down.T @ valid).T  # [pairs of columns, pairs of rows]
    first = (above[None] * gw + left[:, None]).ravel()
    second = (below[None] * gw + right[:, None]).ravel()
    half = np.where(first < second, 1.0, np.where(first == second, 0.5, 0.0)) * products.ravel()
    kept = half != 0
    return sparse.csr_array((half[kept], (first[kept], second[kept])), shape=(gh * gw, gh * gw))


@lru_cache(maxsize=64)
def _pairs(layout: Layout, size: int, axis: int) -> tuple[np.ndarray, np.ndarray, sparse.csr_array]:
    """Cells i and k of one axis that share pixels, and the products of their weights.

    i and k are [P] and [P]; the products are taken at each of ``size`` pixels.
    """
    weights = (layout.rows if axis == 0 else layout.cols)(size).tocsc()
    first, second = (weights.T @ weights).nonzero()
    return first, second, sparse.csr_array(weights[:, first].multiply(weights[:, second]))
