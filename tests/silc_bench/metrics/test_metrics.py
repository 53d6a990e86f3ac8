"""Metrics against loops from their definitions, peer libraries, and tables worked by hand."""

from __future__ import annotations

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from silc_bench.datasets.dataset import IGNORE
from silc_bench.metrics import accuracy, iou


@pytest.fixture(scope="module")
def clip_benchmark():
    """Its metric functions; it imports ``requests`` for downloads, which need not be installed."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("requests") is None:
            patch.setitem(sys.modules, "requests", types.ModuleType("requests"))
        from clip_benchmark.metrics import zeroshot_classification
    return zeroshot_classification


# ---- classification ----


def test_class_ranks_by_hand():
    logits = np.array(
        [[3.0, 1.0, 2.0], [0.0, 0.0, 5.0], [1.0, 1.0, 1.0], [np.nan, 2.0, 1.0], [0.0, np.nan, 1.0]]
    )
    labels = np.array([0, 1, 0, 1, 1])
    # first; tied with class 0 behind class 2; tied with both; NaN stands before; a NaN of its own
    # is last
    assert accuracy.class_ranks(logits, labels).tolist() == [0, 2, 2, 1, 2]


@given(st.integers(0, 10**6))
def test_class_ranks_equal_a_loop_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(0, 4, size=(7, 5)).astype(np.float32), rng.integers(0, 5, size=7)
    expected = [
        sum(row[c] >= row[label] for c in range(5) if c != label)
        for row, label in zip(logits, labels, strict=True)
    ]
    assert accuracy.class_ranks(logits, labels).tolist() == expected


def test_equal_logits_score_nothing():
    labels = np.arange(10)
    ranks = accuracy.class_ranks(np.zeros((10, 10)), labels)
    assert accuracy.recall_at(ranks, 1) == 0
    assert accuracy.recall_at(ranks, 9) == 0


def test_median_rank_counts_from_one():
    assert accuracy.median_rank(np.array([0, 2, 4])) == 3.0
    assert accuracy.median_rank(np.array([0, 0, 1, 5])) == 1.5


def test_accuracy_equals_clip_benchmark(clip_benchmark, monkeypatch):
    # it calls float() on arrays of one element, which numpy 2.4 refuses
    monkeypatch.setattr(
        clip_benchmark, "float", lambda value: float(np.asarray(value).item()), raising=False
    )
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 12)).astype(np.float32), rng.integers(0, 12, size=200)
    theirs = clip_benchmark.accuracy(
        torch.from_numpy(logits), torch.from_numpy(labels), topk=(1, 5)
    )
    ranks = accuracy.class_ranks(logits, labels)
    assert [accuracy.recall_at(ranks, k) for k in (1, 5)] == pytest.approx(theirs, abs=0)


def test_mean_per_class_recall_equals_sklearn_with_absent_classes():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 4, 7], p=[0.6, 0.2, 0.15, 0.05], size=300)
    predictions = np.where(rng.random(300) < 0.5, labels, rng.choice([0, 1, 4, 7], size=300))
    ours = accuracy.mean_per_class_recall(predictions == labels, labels)
    assert ours == pytest.approx(balanced_accuracy_score(labels, predictions), abs=1e-12)


# ---- segmentation ----


def test_areas_and_scores_by_hand():
    truth = np.array([[0, 0, 1], [1, IGNORE, IGNORE]])
    guess = np.array([[0, 1, 1], [1, 2, 0]])
    found = iou.areas(guess, truth, 4)
    assert found.tolist() == [[1, 2, 0, 0], [1, 3, 0, 0], [2, 2, 0, 0]]
    assert iou.class_iou(found)[:2].tolist() == [1 / 2, 2 / 3]
    assert np.isnan(iou.class_iou(found)[2:]).all()
    assert iou.mean_iou(found) == pytest.approx((1 / 2 + 2 / 3) / 2), (
        "absent from truth and prediction: not averaged"
    )
    assert iou.pixel_accuracy(found) == 3 / 4
    assert iou.mean_class_accuracy(found) == pytest.approx((1 / 2 + 1) / 2)
    only_predicted = iou.areas(np.array([[0, 2]]), np.array([[0, 0]]), 4)
    assert iou.mean_iou(only_predicted) == pytest.approx((1 / 2 + 0) / 2), (
        "predicted but never true: counts as 0"
    )


def test_iou_equals_torchmetrics_over_several_images():
    from torchmetrics import JaccardIndex
    from torchmetrics.classification import MulticlassAccuracy

    rng = np.random.default_rng(4)
    truth = rng.choice([0, 1, 2, 3, IGNORE], size=(6, 16, 20))
    guess = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 4, size=truth.shape))
    guess[guess == IGNORE] = 2
    total = sum(iou.areas(g, t, 4) for g, t in zip(guess, truth, strict=True))
    tensors = torch.from_numpy(guess), torch.from_numpy(truth)
    peers = {
        iou.mean_iou: JaccardIndex("multiclass", num_classes=4, ignore_index=IGNORE),
        iou.pixel_accuracy: MulticlassAccuracy(4, average="micro", ignore_index=IGNORE),
        iou.mean_class_accuracy: MulticlassAccuracy(4, average="macro", ignore_index=IGNORE),
    }
    for ours, theirs in peers.items():
        assert ours(total) == pytest.approx(float(theirs(*tensors)), abs=1e-6)


def test_masks_of_16_bits_have_a_class_255():
    mask = np.array([[0, 255, 300, 65535]], np.uint16)
    found = iou.areas(np.array([[0, 255, 7, 7]]), mask, 847)
    assert found[:, [0, 7, 255, 300]].tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    assert found.sum(axis=1).tolist() == [2, 3, 3]


def test_iou_of_images_of_odd_sizes_equals_torchmetrics_and_a_loop_over_pixels():
    """Class 3 is never true but predicted, class 4 true but never predicted, class 5 neither."""
    from torchmetrics import JaccardIndex

    rng = np.random.default_rng(8)
    peer, found, counts = (
        JaccardIndex("multiclass", num_classes=6, ignore_index=IGNORE),
        0,
        np.zeros((3, 6)),
    )
    for size in ((7, 13), (1, 1), (1, 40), (31, 2), (16, 20)):
        truth = rng.choice([0, 1, 2, 4, IGNORE], p=[0.5, 0.2, 0.1, 0.1, 0.1], size=size).astype(
            np.uint8
        )
        guess = rng.choice([0, 1, 2, 3], size=size)
        found = found + iou.areas(guess, truth, 6)
        peer.update(torch.from_numpy(guess)[None], torch.from_numpy(truth.astype(np.int64))[None])
        for t, g in zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True):
            if t != IGNORE:
                counts[0, t] += t == g
                counts[1, g] += 1
                counts[2, t] += 1
    assert found.tolist() == counts.tolist()
    unions = counts[1] + counts[2] - counts[0]
    assert iou.mean_iou(found) == pytest.approx(
        np.mean([counts[0, c] / unions[c] for c in range(6) if unions[c]]), abs=1e-12
    )
    assert iou.mean_iou(found) == pytest.approx(float(peer.compute()), abs=1e-6)


def boundary_by_erosion(mask, num_classes):
    """[C, H, W] bool by the paper: each class, less what is left of it after d 3 x 3 erosions."""
    from scipy.ndimage import binary_erosion

    distance = max(1, round(0.02 * np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)))
    classes = mask == np.arange(num_classes)[:, None, None]
    inner = [
        binary_erosion(one, np.ones((3, 3)), iterations=distance, border_value=0) for one in classes
    ]
    return classes & ~np.array(inner)


@pytest.mark.parametrize("size", [(40, 31), (150, 120), (1, 1), (3, 90)])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_boundary_areas_equal_erosion_of_each_class(size, ignored):
    rng = np.random.default_rng(6)

    def blobs():
        coarse = rng.integers(0, 4, size=(-(-size[0] // 15), -(-size[1] // 15)))
        return np.kron(coarse, np.ones((15, 15), int))[: size[0], : size[1]]

    truth, guess = blobs(), blobs()
    truth[np.kron(rng.random((10, 8)) < ignored, np.ones((15, 15), bool))[: size[0], : size[1]]] = (
        IGNORE
    )
    valid = truth != IGNORE
    true_band, guessed_band = (
        boundary_by_erosion(mask, 5) & valid for mask in (truth, np.where(valid, guess, IGNORE))
    )
    expected = [
        (true_band & guessed_band).sum((1, 2)),
        guessed_band.sum((1, 2)),
        true_band.sum((1, 2)),
    ]
    assert (
        iou.boundary_areas(guess, truth.astype(np.uint8), 5).tolist() == np.array(expected).tolist()
    )


def test_a_prediction_that_is_right_where_it_counts_has_the_right_boundary():
    rng = np.random.default_rng(7)
    truth = np.kron(rng.choice([0, 1, 2, IGNORE], size=(6, 6)), np.ones((9, 9), int))
    guess = np.where(truth == IGNORE, rng.integers(0, 3, size=truth.shape), truth)
    assert iou.mean_iou(iou.boundary_areas(guess, truth, 3)) == 1.0


def test_boundary_by_hand():
    truth = np.zeros((50, 50), int)  # the diagonal is 70.7, 2 % of it 1.4: one pixel
    truth[10:20, 10:20] = 1
    found = iou.boundary_areas(np.roll(truth, 1, axis=1), truth, 2)
    ring = 10 * 10 - 8 * 8
    # of class 1 the rows above and below meet in 9 pixels each; the columns one beside the other do
    # not
    assert found[:, 1].tolist() == [18, ring, ring]
    assert found[2, 0] == 50 * 50 - 48 * 48 + 12 * 12 - 10 * 10


def test_scores_work_on_stacks_of_areas():
    stack = np.random.default_rng(5).integers(1, 9, size=(7, 3, 4))
    stack[:, 0] = np.minimum(stack[:, 1], stack[:, 2]) // 2
    for score in (iou.mean_iou, iou.pixel_accuracy, iou.mean_class_accuracy):
        assert score(stack).tolist() == [score(one) for one in stack]


def test_a_class_beyond_the_count_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="beyond num_classes"):
        iou.areas(np.array([[0]]), np.array([[5]]), 4)
