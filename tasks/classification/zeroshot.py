"""Zero-shot classification: the class whose prompts are nearest to the image by cosine.

Each class is the mean of its prompts.

Protocol of CLIP (Radford et al., 2021): a prompt a template and class, each embedding normalised,
averaged over the templates, normalised again (`silc_bench.evaluation.prompts` has the
alternatives). Nothing is learned and the scale and bias of the model's logits do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from silc_bench.evaluation.prompts import Prompts, class_embeddings
from silc_bench.evaluation.protocols import NamedProtocol
from silc_bench.metrics.accuracy import class_ranks, normalize
from silc_bench.task import Features, Scores
from silc_bench.tasks.classification.scores import classification_scores, labels_of
from silc_bench.tasks.sources import SourcedTask


@dataclass(kw_only=True, eq=False)
class ZeroShot(SourcedTask):
    needs: ClassVar = frozenset({"labels"})
    takes: ClassVar = ("prompts",)

    prompts: Prompts
    group: str = "zero-shot"
    main_metric: str = "acc1"
    requires: frozenset[str] = frozenset({"image", "text"})

    def under(self, protocol: NamedProtocol) -> Self:
        return self if protocol.prompts is None else replace(self, prompts=protocol.prompts)

    def protocol(self) -> dict[str, Any]:
        return self.prompts.protocol()

    def score(self, features: Features) -> Scores:
        test = features.data["test"]
        classes = class_embeddings(features, test.class_names, self.prompts)

        labels = labels_of(test)
        # cosines: the scale and the bias of the model's logits change no rank
        logits = normalize(features.image("test")) @ classes.T

        ranks = ranks_among_namesakes(logits, labels, self.prompts.texts(test.class_names))
        return classification_scores(
            ranks, labels, test.class_names, chance=1 / len(classes), details={}
        )


def ranks_among_namesakes(
    logits: np.ndarray, labels: np.ndarray, texts: Sequence[Sequence[str]]
) -> np.ndarray:
    """`class_ranks` [N] where classes of the same words stand in the order of their labels.

    ``texts`` are the words of each class.

    OpenAI's names give two pairs of ImageNet classes one name each ("missile", "sunglasses").
    Nothing that a model says tells them apart: counted as ties, none of their images could ever
    be right; an argmax answers with the first.
    """
    # each class bears the number of the first class of the same words
    first: dict[tuple[str, ...], int] = {}
    names = np.array([first.setdefault(tuple(own), number) for number, own in enumerate(texts)])
    before = np.array(
        [np.count_nonzero(names[:number] == name) for number, name in enumerate(names)]
    )

    # namesakes are taken out of the ranking, then those before the right class are counted back in
    is_namesake = names[labels][:, None] == names[None]
    np.put_along_axis(is_namesake, labels[:, None], False, axis=1)
    return class_ranks(np.where(is_namesake, -np.inf, logits), labels) + before[labels]
