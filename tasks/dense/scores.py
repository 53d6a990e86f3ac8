"""What the tasks that read cells share: cells beside masks, and the scores of their logits.

A segmentation is scored in the same way, however it was predicted: areas of each image -> mIoU and
its company, beside their chance. Everything follows from areas summed over the whole split, never
from averages of images: a class absent from truth and prediction is not averaged. Standard errors
are a bootstrap over images.

Flow: ``areas = ImageAreas(num_classes)``; for each image ``areas.add(prediction, mask)``;
``areas.scores(names, chance)``.

Shapes: H x W pixels, gh x gw = n cells, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from silc_bench.datasets.dataset import ignore_of
from silc_bench.errors import UserError
from silc_bench.evaluation.protocols import NamedProtocol, rule_of
from silc_bench.later import np
from silc_bench.metrics import iou as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.task import Features, Scores
from silc_bench.tasks.sources import SourcedTask

if TYPE_CHECKING:
    from silc_bench.models.windows import Layout, Logits, View
    from silc_bench.probes.closed_form import LinearMap


@dataclass(kw_only=True, eq=False)
class CellsTask(SourcedTask):
    """A dense task that reads one method's cells of every role."""

    group: str = "dense"
    main_metric: str = "mIoU"
    requires: frozenset[str] = frozenset({"dense"})
    view: View | None = None  # how images are shown; None: as the model's own size says
    method: str = "tokens"  # "tokens:4" joins those of the last four blocks

    def protocol(self) -> dict[str, Any]:
        view = "the model's own" if self.view is None else self.view.as_dict()
        return {"features": self.method, "view": view}

    def under(self, protocol: NamedProtocol) -> Self:
        """Seen in the windows of the protocol, by the method that it names for probes."""
        if not (protocol.segmentation or protocol.probe_method):
            return self

        view = self.view
        if protocol.segmentation:
            # the rule of a set can differ: its size is chosen for the set
            view = rule_of(protocol.segmentation, self.name.partition("/")[0]).view
        return replace(self, view=view, method=protocol.probe_method or self.method)

    def dense_needs(self) -> Mapping[str, Sequence[str]]:
        return dict.fromkeys(self.sources, (self.method,))

    def labelled(
        self, features: Features, role: str
    ) -> Iterator[tuple[np.ndarray, Layout, np.ndarray]]:
        """Cells [gh, gw, D], their layout and the mask [H, W] of each image, in order."""
        dataset = features.data[role]
        for item in features.grids(role, self.view, self.method):
            yield item.grid, item.layout, dataset.mask(item.index)


def as_logits(probe: LinearMap) -> Logits:
    """The probe as a function of cells fp32 [n, D].

    It computes in float64, because the scales of the features differ much.
    """
    import torch

    weight = torch.from_numpy(probe.weight)
    bias = torch.from_numpy(probe.bias)
    return lambda cells: (cells.double() @ weight + bias).float()


MEASURES = {
    "mIoU": metrics.mean_iou,
    "pixel_accuracy": metrics.pixel_accuracy,
    "mean_class_accuracy": metrics.mean_class_accuracy,
}


class ImageAreas:
    """Areas of each image scored so far: in whole, and near the contours."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._areas: list[np.ndarray] = []
        self._boundary: list[np.ndarray] = []

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Classes [H, W] of one image against its mask [H, W]."""
        self._areas.append(metrics.areas(prediction, mask, self.num_classes))
        self._boundary.append(metrics.boundary_areas(prediction, mask, self.num_classes))

    @property
    def truth(self) -> np.ndarray:
        """[C] true pixels of each class."""
        return np.sum(self._areas, axis=0)[2]

    @property
    def predicted(self) -> np.ndarray:
        """[C] predicted pixels of each class, of those that are scored."""
        return np.sum(self._areas, axis=0)[1]

    def scores(
        self, names: Sequence[str], chance: float, details: Mapping[str, Any] | None = None
    ) -> Scores:
        """What was added, as mIoU and its company, with the IoU of each class in the details.

        Raises:
            UserError: no image shows any of the classes, so that every number would be NaN.
        """
        if not self.truth.any():
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            problem = f"no pixel of the {len(self._areas):,} images that are scored is of a class"
            raise UserError(problem, about=shown, fix="leave the task out, or raise --limit")

        areas = np.stack(self._areas)  # [N, 3, C]
        boundary = np.stack(self._boundary)
        measured = {name: (areas, measure) for name, measure in MEASURES.items()}
        measured["boundary_mIoU"] = (boundary, metrics.mean_iou)

        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        for name, (counts, measure) in measured.items():
            values[name] = float(measure(counts.sum(axis=0)))
            errors[name] = stats.bootstrap_stderr(counts, measure)

        # a class that is neither true nor predicted has no IoU, which is not an IoU of 0
        iou: dict[str, float | None] = {}
        for name, value in zip(names, metrics.class_iou(areas.sum(axis=0)), strict=True):
            iou[name] = None if np.isnan(value) else float(value)
        return Scores(
            metrics=values,
            stderr=errors,
            n=len(areas),
            chance=chance,
            details={"iou": iou, **(details or {})},
            outcomes={"areas": areas, "boundary_areas": boundary},
        )


def constant_miou(truth: np.ndarray) -> float:
    """mIoU of the most frequent class everywhere: true pixels [C] of each class.

    A probe learns this from noise.
    """
    # one class takes every pixel: its intersection is its truth, its prediction is everything
    guess = np.arange(len(truth)) == truth.argmax()
    return float(metrics.mean_iou(np.stack([truth * guess, truth.sum() * guess, truth])))


def shares_miou(truth: np.ndarray, shares: np.ndarray) -> float:
    """mIoU of guessing each class with its share [C] of all pixels: true pixels [C] by class."""
    return float(metrics.mean_iou(np.stack([truth * shares, truth.sum() * shares, truth])))


def without_background(mask: np.ndarray) -> np.ndarray:
    """Mask value 0 is not scored; the first class becomes 0."""
    ignore = ignore_of(mask)
    return np.where((mask == 0) | (mask == ignore), ignore, mask - 1).astype(mask.dtype)


def is_labelled(mask: np.ndarray) -> bool:
    """Whether any pixel of a mask [H, W] bears a class."""
    return bool((mask != ignore_of(mask)).any())
