"""Image-text retrieval by cosine, both ways: from an image to captions, from a caption to images.

``text_retrieval_recall@k`` (image -> captions): is one of the image's own captions among the k
nearest. ``image_retrieval_recall@k`` (caption -> images): is an image with this caption among
the k nearest. Captions are compared by their words: one that describes several images is right
for each of them, and stands in the gallery once. Where no caption repeats, as nearly none does in
COCO, this is the protocol of CLIP and clip_benchmark.

The main metric is text retrieval at 1: an image tells its most detailed caption, while a short
caption ("a circle") fits more images than the ones it was written for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from silc_bench.metrics import accuracy as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.metrics.retrieval import retrieval_ranks
from silc_bench.task import Features, Scores
from silc_bench.tasks.sources import SourcedTask

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset

KS = (1, 5, 10)


@dataclass(kw_only=True, eq=False)
class Retrieval(SourcedTask):
    needs: ClassVar = frozenset({"captions"})

    # exact scores: before, two captions closer than fp32 can tell were ordered by chance
    version: int = 2
    group: str = "retrieval"
    main_metric: str = "text_retrieval_recall@1"
    requires: frozenset[str] = frozenset({"image", "text"})

    def protocol(self) -> dict[str, Any]:
        return {
            "k": list(KS),
            "recall": "any hit",
            "captions": "all of a picture; equal ones are one",
        }

    def score(self, features: Features) -> Scores:
        test = features.data["test"]
        images, texts, captions = captions_of(test)
        right = np.stack([images, texts], axis=1)  # [P, 2] which caption is right for which image
        text_ranks, image_ranks = retrieval_ranks(
            features.image("test"), features.text(captions), right
        )

        # ranked once for each distinct caption, but asked once for each caption of each image
        image_ranks = image_ranks[texts]

        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        ways = (
            ("text", text_ranks, np.arange(len(test))),
            ("image", image_ranks, images),
        )
        for way, ranks, asked_by in ways:
            for k in KS:
                values[f"{way}_retrieval_recall@{k}"] = metrics.recall_at(ranks, k)
                errors[f"{way}_retrieval_recall@{k}"] = _recall_stderr(ranks < k, asked_by)
            values[f"{way}_retrieval_median_rank"] = metrics.median_rank(ranks)

        # of the main metric: an image that draws one of the captions blindly
        chance = float(np.bincount(images).mean() / len(captions))
        return Scores(
            values,
            errors,
            n=len(test),
            chance=chance,
            details={"distinct_captions": len(captions)},
            outcomes={
                "text_retrieval_rank": text_ranks,
                "image_retrieval_rank": image_ranks,
                "image_retrieval_picture": images,
            },
        )


def captions_of(dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(image, index of its caption) for each caption of each image, and the distinct captions.

    The two are [P] and [P].
    """
    assert dataset.captions is not None, f"{dataset.name}/{dataset.split} has no captions"

    # a caption that an image has twice asks once
    pairs: list[tuple[int, str]] = []
    for image, own_captions in enumerate(dataset.captions):
        pairs += [(image, text) for text in dict.fromkeys(own_captions)]
    captions, texts = np.unique([text for _, text in pairs], return_inverse=True)
    return np.array([image for image, _ in pairs]), texts, captions.tolist()


def _recall_stderr(hits: np.ndarray, asked_by: np.ndarray) -> float:
    """Over the images that asked: the captions of one image are hit or missed together."""
    counts = np.stack([np.bincount(asked_by, weights=hits), np.bincount(asked_by)], axis=1)
    return stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1])
