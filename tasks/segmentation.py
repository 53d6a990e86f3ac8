"""Segmentation from frozen patch features: linearly probed, or zero-shot against the names of the classes.

Both predict by up-sampling patch logits bilinearly to the mask's own size, and score every pixel of it: mIoU over areas
accumulated on the whole split (a class absent from truth and prediction is not averaged). The features must cover the
whole picture: preprocessing may squash it, not crop it.

- ``Linear``: a batch-normalised linear layer solved in closed form (`silc_bench.probes.segmentation_ridge`). It is not the
  descended cross-entropy probe of other papers: compare it with itself.
- ``ZeroShot``: cosine with the prompts of each class; the background is not scored, as in the TCL protocol (Cha et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from silc_bench import metrics, stats
from silc_bench.datasets import IGNORE
from silc_bench.metrics import normalize
from silc_bench.probes import segmentation_ridge, upsample
from silc_bench.registry import Features, Scores, register
from tasks.prompts import Prompts, class_embeddings
from tasks.sources import SourcedTask, own_templates, shapes

if TYPE_CHECKING:
    from silc_bench.datasets import ImageDataset

L2 = 1e-4


@dataclass(kw_only=True, eq=False)
class LinearSegmentation(SourcedTask):
    version: int = 1
    group: str = "dense"
    main_metric: str = "mIoU"
    requires: frozenset[str] = frozenset({"dense"})

    def protocol(self) -> dict[str, Any]:
        return {"probe": "ridge on batch-normalised patch features, bilinear logits at full resolution", "l2": L2}

    def score(self, features: Features) -> Scores:
        train, test = features.data["train"], features.data["test"]
        names = train.mask_names
        probe = segmentation_ridge(_with_masks(features.dense("train", joint=False), train), len(names), L2)
        areas = _areas(features.dense("test", joint=False), test, probe, len(names), lambda mask: mask)
        return _scores(areas, names, chance=constant_miou(areas[:, 2].sum(axis=0)))


@dataclass(kw_only=True, eq=False)
class ZeroShotSegmentation(SourcedTask):
    prompts: Prompts
    version: int = 1
    group: str = "dense"
    main_metric: str = "mIoU"
    requires: frozenset[str] = frozenset({"dense", "text"})

    def protocol(self) -> dict[str, Any]:
        return {
            **self.prompts.protocol(),
            "background": "not scored",
            "logits": "cosine, bilinear at full resolution",
        }

    def score(self, features: Features) -> Scores:
        names = features.data["test"].mask_names[1:]  # mask value 0 is the background
        classes = class_embeddings(features, names, self.prompts)
        dense = features.dense("test", joint=True)
        areas = _areas(
            dense, features.data["test"], lambda patches: normalize(patches) @ classes.T, len(names), without_background
        )
        return _scores(areas, names, chance=uniform_miou(areas[:, 2].sum(axis=0)))


def constant_miou(truth: np.ndarray) -> float:
    """mIoU of the most frequent class everywhere, which is what a probe learns from noise: true pixels [C] of each class."""
    guess = np.arange(len(truth)) == truth.argmax()
    return float(metrics.mean_iou(np.stack([truth * guess, truth.sum() * guess, truth])))


def uniform_miou(truth: np.ndarray) -> float:
    """mIoU of guessing all C classes evenly, which finds 1 / C of each: true pixels [C] of each class."""
    share = 1 / len(truth)
    return float(metrics.mean_iou(np.stack([truth * share, np.full(len(truth), truth.sum() * share), truth])))


def without_background(mask: np.ndarray) -> np.ndarray:
    """Mask value 0 is not scored; the first class becomes 0."""
    return np.where((mask == 0) | (mask == IGNORE), IGNORE, mask - 1)


def _with_masks(dense: Iterator[np.ndarray], dataset: ImageDataset) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    start = 0
    for batch in dense:
        yield batch, [dataset.mask(index) for index in range(start, start + len(batch))]
        start += len(batch)
    assert start == len(dataset), (start, len(dataset))


def _areas(
    dense: Iterator[np.ndarray],
    dataset: ImageDataset,
    logits: Callable[[np.ndarray], np.ndarray],
    num_classes: int,
    relabel: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """[N, 3, C] of each picture: ``logits`` of its patch features against its relabelled mask."""
    areas = []
    for batch, masks in _with_masks(dense, dataset):
        for grid, mask in zip(logits(batch), masks, strict=True):
            prediction = upsample(grid, *mask.shape).argmax(axis=-1)
            areas.append(metrics.areas(prediction, relabel(mask), num_classes))
    return np.stack(areas)


def _scores(areas: np.ndarray, names: tuple[str, ...], chance: float) -> Scores:
    measures = {
        "mIoU": metrics.mean_iou,
        "pixel_accuracy": metrics.pixel_accuracy,
        "mean_class_accuracy": metrics.mean_class_accuracy,
    }
    total = areas.sum(axis=0)
    iou = metrics.class_iou(total)
    return Scores(
        metrics={name: float(measure(total)) for name, measure in measures.items()},
        stderr={name: stats.bootstrap_stderr(areas, measure) for name, measure in measures.items()},
        n=len(areas),
        chance=chance,
        details={"iou": {name: None if np.isnan(value) else float(value) for name, value in zip(names, iou, strict=True)}},
        outcomes={"areas": areas},
    )


register(
    LinearSegmentation(
        name="shapes/segmentation_linear", sources={"train": shapes("train", 1000), "test": shapes("test", 1000)}
    )
)
register(
    ZeroShotSegmentation(
        name="shapes/segmentation_zeroshot",
        sources={"test": shapes("test", 1000)},
        prompts=Prompts("shapes_segmentation", own_templates("shapes_segmentation")),
    )
)
