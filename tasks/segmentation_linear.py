"""Segmentation by a linear probe of frozen patch features, solved in closed form (`silc_bench.probes.segmentation_ridge`).

The probe is fitted to masks at full resolution, and scored there: patch logits are up-sampled bilinearly. The features must
cover the whole picture: preprocessing may squash it, not crop it. It is not the descended cross-entropy probe of other
papers: compare it with itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from silc_bench.probes import segmentation_ridge
from silc_bench.registry import Features, Scores, register
from tasks.segmentation import predicted_areas, with_masks
from tasks.segmentation_scores import constant_miou
from tasks.sources import SourcedTask, shapes

L2 = 1e-4


@dataclass(kw_only=True, eq=False)
class LinearSegmentation(SourcedTask):
    version: int = 2  # 2: with boundary_mIoU
    group: str = "dense"
    main_metric: str = "mIoU"
    requires: frozenset[str] = frozenset({"dense"})

    def protocol(self) -> dict[str, Any]:
        return {"probe": "ridge on batch-normalised patch features, bilinear logits at full resolution", "l2": L2}

    def score(self, features: Features) -> Scores:
        train, test = features.data["train"], features.data["test"]
        names = train.mask_names
        probe = segmentation_ridge(with_masks(features.dense("train", joint=False), train), len(names), L2)
        areas = predicted_areas(features.dense("test", joint=False), test, probe, len(names), lambda mask: mask)
        return areas.scores(names, chance=constant_miou(areas.truth))


register(
    LinearSegmentation(
        name="shapes/segmentation_linear", sources={"train": shapes("train", 1000), "test": shapes("test", 1000)}
    )
)
