"""A linear probe of cells in closed form, from sums over one pass of the training images.

Flow: ``sums = PixelSums(num_images, num_classes, seed)``; ``sums.add(grid, layout, mask)`` for
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
from functools import lru_cache, partial
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

    def __init__(self, num_images: int, num_classes: int, seed: int, device: str = "cpu") -> None:
        self.num_images = num_images
        self.num_classes = num_classes
        self.seed = seed
        self.device = device
        self.num_folds = min(FOLDS, num_images)
        self._seen = 0
        self._num_cells = 0

        # [F, D + 1, D + 1] and [F, D + 1, C] from the first image on, which tells D
        self._gram = self._target = torch.zeros(0)
        self._total = self._square = np.zeros(0)  # [D]
        # fold, cells [s, D], pixels of each class [s, C]
        self._samples: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(self, grid: np.ndarray, layout: Layout, mask: np.ndarray) -> None:
        """The next image: cells [gh, gw, D] and mask [H, W]."""
        dim = grid.shape[-1]
        if not self._seen:
            shape = (self.num_folds, dim + 1)
            zeros = partial(torch.zeros, dtype=torch.float64, device=self.device)
            self._gram = zeros(*shape, dim + 1)
            self._target = zeros(*shape, self.num_classes)
            self._total, self._square = np.zeros((2, dim))

        # the moments are those of cells, not of pixels, as a batch norm would have them
        cells = grid.reshape(-1, dim).astype(np.float64)
        self._total += cells.sum(axis=0)
        self._square += (cells**2).sum(axis=0)

        # a one beside the features gives counts and means with the same products; up-sampling
        # keeps the ones
        cells = np.pad(cells, ((0, 0), (0, 1)), constant_values=1)

        fold = self._seen % self.num_folds
        classes, sums = class_sums(mask, layout.rows(mask.shape[0]), layout.cols(mask.shape[1]))
        across = torch.from_numpy(cells).to(self.device).T
        products = _half_pixel_products(layout, mask) @ cells
        half = across @ torch.from_numpy(products).to(self.device)
        self._gram[fold] += half + half.T
        columns = torch.from_numpy(classes).to(self.device)
        self._target[fold][:, columns] += across @ torch.from_numpy(sums).to(self.device)

        # a sample of cells, on which the penalty is chosen
        labelled = np.flatnonzero(sums.sum(axis=1))
        kept = sample(labelled, self._seen, self.num_images, SAMPLE, self.seed)
        pixels = np.zeros((len(kept), self.num_classes), np.float32)
        pixels[:, classes] = sums[kept]
        self._samples.append((fold, cells[kept, :-1].astype(np.float32), pixels))
        self._seen += 1
        self._num_cells += len(cells)

    def solve(self, penalties: Sequence[float]) -> tuple[LinearMap, dict[str, Any]]:
        """The map to class logits with the penalty that does best on the folds that were left out.

        Of equals the strongest penalty is kept. The details name the penalty taken, and the mIoU of
        each on the sampled cells of the folds left out.

        Args:
            penalties: values of l2; a single one is taken as it is. Several need two images.
        """
        assert self._seen == self.num_images > 0, (self._seen, self.num_images)
        fold_in, gram, target = self._standardised()

        # from the strongest on: argmax takes the first of equals
        penalties = sorted(penalties, reverse=True)
        details: dict[str, Any] = {"l2": penalties[0]}
        if len(penalties) > 1:
            scores = self._left_out(fold_in, gram, target, penalties)
            best = int(np.argmax(scores))
            by_penalty = dict(zip(map("{:g}".format, penalties), scores, strict=True))
            details = {"l2": penalties[best], "held_out_mIoU": by_penalty}

        # the last fit has all folds, and its map takes raw features
        (solution,) = _discriminants(gram.sum(dim=0), target.sum(dim=0), [details["l2"]])
        *weight, bias = (fold_in @ solution).cpu().numpy()
        return LinearMap(np.array(weight), bias), details

    def _standardised(self) -> tuple[Tensor, Tensor, Tensor]:
        """What takes [f, 1] to [z, 1], and the sums over [z, 1] of each fold.

        They follow from those over [f, 1].
        """
        # from sums over cells; rounding can make a variance negative, never by much
        mean = self._total / self._num_cells
        std = np.sqrt(np.maximum(self._square / self._num_cells - mean**2, 0) + BATCH_NORM_EPSILON)

        # z = (f - mean) / std as a matrix on [f, 1]; the one stays a one
        fold_in = np.diag([*(1 / std), 1.0])
        fold_in[-1, :-1] = -mean / std
        matrix = torch.from_numpy(fold_in).to(self.device)
        return matrix, matrix.T @ self._gram @ matrix, matrix.T @ self._target

    def _left_out(
        self, fold_in: Tensor, gram: Tensor, target: Tensor, penalties: Sequence[float]
    ) -> list[float]:
        """mIoU of each penalty over the sampled cells of every fold, by the sums of all others."""
        assert self.num_folds > 1, "nothing is left out of a single fold"
        areas = np.zeros((len(penalties), 3, self.num_classes))
        for fold in range(self.num_folds):
            of_fold = [(cells, pixels) for own, cells, pixels in self._samples if own == fold]
            cells = np.concatenate([cells for cells, _ in of_fold])
            pixels = np.concatenate([pixels for _, pixels in of_fold])

            # the sums of the others are those of all less its own: no second pass
            rest = gram.sum(dim=0) - gram[fold], target.sum(dim=0) - target[fold]
            for index, solution in enumerate(_discriminants(*rest, penalties)):
                weight = (fold_in @ solution).cpu().numpy()
                guess = (cells @ weight[:-1] + weight[-1]).argmax(axis=1)
                areas[index] += _soft_areas(guess, pixels)

        # without a scored pixel no penalty is better than another
        if not areas.any():
            return [0.0] * len(penalties)
        return [float(score) for score in iou.mean_iou(areas)]


def _discriminants(gram: Tensor, target: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """The solution [D + 1, C] for each l2, the bias last.

    From sums [D + 1, D + 1] and [D + 1, C] over standardised features and a one.
    """
    # the last row belongs to the one: pixels of each class, and of all
    counts = target[-1].round()
    pixels = gram[-1, -1].clamp(min=1)
    means = target[:-1] / counts.clamp(min=1)
    within = (gram[:-1, :-1] - (means * counts) @ means.T) / pixels
    shares = torch.where(counts > 0, (counts.clamp(min=1) / pixels).log(), NEVER)

    solutions = []
    for l2 in penalties:
        # positive definite by its penalty, so that Cholesky's factor exists
        loaded = within.clone()
        loaded.diagonal().add_(l2)
        weight = torch.cholesky_solve(means, torch.linalg.cholesky(loaded))
        bias = shares - (means * weight).sum(dim=0) / 2
        solutions.append(torch.cat([weight, bias[None]]))
    return solutions


def _soft_areas(guess: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """As metrics.areas, of cells that hold ``pixels`` [s, C] of each class: [3, C]."""
    guessed = np.eye(pixels.shape[1])[guess]
    intersection = (guessed * pixels).sum(axis=0)
    return np.stack([intersection, guessed.T @ pixels.sum(axis=1), pixels.sum(axis=0)])


def _half_pixel_products(layout: Layout, mask: np.ndarray) -> sparse.csr_array:
    """[n, n] that added to its transpose is U^T diag(valid) U, where U = rows (x) cols."""
    height, width = mask.shape
    gh, gw = layout.grid
    valid = (mask != ignore_of(mask)).astype(np.float64)
    above, below, down = _pairs(layout, height, 0)
    left, right, along = _pairs(layout, width, 1)
    products = along.T @ (down.T @ valid).T  # [pairs of columns, pairs of rows]

    # each unordered pair of cells once, and half of a cell with itself
    first = (above[None] * gw + left[:, None]).ravel()
    second = (below[None] * gw + right[:, None]).ravel()
    share = np.where(first < second, 1.0, np.where(first == second, 0.5, 0.0))
    half = share * products.ravel()
    kept = half != 0
    return sparse.csr_array((half[kept], (first[kept], second[kept])), shape=(gh * gw, gh * gw))


@lru_cache(maxsize=64)
def _pairs(layout: Layout, size: int, axis: int) -> tuple[np.ndarray, np.ndarray, sparse.csr_array]:
    """Cells i and k of one axis that share pixels, and the products of their weights.

    i and k are [P] and [P]; the products are taken at each of ``size`` pixels.
    """
    # pairs that share no pixel are left out: they are most of all pairs
    weights = (layout.rows if axis == 0 else layout.cols)(size).tocsc()
    first, second = (weights.T @ weights).nonzero()
    return first, second, sparse.csr_array(weights[:, first].multiply(weights[:, second]))
