"""Segmentation by probes that learn from frozen patch features and the masks of a train split.

- ``LinearSegmentation``: a linear discriminant in closed form
  (`silc_bench.probes.patch_discriminant`): one pass over the training images, then seconds. It is
  fitted to masks at full resolution, and scored there. Its figures are its own: published linear
  probes descend on cross-entropy.
- ``SgdSegmentation``: the linear probe that others publish, batch norm and a 1x1 convolution. Head
  and schedule are DINOv2's (`silc_bench.probes.patch_sgd` says what differs), at full resolution.
  It takes minutes where the closed form takes seconds.
- ``KnnSegmentation``: the nearest training patches vote with their own pixels' classes (Balazevic
  et al., 2306.01667).

The probes are imported where they are used: they bring torch, and a listing of tasks must not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from silc_bench.errors import UserError
from silc_bench.task import Features, Scores, register
from silc_bench.tasks.dense.scores import CellsTask, as_logits, constant_miou
from silc_bench.tasks.sources import shapes

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SEED = 0
K = 30  # of the paper's retrieval, as open-hummingbird-eval reproduces it
TEMPERATURE = 0.02  # from there, too


@dataclass(kw_only=True, eq=False)
class LinearSegmentation(CellsTask):
    # 3: a discriminant instead of regressed one-hots, its penalty chosen, seen through windows
    version: int = 3

    def protocol(self) -> dict[str, Any]:
        from silc_bench.probes.patch_discriminant import FOLDS, SAMPLE

        return {
            **super().protocol(),
            "probe": "linear discriminant of standardised, bilinearly up-sampled patch features,"
            " within-class covariance + l2",
            "l2": list(PENALTIES),
            "chosen_by": f"mIoU of up to {SAMPLE} training patches,"
            f" {FOLDS} folds of pictures left out in turn",
            "seed": SEED,
        }

    def score(self, features: Features) -> Scores:
        from silc_bench.probes.patch_discriminant import PixelSums

        train = features.data["train"]
        # each fold leaves an image out: with a single one nothing would be left to learn from
        if len(train) < 2:
            raise UserError(
                f"{self.name} needs two training pictures or more to choose its penalty,"
                f" not {len(train)}"
            )

        sums = PixelSums(len(train), len(train.mask_names), SEED, features.device)
        for grid, layout, mask in self.labelled(features, "train"):
            sums.add(grid, layout, mask)
        probe, details = sums.solve(PENALTIES)

        areas = self.predicted(features, as_logits(probe), len(train.mask_names))
        return areas.scores(train.mask_names, chance=constant_miou(areas.truth), details=details)


@dataclass(kw_only=True, eq=False)
class KnnSegmentation(CellsTask):
    def protocol(self) -> dict[str, Any]:
        from silc_bench.probes.patch_knn import MAX_CELLS

        return {
            **super().protocol(),
            "k": K,
            "vote": "shares of the mask's classes in the patch,"
            " weighing softmax(cosine / temperature), up-sampled bilinearly",
            "temperature": TEMPERATURE,
            "memory": f"at most {MAX_CELLS} training patches,"
            " evenly many a picture, drawn by the seed",
            "seed": SEED,
        }

    def score(self, features: Features) -> Scores:
        from silc_bench.probes.patch_knn import CellMemory

        train = features.data["train"]
        num_classes = len(train.mask_names)

        memory = CellMemory(len(train), num_classes, SEED, features.device)
        for grid, layout, mask in self.labelled(features, "train"):
            memory.add(grid, layout, mask)

        areas = self.predicted(features, memory.voter(K, TEMPERATURE), num_classes)
        details = {"patches": memory.num_cells}
        return areas.scores(train.mask_names, chance=constant_miou(areas.truth), details=details)


@dataclass(kw_only=True, eq=False)
class SgdSegmentation(CellsTask):
    def protocol(self) -> dict[str, Any]:
        from silc_bench.probes import patch_sgd

        return {
            **super().protocol(),
            "probe": "batch norm and 1x1 convolution, cross-entropy of bilinear logits"
            " at full resolution, no augmentation",
            "optimizer": {
                "name": "AdamW",
                "lr": patch_sgd.LEARNING_RATE,
                "weight_decay": patch_sgd.WEIGHT_DECAY,
                "betas": list(patch_sgd.BETAS),
            },
            "schedule": "linear to 0 after a linear warm-up"
            f" of {patch_sgd.WARMUP:.2%} of the steps",
            "batch": patch_sgd.BATCH,
            "steps": f"{patch_sgd.PASSES} passes, at least {patch_sgd.MIN_STEPS}"
            f" and at most {patch_sgd.MAX_STEPS} steps",
            "seed": SEED,
        }

    def score(self, features: Features) -> Scores:
        from silc_bench.probes import patch_sgd

        train = features.data["train"]
        num_classes = len(train.mask_names)

        # a function, not an iterator: the probe goes over the images several times
        images = partial(self.labelled, features, "train")
        probe = patch_sgd.fit(images, len(train), num_classes, SEED, features.device)

        areas = self.predicted(features, as_logits(probe), num_classes)
        details = {"steps": patch_sgd.num_steps(len(train))}
        return areas.scores(train.mask_names, chance=constant_miou(areas.truth), details=details)


SHAPES = {"train": shapes("train", 1000), "test": shapes("test", 1000)}
register(LinearSegmentation(name="shapes/segmentation_linear", sources=SHAPES))
register(KnnSegmentation(name="shapes/segmentation_knn", sources=SHAPES))
register(SgdSegmentation(name="shapes/segmentation_sgd", sources=SHAPES))
