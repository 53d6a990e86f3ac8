"""The closed-form probe against the discriminant written out on every up-sampled pixel.

In float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from silc_bench.models.windows import View
from silc_bench.probes import patch_discriminant as dense_ridge
from silc_bench.probes.patch_discriminant import PixelSums
from silc_bench.probes.patch_labels import class_sums, members, sample

VIEWS = {"one window": View(12, 12, 12), "overlap": View(12, 8, 4), "resized": View(20, 12, 8)}


def images(view, sizes=((12, 15), (9, 7), (13, 12), (6, 20)), dim=5, num_classes=3, seed=0):
    """Cells of very different scales, and masks of odd sizes in which much is not scored."""
    rng = np.random.default_rng(seed)
    scale, shift = np.array([1, 100, 0.001, 3, 1.0])[:dim], np.array([5, 0, 5, -40, 0.0])[:dim]
    found = []
    for height, width in sizes:
        layout = view.layout(*view.resized_sides(height, width), 4)
        grid = (rng.normal(size=(*layout.grid, dim)) * scale + shift).astype(np.float32)
        mask = rng.choice([0, 0, 0, 1, 2, 255], size=(height, width)).astype(np.uint8)
        found.append((grid, layout, mask))
    return found


def upsampled(grid, layout, mask):
    rows, cols = layout.rows(mask.shape[0]).toarray(), layout.cols(mask.shape[1]).toarray()
    return np.einsum("yi,ijd,xj->yxd", rows, grid.astype(np.float64), cols)


def discriminant(data, num_classes, l2):
    """Weight and bias over raw features by the docstring's formula."""
    cells = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid, _, _ in data]).astype(
        np.float64
    )
    mean, std = cells.mean(axis=0), np.sqrt(cells.var(axis=0) + 1e-5)
    x = np.concatenate([upsampled(*part)[part[2] != 255] for part in data])
    y = np.concatenate([mask[mask != 255] for _, _, mask in data])
    x = (x - mean) / std
    means = np.stack(
        [
            x[y == c].mean(axis=0) if (y == c).any() else np.zeros(x.shape[1])
            for c in range(num_classes)
        ]
    )
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    weight = np.linalg.inv(within + l2 * np.eye(len(within))) @ means.T
    with np.errstate(divide="ignore"):
        bias = (
            np.log([(y == c).mean() for c in range(num_classes)])
            - np.einsum("cd,dc->c", means, weight) / 2
        )
    return weight / std[:, None], bias - (mean / std) @ weight


def summed(data, num_classes=3):
    sums = PixelSums(len(data), num_classes, seed=0)
    for part in data:
        sums.add(*part)
    return sums


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_the_probe_equals_the_discriminant_of_every_pixel(view, l2):
    data = images(view)
    weight, bias = discriminant(data, 3, l2)
    probe, details = summed(data).solve([l2])
    for grid, _, _ in data:
        np.testing.assert_allclose(
            probe(grid), grid.astype(np.float64) @ weight + bias, rtol=1e-7, atol=1e-6
        )
    assert details == {"l2": l2}


def test_one_window_is_bilinear_upsampling():
    (grid, layout, mask), *_ = images(VIEWS["one window"], sizes=((12, 12),))
    mine = upsampled(grid, layout, mask)
    theirs = F.interpolate(
        torch.from_numpy(grid).double().permute(2, 0, 1)[None], size=mask.shape, mode="bilinear"
    )
    np.testing.assert_allclose(mine, theirs[0].permute(1, 2, 0).numpy(), atol=1e-12)


