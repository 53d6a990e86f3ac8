"""The closed-form probe against the discriminant written out on every up-sampled pixel.

In float64.
"""

from __future__ import annotations

import numpy as np
import pytest

from silc_bench.models.windows import View
from silc_bench.probes import patch_discriminant
from silc_bench.probes.patch_discriminant import PixelSums
from silc_bench.probes.patch_labels import class_sums, members, sample

VIEWS = {"one window": View(12, 12, 12), "overlap": View(12, 8, 4), "resized": View(20, 12, 8)}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@pytest.fixture(scope="module")
def images(cell_images):
    """Cells of very different scales."""

    def make(view=VIEWS["overlap"], classes=(0, 0, 0, 1, 2, 255), scale=(1, 100, 0.001, 3, 1)):
        return cell_images(4, view, scale, (5, 0, 5, -40, 0), classes)

    return make


def upsampled(grid, layout, mask):
    rows, cols = layout.rows(mask.shape[0]).toarray(), layout.cols(mask.shape[1]).toarray()
    return np.einsum("yi,ijd,xj->yxd", rows, grid.astype(np.float64), cols)


def cells_of(data):
    return np.concatenate([grid.reshape(-1, 5) for grid, _, _ in data]).astype(np.float64)


def moments(data):
    cells = cells_of(data)
    return cells.mean(axis=0), np.sqrt(cells.var(axis=0) + 1e-5)


def discriminant(data, l2, mean, std):
    """Weight and bias over raw features by the docstring's formula."""
    x = np.concatenate([upsampled(*image)[image[2] != 255] for image in data])
    y = np.concatenate([mask[mask != 255] for _, _, mask in data])
    x = (x - mean) / std
    means = np.stack([x[y == c].mean(axis=0) for c in range(3)])
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    weight = np.linalg.inv(within + l2 * np.eye(5)) @ means.T
    shares = np.bincount(y) / len(y)
    bias = np.log(shares) - np.einsum("cd,dc->c", means, weight) / 2
    return weight / std[:, None], bias - (mean / std) @ weight


def summed(data, num_classes=3):
    sums = PixelSums(len(data), num_classes, seed=0)
    for image in data:
        sums.add(*image)
    return sums


@each_view
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_the_probe_equals_the_discriminant_of_every_pixel(images, view, l2):
    data = images(view)
    weight, bias = discriminant(data, l2, *moments(data))
    probe, details = summed(data).solve([l2])
    cells = cells_of(data)
    np.testing.assert_allclose(probe(cells), cells @ weight + bias, rtol=1e-7, atol=1e-6)
    assert details == {"l2": l2}


def test_the_penalty_is_chosen_on_images_left_out(images, monkeypatch):
    """Two folds, every cell sampled: a penalty's score is that of the other fold's discriminant."""
    monkeypatch.setattr(patch_discriminant, "FOLDS", 2)
    data, penalties = images(), [1e-3, 1e-1, 10.0]
    _, details = summed(data).solve(penalties)
    scores = details["held_out_mIoU"]
    for l2 in penalties:
        areas = np.zeros((3, 3))
        for fold in (0, 1):
            # moments over all cells standardise every fold
            weight, bias = discriminant(data[1 - fold :: 2], l2, *moments(data))
            for grid, layout, mask in data[fold::2]:
                guess = (grid.reshape(-1, 5) @ weight + bias).argmax(axis=1)
                height, width = mask.shape
                _, pixels = class_sums(mask, layout.rows(height), layout.cols(width))
                for c in range(3):
                    guessed = pixels[guess == c]
                    areas[:, c] += guessed[:, c].sum(), guessed.sum(), pixels[:, c].sum()
        expected = np.mean(areas[0] / (areas[1] + areas[2] - areas[0]))
        assert scores[f"{l2:g}"] == pytest.approx(expected, abs=1e-6)
    assert details["l2"] == max(penalties, key=lambda l2: (scores[f"{l2:g}"], l2))


def test_two_runs_are_identical_and_a_class_never_seen_is_never_said(images):
    data = images()
    first, second = (summed(data, num_classes=5).solve([1e-2, 1.0]) for _ in range(2))
    assert np.array_equal(first[0].weight, second[0].weight)
    assert first[1] == second[1]
    assert first[0](cells_of(data) * 50).argmax(axis=1).max() <= 2


def test_images_without_a_scored_pixel_or_any_spread(images):
    probe, details = summed(images(classes=(255,))).solve([1e-2, 1.0])
    assert np.isfinite(probe(cells_of(images()))).all()
    assert details["held_out_mIoU"] == {"1": 0.0, "0.01": 0.0}
    data = images(scale=0)
    probe, _ = summed(data).solve([1e-3, 1.0])
    assert set(probe(cells_of(data)).argmax(axis=-1)) == {0}, "what occurs most"


# ---- what a mask says of cells ----


@each_view
def test_members_are_the_pixels_whose_middle_lies_in_the_cell(images, view):
    for _, layout, mask in images(view):
        classes, counts = class_sums(mask, *members(layout, *mask.shape))
        expected = np.zeros((*layout.grid, 256))
        for y, x in np.ndindex(*mask.shape):
            for row, top in enumerate(layout.tops):
                for column, left in enumerate(layout.lefts):
                    down = (y + 0.5) * layout.height / mask.shape[0] - top
                    along = (x + 0.5) * layout.width / mask.shape[1] - left
                    i, j = int(down // layout.patch), int(along // layout.patch)
                    if 0 <= i < layout.cells and 0 <= j < layout.cells:
                        expected[row * layout.cells + i, column * layout.cells + j, mask[y, x]] += 1
        assert classes.tolist() == np.unique(mask[mask != 255]).tolist()
        assert counts.tolist() == expected.reshape(-1, 256)[:, classes].tolist()


def test_samples_are_evenly_many_and_no_more_than_asked_for():
    labelled = np.arange(100, 150)
    kept = [sample(labelled, number, 7, 100, seed=0).tolist() for number in range(7)]
    assert sorted(map(len, kept)) == [14] * 5 + [15] * 2
    assert all(part == sorted({*part} & {*labelled}) for part in kept)
    assert sum(len(sample(labelled, number, 1000, 100, seed=0)) for number in range(1000)) == 100
