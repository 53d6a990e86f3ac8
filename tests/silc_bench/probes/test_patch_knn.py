"""Votes of the nearest training cells against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from silc_bench.probes import patch_knn
from silc_bench.probes.patch_labels import class_sums, members


@pytest.fixture(scope="module")
def data(cell_images):
    images = cell_images(classes=(0, 1, 4, 255))
    images[0][2][:6] = 255  # whole cells without a scored pixel
    return images


def remembered(data):
    memory = patch_knn.CellMemory(len(data), num_classes=6, seed=0)
    for image in data:
        memory.add(*image)
    return memory


@pytest.mark.parametrize("chunk", [1, 1 << 24])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_votes_equal_a_loop_in_any_chunks(data, k, chunk, monkeypatch):
    monkeypatch.setattr(patch_knn, "CHUNK", chunk)
    cells, shares = [], []
    for grid, layout, mask in data:
        classes, counts = class_sums(mask, *members(layout, *mask.shape))
        for cell, row in zip(grid.reshape(-1, 5).astype(np.float64), counts, strict=True):
            if row.sum():
                cells.append(cell / np.linalg.norm(cell))
                shares.append(np.zeros(6))
                shares[-1][classes] = row / row.sum()
    assert len(cells) < sum(grid[..., 0].size for grid, _, _ in data), "some have no label"

    queries = np.random.default_rng(9).normal(size=(7, 5)).astype(np.float32)
    votes = remembered(data).voter(k, 0.1)(torch.from_numpy(queries)).numpy()
    for query, vote in zip(queries.astype(np.float64), votes, strict=True):
        cosines = np.array(cells) @ query / np.linalg.norm(query)
        nearest = np.argsort(-cosines)[:k]
        weights = np.exp(cosines[nearest] / 0.1)
        expected = weights / weights.sum() @ np.array(shares)[nearest]
        np.testing.assert_allclose(vote, expected, atol=1e-5)


def test_memory_is_bounded_and_the_same_each_time(data, monkeypatch):
    monkeypatch.setattr(patch_knn, "MAX_CELLS", 10)
    first, again = remembered(data), remembered(data)
    assert first.num_cells == 10
    query = torch.ones(3, 5)
    assert torch.equal(first.voter(3, 0.1)(query), again.voter(3, 0.1)(query))
