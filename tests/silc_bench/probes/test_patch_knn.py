"""Votes of the nearest training cells against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from silc_bench.models.windows import View
from silc_bench.probes import patch_knn as dense_knn
from silc_bench.probes.patch_knn import CellMemory
from silc_bench.probes.patch_labels import class_sums, members


def images(count=4, seed=0):
    view, rng = View(12, 8, 4), np.random.default_rng(seed)
    for number in range(count):
        height, width = ((12, 15), (9, 7))[number % 2]
        layout = view.layout(*view.resized_sides(height, width), 4)
        mask = rng.choice([0, 1, 4, 255], size=(height, width)).astype(np.uint8)
        mask[:6] = 255 if number == 0 else mask[:6]  # whole cells without a scored pixel
        yield rng.normal(size=(*layout.grid, 5)).astype(np.float32), layout, mask


def remembered(data, num_classes=6):
    memory = CellMemory(len(data), num_classes, seed=0)
    for part in data:
        memory.add(*part)
    return memory


@pytest.mark.parametrize("chunk", [1, 1 << 24])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_votes_equal_a_loop_in_any_chunks(k, chunk, monkeypatch):
    monkeypatch.setattr(dense_knn, "CHUNK", chunk)
    data = list(images())
    queries = np.random.default_rng(9).normal(size=(7, 5)).astype(np.float32)
    votes = remembered(data).voter(k, 0.1)(torch.from_numpy(queries)).numpy()

    cells, shares = [], []
    for grid, layout, mask in data:
        classes, counts = class_sums(mask, *members(layout, *mask.shape))
        for cell, row in zip(grid.reshape(-1, 5).astype(np.float64), counts, strict=True):
            if row.sum():
                cells.append(cell / np.linalg.norm(cell))
                shares.append(
                    [
                        row[list(classes).index(c)] / row.sum() if c in classes else 0.0
                        for c in range(6)
                    ]
                )
    assert len(cells) < sum(grid.shape[0] * grid.shape[1] for grid, _, _ in data), (
        "some cells have no label"
    )
    for query, vote in zip(queries.astype(np.float64), votes, strict=True):
        cosines = np.array(cells) @ query / np.linalg.norm(query)
        nearest = np.argsort(-cosines)[:k]
        weights = np.exp(cosines[nearest] / 0.1)
        np.testing.assert_allclose(
            vote, weights / weights.sum() @ np.array(shares)[nearest], atol=1e-5
        )


def test_memory_is_bounded_and_the_same_each_time(monkeypatch):
    monkeypatch.setattr(dense_knn, "MAX_CELLS", 10)
    data = list(images())
    first, again = remembered(data), remembered(data)
    assert first.num_cells == 10
    query = torch.ones(3, 5)
    assert torch.equal(first.voter(3, 0.1)(query), again.voter(3, 0.1)(query))
