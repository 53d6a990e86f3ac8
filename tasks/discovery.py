"""Object discovery: is the part of a picture that its patches alone set apart the part that is labelled an object?

Nothing is learned and no threshold chosen (`silc_bench.discovery`). The score is the mean over pictures of the IoU of the
found foreground with all labelled objects, as unsupervised saliency is scored (TokenCut, 2202.11539). Pictures without an
object, or without anything else, are left out. Chance is a foreground of the same size in each picture, laid down without
looking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from silc_bench import stats
from silc_bench.datasets import ignore_of
from silc_bench.errors import UserError
from silc_bench.registry import Features, Scores, register
from tasks.dense import CellsTask
from tasks.sources import shapes


@dataclass(kw_only=True, eq=False)
class Discovery(CellsTask):
    """Of data with a background: everything else is an object."""

    main_metric: str = "foreground_iou"

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "foreground": "smaller side of the Fiedler vector of the patches' positive cosines, cut at 0, then up-sampled",
            "scored": "mean over pictures with an object and a background of the foreground's IoU",
        }

    def score(self, features: Features) -> Scores:
        from silc_bench.discovery import foreground, placed_at_random

        assert features.data["test"].has_background, f"{self.name}: without a background there is no foreground"
        areas, chances = [], []
        for grid, layout, mask in self.labelled(features, "test"):
            valid = mask != ignore_of(mask)
            truth = mask[valid] > 0
            if not truth.any() or truth.all():
                continue
            guess = foreground(grid, layout, *mask.shape)[valid]
            areas.append([np.sum(truth & guess), np.sum(truth | guess)])
            chances.append(placed_at_random(guess, truth))
        if not areas:
            raise UserError(f"{self.name}: no picture has both an object and a background; leave it out, or raise --limit")
        counts = np.array(areas)
        iou = counts[:, 0] / counts[:, 1]
        return Scores(
            metrics={"foreground_iou": float(iou.mean())},
            stderr={"foreground_iou": stats.bootstrap_stderr(iou[:, None], lambda sums: sums[..., 0] / len(iou))},
            n=len(counts),
            chance=float(np.mean(chances)),
            outcomes={"foreground_areas": counts},
        )


register(Discovery(name="shapes/discovery", sources={"test": shapes("test", 1000)}))
