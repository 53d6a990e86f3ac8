"""What each family decides by itself: prompts, shots, penalties, captions that repeat, chance."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from silc_bench.errors import UserError
from silc_bench.metrics import accuracy, iou
from silc_bench.metrics.retrieval import retrieval_ranks
from silc_bench.probes.closed_form import shot_indices
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.classification import fewshot as shots
from silc_bench.tasks.classification.fewshot import FewShot, FewShotLogistic
from silc_bench.tasks.classification.linear import COSTS, Linear, held_out_fifth
from silc_bench.tasks.classification.scores import frequency_chance, uniform_chance
from silc_bench.tasks.classification.zeroshot import ranks_among_namesakes
from silc_bench.tasks.dense.scores import constant_miou, shares_miou, without_background
from silc_bench.tasks.retrieval import Retrieval, captions_of
from silc_bench.tasks.selection import select

pytestmark = pytest.mark.broad


class GivenFeatures:
    """Features from arrays instead of a model: ``images`` by role, ``texts`` by text."""

    device = "cpu"

    def __init__(self, data, images=None, texts=None):
        self.data, self._images, self._texts = data, images, texts
        self.asked = []

    def image(self, role):
        return self._images[role]

    def text(self, texts):
        self.asked += texts
        return np.stack([self._texts[text] for text in texts])


class Labelled:
    name, split, fingerprint = "given", "test", "0" * 16

    def __init__(self, labels=None, class_names=(), captions=None):
        self.labels, self.class_names, self.captions = labels, class_names, captions

    def __len__(self):
        return len(self.labels if self.labels is not None else self.captions)


# ---- chance ----


@pytest.mark.parametrize("chance", [uniform_chance, frequency_chance])
def test_chance_of_classification_by_simulation(chance):
    rng = np.random.default_rng(1)
    train, test = (
        rng.choice([0, 2, 3], p=[0.7, 0.2, 0.1], size=500),
        rng.choice([0, 1, 2], p=[0.5, 0.2, 0.3], size=400),
    )
    pool = np.unique(train) if chance is uniform_chance else train
    guesses = rng.choice(pool, size=(500, 400))
    assert chance(train, test) == pytest.approx((guesses == test).mean(), abs=0.005)


# ---- linear probe ----


def test_linear_chooses_on_training_images_only_and_never_answers_an_unseen_class():
    rng = np.random.default_rng(2)
    centers = rng.normal(size=(4, 6))
    train, test = np.repeat([0, 1, 3], 20), np.array([0, 1, 2, 3] * 10)
    order = rng.permutation(60)
    images = {
        "train": (centers[train] + 0.2 * rng.normal(size=(60, 6)))[order],
        "test": centers[test] + 0.2 * rng.normal(size=(40, 6)),
    }
    names = ("a", "b", "c", "d")
    data = {"train": Labelled(train[order], names), "test": Labelled(test, names)}
    task = Linear(name="given/linear", sources={})
    scores = task.score(GivenFeatures(data, images))
    assert scores.metrics["acc1"] == 0.75, "all but the class that training does not hold"
    assert scores.details["cost"] in COSTS
    assert scores.details["converged"] == [True] * (len(COSTS) + 1)
    held_out = scores.details["held_out_acc1"]

    data["test"] = Labelled(test[::-1].copy(), names)
    other = task.score(GivenFeatures(data, images))
    assert other.details["held_out_acc1"] == held_out, (
        "the test labels decide nothing but the score"
    )


def test_linear_needs_enough_to_hold_some_out():
    data = {
        "train": Labelled(np.array([0, 1]), ("a", "b")),
        "test": Labelled(np.array([0]), ("a", "b")),
    }
    with pytest.raises(UserError, match="needs two training pictures of a class"):
        Linear(name="given/linear", sources={}).score(
            GivenFeatures(data, {"train": np.eye(2), "test": np.eye(2)[:1]})
        )


@pytest.mark.parametrize("num_classes", [2, 5, 10])
@pytest.mark.parametrize("order", ["sorted by class", "the classes take turns", "at random"])
def test_a_fifth_of_each_class_is_held_out_in_any_order(num_classes, order):
    """Where five classes take turns, every fifth picture of the set is of one class."""
    labels = np.repeat(np.arange(num_classes), 20)
    if order == "the classes take turns":
        labels = np.tile(np.arange(num_classes), 20)
    elif order == "at random":
        labels = np.random.default_rng(num_classes).permutation(labels)
    held_out = held_out_fifth(labels)
    assert np.bincount(labels[held_out]).tolist() == [4] * num_classes
    assert np.array_equal(held_out, held_out_fifth(7 - labels)), (
        "what the classes are called does not matter"
    )
    for label in range(num_classes):
        assert np.flatnonzero(held_out[labels == label]).tolist() == [4, 9, 14, 19]


def test_small_classes_hold_one_out_and_keep_one():
    labels = np.array([3, 3, 3, 3, 3, 0, 1, 1, 2, 2, 2, *[4] * 11])
    assert np.flatnonzero(held_out_fifth(labels)).tolist() == [4, 7, 10, 15, 20]


# ---- few-shot ----


@pytest.fixture
def few_fits(monkeypatch):
    """What holds does not hang on how many penalties are tried, or how often shots are drawn."""
    monkeypatch.setattr(fewshot, "COSTS", (1e-2, 1.0))
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    monkeypatch.setattr(shots, "POOL", 10)  # images of a class, under a limit


@pytest.mark.usefixtures("few_fits")
@pytest.mark.parametrize(("family", "first"), [(FewShot, 1), (FewShotLogistic, 5)])
@pytest.mark.parametrize("fewest", [10, 24, 25])
def test_no_number_of_shots_is_scored_that_a_class_does_not_have(family, first, fewest):
    rng = np.random.default_rng(fewest)
    train, test = np.repeat([0, 1, 3], [40, fewest, 30]), rng.choice([0, 1, 3], size=30)
    images = {
        role: np.eye(4)[labels] + 0.1 * rng.normal(size=(len(labels), 4))
        for role, labels in (("train", train), ("test", test))
    }
    names = ("ant", "bee", "none of these", "cow")
    data = {"train": Labelled(train, names), "test": Labelled(test, names)}
    scores = family(name="given/fewshot", sources={}).score(GivenFeatures(data, images))
    scored = [f"acc1_{k}shot" for k in (1, 5, 10, 25) if first <= k <= fewest]
    assert (
        list(scores.metrics)
        == list(scores.stderr)
        == list(scores.outcomes)
        == list(scores.details["by_seed"])
        == scored
    )
    left_out = {} if fewest == 25 else {"acc1_25shot": f"'bee' has {fewest} training pictures"}
    assert scores.details["left_out"] == left_out
    assert scores.details["fewest_pictures_of_a_class"] == fewest
    assert scores.details["classes_without_pictures"] == 1


@pytest.mark.parametrize("family", [FewShot, FewShotLogistic])
def test_without_ten_shots_of_each_class_few_shot_is_refused(family):
    train = np.repeat([0, 1], [9, 30])
    data = {
        "train": Labelled(train, ("ant", "bee")),
        "test": Labelled(np.arange(2), ("ant", "bee")),
    }
    with pytest.raises(
        UserError,
        match=(
            r"given/f: 'ant' has 9 training pictures, "
            r"and acc1_10shot needs 10 of each class; add"
        ),
    ):
        family(name="given/f", sources={}).score(
            GivenFeatures(data, {"train": np.eye(2)[train], "test": np.eye(2)})
        )


@pytest.mark.parametrize("family", ["fewshot", "fewshot_logistic"])
def test_a_limit_thins_out_the_scored_images_and_keeps_the_shots(family):
    (task,) = select([f"shapes/{family}"])
    data, whole = task.load(None, 20), task.load(None, None)
    assert len(data["test"]) == 20
    counts = np.bincount(whole["train"].labels, minlength=64)
    assert (
        np.bincount(data["train"].labels, minlength=64).tolist() == np.minimum(counts, 25).tolist()
    )
    assert (
        len({data["train"].fingerprint, whole["train"].fingerprint, data["test"].fingerprint}) == 3
    )
    kept = [np.array(data["train"].image(i)) for i in range(3)]
    originals = [np.array(whole["train"].image(i)) for i in range(40)]
    assert all(any(np.array_equal(mine, theirs) for theirs in originals) for mine in kept)


@pytest.mark.usefixtures("few_fits")
@pytest.mark.parametrize("family", [FewShot, FewShotLogistic])
def test_few_shots_are_learned_from_the_shots_alone(family, monkeypatch):
    monkeypatch.setattr(fewshot, "SHOTS", (1, 5, 10))
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(3, 6))
    train, test = rng.integers(0, 3, size=200), rng.integers(0, 3, size=60)
    images = {
        role: centers[labels] + 0.7 * rng.normal(size=(len(labels), 6))
        for role, labels in (("train", train), ("test", test))
    }
    data = {"train": Labelled(train, ("a", "b", "c")), "test": Labelled(test, ("a", "b", "c"))}
    task = family(name="given/fewshot", sources={})
    scores = task.score(GivenFeatures(data, images))
    assert 0.5 < scores.metrics["acc1_5shot"] <= scores.metrics["acc1_10shot"] + 0.1

    used = np.unique(np.concatenate([shot_indices(train, 10, seed, 3) for seed in (0, 1)]))
    images["train"][np.setdiff1d(np.arange(200), used)] = 1e6
    again = task.score(GivenFeatures(data, images))
    assert again.metrics == scores.metrics, "pictures that no draw holds do not matter"
    data["test"] = Labelled((test + 1) % 3, ("a", "b", "c"))
    assert task.score(GivenFeatures(data, images)).details.get(
        "cost_by_seed"
    ) == scores.details.get("cost_by_seed")


# ---- retrieval ----


def test_captions_that_repeat_stand_once_in_the_gallery_and_are_right_for_each_image():
    dataset = Labelled(captions=[("x", "y"), ("y", "z", "z"), ("w",)])
    pictures, texts, captions = captions_of(dataset)
    assert captions == ["w", "x", "y", "z"]
    assert list(zip(pictures.tolist(), texts.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
        (2, 0),
    ]

    images = np.eye(4)[:3]
    embeddings = {"x": images[0], "y": images[0] + 0.9 * images[1], "z": images[2], "w": images[2]}
    scores = Retrieval(name="given/retrieval", sources={}).score(
        GivenFeatures({"test": dataset}, {"test": images}, embeddings)
    )
    # image 1 asks for "y", and finds it; image 2 finds "w" tied with "z", which is not a hit
    assert scores.metrics["text_retrieval_recall@1"] == pytest.approx(2 / 3)
    # "x" and, for both of its images, "y" find one; "z" finds image 2, and "w" too, of which
    # one is right
    assert scores.metrics["image_retrieval_recall@1"] == pytest.approx(4 / 5)
    assert scores.chance == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)


def test_retrieval_without_repeats_is_the_usual_recall():
    rng = np.random.default_rng(3)
    captions = [tuple(f"{picture} {k}" for k in range(5)) for picture in range(30)]
    images = rng.normal(size=(30, 8))
    embeddings = {
        text: images[p] + rng.normal(size=8) for p, own in enumerate(captions) for text in own
    }
    features = GivenFeatures({"test": Labelled(captions=captions)}, {"test": images}, embeddings)
    scores = Retrieval(name="given/retrieval", sources={}).score(features)
    texts = np.stack([embeddings[text] for own in captions for text in own])
    right = np.stack([np.repeat(np.arange(30), 5), np.arange(150)], axis=1)
    ranks = dict(zip(("text", "image"), retrieval_ranks(images, texts, right), strict=True))
    for k in (1, 5, 10):
        for way in ranks:
            assert scores.metrics[f"{way}_retrieval_recall@{k}"] == pytest.approx(
                accuracy.recall_at(ranks[way], k), abs=1e-12
            )
    assert scores.chance == pytest.approx(5 / 150)
    assert scores.stderr["image_retrieval_recall@1"] > 0


# ---- segmentation ----


def test_without_background():
    mask = np.array([[0, 1], [8, 255]], dtype=np.uint8)
    assert without_background(mask).tolist() == [[255, 0], [7, 255]]


def test_chance_of_segmentation_by_simulation():
    rng = np.random.default_rng(4)
    truth = rng.choice([0, 1, 2], p=[0.9, 0.08, 0.02], size=200_000)
    counts = np.bincount(truth, minlength=4)  # the fourth class does not occur
    even = iou.areas(rng.integers(0, 4, size=truth.shape), truth, 4)
    assert shares_miou(counts, np.full(len(counts), 1 / len(counts))) == pytest.approx(
        iou.mean_iou(even), abs=0.001
    )
    constant = iou.areas(np.zeros_like(truth), truth, 4)
    assert constant_miou(counts) == pytest.approx(iou.mean_iou(constant), abs=1e-12)


# ---- CIFAR-100 ----

DATA = os.environ.get("SILC_BENCH_TEST_DATA")


@pytest.mark.usefixtures("few_fits")
@pytest.mark.skipif(DATA is None, reason="SILC_BENCH_TEST_DATA names no folder with cifar100/")
@pytest.mark.parametrize("task", select(["cifar100"]), ids=lambda task: task.name)
def test_cifar100_on_real_images(task, random_model):
    import torch

    from silc_bench.evaluation.features import Extractor

    data = task.load(Path(str(DATA)), 600)
    extract = Extractor(
        random_model,
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=256,
        num_workers=0,
        progress=False,
    )
    scores = task.score(extract(data))
    assert scores.n == 600
    assert scores.chance == pytest.approx(0.01, abs=0.002)
    assert abs(scores.metrics[task.main_metric] - scores.chance) < 4 * max(
        scores.stderr[task.main_metric], 0.003
    )


def test_classes_of_one_name_are_ranked_as_an_argmax_ranks_them():
    """Two ImageNet classes are both a missile: the first of them is the answer.

    As in a peer that takes the largest.
    """
    rng = np.random.default_rng(0)
    texts = [["a cat"], ["a missile"], ["a dog"], ["a missile"], ["a bird"]]
    logits = rng.normal(size=(300, 5))
    logits[:, 3] = logits[:, 1] + 1e-9 * rng.normal(size=300)  # equal up to the order of a sum
    labels = rng.integers(5, size=300)
    ranks = ranks_among_namesakes(logits, labels, texts)
    logits[:, 3] = logits[:, 1]
    order = np.argsort(-logits, axis=1, kind="stable")  # of equals the lowest label first
    assert ranks.tolist() == [
        row.tolist().index(label) for row, label in zip(order, labels, strict=True)
    ]
    assert (ranks[labels == 1] == 0).any()
    assert not (ranks[labels == 3] == 0).any()
