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

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from silc_bench.errors import UserError
from silc_bench.task import Features, Scores
from silc_bench.tasks.dense.scores import (
    CellsTask,
    ImageAreas,
    as_logits,
    constant_miou,
    is_labelled,
)

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset
    from silc_bench.models.windows import Logits

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SEED = 0
K = 30  # of the paper's retrieval, as open-hummingbird-eval reproduces it
TEMPERATURE = 0.02  # from there, too


@dataclass(kw_only=True, eq=False)
class LearnedSegmentation(CellsTask):
    needs: ClassVar = frozenset({"masks", "train"})

    def score(self, features: Features) -> Scores:
        from silc_bench.models.windows import predict

        train = features.data["train"]
        names = train.mask_names
        # one labelled image is enough to go on: the loop ends there
        if not any(is_labelled(train.mask(index)) for index in range(len(train))):
            raise UserError(
                f"none of the {len(train)} training masks has a pixel of a class",
                about=self.name,
                fix="look at the masks' values with `silc-bench data check`",
            )
        logits, details = self.learned(features, train)
        areas = ImageAreas(len(names))
        for grid, layout, mask in self.labelled(features, "test"):
            areas.add(predict(logits, grid, layout, *mask.shape), mask)
        return areas.scores(names, chance=constant_miou(areas.truth), details=details)

    @abstractmethod
    def learned(self, features: Features, train: ImageDataset) -> tuple[Logits, dict[str, Any]]:
        """Cells fp32 [n, D] -> logits [n, C], and what is to be said of the fit."""


@dataclass(kw_only=True, eq=False)
class LinearSegmentation(LearnedSegmentation):
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

    def learned(self, features: Features, train: ImageDataset) -> tuple[Logits, dict[str, Any]]:
        from silc_bench.probes.patch_discriminant import PixelSums

        # each fold leaves an image out: with a single one nothing would be left to learn from
        if len(train) < 2:
            raise UserError(
                f"needs two training images or more to choose its penalty, not {len(train)}",
                about=self.name,
                fix="add images, or leave the task out",
            )

        sums = PixelSums(len(train), len(train.mask_names), SEED, features.device)
        for grid, layout, mask in self.labelled(features, "train"):
            sums.add(grid, layout, mask)
        probe, details = sums.solve(PENALTIES)
        return as_logits(probe), details


@dataclass(kw_only=True, eq=False)
class KnnSegmentation(LearnedSegmentation):
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

    def learned(self, features: Features, train: ImageDataset) -> tuple[Logits, dict[str, Any]]:
        from silc_bench.probes.patch_knn import CellMemory

        memory = CellMemory(len(train), len(train.mask_names), SEED, features.device)
        for grid, layout, mask in self.labelled(features, "train"):
            memory.add(grid, layout, mask)
        return memory.voter(K, TEMPERATURE), {"patches": memory.num_cells}


@dataclass(kw_only=True, eq=False)
class SgdSegmentation(LearnedSegmentation):
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

    def learned(self, features: Features, train: ImageDataset) -> tuple[Logits, dict[str, Any]]:
        from silc_bench.probes import patch_sgd

        # a function, not an iterator: the probe goes over the images several times
        images = partial(self.labelled, features, "train")
        probe = patch_sgd.fit(images, len(train), len(train.mask_names), SEED, features.device)
        return as_logits(probe), {"steps": patch_sgd.num_steps(len(train))}
