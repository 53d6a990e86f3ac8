"""What a segmentation scores, however it was predicted: areas of each picture -> mIoU and its company, beside their chance.

Flow: ``areas = PictureAreas(num_classes)``; for each picture ``areas.add(prediction, mask)``; ``areas.scores(names, chance)``.
Everything follows from areas summed over the whole split, never from averages of pictures: a class absent from truth and
prediction is not averaged. Standard errors are a bootstrap over pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from silc_bench import metrics, stats
from silc_bench.datasets import ignore_of
from silc_bench.registry import Scores

MEASURES = {
    "mIoU": metrics.mean_iou,
    "pixel_accuracy": metrics.pixel_accuracy,
    "mean_class_accuracy": metrics.mean_class_accuracy,
}


class PictureAreas:
    """Areas of each picture scored so far: in whole, and near the contours."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._areas: list[np.ndarray] = []
        self._boundary: list[np.ndarray] = []

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Classes [H, W] of one picture against its mask [H, W]."""
        self._areas.append(metrics.areas(prediction, mask, self.num_classes))
        self._boundary.append(metrics.boundary_areas(prediction, mask, self.num_classes))

    @property
    def truth(self) -> np.ndarray:
        """[C] true pixels of each class."""
        return np.sum(self._areas, axis=0)[2]

    @property
    def predicted(self) -> np.ndarray:
        """[C] predicted pixels of each class, of those that are scored."""
        return np.sum(self._areas, axis=0)[1]

    def scores(self, names: Sequence[str], chance: float, details: Mapping[str, Any] | None = None) -> Scores:
        areas, boundary = np.stack(self._areas), np.stack(self._boundary)
        total = areas.sum(axis=0)
        found = {name: (areas, measure) for name, measure in MEASURES.items()} | {"boundary_mIoU": (boundary, metrics.mean_iou)}
        iou = {
            name: None if np.isnan(value) else float(value) for name, value in zip(names, metrics.class_iou(total), strict=True)
        }
        return Scores(
            metrics={name: float(measure(counts.sum(axis=0))) for name, (counts, measure) in found.items()},
            stderr={name: stats.bootstrap_stderr(counts, measure) for name, (counts, measure) in found.items()},
            n=len(areas),
            chance=chance,
            details={"iou": iou, **(details or {})},
            outcomes={"areas": areas, "boundary_areas": boundary},
        )


def constant_miou(truth: np.ndarray) -> float:
    """mIoU of the most frequent class everywhere, which is what a probe learns from noise: true pixels [C] of each class."""
    guess = np.arange(len(truth)) == truth.argmax()
    return float(metrics.mean_iou(np.stack([truth * guess, truth.sum() * guess, truth])))


def shares_miou(truth: np.ndarray, shares: np.ndarray) -> float:
    """mIoU of guessing each class with its share [C] of all pixels, whatever they show: true pixels [C] of each class."""
    return float(metrics.mean_iou(np.stack([truth * shares, truth.sum() * shares, truth])))


def without_background(mask: np.ndarray) -> np.ndarray:
    """Mask value 0 is not scored; the first class becomes 0."""
    ignore = ignore_of(mask)
    return np.where((mask == 0) | (mask == ignore), ignore, mask - 1).astype(mask.dtype)
