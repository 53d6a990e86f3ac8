"""How far a score may lie from the one on infinitely many images, and whether two models differ.

Closed forms where the samples are independent; a bootstrap over *images* where they are not (the
captions or the pixels of one image are wrong together, so counting them as independent would
promise too much).

Two models: ``paired_bootstrap`` (and ``draws_variance``) -> standard error of their difference ->
``paired_p``, or ``mcnemar`` where an image is hit or missed -> ``holm`` over all the tests of one
report.

Shapes: N images, S draws of the training shots, R resamples, M tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from silc_bench.later import np

NUM_RESAMPLES = 1000
PAIRED_RESAMPLES = 4000  # p-values hang on it: the error is known to 1.1 %, not 2.2 %
_CHUNK = 1 << 22  # drawn indices held at once


@dataclass(frozen=True)
class Paired:
    """Two models on the same samples, as fractions; the difference is second minus first."""

    difference: float
    stderr: float
    margin: float  # half the 95 % interval, of this test alone
    p: float
    test: str  # "mcnemar" or "bootstrap"


def accuracy_stderr(hits: np.ndarray) -> float:
    """Binomial, sqrt(p (1 - p) / N): hits [N] bool -> a fraction."""
    p = float(np.mean(hits))
    return float(np.sqrt(p * (1 - p) / len(hits)))


def mean_per_class_stderr(hits: np.ndarray, labels: np.ndarray) -> float:
    """Stratified standard error: sqrt(sum_c p_c (1 - p_c) / n_c) / C over the classes that occur.

    The class sizes are taken as given.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    p = np.bincount(inverse, weights=hits) / counts
    return float(np.sqrt(np.sum(p * (1 - p) / counts)) / len(counts))


def seeds_stderr(hits: np.ndarray) -> float:
    """Standard error of the mean accuracy over S draws of the training shots: hits [S, N] bool.

    All draws are scored on the same N images.

    Two sources add in squares: which images were tested (variance over images of the hit rate
    over draws, / N) and which shots were drawn (variance over draws of the accuracy, / S). The
    second holds a little of the first again, so the sum errs on the wide side.
    """
    num_draws, num_images = hits.shape
    of_images = hits.mean(axis=0).var(ddof=1) / num_images if num_images > 1 else 0.0
    of_draws = hits.mean(axis=1).var(ddof=1) / num_draws if num_draws > 1 else 0.0
    return float(np.sqrt(of_images + of_draws))


