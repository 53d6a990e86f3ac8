"""What the tasks that read cells share: which cells, beside which masks, and how class logits of cells are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from silc_bench.registry import Features
from tasks.segmentation_scores import PictureAreas
from tasks.sources import SourcedTask

if TYPE_CHECKING:
    from torch import Tensor

    from silc_bench.probes import LinearMap
    from silc_bench.windows import Layout, View


@dataclass(kw_only=True, eq=False)
class CellsTask(SourcedTask):
    """A `silc_bench.registry.DenseTask` that reads one method's cells of every role."""

    version: int = 1
    group: str = "dense"
    main_metric: str = "mIoU"
    requires: frozenset[str] = frozenset({"dense"})
    view: View | None = None  # how pictures are shown; None: as the model's own size says
    method: str = "tokens"  # "tokens:4" joins those of the last four blocks

    def protocol(self) -> dict[str, Any]:
        return {"features": self.method, "view": "the model's own" if self.view is None else self.view.as_dict()}

    def dense_needs(self) -> Mapping[str, Sequence[str]]:
        return dict.fromkeys(self.sources, (self.method,))

    def labelled(self, features: Features, role: str) -> Iterator[tuple[np.ndarray, Layout, np.ndarray]]:
        """Cells [gh, gw, D], their layout and the mask [H, W] of each picture, in order."""
        dataset = features.data[role]
        for picture in features.grids(role, self.view, self.method):
            yield picture.grid, picture.layout, dataset.mask(picture.index)

    def predicted(self, features: Features, logits: Callable[[Tensor], Tensor], num_classes: int) -> PictureAreas:
        """Every test picture, each pixel given the class of largest up-sampled logit: ``logits`` of cells [n, D] are [n, C]."""
        from silc_bench.windows import predict

        areas = PictureAreas(num_classes)
        for grid, layout, mask in self.labelled(features, "test"):
            areas.add(predict(logits, grid, layout, *mask.shape), mask)
        return areas


def as_logits(probe: LinearMap) -> Callable[[Tensor], Tensor]:
    """The probe of cells fp32 [n, D], computed in float64: the features' own scales differ much."""
    import torch

    weight, bias = torch.from_numpy(probe.weight), torch.from_numpy(probe.bias)
    return lambda cells: (cells.double() @ weight + bias).float()
