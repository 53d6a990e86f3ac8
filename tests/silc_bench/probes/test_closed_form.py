"""Probes against the normal equations written out, explicit up-sampling and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from silc_bench.probes import closed_form as probes


def clustered(rng, num_samples, dim, num_classes, spread=1.0):
    """Features of very different scales around a centre a class."""
    labels = rng.integers(0, num_classes, size=num_samples)
    labels[:num_classes] = np.arange(num_classes)
    centers = rng.normal(size=(num_classes, dim))
    features = (centers[labels] + spread * rng.normal(size=(num_samples, dim))) @ (
        rng.normal(size=(dim, dim)) * np.logspace(0, -2, dim)
    ) + 3
    return features.astype(np.float32), labels


# ---- few-shot ridge ----


@pytest.mark.parametrize(
    ("num_samples", "dim"), [(50, 8), (12, 40), (9, 8)], ids=["N>D", "N<D", "N=D+1"]
)
def test_ridge_equals_the_normal_equations(num_samples, dim):
    x, labels = clustered(np.random.default_rng(0), num_samples, dim, 5)
    test = np.random.default_rng(1).normal(size=(7, dim)).astype(np.float32)

    a = x.astype(np.float64)
    mean, std = a.mean(0), a.std(0) + 1e-5
    a = np.concatenate([(a - mean) / std, np.full((num_samples, 1), 100.0)], axis=1)
    y = np.where(np.eye(5)[labels] == 1, 1.0, -1.0)
    w = np.linalg.inv(a.T @ a + 1024 * np.eye(dim + 1)) @ a.T @ y
    expected = np.concatenate([(test - mean) / std, np.full((7, 1), 100.0)], axis=1) @ w

    np.testing.assert_allclose(probes.ridge(x, labels, 5, 1024.0)(test), expected, atol=1e-6)


def test_ridge_survives_a_feature_that_never_changes():
    x, labels = clustered(np.random.default_rng(2), 30, 6, 3)
    x[:, 2] = 7
    assert np.isfinite(probes.ridge(x, labels, 3, 1024.0)(x)).all()


def test_shots_depend_on_labels_and_seed_alone():
    labels = np.random.default_rng(3).integers(0, 4, size=60)
    # a global generator must not matter
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = probes.shot_indices(labels, 5, 1, 4)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again = probes.shot_indices(labels, 5, 1, 4)
    assert first.tolist() == again.tolist()
    assert first.tolist() != probes.shot_indices(labels, 5, 2, 4).tolist()
    assert np.bincount(labels[first]).tolist() == [5, 5, 5, 5]
    assert len(set(first.tolist())) == 20
    assert set(probes.shot_indices(labels, 1, 1, 4).tolist()) <= set(first.tolist()), (
        "5 shots hold the 1 shot"
    )


def test_shots_of_a_class_with_too_few_or_no_samples():
    assert sorted(probes.shot_indices(np.array([0, 0, 2]), 5, 0, 4).tolist()) == [0, 1, 2]


# ---- nearest neighbours ----


@pytest.mark.parametrize("cells", [1, 500, 1 << 24])
def test_knn_equals_a_loop_in_any_chunks(cells, monkeypatch):
    monkeypatch.setattr(probes, "CHUNK_CELLS", cells)
    rng = np.random.default_rng(4)
    train, labels = clustered(rng, 40, 5, 4, spread=2)
    test, test_labels = clustered(rng, 15, 5, 4, spread=2)
    ranks = probes.knn_ranks(train, labels, test, test_labels, (1, 5, 100), 0.07)
    for k in (1, 5, 100):
        for query, label, rank in zip(test.astype(np.float64), test_labels, ranks[k], strict=True):
            cosine = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
            votes = np.zeros(4)
            for i in sorted(range(40), key=lambda i: -cosine[i])[:k]:
                votes[labels[i]] += np.exp(cosine[i] / 0.07)
            assert rank == sum(votes[c] >= votes[label] for c in range(4) if c != label)


def test_knn_of_the_training_samples_themselves_and_of_an_unknown_class():
    train, labels = clustered(np.random.default_rng(5), 30, 6, 3)
    assert (probes.knn_ranks(train, labels, train, labels, (1,), 0.07)[1] == 0).all()
    unknown = probes.knn_ranks(train, labels, train[:2], np.array([5, 5]), (1,), 0.07)[1]
    assert (unknown > 0).all()
