"""Correspondence: does a patch of a class find that class among its nearest patches in another picture that holds it?

Each picture asks, for each of its classes but a background, the next picture that holds the class, in an order that only the
masks decide (`silc_bench.correspondence`). Recall at k is the mean over classes of the share of asking patches with a patch of
their class among the k nearest, everything else in that picture distracting. Chance is exact: k patches drawn from that
picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from silc_bench import metrics, stats
from silc_bench.errors import UserError
from silc_bench.registry import Features, Scores, register
from tasks.dense import CellsTask
from tasks.sources import shapes

KS = (1, 5)
MAX_PICTURES = 500  # whose patches are held at once


@dataclass(kw_only=True, eq=False)
class Correspondence(CellsTask):
    main_metric: str = "patch_recall@1"

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "k": list(KS),
            "patch": "class of most of its pixels",
            "pairs": "for each class but a background, the next picture that holds it, in the order of the masks' SHA-256",
            "pictures": f"the first {MAX_PICTURES} in that order",
            "scored": "mean over classes of the share of patches",
        }

    def score(self, features: Features) -> Scores:
        from silc_bench.correspondence import chance_at, partners, ranks

        cells, classes, order = self._chosen(features)
        num_classes, first = len(features.data["test"].mask_names), int(features.data["test"].has_background)
        counts = {k: np.zeros((len(cells), 2, num_classes), np.int64) for k in KS}
        chance = np.zeros(num_classes)
        for picture, asked in enumerate(partners(classes, order)):
            for index, other in asked.items():
                if index < first:
                    continue
                is_right, known = classes[other] == index, classes[other] >= 0
                queries = cells[picture][classes[picture] == index]
                found = ranks(queries, cells[other][known], is_right[known])
                for k in KS:
                    counts[k][picture, :, index] = np.sum(found < k), len(found)
                chance[index] += len(found) * chance_at(KS[0], int(is_right.sum()), int(known.sum()))
        num_asked = counts[KS[0]].sum(axis=0)[1]
        if not num_asked.any():
            raise UserError(f"{self.name}: no class occurs in two of the {len(cells)} pictures; leave it out, or raise --limit")
        kept = {f"patch_recall@{k}": counted for k, counted in counts.items()}
        return Scores(
            metrics={name: float(metrics.mean_class_rate(counted.sum(axis=0))) for name, counted in kept.items()},
            stderr={name: stats.bootstrap_stderr(counted, metrics.mean_class_rate) for name, counted in kept.items()},
            n=len(cells),
            chance=float(metrics.mean_class_rate(np.stack([chance, num_asked]))),
            details={"patches": int(num_asked.sum())},
            outcomes=dict(kept),
        )

    def _chosen(self, features: Features) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Cells fp16 [n, D] and their classes [n] of each picture that takes part, and the order of these pictures."""
        from silc_bench.correspondence import cell_classes, order_by_mask

        dataset = features.data["test"]
        order = order_by_mask(dataset.mask(index) for index in range(len(dataset)))[:MAX_PICTURES]
        chosen = set(order.tolist())
        cells: list[np.ndarray] = []
        classes: list[np.ndarray] = []
        places: dict[int, int] = {}
        for number, (grid, layout, mask) in enumerate(self.labelled(features, "test")):
            if number in chosen:
                places[number] = len(cells)
                cells.append(grid.reshape(-1, grid.shape[-1]).astype(np.float16))  # what they were rounded to
                classes.append(cell_classes(mask, layout))
        return cells, classes, np.array([places[number] for number in order.tolist()])


register(Correspondence(name="shapes/correspondence", sources={"test": shapes("test", 1000)}))
