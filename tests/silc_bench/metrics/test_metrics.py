"""Metrics against loops from their definitions, peer libraries, and tables worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from silc_bench.datasets.dataset import IGNORE
from silc_bench.metrics import accuracy, iou

# ---- classification ----


@given(st.integers(0, 10**6))
def test_class_ranks_equal_a_loop_where_a_tie_or_a_nan_is_no_hit(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.choice([0, 1, 2, np.nan], size=(7, 5)), rng.integers(0, 5, size=7)
    expected = [
        sum(not row[c] < row[label] for c in range(5) if c != label)
        for row, label in zip(logits, labels, strict=True)
    ]
    ranks = accuracy.class_ranks(logits, labels)
    assert ranks.tolist() == expected
    assert accuracy.median_rank(ranks) == np.median(expected) + 1


# ---- segmentation ----


def test_scores_of_absent_classes_by_hand():
    truth = np.array([[0, 0, 1], [1, IGNORE, IGNORE]])
    areas = iou.areas(np.array([[0, 1, 2], [1, 2, 0]]), truth, 4)
    # class 2 is only predicted and counts as 0, class 3 is neither and is not averaged
    np.testing.assert_equal(iou.class_iou(areas), [1 / 2, 1 / 3, 0, np.nan])
    assert iou.mean_iou(areas) == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert iou.mean_class_accuracy(areas) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_masks_of_16_bits_have_a_class_255():
    mask = np.array([[0, 255, 300, 65535]], np.uint16)
    areas = iou.areas(np.array([[0, 255, 7, 7]]), mask, 847)
    assert areas[:, [0, 7, 255, 300]].tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 1]]


def test_scores_of_images_of_odd_sizes_equal_torchmetrics():
    from torchmetrics import JaccardIndex
    from torchmetrics.classification import MulticlassAccuracy

    rng = np.random.default_rng(8)
    options = {"num_classes": 6, "ignore_index": IGNORE}
    peers = {
        iou.mean_iou: JaccardIndex("multiclass", **options),
        iou.pixel_accuracy: MulticlassAccuracy(average="micro", **options),
        iou.mean_class_accuracy: MulticlassAccuracy(average="macro", **options),
    }

    areas = np.zeros((3, 6))
    for size in ((7, 13), (1, 1), (1, 40), (31, 2), (16, 20)):
        truth = rng.choice([0, 1, 2, 3, IGNORE], size=size).astype(np.uint8)
        guess = rng.choice([0, 1, 2, 3], size=size)
        areas += iou.areas(guess, truth, 6)
        for peer in peers.values():
            peer.update(torch.from_numpy(guess)[None], torch.from_numpy(truth)[None].long())
    for ours, theirs in peers.items():
        assert ours(areas) == pytest.approx(float(theirs.compute()), abs=1e-6)


def boundary_by_erosion(mask, num_classes):
    """[C, H, W] bool by the paper: each class, less what is left of it after d 3 x 3 erosions."""
    from scipy.ndimage import binary_erosion

    distance = max(1, round(0.02 * np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)))
    classes = mask == np.arange(num_classes)[:, None, None]
    inner = [
        binary_erosion(pixels, np.ones((3, 3)), iterations=distance, border_value=0)
        for pixels in classes
    ]
    return classes & ~np.array(inner)


@pytest.mark.parametrize("size", [(40, 31), (150, 120), (1, 1), (3, 90)])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_boundary_areas_equal_erosion_of_each_class(size, ignored):
    rng = np.random.default_rng(6)

    def blobs(coarse):
        return np.kron(coarse, np.ones((15, 15), int))[: size[0], : size[1]]

    truth, guess = (blobs(rng.integers(0, 4, size=(10, 8))) for _ in range(2))
    truth[blobs(rng.random((10, 8)) < ignored) == 1] = IGNORE
    valid = truth != IGNORE
    true_band = boundary_by_erosion(truth, 5) & valid
    guessed_band = boundary_by_erosion(np.where(valid, guess, IGNORE), 5) & valid
    bands = np.array([true_band & guessed_band, guessed_band, true_band])
    areas = iou.boundary_areas(guess, truth.astype(np.uint8), 5)
    assert areas.tolist() == bands.sum((2, 3)).tolist()

    # right wherever it counts: the edge of what is not scored is contour of both
    right = iou.boundary_areas(np.where(valid, truth, guess), truth.astype(np.uint8), 5)
    assert iou.mean_iou(right) == 1.0
