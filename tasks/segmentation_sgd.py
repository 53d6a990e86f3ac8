"""Segmentation by the linear probe that others publish: batch norm and a 1x1 convolution, descended on cross-entropy.

The head and the schedule are DINOv2's (`silc_bench.dense_sgd` says what differs), on frozen patch features and at full
resolution. It takes minutes where the closed form of `tasks.segmentation_linear` takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from silc_bench.registry import Features, Scores, register
from tasks.dense import CellsTask, as_logits
from tasks.segmentation_scores import constant_miou
from tasks.sources import shapes

SEED = 0


@dataclass(kw_only=True, eq=False)
class SgdSegmentation(CellsTask):
    def protocol(self) -> dict[str, Any]:
        from silc_bench import dense_sgd as sgd

        return {
            **super().protocol(),
            "probe": "batch norm and 1x1 convolution, cross-entropy of bilinear logits at full resolution, no augmentation",
            "optimizer": {"name": "AdamW", "lr": sgd.LEARNING_RATE, "weight_decay": sgd.WEIGHT_DECAY, "betas": list(sgd.BETAS)},
            "schedule": f"linear to 0 after a linear warm-up of {sgd.WARMUP:.2%} of the steps",
            "batch": sgd.BATCH,
            "steps": f"{sgd.PASSES} passes, at least {sgd.MIN_STEPS} and at most {sgd.MAX_STEPS} steps",
            "seed": SEED,
        }

    def score(self, features: Features) -> Scores:
        from silc_bench import dense_sgd as sgd

        train = features.data["train"]
        num_classes = len(train.mask_names)
        probe = sgd.fit(partial(self.labelled, features, "train"), len(train), num_classes, SEED, features.device)
        areas = self.predicted(features, as_logits(probe), num_classes)
        details = {"steps": sgd.num_steps(len(train))}
        return areas.scores(train.mask_names, chance=constant_miou(areas.truth), details=details)


register(
    SgdSegmentation(name="shapes/segmentation_sgd", sources={"train": shapes("train", 1000), "test": shapes("test", 1000)})
)
