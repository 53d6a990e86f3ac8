"""Zero-shot classification: each class is the mean of its prompts, the nearest one to a picture by cosine is the answer.

Protocol of CLIP (Radford et al., 2021): a prompt a template and class, each embedding normalised, averaged over the
templates, normalised again. Nothing is learned and the scale and bias of the model's logits do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from silc_bench.metrics import class_ranks, normalize
from silc_bench.registry import Features, Scores, register
from tasks.classification import classification_scores, labels_of
from tasks.sources import SourcedTask, cifar100, openai_templates, own_templates, shapes


def class_embeddings(features: Features, class_names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """[C, D], each of unit length."""
    prompts = [template.format(c=name) for name in class_names for template in templates]
    embeddings = normalize(features.text(prompts)).reshape(len(class_names), len(templates), -1)
    return normalize(embeddings.mean(axis=1))


@dataclass(kw_only=True, eq=False)
class ZeroShot(SourcedTask):
    templates: tuple[str, ...]  # "{c}" stands for the class name
    version: int = 1
    group: str = "zero-shot"
    main_metric: str = "acc1"
    requires: frozenset[str] = frozenset({"image", "text"})

    def protocol(self) -> dict[str, Any]:
        return {"templates": list(self.templates), "ensemble": "normalised mean of normalised prompt embeddings"}

    def score(self, features: Features) -> Scores:
        test = features.data["test"]
        classes = class_embeddings(features, test.class_names, self.templates)
        labels = labels_of(test)
        ranks = class_ranks(normalize(features.image("test")) @ classes.T, labels)
        return classification_scores(ranks, labels, chance=1 / len(classes), details={})


register(ZeroShot(name="shapes/zeroshot", sources={"test": shapes("test", 1000)}, templates=own_templates("shapes")))
# colour and shape pairs that no training caption holds, to be told from all 64
register(ZeroShot(name="shapes/zeroshot_unseen", sources={"test": shapes("unseen", 1000)}, templates=own_templates("shapes")))
register(
    ZeroShot(
        name="cifar100/zeroshot",
        needs_data_root=True,
        sources={"test": cifar100("test")},
        templates=openai_templates("cifar100"),
    )
)
