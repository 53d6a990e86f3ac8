"""What segmentation scores without knowing where anything is: docs/datasets.md has the figures."""

import numpy as np
import pytest

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.generated.places.dataset import Places, PlacesThings
from silc_bench.datasets.generated.shapes.dataset import Shapes, ShapesColours
from silc_bench.metrics.iou import areas, mean_iou
from silc_bench.tasks.dense.scores import without_background


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [(Shapes, 1000, 79), (ShapesColours, 1000, 79), (PlacesThings, 500, 66), (Places, 500, 11)],
)
def test_the_largest_class_for_the_whole_image(kind, count, expected):
    dataset = kind("test", count)
    has_background = dataset.mask_names[0] == "background"
    num_classes = len(dataset.mask_names) - has_background
    summed = np.zeros((3, num_classes))
    for index in range(count):
        mask = without_background(dataset.mask(index)) if has_background else dataset.mask(index)
        seen = np.bincount(mask[mask != IGNORE], minlength=num_classes)
        summed += areas(np.full_like(mask, seen.argmax()), mask, num_classes)
    assert round(100 * mean_iou(summed)) == expected
