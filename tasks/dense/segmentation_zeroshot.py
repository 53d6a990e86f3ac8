"""Zero-shot segmentation: the cosine of each patch with the words of each class.

Flow: ``features.grids`` in the view and by the method of the task's rule -> cosines with the
prompts of each word -> the best word of each pixel, by bilinear up-sampling of each window and the
mean over windows (silc_bench.models.windows) -> areas -> mIoU.

A class may have several words; the best of them counts, as in SCLIP. What a set calls background is
either not scored (``scores_background=False``: pixels of label 0 count nowhere, and "mIoU" is over
the classes), or it is predicted where the confidence lies below a threshold: "mIoU" then counts it
as a class, and "mIoU_foreground", which needs no threshold, stands beside it.

A threshold that the rule does not fix is swept on images that are not scored: ``SWEPT`` of the
train split where there is one, else every ``HELD_OUT``-th of the test split. ``decided(logits,
owner, scale, image, H, W)`` gives the best class, the best of those with a name, and the confidence
of each pixel; ``sweep.add(...)`` for each image held out -> ``sweep.best()``; then ``confidence <
threshold`` is background.

Chance is exact for a model whose features know nothing of the image: each word is then the best
as often as each other one.

Shapes: n cells of an image, D features, H x W pixels, W words, C labels, of which 0 is the
background.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from silc_bench.datasets.dataset import ignore_of
from silc_bench.errors import UserError
from silc_bench.evaluation.prompts import Prompts, class_embeddings, class_words
from silc_bench.evaluation.protocols import NamedProtocol, Rule, rule_of
from silc_bench.later import np
from silc_bench.metrics import iou
from silc_bench.models.windows import View, pixel_logits, predict
from silc_bench.task import Features, Scores
from silc_bench.tasks.dense.scores import ImageAreas, shares_miou, without_background
from silc_bench.tasks.sources import SourcedTask, is_there

if TYPE_CHECKING:
    from torch import Tensor

    from silc_bench.datasets.dataset import ImageDataset
    from silc_bench.models.windows import DenseImage

SWEPT = 200  # training images, evenly spread, that choose a threshold
HELD_OUT = 10
Decision: TypeAlias = "tuple[np.ndarray, np.ndarray, np.ndarray]"  # see ``decided``
BINS = 1000  # thresholds that are tried, evenly over the range of the confidence


@dataclass(kw_only=True, eq=False)
class ZeroShotSegmentation(SourcedTask):
    needs: ClassVar = frozenset({"masks"})
    # a train split is no need: where there is one, a background's threshold is chosen on it
    takes: ClassVar = ("sources", "prompts", "words", "scores_background")

    prompts: Prompts
    rule: Rule = field(default_factory=lambda: Rule("native"))
    scores_background: bool = True  # of a set that has one
    # of each label, whatever the protocol; None: the protocol's for the set
    words: tuple[tuple[str, ...], ...] | None = None
    # 4: a single word is judged by its cosine, and the sweep counts the highest confidence as the
    # score does; 3: windows over the image in its own shape; 2: with boundary_mIoU
    version: int = 4
    group: str = "dense"
    main_metric: str = "mIoU"
    requires: frozenset[str] = frozenset({"dense", "text"})

    @property
    def view(self) -> View | None:
        return self.rule.view

    def under(self, protocol: NamedProtocol) -> Self:
        rule = self.rule
        prompts = self.prompts
        if protocol.segmentation is not None:
            rule = rule_of(protocol.segmentation, self.name.partition("/")[0])
            # prompts that the user names beat those that the paper of the rule used
            prompts = protocol.prompts or rule.prompts or prompts
        rule = replace(rule, method=protocol.dense_method or rule.method)
        return replace(self, rule=rule, prompts=prompts)

    def dense_needs(self) -> Mapping[str, tuple[str, ...]]:
        return {"test": (self.rule.method,)}

    def is_there(self, data_root: Path | None) -> bool:
        """Of the scored split alone: a train split only serves to choose a threshold."""
        return is_there(self.sources["test"], data_root)

    def load(self, data_root: Path | None, limit: int | None) -> dict[str, ImageDataset]:
        """The train split too, where a threshold is swept on it."""
        data = {"test": self.sources["test"](data_root, limit)}
        source = self.sources.get("train")

        # a train split that is not there is no error: the test split then gives images to sweep on
        if source is not None and self._is_swept(data["test"]) and is_there(source, data_root):
            num_swept = SWEPT if limit is None else min(limit, SWEPT)
            data["train"] = source(data_root, num_swept)
        return data

    def protocol(self) -> dict[str, Any]:
        stated = {**self.prompts.protocol(), **self.rule.as_dict()}
        if not self.scores_background:
            stated["background_if"] = "never: its pixels are not scored"

        if self.words is not None:
            stated["words"] = [list(own) for own in self.words]
        words = self._words_of(self.name.partition("/")[0])
        if words is not None:
            stated["words_sha256"] = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
        return stated

    def score(self, features: Features) -> Scores:
        test = features.data["test"]
        if test.has_background and self.scores_background:
            return self._with_background(features)

        # a background that is not scored is cut off everywhere: of names, words and mask
        names = test.mask_names
        words = self._words(test)
        if test.has_background:
            names = names[1:]
            words = words[1:]
        logits, owner = self._asked(features, words)

        areas = ImageAreas(len(names))
        for image in features.grids("test", self.view, self.rule.method):
            mask = test.mask(image.index)
            best_word = predict(logits, image.grid, image.layout, *mask.shape)
            if test.has_background:
                mask = without_background(mask)
            areas.add(owner[best_word], mask)
        return areas.scores(names, chance=shares_miou(areas.truth, np.bincount(owner) / len(owner)))

    def _with_background(self, features: Features) -> Scores:
        test = features.data["test"]
        words = self._words(test)
        # a background without words of its own has no cosine: it is what lies below the threshold
        if not self.rule.has_background_words:
            words = [(), *words[1:]]
        logits, owner = self._asked(features, words)

        # a softmax over one word is 1 everywhere and parts nothing: then the cosine itself does
        scale = self.rule.scale if len(owner) > 1 else None
        notes: list[str] = []
        if scale is None and self.rule.scale is not None:
            notes.append(
                "one word is asked: the confidence is its cosine, for a softmax over it is always 1"
            )

        def decide(role: str) -> Iterator[tuple[DenseImage, np.ndarray, Decision]]:
            for image in features.grids(role, self.view, self.rule.method):
                mask = features.data[role].mask(image.index)
                yield image, mask, decided(logits, owner, scale, image, *mask.shape)

        threshold = self.rule.threshold
        threshold_details: dict[str, Any] = {}
        lowest = -1.0 if scale is None else 0.0  # of a cosine, of a probability
        sweep = Sweep(len(test.mask_names), lowest, 1.0)

        # chosen on images that are not scored: a threshold that has seen them would fit them
        is_held_out = self._is_swept(test) and "train" not in features.data
        if is_held_out and len(test) < 2:
            raise UserError(
                "one image leaves none to choose the threshold of the background on",
                about=self.name,
                fix="give more images",
            )
        if self._is_swept(test):
            swept_role = "test" if is_held_out else "train"
            for image, mask, (label, _, confidence) in decide(swept_role):
                if not is_held_out or image.index % HELD_OUT == 0:
                    sweep.add(label, confidence, mask)
            threshold, reached = sweep.best()
            source = f"every {HELD_OUT}th test picture, which is not scored"
            if not is_held_out:
                source = f"{len(features.data['train'])} pictures of train"
            threshold_details = {"threshold_from": source, "threshold_mIoU": reached}
        assert threshold is not None

        whole = ImageAreas(len(test.mask_names))
        named = ImageAreas(len(test.mask_names) - 1)
        for image, mask, (label, best_named, confidence) in decide("test"):
            if not is_held_out or image.index % HELD_OUT != 0:
                whole.add(np.where(confidence < threshold, 0, label), mask)
                named.add(best_named - 1, without_background(mask))

        # what features that know nothing predict: each named label as often as it has words, and
        # background as often as it was predicted
        per_label = np.bincount(owner, minlength=len(test.mask_names))[1:].astype(float)
        background = whole.predicted[0] / max(1, whole.predicted.sum())  # none: refused below
        shares = np.append(background, (1 - background) * per_label / per_label.sum())
        scores = whole.scores(test.mask_names, chance=shares_miou(whole.truth, shares))

        foreground_chance = shares_miou(named.truth, per_label / per_label.sum())
        foreground = named.scores(test.mask_names[1:], chance=foreground_chance)
        scores.metrics["mIoU_foreground"] = foreground.metrics["mIoU"]
        scores.stderr["mIoU_foreground"] = foreground.stderr["mIoU"]
        scores.outcomes["named_areas"] = foreground.outcomes["areas"]
        scores.details.update(
            {"threshold": threshold, **threshold_details},
            iou_foreground=foreground.details["iou"],
            chance_foreground=foreground_chance,
        )
        return replace(scores, notes=tuple(notes))

    def _is_swept(self, test: ImageDataset) -> bool:
        """Whether the background needs a threshold that the rule does not fix."""
        return test.has_background and self.scores_background and self.rule.threshold is None

    def _words(self, dataset: ImageDataset) -> list[tuple[str, ...]]:
        """The words of each label."""
        words = self._words_of(dataset.name)
        if words is None:
            return [(name,) for name in dataset.mask_names]
        assert len(words) == len(dataset.mask_names), (dataset.name, self.rule.protocol)
        return list(words)

    def _words_of(self, dataset: str) -> tuple[tuple[str, ...], ...] | None:
        """The task's own words, or the protocol's for a named set; None: the set's names.

        The user's own data of the same name is no named set.
        """
        if self.words is not None:
            return self.words
        # prompts per class name the classes themselves: other words would not be found among them
        is_named_set = self.needs_data_root and self.prompts.per_class is None
        return class_words(dataset, self.rule.protocol) if is_named_set else None

    def _asked(
        self, features: Features, words: list[tuple[str, ...]]
    ) -> tuple[Callable[[Tensor], Tensor], np.ndarray]:
        """Cells [n, D] -> cosines [n, W], and the place in ``words`` that each W belongs to."""
        from silc_bench.evaluation.dense_features import cosines_with

        owner = np.repeat(np.arange(len(words)), [len(own) for own in words])
        all_words = [word for own in words for word in own]
        asked = class_embeddings(features, all_words, self.prompts)
        return cosines_with(asked), owner


def decided(
    logits: Callable[[Tensor], Tensor],
    owner: np.ndarray,
    scale: float | None,
    image: DenseImage,
    height: int,
    width: int,
) -> Decision:
    """(labels, labels among 1..C-1, confidence fp32), each [height, width], of one image.

    Args:
        logits: of cells [n, D], their cosines with each word [n, W].
        owner: [W] the label that each word stands for; at least one stands for another than 0.
        scale: the confidence is softmax(scale x cosine) over all words, at its largest; None: the
            largest cosine.
    """
    import torch

    label, named = np.empty((2, height, width), dtype=np.int64)
    confidence = np.empty((height, width), dtype=np.float32)
    is_named = torch.from_numpy(owner > 0)

    # in tiles: cosines of every pixel with every word would not fit into memory
    for rows, cols, tile in pixel_logits(logits, image.grid, image.layout, height, width):
        top, word = tile.max(dim=-1)
        label[rows, cols] = owner[word.numpy()]
        best_named = tile.masked_fill(~is_named, -torch.inf).argmax(dim=-1)
        named[rows, cols] = owner[best_named.numpy()]
        if scale is not None:
            # softmax at the best word, by logarithms, so that no scale overflows
            top = (scale * top - torch.logsumexp(scale * tile, dim=-1)).exp()
        confidence[rows, cols] = top.numpy()
    return label, named, confidence


class Sweep:
    """mIoU, background included, at each of many thresholds in one pass.

    Pixels are counted by their confidence.
    """

    def __init__(self, num_labels: int, low: float, high: float) -> None:
        self.num_labels = num_labels
        self.low = low
        self.high = high
        # [3, BINS, C] right, predicted and true pixels of each confidence
        # ... ; the last place is that of ``high`` itself, which no threshold below it parts
        self._counts = np.zeros((3, BINS + 1, num_labels), dtype=np.int64)
        # exactly the numbers that a pixel's confidence is compared with in the end
        self.thresholds = low + np.arange(BINS + 1) * ((high - low) / BINS)

    def add(self, label: np.ndarray, confidence: np.ndarray, mask: np.ndarray) -> None:
        """One image's decisions [H, W] against its mask."""
        kept = mask != ignore_of(mask)
        label = label[kept]
        truth = mask[kept].astype(np.int64)

        # the last threshold that each pixel reaches, so that "confidence < threshold" and the
        # counts agree at every threshold, whatever a product rounds to
        reached = np.searchsorted(self.thresholds, confidence[kept].astype(np.float64), "right")
        place = np.clip(reached - 1, 0, BINS) * self.num_labels

        is_right = label == truth
        indices = (place[is_right] + truth[is_right], place + label, place + truth)
        for counts, index in zip(self._counts, indices, strict=True):
            counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)

    def scores(self) -> np.ndarray:
        """[BINS + 1] mIoU where what lies below each of ``thresholds`` is background."""
        right, predicted, true = self._counts

        # pixels at or above each threshold keep their label ...
        above = np.stack([right, predicted])[:, ::-1].cumsum(axis=1)[:, ::-1]
        areas = np.stack([*above, np.broadcast_to(true.sum(axis=0), above[0].shape)], axis=1)

        # ... and those below it become background, right where they are background
        below = np.zeros(BINS + 1, dtype=np.int64)
        below[1:] = true[:-1, 0].cumsum()
        areas[:, 0, 0] += below
        areas[:, 1, 0] = true.sum() - areas[:, 1, 1:].sum(axis=1)
        return iou.mean_iou(areas)

    def best(self) -> tuple[float, float]:
        """The threshold of largest mIoU, and that mIoU; in the middle where neighbours share it."""
        scores = self.scores()
        first = int(scores.argmax())
        last = first
        while last < BINS and scores[last + 1] == scores[first]:
            last += 1

        return float(self.thresholds[(first + last) // 2]), float(scores[first])
