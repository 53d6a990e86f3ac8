"""What frozen features know: closed-form probes and nearest neighbours, the same on every run.

``ridge`` on k-shot samples (``shot_indices``), and ``knn_ranks``. The logistic regression of the
linear probe stands in `silc_bench.probes.logistic`; the probes of patch features in
`silc_bench.probes.patch_discriminant`, ``patch_sgd`` and ``patch_knn``.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from silc_bench.later import np
from silc_bench.metrics.accuracy import class_ranks, normalize

BIAS_COLUMN = 100.0  # large, so that the penalty hardly touches the bias
STD_EPSILON = 1e-5
BATCH_NORM_EPSILON = 1e-5
CHUNK_CELLS = 1 << 24  # similarities held at once by knn_ranks: 64 MiB of fp32


@dataclass(frozen=True)
class LinearMap:
    """features @ weight + bias: weight [D, C], bias [C], float64."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight + self.bias


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature, [N, D] -> [D], [D] float64.

    Every probe standardises by them.
    """
    features = features.astype(np.float64)
    return features.mean(axis=0), features.std(axis=0) + STD_EPSILON


def shot_indices(labels: np.ndarray, shots: int, seed: int, num_classes: int) -> np.ndarray:
    """Which samples are the k shots: labels [N] -> [<= C * shots] indices, by class.

    The draw of big_vision's ``fewshot_lsr``: one generator a seed, one permutation a class, of
    which the first ``shots`` are taken - so that 5 shots hold the 1 shot. Only the dataset's labels
    and the seed decide, never a model or a global generator.
    """
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]
    return np.concatenate([indices[:shots] for indices in by_class])


def ridge(features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float) -> LinearMap:
    """Least squares in closed form (big_vision ``fewshot_lsr``).

    The target is +1 for the class and -1 for the others.

    Minimises |X W - Y|^2 + l2 |W|^2 where X [N, D + 1] is standardised with the training statistics
    and has a constant last column of 100, whose weight is penalised like any other. Standardisation
    is folded into the map that is returned.
    """
    # float64, and the constant column beside the features: one solution for weights and bias
    mean, std = moments(features)
    x = np.pad((features - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS_COLUMN)
    y = 2.0 * (labels[:, None] == np.arange(num_classes)) - 1.0

    # the smaller of two equal systems: D + 1 unknowns, or N of them in the dual form
    num_samples, dim = x.shape
    if num_samples >= dim:
        solution = np.linalg.solve(x.T @ x + l2 * np.eye(dim), x.T @ y)
    else:
        solution = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(num_samples), y)
    weight = solution[:-1] / std[:, None]
    return LinearMap(weight, BIAS_COLUMN * solution[-1] - mean @ weight)


def knn_ranks(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    ks: Sequence[int],
    temperature: float,
) -> dict[int, np.ndarray]:
    """Weighted nearest neighbours (DINO, appendix F.1).

    Rank [N] of the right class among the votes, for each k. Each of the k nearest training samples
    by cosine votes for its class with weight exp(cosine / temperature). Memory is bounded by
    ``CHUNK_CELLS`` whatever the sizes.
    """
    train = normalize(train)
    test = normalize(test)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    most = min(max(ks), len(train))
    ranks = {k: np.empty(len(test), dtype=np.int64) for k in ks}
    chunk = max(1, CHUNK_CELLS // max(len(train), num_classes))
    for start in range(0, len(test), chunk):
        similarities = test[start : start + chunk] @ train.T

        # the largest k alone is sorted: argpartition finds it without sorting the training set
        nearest = np.argpartition(-similarities, most - 1, axis=1)[:, :most]
        cosines = np.take_along_axis(similarities, nearest, axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, axis=1)
        cosines = np.take_along_axis(cosines, order, axis=1)

        # exp((cosine - 1) / t) is the same vote up to a factor, and cannot overflow
        weights = np.exp((cosines.astype(np.float64) - 1) / temperature)
        classes = train_labels[nearest]
        rows = np.arange(len(similarities))[:, None]
        for k in ks:
            votes = np.zeros((len(similarities), num_classes))
            np.add.at(votes, (rows, classes[:, :k]), weights[:, :k])
            ranks[k][start : start + chunk] = class_ranks(votes, test_labels[start : start + chunk])
    return ranks
