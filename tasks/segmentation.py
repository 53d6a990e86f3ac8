"""Zero-shot segmentation: the cosine of each patch with the prompts of each class.

Patch logits are up-sampled bilinearly to the mask's own size. The features must cover the whole picture: preprocessing may
squash it, not crop it. The background is not scored, as in the TCL protocol (Cha et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from silc_bench.datasets import IGNORE
from silc_bench.metrics import normalize
from silc_bench.probes import upsample
from silc_bench.registry import Features, Scores, register
from tasks.prompts import Prompts, class_embeddings
from tasks.segmentation_scores import PictureAreas, uniform_miou
from tasks.sources import SourcedTask, own_templates, shapes

if TYPE_CHECKING:
    from silc_bench.datasets import ImageDataset


@dataclass(kw_only=True, eq=False)
class ZeroShotSegmentation(SourcedTask):
    prompts: Prompts
    version: int = 2  # 2: with boundary_mIoU
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
        test = features.data["test"]
        names = test.mask_names[1:] if test.has_background else test.mask_names
        relabel = without_background if test.has_background else lambda mask: mask
        classes = class_embeddings(features, names, self.prompts)
        dense = features.dense("test", joint=True)
        areas = predicted_areas(dense, test, lambda patches: normalize(patches) @ classes.T, len(names), relabel)
        return areas.scores(names, chance=uniform_miou(areas.truth))


def without_background(mask: np.ndarray) -> np.ndarray:
    """Mask value 0 is not scored; the first class becomes 0."""
    return np.where((mask == 0) | (mask == IGNORE), IGNORE, mask - 1)


def with_masks(dense: Iterator[np.ndarray], dataset: ImageDataset) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    start = 0
    for batch in dense:
        yield batch, [dataset.mask(index) for index in range(start, start + len(batch))]
        start += len(batch)
    assert start == len(dataset), (start, len(dataset))


def predicted_areas(
    dense: Iterator[np.ndarray],
    dataset: ImageDataset,
    logits: Callable[[np.ndarray], np.ndarray],
    num_classes: int,
    relabel: Callable[[np.ndarray], np.ndarray],
) -> PictureAreas:
    """``logits`` of each picture's patch features against its relabelled mask."""
    areas = PictureAreas(num_classes)
    for batch, masks in with_masks(dense, dataset):
        for grid, mask in zip(logits(batch), masks, strict=True):
            areas.add(upsample(grid, *mask.shape).argmax(axis=-1), relabel(mask))
    return areas


register(
    ZeroShotSegmentation(
        name="shapes/segmentation_zeroshot",
        sources={"test": shapes("test", 1000)},
        prompts=Prompts("shapes_segmentation", own_templates("shapes_segmentation")),
    )
)
