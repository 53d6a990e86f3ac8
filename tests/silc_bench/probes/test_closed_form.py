"""Probes against the normal equations written out, and loops."""

from __future__ import annotations

import numpy as np
import pytest

from silc_bench.probes import closed_form as probes

# ---- few-shot ridge ----


@pytest.mark.parametrize(
    ("num_samples", "dim"), [(50, 8), (12, 40), (9, 8)], ids=["N>D", "N<D", "N=D+1"]
)
def test_ridge_equals_the_normal_equations(clustered, num_samples, dim):
    x, labels = clustered(np.random.default_rng(0), num_samples, dim, 5)
    x[:, 2] = 7  # a feature that never changes
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-5

    def standardised(rows):
        return np.pad((rows - mean) / std, ((0, 0), (0, 1)), constant_values=100.0)

    a, y = standardised(x), np.where(np.eye(5)[labels] == 1, 1.0, -1.0)
    w = np.linalg.inv(a.T @ a + 1024 * np.eye(dim + 1)) @ a.T @ y
    ours = probes.ridge(x, labels, 5, 1024.0)
    np.testing.assert_allclose(ours(x + 1), standardised(x + 1) @ w, rtol=1e-6, atol=1e-6)


def test_shots_depend_on_labels_and_seed_alone():
    labels = np.random.default_rng(3).integers(0, 4, size=60)

    def draw(shots, seed, global_seed=0):
        # a global generator must not matter
        np.random.seed(global_seed)  # noqa: NPY002
        return probes.shot_indices(labels, shots, seed, 4).tolist()

    five = draw(5, 1)
    assert five == draw(5, 1, global_seed=1) != draw(5, 2)
    assert np.bincount(labels[five]).tolist() == [5, 5, 5, 5]
    assert len(set(five)) == 20
    assert set(draw(1, 1)) <= set(five), "5 shots hold the 1 shot"
    assert sorted(draw(99, 1)) == list(range(60)), "all of a class that has too few"


# ---- nearest neighbours ----


@pytest.mark.parametrize("cells", [1, 500, 1 << 24])
def test_knn_equals_a_loop_in_any_chunks(clustered, cells, monkeypatch):
    monkeypatch.setattr(probes, "CHUNK_CELLS", cells)
    rng = np.random.default_rng(4)
    train, labels = clustered(rng, 40, 5, 4, spread=2)
    test, test_labels = clustered(rng, 15, 5, 5, spread=2)  # one class is unknown
    ranks = probes.knn_ranks(train, labels, test, test_labels, (1, 5, 100), 0.07)
    for k in (1, 5, 100):
        for query, label, rank in zip(test.astype(np.float64), test_labels, ranks[k], strict=True):
            cosine = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
            votes = np.zeros(5)
            for i in sorted(range(40), key=lambda i: -cosine[i])[:k]:
                votes[labels[i]] += np.exp(cosine[i] / 0.07)
            assert rank == sum(votes[c] >= votes[label] for c in range(5) if c != label)
