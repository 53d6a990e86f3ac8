"""What is nothing that a class names: pixels whose confidence lies below a threshold, and how the threshold is chosen.

Flow: ``decided(logits, owner, scale, picture, H, W)`` -> the best class, the best of those with a name, and the confidence, of
each pixel; ``sweep.add(...)`` for each picture held out -> ``sweep.best()``; then ``confidence < threshold`` is background.

Shapes: H x W pixels, W words, C labels, of which 0 is the background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from silc_bench import metrics
from silc_bench.datasets import ignore_of
from silc_bench.windows import pixel_logits

if TYPE_CHECKING:
    from torch import Tensor

    from silc_bench.dense import DensePicture

BINS = 1000  # thresholds that are tried, evenly over the range of the confidence


def decided(
    logits: Callable[[Tensor], Tensor], owner: np.ndarray, scale: float | None, picture: DensePicture, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels, labels among 1..C-1, confidence fp32), each [height, width], of one picture.

    Args:
        logits: of cells [n, D], their cosines with each word [n, W].
        owner: [W] the label that each word stands for; at least one stands for another than 0.
        scale: the confidence is softmax(scale x cosine) over all words, at its largest; None: the largest cosine.
    """
    import torch

    label, named = np.empty((2, height, width), dtype=np.int64)
    confidence = np.empty((height, width), dtype=np.float32)
    is_named = torch.from_numpy(owner > 0)
    for rows, cols, tile in pixel_logits(logits, picture.grid, picture.layout, height, width):
        top, word = tile.max(dim=-1)
        label[rows, cols] = owner[word.numpy()]
        named[rows, cols] = owner[tile.masked_fill(~is_named, -torch.inf).argmax(dim=-1).numpy()]
        if scale is not None:
            top = (scale * top - torch.logsumexp(scale * tile, dim=-1)).exp()
        confidence[rows, cols] = top.numpy()
    return label, named, confidence


class Sweep:
    """mIoU, background included, at each of many thresholds in one pass: pixels are counted by their confidence."""

    def __init__(self, num_labels: int, low: float, high: float) -> None:
        self.num_labels, self.low, self.high = num_labels, low, high
        self._counts = np.zeros((3, BINS, num_labels), dtype=np.int64)  # right, predicted, true, of each confidence

    def add(self, label: np.ndarray, confidence: np.ndarray, mask: np.ndarray) -> None:
        """One picture's decisions [H, W] against its mask."""
        kept = mask != ignore_of(mask)
        label, truth = label[kept], mask[kept].astype(np.int64)
        place = (confidence[kept].astype(np.float64) - self.low) * (BINS / (self.high - self.low))
        place = np.clip(place.astype(np.int64), 0, BINS - 1) * self.num_labels
        for counts, index in zip(
            self._counts, (place[label == truth] + truth[label == truth], place + label, place + truth), strict=True
        ):
            counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)

    def scores(self) -> np.ndarray:
        """[BINS + 1] mIoU where what lies below low + k (high - low) / BINS is background."""
        right, predicted, true = self._counts
        above = np.zeros((2, BINS + 1, self.num_labels), dtype=np.int64)
        above[:, :-1] = np.stack([right, predicted])[:, ::-1].cumsum(axis=1)[:, ::-1]
        areas = np.stack([*above, np.broadcast_to(true.sum(axis=0), above[0].shape)], axis=1)
        below = np.zeros(BINS + 1, dtype=np.int64)
        below[1:] = true[:, 0].cumsum()
        areas[:, 0, 0] += below
        areas[:, 1, 0] = true.sum() - areas[:, 1, 1:].sum(axis=1)
        return metrics.mean_iou(areas)

    def best(self) -> tuple[float, float]:
        """The threshold of largest mIoU, and that mIoU; in the middle where neighbours share it."""
        scores = self.scores()
        first = int(scores.argmax())
        last = first
        while last < BINS and scores[last + 1] == scores[first]:
            last += 1
        step = (self.high - self.low) / BINS
        return self.low + (first + last) // 2 * step, float(scores[first])
