"""Image-text retrieval by cosine, both ways: from an image to captions, from a caption to images.

``text_retrieval_recall@k`` (image -> captions): is one of the image's own captions among the k
nearest. ``image_retrieval_recall@k`` (caption -> images): is an image with this caption among
the k nearest. Captions that the model reads alike are one: it is right for each image that has it,
and stands in the gallery once. So are images with the same pixels: such an image has the captions
of all its copies. Where nothing repeats, as nearly nothing does in COCO, this is the protocol of
CLIP and clip_benchmark.

The main metric is text retrieval at 1: an image tells its most detailed caption, while a short
caption ("a circle") fits more images than the ones it was written for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from silc_bench.later import np
from silc_bench.metrics import accuracy as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.metrics.retrieval import retrieval_ranks
from silc_bench.task import Features, Scores
from silc_bench.tasks.sources import SourcedTask

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset

KS = (1, 5, 10)
SAME_SUM = 1e-4  # equal pixels in two batches differ by round-off only, below this


@dataclass(kw_only=True, eq=False)
class Retrieval(SourcedTask):
    needs: ClassVar = frozenset({"captions"})

    # 3: repeated images, and captions that are one text for the model, count as one; 2: exact
    # scores, before which two captions closer than fp32 can tell were ordered by chance
    version: int = 3
    group: str = "retrieval"
    main_metric: str = "text_retrieval_recall@1"
    requires: frozenset[str] = frozenset({"image", "text"})

    def protocol(self) -> dict[str, Any]:
        return {
            "k": list(KS),
            "recall": "any hit",
            "pictures": "those with equal pixels are one",
            "captions": "all of a picture; those that a model reads alike are one",
        }

    def score(self, features: Features) -> Scores:
        test = features.data["test"]
        images, texts, captions = captions_of(test)
        embedded = features.image("test")

        # what repeats stands in the gallery once, and is right for all that have it
        first_image = same_images(test, embedded)
        first_text = features.same_text(captions)
        kept_images, image_place = np.unique(first_image, return_inverse=True)
        kept_texts, text_place = np.unique(first_text, return_inverse=True)
        right = np.stack([image_place[images], text_place[texts]], axis=1)  # [P, 2]
        text_ranks, image_ranks = retrieval_ranks(
            embedded[kept_images],
            features.text([captions[place] for place in kept_texts]),
            np.unique(right, axis=0),
        )

        # ranked once for each distinct one, but asked once for each image, and for each of its
        # captions
        text_ranks = text_ranks[image_place]
        image_ranks = image_ranks[text_place[texts]]

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
        num_right = np.bincount(np.unique(right, axis=0)[:, 0])[image_place]
        chance = float(num_right.mean() / len(kept_texts))
        notes: list[str] = []
        if len(kept_images) < len(test):
            notes.append(
                f"{len(test) - len(kept_images)} of {len(test)} images repeat another one, first"
                f" image {int(np.flatnonzero(first_image != np.arange(len(test)))[0])}:"
                " copies share their captions"
            )
        if len(kept_texts) < len(captions):
            place = int(np.flatnonzero(first_text != np.arange(len(captions)))[0])
            notes.append(
                f"{len(captions) - len(kept_texts)} of {len(captions)} captions are the same text"
                f" for this model as another one, first {captions[place]!r:.80}: they count as one"
            )
        return Scores(
            values,
            errors,
            n=len(test),
            chance=chance,
            details={"distinct_captions": len(kept_texts), "distinct_images": len(kept_images)},
            notes=tuple(notes),
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

    # numbered by a dict: an array of texts is as wide as the longest one, times their number
    images: list[int] = []
    texts: list[int] = []
    number: dict[str, int] = {}
    for image, own_captions in enumerate(dataset.captions):
        # a caption that an image has twice asks once
        for text in dict.fromkeys(own_captions):
            images.append(image)
            texts.append(number.setdefault(text, len(number)))
    return np.array(images), np.array(texts), list(number)


def same_images(dataset: ImageDataset, embedded: np.ndarray) -> np.ndarray:
    """[N] of each image the first one with the same pixels.

    Only images whose embeddings [N, D] nearly agree are opened and compared.
    """
    first = np.arange(len(embedded))
    unit = metrics.normalize(embedded.astype(np.float64))

    # equal rows have equal sums: neighbours in this order are the candidates
    sums = unit @ np.random.default_rng(0).standard_normal(unit.shape[1])
    order = np.lexsort((np.arange(len(sums)), sums))
    pixels: dict[int, bytes] = {}

    def content(index: int) -> bytes:
        if index not in pixels:
            image = dataset.image(index)
            pixels[index] = f"{image.mode}{image.size}".encode() + image.tobytes()
        return pixels[index]

    for place, index in enumerate(order):
        for other in order[place + 1 :]:
            if sums[other] - sums[index] > SAME_SUM:
                break
            near = np.abs(unit[other] - unit[index]).max() < SAME_SUM
            if near and content(int(other)) == content(int(index)):
                joined = min(first[index], first[other])
                first[first == first[other]] = joined
                first[first == first[index]] = joined
        pixels.pop(int(index), None)
    return first


def _recall_stderr(hits: np.ndarray, asked_by: np.ndarray) -> float:
    """Over the images that asked: the captions of one image are hit or missed together."""
    counts = np.stack([np.bincount(asked_by, weights=hits), np.bincount(asked_by)], axis=1)
    return stats.bootstrap_stderr(counts, lambda sums: sums[:, 0] / sums[:, 1])
