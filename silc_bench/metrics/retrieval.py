"""Exact ranks for image-text retrieval, both ways from one pass, in bounded memory.

No matrix of all pairs is ever held.

Flow: embeddings -> unit length, in fixed point -> score of every right pair -> tiles of I x T
similarities -> how many wrong items score at least as much as the best right one -> ranks, from
which any-hit recall@k and the median rank follow.

A rank counts comparisons, so it must not depend on how the similarities were summed: the best right
score would lose or win against its own copy by a last bit. Here every score is *exact*. The
coordinates of a unit vector are rounded to multiples of 2^-26; then each product is a multiple of
2^-52, no partial sum exceeds 1, and float64 holds all of them without rounding, in any order. The
result does not depend on tiles, threads, BLAS or the order of the rows; equal embeddings tie
exactly, and a tie is not a hit. The rounding moves a cosine by about 1e-8, a tenth of what the sum
in fp32 would.

For speed the tiles are multiplied in fp32, whose error is below (D + 8) 2^-24: only comparisons
closer than that are decided by the exact scores (few; all of a tile where the embeddings have
collapsed).

Shapes: I images, T texts, D embedding, P right pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

from silc_bench.later import np

TILE = 1024  # rows and columns of similarities held at once: 4 MiB of fp32
SCALE = float(1 << 26)  # of the fixed point: coordinates are whole numbers of magnitude <= SCALE
# with more than a 64th of the tile too close to call, the whole tile is summed exactly
_CLOSE_PAIRS = 64
_ROWS = 4096  # converted to fixed point, and of pairs scored, at once


def retrieval_ranks(
    images: np.ndarray, texts: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the best right answer by cosine similarity, both ways.

    Of each image among the texts [I], of each text among the images [T].

    0 is best; the rank is the number of wrong items that score at least as much as the best right
    one, so that several right answers do not stand in each other's way (any-hit recall, as
    CLIP-like papers report it).

    Args:
        images: [I, D], finite, of any length; a zero vector ties with everything orthogonal to it.
        texts: [T, D], the same.
        right: [P, 2] (image, text) pairs; every image and every text is in one or more.
    """
    assert np.isfinite(images).all(), "an embedding that is not finite has no rank"
    assert np.isfinite(texts).all(), "an embedding that is not finite has no rank"
    images = _fixed_point(images)
    texts = _fixed_point(texts)
    margin = (images.shape[1] + 8) * 2.0**-24  # of a cosine summed in fp32
    best_text, best_image = _best_right_scores(images, texts, right)

    text_ranks = np.zeros(len(images), dtype=np.int64)
    image_ranks = np.zeros(len(texts), dtype=np.int64)
    for rows, columns, own in _tiles(len(images), len(texts), right):
        a = images[rows]
        b = texts[columns]
        asked_by_image = best_text[rows, None]
        asked_by_text = best_image[None, columns]

        # right pairs are taken out: they do not stand in each other's way
        scores = _fp32(a) @ _fp32(b).T
        scores[own] = -np.inf
        ahead_of_text, close_to_text = _compare(scores, asked_by_image, margin)
        ahead_of_image, close_to_image = _compare(scores, asked_by_text, margin)

        # what fp32 cannot tell is decided exactly: all of the tile, or pair by pair
        close = close_to_text | close_to_image
        num_close = np.count_nonzero(close)
        if num_close * _CLOSE_PAIRS > close.size:
            exact = a.astype(np.float64) @ b.astype(np.float64).T
            exact[own] = -np.inf
            ahead_of_text = exact >= asked_by_image
            ahead_of_image = exact >= asked_by_text
        elif num_close:
            i, t = np.nonzero(close)
            exact = _pair_scores(a, b, i, t)
            ahead_of_text[i, t] = exact >= asked_by_image[i, 0]
            ahead_of_image[i, t] = exact >= asked_by_text[0, t]
        text_ranks[rows] += ahead_of_text.sum(axis=1)
        image_ranks[columns] += ahead_of_image.sum(axis=0)
    return text_ranks, image_ranks


def _compare(scores: np.ndarray, best: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Which fp32 cosines may reach ``best`` (a fixed-point score), which are too close to tell."""
    cosine = best / SCALE**2
    may = scores >= (cosine - margin).astype(np.float32)
    return may, may ^ (scores > (cosine + margin).astype(np.float32))


def _best_right_scores(
    images: np.ndarray, texts: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[I] and [T] fixed-point scores: of each image its best text, of each text its best image."""
    scores = _pair_scores(images, texts, right[:, 0], right[:, 1])
    best = np.full(len(images), -np.inf), np.full(len(texts), -np.inf)
    for side, index in zip(best, right.T, strict=True):
        np.maximum.at(side, index, scores)
        assert np.isfinite(side).all(), "a query has no right answer in the gallery"
    return best


def _pair_scores(images: np.ndarray, texts: np.ndarray, i: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[P] exact products of images[i] and texts[t]."""
    scores = np.empty(len(i))
    for start in range(0, len(i), _ROWS):
        part = slice(start, start + _ROWS)
        a = images[i[part]].astype(np.float64)
        b = texts[t[part]].astype(np.float64)
        scores[part] = np.einsum("pd,pd->p", a, b)
    return scores


def _tiles(
    num_images: int, num_texts: int, right: np.ndarray
) -> Iterator[tuple[slice, slice, tuple[np.ndarray, np.ndarray]]]:
    """Rows, columns and the right pairs among them, numbered within the tile.

    The pairs are sorted once, not searched for each tile.
    """
    # tiles are numbered row by row; sorted by that number, the pairs of a tile are a slice
    across = -(-num_texts // TILE)
    num_tiles = -(-num_images // TILE) * across
    number = right[:, 0] // TILE * across + right[:, 1] // TILE
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(num_tiles), side="right")

    start = 0
    for tile, end in enumerate(ends.tolist()):
        row = tile // across * TILE
        column = tile % across * TILE
        own = right[order[start:end]] - (row, column)
        yield slice(row, row + TILE), slice(column, column + TILE), (own[:, 0], own[:, 1])
        start = end


def _fixed_point(features: np.ndarray) -> np.ndarray:
    """[N, D] int32: unit length times SCALE, rounded."""
    fixed = np.empty(features.shape, dtype=np.int32)
    for start in range(0, len(features), _ROWS):
        rows = features[start : start + _ROWS].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        scale = SCALE / np.where(norms > 0, norms, 1)
        fixed[start : start + _ROWS] = np.rint(rows * scale)
    return fixed


def _fp32(fixed: np.ndarray) -> np.ndarray:
    return fixed.astype(np.float32) / np.float32(SCALE)
