"""Nearest neighbours in the embedding space: what a model knows with nothing learned on top.

Source: DINO, appendix F.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from silc_bench.errors import UserError
from silc_bench.metrics import statistics
from silc_bench.metrics.accuracy import recall_at
from silc_bench.probes.closed_form import knn_ranks
from silc_bench.task import Features, Scores
from silc_bench.tasks.classification.scores import LearnedTask, frequency_chance, labels_of_both
from silc_bench.tasks.sources import OwnSource

KS = (1, 5, 10, 20)
TEMPERATURE = 0.07


@dataclass(kw_only=True, eq=False)
class Knn(LearnedTask):
    # 2: refuses fewer training images than the largest k, which was then a smaller k unsaid
    version: int = 2
    group: str = "knn"
    main_metric: str = "acc1_20nn"

    def shortage(self) -> str | None:
        """Of the user's own data; the size of a named set is known."""
        source = self.sources["train"]
        return too_few(len(source(None, None))) if isinstance(source, OwnSource) else None

    def protocol(self) -> dict[str, Any]:
        return {"k": list(KS), "vote": "exp(cosine / temperature)", "temperature": TEMPERATURE}

    def score(self, features: Features) -> Scores:
        train, labels, _ = labels_of_both(features)
        reason = too_few(len(train))
        if reason is not None:
            raise UserError(reason, about=self.name, fix="add images, or leave the task out")
        by_k = knn_ranks(
            features.image("train"), train, features.image("test"), labels, KS, TEMPERATURE
        )

        # chance follows the frequencies: a neighbour drawn blindly votes for a frequent class
        hits = {f"acc1_{k}nn": ranks < 1 for k, ranks in by_k.items()}
        return Scores(
            metrics={f"acc1_{k}nn": recall_at(ranks, 1) for k, ranks in by_k.items()},
            stderr={name: statistics.accuracy_stderr(hit) for name, hit in hits.items()},
            n=len(labels),
            chance=frequency_chance(train, labels),
            outcomes=dict(hits),
        )


def too_few(num_images: int) -> str | None:
    """Why so many training images give no vote of the main metric's neighbours; None: they do."""
    if num_images >= KS[-1]:
        return None
    return f"{KS[-1]} neighbours are asked, and there are {num_images} training images"
