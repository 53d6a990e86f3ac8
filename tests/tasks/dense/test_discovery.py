"""Object discovery and correspondence against loops, graphs whose cut is known, and counting."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from refusals import refused

from silc_bench.models.windows import View
from silc_bench.tasks.dense import discovery
from silc_bench.tasks.dense.correspondence import (
    UNLABELLED,
    cell_classes,
    chance_at,
    partners,
    ranks,
)
from silc_bench.tasks.dense.discovery import fiedler_vector, foreground, placed_at_random


def test_the_fiedler_vector_solves_the_generalised_problem():
    cells = np.random.default_rng(0).normal(1, 1, size=(30, 6))
    unit = cells / np.linalg.norm(cells, axis=1, keepdims=True)
    weights = np.maximum(unit @ unit.T, 0)
    degree = np.diag(weights.sum(axis=1))
    values, vectors = np.linalg.eig(np.linalg.inv(degree) @ (degree - weights))
    expected = vectors[:, np.argsort(values.real)[1]].real
    ours = fiedler_vector(cells)
    cosine = ours @ expected / np.linalg.norm(ours) / np.linalg.norm(expected)
    assert abs(cosine) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("background", [(1.0, 0.0), (1.0, 0.4)], ids=["two parts", "connected"])
def test_a_small_object_is_found_to_the_patch(background):
    layout = View(32, 32, 32).layout(32, 32, 4)
    truth = np.zeros((8, 8), bool)
    truth[2:4, 3:6] = True
    grid = np.where(truth[..., None], [0.0, 1.0], background).astype(np.float32)
    assert np.array_equal(foreground(grid, layout, 8, 8), truth), "a pixel a patch"
    fine, large = foreground(grid, layout, 32, 32), np.kron(truth, np.ones((4, 4), bool))
    assert (fine & large).sum() / (fine | large).sum() > 0.6


def test_any_features_give_the_smaller_part():
    layout = View(16, 12, 4).layout(16, 16, 4)
    for grid in (
        np.ones((6, 6, 3)),
        np.zeros((6, 6, 3)),
        np.random.default_rng(1).normal(size=(6, 6, 3)),
    ):
        smaller = foreground(grid.astype(np.float32), layout, 9, 11)
        assert smaller.shape == (9, 11)
        assert 2 * smaller.sum() <= smaller.size


def test_an_image_too_long_for_an_eigenvector_is_refused(monkeypatch):
    monkeypatch.setattr(discovery, "MAX_CELLS", 3)
    with refused("8 x 8 pixels"):
        foreground(np.zeros((2, 2, 3), np.float32), View(8, 8, 8).layout(8, 8, 4), 8, 8)


def test_chance_of_a_foreground_by_simulation():
    rng = np.random.default_rng(2)
    truth = np.arange(4000) < 400
    guesses = rng.permuted(np.tile(np.arange(4000) < 1500, (300, 1)), axis=1)
    ious = (guesses & truth).sum(axis=1) / (guesses | truth).sum(axis=1)
    assert placed_at_random(guesses[0], truth) == pytest.approx(ious.mean(), abs=0.001)


# ---- correspondence ----


def test_ranks_equal_a_loop_and_a_tie_is_no_hit():
    rng = np.random.default_rng(3)
    queries, others = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    is_right = np.arange(9) % 3 == 0
    others[1] = others[0]  # a wrong one as near as a right one
    queries[0] = others[0]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, others)]
    cosines = np.round(unit[0] @ unit[1].T, 6)
    expected = [sum(row[~is_right] >= row[is_right].max()) for row in cosines]
    assert ranks(queries, others, is_right).tolist() == expected
    assert expected[0] == 1


@pytest.mark.parametrize(
    ("k", "num_right", "num_others"), [(1, 2, 7), (3, 2, 7), (5, 3, 7), (6, 3, 7), (9, 1, 7)]
)
def test_chance_equals_counting(k, num_right, num_others):
    draws = list(combinations(range(num_others), min(k, num_others)))
    expected = np.mean([min(draw) < num_right for draw in draws])
    assert chance_at(k, num_right, num_others) == pytest.approx(expected, abs=1e-12)


def test_a_cell_has_the_class_of_most_of_its_pixels():
    layout = View(8, 8, 8).layout(8, 8, 4)
    mask = np.full((8, 8), 255, np.uint8)
    mask[:4, :4], mask[0, 0] = 3, 1
    mask[4:, :2], mask[4:, 2:4] = 2, 1
    assert cell_classes(mask, layout).tolist() == [3, UNLABELLED, 1, UNLABELLED]
    assert cell_classes(np.full((8, 8), 255, np.uint8), layout).tolist() == [UNLABELLED] * 4


def test_partners_are_the_next_that_hold_the_class():
    classes = [np.array(own) for own in ([0, 1], [1, UNLABELLED], [2, 1], [0, 5])]
    assert partners(classes, np.array([2, 0, 3, 1])) == [{0: 3, 1: 1}, {1: 2}, {1: 0}, {0: 0}]
