"""Segmentation by the nearest training patches, which vote with their own pixels' classes (Balazevic et al., 2306.01667)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from silc_bench.registry import Features, Scores, register
from tasks.dense import CellsTask
from tasks.segmentation_scores import constant_miou
from tasks.sources import shapes

K, TEMPERATURE = 30, 0.02  # of the paper's retrieval, as open-hummingbird-eval reproduces it
SEED = 0


@dataclass(kw_only=True, eq=False)
class KnnSegmentation(CellsTask):
    def protocol(self) -> dict[str, Any]:
        from silc_bench.dense_knn import MAX_CELLS

        return {
            **super().protocol(),
            "k": K,
            "vote": "shares of the mask's classes in the patch, weighing softmax(cosine / temperature), up-sampled bilinearly",
            "temperature": TEMPERATURE,
            "memory": f"at most {MAX_CELLS} training patches, evenly many a picture, drawn by the seed",
            "seed": SEED,
        }

    def score(self, features: Features) -> Scores:
        from silc_bench.dense_knn import CellMemory

        train = features.data["train"]
        num_classes = len(train.mask_names)
        memory = CellMemory(len(train), num_classes, SEED, features.device)
        for grid, layout, mask in self.labelled(features, "train"):
            memory.add(grid, layout, mask)
        areas = self.predicted(features, memory.voter(K, TEMPERATURE), num_classes)
        return areas.scores(train.mask_names, chance=constant_miou(areas.truth), details={"patches": memory.num_cells})


register(
    KnnSegmentation(name="shapes/segmentation_knn", sources={"train": shapes("train", 1000), "test": shapes("test", 1000)})
)
