"""Segmentation by a linear probe of frozen patch features in closed form: one pass over the training pictures, then seconds.

The probe (`silc_bench.dense_ridge`) is fitted to masks at full resolution, and scored there. Its figures are its own: published
linear probes descend on cross-entropy, as `tasks.segmentation_sgd` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from silc_bench.errors import UserError
from silc_bench.registry import Features, Scores, register
from tasks.dense import CellsTask, as_logits
from tasks.segmentation_scores import constant_miou
from tasks.sources import shapes

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SEED = 0


@dataclass(kw_only=True, eq=False)
class LinearSegmentation(CellsTask):
    version: int = 3  # 3: a discriminant instead of regressed one-hots, its penalty chosen, seen through windows

    def protocol(self) -> dict[str, Any]:
        from silc_bench.dense_ridge import FOLDS, SAMPLE

        return {
            **super().protocol(),
            "probe": "linear discriminant of standardised, bilinearly up-sampled patch features, within-class covariance + l2",
            "l2": list(PENALTIES),
            "chosen_by": f"mIoU of up to {SAMPLE} training patches, {FOLDS} folds of pictures left out in turn",
            "seed": SEED,
        }

    def score(self, features: Features) -> Scores:
        from silc_bench.dense_ridge import PixelSums

        train = features.data["train"]
        if len(train) < 2:
            raise UserError(f"{self.name} needs two training pictures or more to choose its penalty, not {len(train)}")
        sums = PixelSums(len(train), len(train.mask_names), SEED, features.device)
        for grid, layout, mask in self.labelled(features, "train"):
            sums.add(grid, layout, mask)
        probe, details = sums.solve(PENALTIES)
        areas = self.predicted(features, as_logits(probe), len(train.mask_names))
        return areas.scores(train.mask_names, chance=constant_miou(areas.truth), details=details)


register(
    LinearSegmentation(
        name="shapes/segmentation_linear", sources={"train": shapes("train", 1000), "test": shapes("test", 1000)}
    )
)
