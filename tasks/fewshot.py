"""Few-shot classification: ridge regression in closed form on 1, 5 and 10 frozen embeddings a class, for three draws.

Protocol of big_vision's ``fewshot_lsr`` (see `silc_bench.probes.ridge`), which published 10-shot numbers use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from silc_bench import stats
from silc_bench.metrics import class_ranks
from silc_bench.probes import BIAS_COLUMN, STD_EPSILON, ridge, shot_indices
from silc_bench.registry import Features, Scores, register
from tasks.classification import labels_of, uniform_chance
from tasks.sources import SourcedTask, cifar100, shapes

SHOTS = (1, 5, 10)
SEEDS = (0, 1, 2)
L2 = 1024.0


@dataclass(kw_only=True, eq=False)
class FewShot(SourcedTask):
    version: int = 1
    group: str = "few-shot"
    main_metric: str = "acc1_10shot"
    requires: frozenset[str] = frozenset({"image"})

    def protocol(self) -> dict[str, Any]:
        return {
            "probe": "ridge on standardised pooled embeddings, targets +1 and -1",
            "shots": list(SHOTS),
            "seeds": list(SEEDS),
            "l2": L2,
            "bias_column": BIAS_COLUMN,
            "std_epsilon": STD_EPSILON,
        }

    def score(self, features: Features) -> Scores:
        train, labels = labels_of(features.data["train"]), labels_of(features.data["test"])
        num_classes = len(features.data["train"].class_names)
        metrics, stderr, by_seed, outcomes = {}, {}, {}, {}
        for shots in SHOTS:
            hits = np.stack([self._hits(features, train, labels, num_classes, shots, seed) for seed in SEEDS])
            name = f"acc1_{shots}shot"
            metrics[name] = float(hits.mean())
            stderr[name] = stats.seeds_stderr(hits)
            by_seed[name] = hits.mean(axis=1).tolist()
            outcomes[name] = hits.T
        counts = np.bincount(train, minlength=num_classes)
        details = {
            "by_seed": by_seed,
            "std_over_seeds": {name: float(np.std(values, ddof=1)) for name, values in by_seed.items()},
            # a limit can leave fewer pictures than shots, and classes without any
            "fewest_pictures_of_a_class": int(counts[counts > 0].min()),
            "classes_without_pictures": int((counts == 0).sum()),
        }
        chance = uniform_chance(train, labels)
        return Scores(metrics, stderr, n=len(labels), chance=chance, details=details, outcomes=outcomes)

    def _hits(
        self, features: Features, train: np.ndarray, labels: np.ndarray, num_classes: int, shots: int, seed: int
    ) -> np.ndarray:
        chosen = shot_indices(train, shots, seed, num_classes)
        probe = ridge(features.image("train")[chosen], train[chosen], num_classes, L2)
        return class_ranks(probe(features.image("test")), labels) < 1


register(FewShot(name="shapes/fewshot", sources={"train": shapes("train", 2000), "test": shapes("test", 1000)}))
register(FewShot(name="cifar100/fewshot", needs_data_root=True, sources={"train": cifar100("train"), "test": cifar100("test")}))
