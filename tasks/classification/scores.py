"""What all classification families share: scores from ranks, and the scores of mere chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from silc_bench.later import np
from silc_bench.metrics import accuracy as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.task import Features, Scores
from silc_bench.tasks.sources import SourcedTask

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset


@dataclass(kw_only=True, eq=False)
class LearnedTask(SourcedTask):
    """A family that learns from the pooled embeddings and labels of a train split."""

    needs: ClassVar = frozenset({"labels", "train"})

    requires: frozenset[str] = frozenset({"image"})


def labels_of(dataset: ImageDataset) -> np.ndarray:
    """The labels of a dataset that has them: [N] int64."""
    assert dataset.labels is not None, f"{dataset.name}/{dataset.split} has no labels"
    return dataset.labels


def labels_of_both(features: Features) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The labels to learn from, those to be scored, and the names of the classes."""
    train, test = features.data["train"], features.data["test"]
    return labels_of(train), labels_of(test), train.class_names


def classification_scores(
    ranks: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    chance: float,
    details: dict[str, Any],
) -> Scores:
    """acc1, acc5 and mean_per_class_recall from the rank [N] of the right class among all.

    The acc1 of each class stands in the details.
    """
    hits = {"acc1": ranks < 1, "acc5": ranks < 5}
    acc1, recall = hits["acc1"], "mean_per_class_recall"
    values = {name: float(np.mean(hit)) for name, hit in hits.items()}
    errors = {name: stats.accuracy_stderr(hit) for name, hit in hits.items()}

    # what each sample scored is kept: paired tests of two models need it
    return Scores(
        metrics={**values, recall: metrics.mean_per_class_recall(acc1, labels)},
        stderr={**errors, recall: stats.mean_per_class_stderr(acc1, labels)},
        n=len(labels),
        chance=chance,
        details={**details, "acc1_by_class": _by_class(acc1, labels, class_names)},
        outcomes={**hits, "labels": labels},
    )


def _by_class(hits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[list[Any]]:
    """[name, fraction hit] of each class in order, None without a sample."""
    counts = np.bincount(labels, minlength=len(class_names))
    hit_counts = np.bincount(labels, weights=hits, minlength=len(class_names))

    # a list, not a dict: names can repeat
    by_class: list[list[Any]] = []
    for label, name in enumerate(class_names):
        share = float(hit_counts[label] / counts[label]) if counts[label] else None
        by_class.append([name, share])
    return by_class


def uniform_chance(train_labels: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of guessing evenly among the classes that occur in training.

    Equal shots of noise lead to it.
    """
    # a test image of a class that was not learned can only be missed
    known = np.unique(train_labels)
    return float(np.isin(labels, known).mean() / len(known))


def frequency_chance(train_labels: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of guessing classes as often as they occur in training.

    It is the sum over classes of p_train * p_test.
    """
    num_classes = int(max(train_labels.max(), labels.max())) + 1
    train_counts = np.bincount(train_labels, minlength=num_classes)
    test_counts = np.bincount(labels, minlength=num_classes)
    return float((train_counts / len(train_labels)) @ (test_counts / len(labels)))