def test_the_penalty_is_chosen_on_images_left_out(monkeypatch):
    """Two folds, every cell sampled: a penalty's score is that of the other fold's discriminant."""
    monkeypatch.setattr(dense_ridge, "FOLDS", 2)
    data, penalties = images(VIEWS["overlap"]), [1e-3, 1e-1, 10.0]
    _, details = summed(data).solve(penalties)
    # moments over all cells standardise every fold: take them in by a map that the formula cannot
    # see
    cells = np.concatenate([grid.reshape(-1, 5) for grid, _, _ in data]).astype(np.float64)
    mean, std = cells.mean(axis=0), np.sqrt(cells.var(axis=0) + 1e-5)
    for l2 in penalties:
        found = np.zeros((3, 3))
        for fold in (0, 1):
            rest, own = data[1 - fold :: 2], data[fold::2]
            x = np.concatenate([((upsampled(*part) - mean) / std)[part[2] != 255] for part in rest])
            y = np.concatenate([mask[mask != 255] for _, _, mask in rest])
            means = np.stack([x[y == c].mean(axis=0) for c in range(3)])
            within = (x - means[y]).T @ (x - means[y]) / len(x) + l2 * np.eye(5)
            weight = np.linalg.solve(within, means.T)
            bias = (
                np.log(np.bincount(y, minlength=3) / len(y))
                - np.einsum("cd,dc->c", means, weight) / 2
            )
            for grid, layout, mask in own:
                guess = (((grid.reshape(-1, 5) - mean) / std) @ weight + bias).argmax(axis=1)
                pixels = np.zeros((len(guess), 3))
                classes, weights = class_sums(
                    mask, layout.rows(mask.shape[0]), layout.cols(mask.shape[1])
                )
                pixels[:, classes] = weights
                for c in range(3):
                    found[:, c] += (
                        pixels[guess == c, c].sum(),
                        pixels[guess == c].sum(),
                        pixels[:, c].sum(),
                    )
        expected = np.mean(found[0] / (found[1] + found[2] - found[0]))
        assert details["held_out_mIoU"][f"{l2:g}"] == pytest.approx(expected, abs=1e-6)
    scores = details["held_out_mIoU"]
    assert details["l2"] == max(penalties, key=lambda l2: (scores[f"{l2:g}"], l2))


def test_two_runs_are_identical_and_a_class_never_seen_is_never_said():
    data = images(VIEWS["overlap"])
    first, second = (summed(data, num_classes=5).solve([1e-2, 1.0]) for _ in range(2))
    assert np.array_equal(first[0].weight, second[0].weight)
    assert first[1] == second[1]
    logits = first[0](np.concatenate([grid.reshape(-1, 5) for grid, _, _ in data]) * 50)
    assert np.isfinite(logits).all()
    assert logits.argmax(axis=1).max() <= 2


def test_images_without_a_scored_pixel_say_nothing():
    data = images(VIEWS["overlap"])
    empty = [
        (grid, layout, np.full_like(mask, 255))
        for grid, layout, mask in images(VIEWS["overlap"], seed=1)
    ]
    probe, details = summed(empty).solve([1e-2, 1.0])
    assert np.isfinite(probe(data[0][0])).all()
    assert details["held_out_mIoU"] == {"1": 0.0, "0.01": 0.0}


def test_cells_without_any_spread():
    data = [
        (np.ones_like(grid), layout, mask) for grid, layout, mask in images(VIEWS["one window"])
    ]
    probe, _ = summed(data).solve([1e-3, 1.0])
    assert set(probe(data[0][0]).argmax(axis=-1).ravel()) == {0}, "what occurs most"


# ---- what a mask says of cells ----


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_members_are_the_pixels_whose_middle_lies_in_the_cell(view):
    for _, layout, mask in images(view):
        classes, counts = class_sums(mask, *members(layout, *mask.shape))
        expected = np.zeros((*layout.grid, 3))
        for y, x in np.ndindex(*mask.shape):
            if mask[y, x] == 255:
                continue
            for row, top in enumerate(layout.tops):
                for column, left in enumerate(layout.lefts):
                    i = int(
                        np.floor(((y + 0.5) * layout.height / mask.shape[0] - top) / layout.patch)
                    )
                    j = int(
                        np.floor(((x + 0.5) * layout.width / mask.shape[1] - left) / layout.patch)
                    )
                    if 0 <= i < layout.cells and 0 <= j < layout.cells:
                        expected[row * layout.cells + i, column * layout.cells + j, mask[y, x]] += 1
        assert classes.tolist() == np.unique(mask[mask != 255]).tolist()
        assert counts.tolist() == expected.reshape(-1, 3)[:, classes].tolist()


def test_samples_are_evenly_many_and_no_more_than_asked_for():
    labelled = np.arange(100, 150)
    kept = [sample(labelled, number, 7, 100, seed=0) for number in range(7)]
    assert sum(map(len, kept)) == 100
    assert {len(part) for part in kept} == {14, 15}
    assert all(set(part) <= set(labelled) and list(part) == sorted(set(part)) for part in kept)
    assert not np.array_equal(kept[0][:14], kept[1][:14])
    assert np.array_equal(kept[3], sample(labelled, 3, 7, 100, seed=0))
    assert sum(len(sample(labelled, number, 1000, 100, seed=0)) for number in range(1000)) == 100