def bootstrap_stderr(per_image: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> float:
    """Standard deviation of a statistic of summed counts over resamples of images (Efron, 1979).

    The images are drawn anew, with replacement; the same counts give the same error.

    Of few images a draw may hold none that the statistic is about; it is NaN there, and such
    draws do not count.

    Args:
        per_image: [N, ...] counts of each image (areas [3, C], or hits and queries [2]).
        statistic: sums [R, ...] -> [R], for R draws at once.
    """
    num_images = len(per_image)
    flat = per_image.reshape(num_images, -1).astype(np.float64)
    rng = np.random.default_rng(0)
    sums = np.empty((NUM_RESAMPLES, flat.shape[1]))

    # in chunks, as all indices at once would take N x R numbers
    chunk = max(1, _CHUNK // num_images)
    for start in range(0, NUM_RESAMPLES, chunk):
        rows = min(chunk, NUM_RESAMPLES - start)
        drawn = rng.integers(num_images, size=(rows, num_images))

        # how often each image was drawn, [rows, N]: its counts times that, instead of gathering
        shifted = drawn + num_images * np.arange(rows)[:, None]
        times = np.bincount(shifted.ravel(), minlength=rows * num_images)
        sums[start : start + rows] = times.reshape(rows, num_images) @ flat

    resampled = statistic(sums.reshape(NUM_RESAMPLES, *per_image.shape[1:]))
    return float(np.nanstd(resampled, ddof=1))


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Standard deviation of statistic(b) - statistic(a) over resamples of the images (Efron, 1979).

    The images are drawn anew, the same for both; the same counts give the same error.

    Images with equal counts are drawn together, by how many of them there are (the multinomial
    distribution of the same resamples): hits take four numbers a draw however many images there
    are, and the images' order has no part in it. Draws where either statistic is NaN do not
    count.

    Args:
        a: [N, ...] counts of each image by one model.
        b: the same by the other.
        statistic: sums [R, ...] -> [R], for R draws at once.
    """
    assert a.shape == b.shape, (a.shape, b.shape)
    num_images = len(a)
    both = np.concatenate([a.reshape(num_images, -1), b.reshape(num_images, -1)], axis=1)
    kinds, times = np.unique(both.astype(np.float64), axis=0, return_counts=True)

    differences = np.empty(PAIRED_RESAMPLES)
    start = 0
    for drawn in _drawn(times):
        stop = start + len(drawn)
        sums = drawn @ kinds
        sums_a, sums_b = (
            half.reshape(len(drawn), *a.shape[1:]) for half in np.split(sums, 2, axis=1)
        )
        differences[start:stop] = statistic(sums_b) - statistic(sums_a)
        start = stop
    return float(np.nanstd(differences, ddof=1))


def _drawn(times: np.ndarray) -> Iterator[np.ndarray]:
    """How often each kind of image is in a resample, [rows, kinds], for all resamples in parts.

    Args:
        times: [kinds], how many images are of each kind.
    """
    chunk = max(1, _CHUNK // len(times))
    if chunk >= PAIRED_RESAMPLES:
        yield _all_drawn(times.tobytes(), str(times.dtype))
        return

    # one generator for all parts: their size does not change the draws
    rng = np.random.default_rng(0)
    for start in range(0, PAIRED_RESAMPLES, chunk):
        rows = min(chunk, PAIRED_RESAMPLES - start)
        yield rng.multinomial(times.sum(), times / times.sum(), size=rows)


# To draw takes ten times as long as what follows. Where no two images are alike, as areas of masks
# are, each pair of models on one data set has the same draws.
@functools.lru_cache(maxsize=1)
def _all_drawn(times: bytes, dtype: str) -> np.ndarray:
    kinds = np.frombuffer(times, dtype)
    size = PAIRED_RESAMPLES
    return np.random.default_rng(0).multinomial(kinds.sum(), kinds / kinds.sum(), size=size)


def draws_variance(hits_a: np.ndarray, hits_b: np.ndarray) -> float:
    """What the draw of the shots adds to the variance of a difference in accuracy: hits [N, S].

    Draw s is the same for both: the variance over draws of the difference, / S, as in
    ``seeds_stderr``; 0 for a single draw.
    """
    differences = hits_b.mean(axis=0) - hits_a.mean(axis=0)
    if len(differences) < 2:
        return 0.0
    return float(differences.var(ddof=1) / len(differences))


def pooled_dof(variances: Sequence[float], dofs: Sequence[int]) -> float:
    """Degrees of freedom of a sum of independent variances (Satterthwaite, 1946).

    They are (sum v)^2 / sum(v^2 / dof). Variances of 0 do not count.
    """
    parts = [(variance, dof) for variance, dof in zip(variances, dofs, strict=True) if variance > 0]
    if not parts:
        return float(max(1, *dofs))
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / dof for variance, dof in parts)


def half_interval(stderr: float, dof: float) -> float:
    """Half the width of the 95 % confidence interval, by Student's t."""

    # imported here: a listing of tasks needs no scipy
    from scipy.special import stdtrit

    return float(stdtrit(dof, 0.975)) * stderr


def paired_p(difference: float, stderr: float, dof: float, num_differing: int) -> float:
    """Two-sided p-value of a difference, by Student's t.

    It is never less than 2 / 2^n over the n images on which the models differ: what the sign test
    gives when all n favour the same model. So a few images that agree by chance, whose error is
    0, prove nothing.
    """
    from scipy.special import stdtr

    # equal scores say nothing, whatever the error
    if difference == 0:
        return 1.0

    by_t = 2 * float(stdtr(dof, -abs(difference) / stderr)) if stderr > 0 else 0.0
    return min(1.0, max(by_t, 2.0 ** (1 - num_differing)))


def mcnemar(hits_a: np.ndarray, hits_b: np.ndarray) -> float:
    """Two-sided exact p-value that two models hit equally often (McNemar, 1947).

    Hits [N] bool of both, on the same images.

    Only images that one model alone hits speak. If the models are equally good, each such image
    is a fair coin, so p = 2 P(X <= min(only a, only b)) with X ~ Binomial(only a + only b, 1/2), at
    most 1.
    """
    from scipy.special import bdtr

    only_a = int(np.sum(hits_a & ~hits_b))
    only_b = int(np.sum(hits_b & ~hits_a))
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values [M] -> [M] adjusted for M tests, in the same order.

    Source: Holm, 1979, "A simple sequentially rejective procedure".

    The i-th smallest, from 0, is multiplied by M - i, and none may be smaller than one before it.
    Calling those below 0.05 different is wrong anywhere among the M with probability 0.05 at most,
    whatever the tests have in common.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    num_left = len(values) - np.arange(len(values))  # tests not yet called different

    # the running maximum: a test cannot be surer than one before it
    stepped = np.maximum.accumulate(values[order] * num_left)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, stepped)
    return adjusted
