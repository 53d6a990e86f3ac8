"""Nearest neighbours in the embedding space: what a model knows with nothing learned on top.

Source: DINO, appendix F.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from silc_bench.metrics import statistics
from silc_bench.metrics.accuracy import recall_at
from silc_bench.probes.closed_form import knn_ranks
from silc_bench.task import Features, Scores
from silc_bench.tasks.classification.scores import LearnedTask, frequency_chance, labels_of_both

KS = (1, 5, 10, 20)
TEMPERATURE = 0.07


@dataclass(kw_only=True, eq=False)
class Knn(LearnedTask):
    group: str = "knn"
    main_metric: str = "acc1_20nn"

    def protocol(self) -> dict[str, Any]:
        return {"k": list(KS), "vote": "exp(cosine / temperature)", "temperature": TEMPERATURE}

    def score(self, features: Features) -> Scores:
        train, labels, _ = labels_of_both(features)
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
