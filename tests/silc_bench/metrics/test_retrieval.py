"""Retrieval ranks against a loop over exact fractions, clip_benchmark, and tiles of any size."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from silc_bench.metrics import retrieval
from silc_bench.metrics.retrieval import SCALE, retrieval_ranks


def several_captions(rng, num_images, dim):
    """Images, texts in any order, and pairs in any order; one to five texts an image."""
    owners = np.repeat(np.arange(num_images), rng.integers(1, 6, size=num_images))
    pairs = np.stack([owners, rng.permutation(len(owners))], axis=1)
    images = rng.normal(size=(num_images, dim)).astype(np.float32)
    texts = np.empty((len(owners), dim), dtype=np.float32)
    texts[pairs[:, 1]] = images[pairs[:, 0]] + 1.5 * rng.normal(size=(len(owners), dim))
    return images, texts, rng.permutation(pairs)


def loop(scores, right):
    """Rank of the best right column of each row: the definition."""
    ranks = []
    for row, values in enumerate(scores):
        own = {t for i, t in right if i == row}
        best = max(values[t] for t in own)
        ranks.append(sum(value >= best for t, value in enumerate(values) if t not in own))
    return ranks


# ---- exact: ties, near ties, and nothing that depends on how it was summed ----


def nearly_tied(rng, kind):
    """Embeddings that fp32 cannot tell apart, or barely."""
    images, texts, right = several_captions(rng, num_images=12, dim=40)
    if kind == "copies":
        texts = texts[rng.integers(0, 4, size=len(texts))]
    elif kind == "a last bit apart":
        bits = rng.integers(-2, 3, size=texts.shape)
        texts = texts[:1] + np.float32(2**-22) * bits
        images = np.repeat(images[:3], 4, axis=0)
    elif kind == "collapsed":
        images, texts = np.ones_like(images), np.full_like(texts, 7)
    elif kind == "zeros":
        images = np.zeros_like(images)
    return images.astype(np.float32), texts.astype(np.float32), right


@pytest.mark.parametrize("kind", ["random", "copies", "a last bit apart", "collapsed", "zeros"])
@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    tile=st.sampled_from([1, 3, 8, 64]),
    close_pairs=st.sampled_from([1, 64, 10**9]),
)
def test_any_tiles_give_the_ranks_of_exact_arithmetic(kind, seed, tile, close_pairs):
    images, texts, right = nearly_tied(np.random.default_rng(seed), kind)
    fixed_images, fixed_texts = (
        [[Fraction(int(x)) for x in row] for row in retrieval._fixed_point(rows)]
        for rows in (images, texts)
    )
    scores = [
        [sum(a * b for a, b in zip(i, t, strict=True)) for t in fixed_texts] for i in fixed_images
    ]
    turned = loop(zip(*scores, strict=True), right[:, ::-1].tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "TILE", tile)
        patch.setattr(retrieval, "_CLOSE_PAIRS", close_pairs)
        ranks = [side.tolist() for side in retrieval_ranks(images, texts, right)]
    assert ranks == [loop(scores, right.tolist()), turned]


def test_fixed_point_is_finer_than_fp32():
    rows = np.random.default_rng(5).normal(size=(50, 512))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    fixed = retrieval._fixed_point(rows) / SCALE
    assert np.abs(fixed @ fixed.T - unit @ unit.T).max() < 5e-8


def test_memory_does_not_grow_with_the_number_of_pairs_of_items():
    rng = np.random.default_rng(6)
    images, texts = (rng.normal(size=(n, 8)).astype(np.float32) for n in (2000, 10_000))
    right = np.stack([np.repeat(np.arange(2000), 5), np.arange(10_000)], axis=1)
    tracemalloc.start()
    retrieval_ranks(images, texts, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 10_000 * 4 / 3, "a third of the matrix of similarities"
