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

from silc_bench.evaluation.prompts import Prompts, class_embeddings
from silc_bench.evaluation.protocols import NamedProtocol
from silc_bench.later import np
from silc_bench.metrics.accuracy import class_ranks, normalize
from silc_bench.task import Features, Scores
from silc_bench.tasks.classification.scores import classification_scores, labels_of
from silc_bench.tasks.sources import SourcedTask


@dataclass(kw_only=True, eq=False)
class ZeroShot(SourcedTask):
    needs: ClassVar = frozenset({"labels"})
    takes: ClassVar = ("prompts",)

    prompts: Prompts
    # 2: classes that are one text for the model are namesakes, not only equal letters
    version: int = 2
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

        texts = self.prompts.texts(test.class_names)
        names = same_classes(features, texts)
        ranks = ranks_among_namesakes(logits, labels, names)
        scores = classification_scores(
            ranks, labels, test.class_names, chance=1 / len(classes), details={}
        )
        return replace(scores, notes=namesake_notes(names, test.class_names))


def same_classes(features: Features, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """[C] of each class the first class whose prompts the model reads alike.

    OpenAI's names give two pairs of ImageNet classes one name each ("missile", "sunglasses"). For a
    model that reads lower case "Red" and "red" are one name, too, and so are names that differ
    behind its token limit. So tokens are compared, not letters.
    """
    flat = features.same_text([text for own in texts for text in own])
    ends = np.cumsum([len(own) for own in texts])
    first: dict[tuple[int, ...], int] = {}
    parts = np.split(flat, ends[:-1])
    return np.array([first.setdefault(tuple(own), place) for place, own in enumerate(parts)])


def namesake_notes(names: np.ndarray, class_names: Sequence[str]) -> tuple[str, ...]:
    """What to tell of classes that are one text for the model; nothing where there are none."""
    _, first, counts = np.unique(names, return_index=True, return_counts=True)
    if counts.max(initial=1) < 2:
        return ()
    place = int(first[counts > 1].min())
    other = int(np.flatnonzero(names == names[place])[1])
    total = int(counts[counts > 1].sum())
    return (
        f"{total} of {len(names)} classes are the same text for this model, first"
        f" {class_names[place]!r} and {class_names[other]!r}: the first of them is answered",
    )


def ranks_among_namesakes(logits: np.ndarray, labels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """`class_ranks` [N] where classes of one name stand in the order of their labels.

    ``names`` [C] are equal where the words are. Nothing that a model says tells such classes apart:
    counted as ties, none of their images could ever be right; an argmax answers with the first.
    """
    before = np.array(
        [np.count_nonzero(names[:number] == name) for number, name in enumerate(names)]
    )

    # namesakes are taken out of the ranking, then those before the right class are counted back in
    is_namesake = names[labels][:, None] == names[None]
    np.put_along_axis(is_namesake, labels[:, None], False, axis=1)
    return class_ranks(np.where(is_namesake, -np.inf, logits), labels) + before[labels]
