"""Retrieval ranks against a loop over exact fractions, clip_benchmark, and tiles of any size."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
import types
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from silc_bench.metrics import accuracy as metrics
from silc_bench.metrics import retrieval
from silc_bench.metrics.retrieval import SCALE, retrieval_ranks


def several_captions(rng, num_images=23, dim=6):
    """Images, texts in any order, and pairs in any order; one to five texts an image."""
    pictures = np.repeat(np.arange(num_images), rng.integers(1, 6, size=num_images))
    pairs = np.stack([pictures, rng.permutation(len(pictures))], axis=1)
    images = rng.normal(size=(num_images, dim)).astype(np.float32)
    texts = np.empty((len(pictures), dim), dtype=np.float32)
    texts[pairs[:, 1]] = images[pairs[:, 0]] + 1.5 * rng.normal(size=(len(pictures), dim))
    return images, texts, rng.permutation(pairs)


def loop(scores, right):
    """Rank of the best right column of each row: the definition."""
    ranks = []
    for row, values in enumerate(scores):
        own = {t for i, t in right if i == row}
        best = max(values[t] for t in own)
        ranks.append(sum(value >= best for t, value in enumerate(values) if t not in own))
    return ranks


def cosines(images, texts):
    unit = [
        rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        for rows in (images, texts)
    ]
    return [
        [sum(float(a) * float(b) for a, b in zip(i, t, strict=True)) for t in unit[1]]
        for i in unit[0]
    ]


def both_loops(scores, right):
    return loop(scores, right), loop(list(zip(*scores, strict=True)), [(t, i) for i, t in right])


def ranks_of(images, texts, right):
    return tuple(ranks.tolist() for ranks in retrieval_ranks(images, texts, right))


def test_ranks_equal_a_loop_of_the_definition():
    images, texts, right = several_captions(np.random.default_rng(3))
    assert ranks_of(images, texts, right) == both_loops(cosines(images, texts), right.tolist())


def test_recall_equals_clip_benchmark_both_ways():
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("requests") is None:  # it imports it for downloads
            patch.setitem(sys.modules, "requests", types.ModuleType("requests"))
        from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
    images, texts, right = several_captions(np.random.default_rng(2), num_images=60)
    scores = (
        torch.nn.functional.normalize(torch.from_numpy(texts))
        @ torch.nn.functional.normalize(torch.from_numpy(images)).T
    )
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[right[:, 1], right[:, 0]] = True
    text_ranks, image_ranks = retrieval_ranks(images, texts, right)
    for k in (1, 5, 10):
        theirs = [
            (recall_at_k(s, p, k) > 0).float().mean()
            for s, p in ((scores.T, positive.T), (scores, positive))
        ]
        ours = [metrics.recall_at(ranks, k) for ranks in (text_ranks, image_ranks)]
        assert ours == pytest.approx([float(value) for value in theirs], abs=1e-7)
    assert 0 < metrics.recall_at(text_ranks, 1) < 1


# ---- exact: ties, near ties, and nothing that depends on how it was summed ----


def nearly_tied(rng, kind):
    """Embeddings that fp32 cannot tell apart, or barely."""
    images, texts, right = several_captions(rng, num_images=12, dim=40)
    if kind == "copies":
        texts = texts[rng.integers(0, 4, size=len(texts))]
    elif kind == "a last bit apart":
        texts = np.repeat(texts[:1], len(texts), axis=0) + np.float32(2**-22) * rng.integers(
            -2, 3, size=texts.shape
        )
        images = np.repeat(images[:3], 4, axis=0)
    elif kind == "collapsed":
        images, texts = np.ones_like(images), np.full_like(texts, 7)
    elif kind == "signs":
        images, texts = (
            np.sign(rng.normal(size=rows.shape)) * rng.integers(0, 2, size=rows.shape)
            for rows in (images, texts)
        )
    return images.astype(np.float32), texts.astype(np.float32), right


KINDS = ("random", "copies", "a last bit apart", "collapsed", "signs")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tile=st.sampled_from([1, 3, 8, 64]),
    close_pairs=st.sampled_from([1, 64, 10**9]),
)
def test_any_tiles_give_the_ranks_of_exact_arithmetic(kind, seed, tile, close_pairs):
    rng = np.random.default_rng(seed)
    images, texts, right = nearly_tied(rng, kind)
    fixed = [
        [[Fraction(int(x)) for x in row] for row in retrieval._fixed_point(rows)]
        for rows in (images, texts)
    ]
    scores = [[sum(a * b for a, b in zip(i, t, strict=True)) for t in fixed[1]] for i in fixed[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "TILE", tile)
        patch.setattr(retrieval, "_CLOSE_PAIRS", close_pairs)
        assert ranks_of(images, texts, right) == both_loops(scores, right.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_images_and_texts_does_not_matter(kind):
    rng = np.random.default_rng(7)
    images, texts, right = nearly_tied(rng, kind)
    text_ranks, image_ranks = retrieval_ranks(images, texts, right)
    i, t = rng.permutation(len(images)), rng.permutation(len(texts))
    moved = np.stack([np.argsort(i)[right[:, 0]], np.argsort(t)[right[:, 1]]], axis=1)
    again = retrieval_ranks(images[i], texts[t], moved)
    assert again[0].tolist() == text_ranks[i].tolist()
    assert again[1].tolist() == image_ranks[t].tolist()


def test_ties_and_collapse_are_not_hits():
    same, right = np.ones((4, 3), dtype=np.float32), np.stack([np.arange(4), np.arange(4)], axis=1)
    assert ranks_of(same, same, right) == ([3] * 4, [3] * 4)
    assert ranks_of(0 * same, same, right) == ([3] * 4, [3] * 4)


def test_several_right_answers_do_not_stand_in_each_others_way():
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.0]])
    text_ranks, image_ranks = retrieval_ranks(
        images, texts, np.array([[0, 1], [0, 2], [1, 0], [1, 3]])
    )
    assert text_ranks.tolist() == [2, 2], (
        "the second and third stand behind two wrong ones; so does the first, for the other"
    )
    assert image_ranks.tolist() == [1, 0, 0, 1]
    assert ranks_of(images[:1], texts, np.array([[0, 0], [0, 1], [0, 2], [0, 3]])) == ([0], [0] * 4)


def test_fixed_point_is_finer_than_fp32():
    rows = np.random.default_rng(5).normal(size=(50, 512))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    fixed = retrieval._fixed_point(rows) / SCALE
    assert np.abs(fixed @ fixed.T - unit @ unit.T).max() < 5e-8


# ---- memory, mistakes ----


def test_memory_does_not_grow_with_the_number_of_pairs_of_items():
    rng = np.random.default_rng(6)
    images, texts = (
        rng.normal(size=(2000, 8)).astype(np.float32),
        rng.normal(size=(10_000, 8)).astype(np.float32),
    )
    right = np.stack([np.repeat(np.arange(2000), 5), np.arange(10_000)], axis=1)
    tracemalloc.start()
    retrieval_ranks(images, texts, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 10_000 * 4 / 3, "a third of the matrix of similarities"


def test_mistakes_of_ours():
    with pytest.raises(AssertionError, match="no right answer"):
        retrieval_ranks(np.eye(2), np.eye(2), np.array([[0, 0]]))
    with pytest.raises(AssertionError, match="not finite"):
        retrieval_ranks(np.eye(2), np.full((2, 2), np.nan), np.array([[0, 0], [1, 1]]))
