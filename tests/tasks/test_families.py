"""What each family decides by itself: prompts, shots, penalties, captions that repeat, chance."""

from __future__ import annotations

import numpy as np
import pytest
from given import GivenData, GivenFeatures
from refusals import refused

from silc_bench.metrics import iou
from silc_bench.probes.closed_form import shot_indices
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.classification.fewshot import FewShot, FewShotLogistic
from silc_bench.tasks.classification.linear import COSTS, Linear, held_out_fifth
from silc_bench.tasks.classification.scores import frequency_chance, uniform_chance
from silc_bench.tasks.classification.zeroshot import ranks_among_namesakes
from silc_bench.tasks.dense.scores import constant_miou, shares_miou
from silc_bench.tasks.retrieval import Retrieval

pytestmark = pytest.mark.broad
RNG = np.random.default_rng(0)


def clusters(noise, names, **labels):
    """Features of two roles, an image near the centre of its class."""
    rng = np.random.default_rng(len(names))
    centers = rng.normal(size=(len(names), 6))
    images, data = {}, {}
    for role, own in labels.items():
        images[role] = centers[own] + noise * rng.normal(size=(len(own), 6))
        data[role] = GivenData(labels=own, class_names=tuple(names))
    return GivenFeatures(data=data, images=images)


# ---- chance ----


@pytest.mark.parametrize("chance", [uniform_chance, frequency_chance])
def test_chance_of_classification_by_simulation(chance):
    rng = np.random.default_rng(1)
    train = rng.choice([0, 2, 3], p=[0.7, 0.2, 0.1], size=500)
    test = rng.choice([0, 1, 2], p=[0.5, 0.2, 0.3], size=400)
    pool = np.unique(train) if chance is uniform_chance else train
    guesses = rng.choice(pool, size=(500, 400))
    assert chance(train, test) == pytest.approx((guesses == test).mean(), abs=0.005)


def test_chance_of_segmentation_by_simulation():
    truth = RNG.choice([0, 1, 2], p=[0.9, 0.08, 0.02], size=200_000)
    counts = np.bincount(truth, minlength=4)  # the fourth class does not occur
    even = iou.areas(RNG.integers(0, 4, size=truth.shape), truth, 4)
    assert shares_miou(counts, np.full(4, 0.25)) == pytest.approx(iou.mean_iou(even), abs=0.001)
    constant = iou.areas(np.zeros_like(truth), truth, 4)
    assert constant_miou(counts) == pytest.approx(iou.mean_iou(constant), abs=1e-12)


# ---- linear probe ----


def test_linear_chooses_on_training_images_only_and_never_answers_an_unseen_class():
    train = np.random.default_rng(2).permutation(np.repeat([0, 1, 3], 20))
    features = clusters(0.2, "abcd", train=train, test=np.array([0, 1, 2, 3] * 10))
    task = Linear(name="given/linear", sources={})
    scores = task.score(features)
    assert scores.metrics["acc1"] == 0.75, "all but the class that training does not hold"
    assert scores.details["cost"] in COSTS
    assert scores.details["converged"] == [True] * (len(COSTS) + 1)

    # the test labels decide nothing but the score
    features.data["test"].labels = features.data["test"].labels[::-1].copy()
    assert task.score(features).details["held_out_acc1"] == scores.details["held_out_acc1"]


@pytest.mark.parametrize("num_classes", [2, 5, 7])
@pytest.mark.parametrize("order", [np.sort, lambda labels: labels, RNG.permutation])
def test_every_fifth_of_a_class_is_held_out_in_whatever_order(num_classes, order):
    labels = order(np.tile(np.arange(num_classes), 20))
    held_out = held_out_fifth(labels)
    assert np.array_equal(held_out, held_out_fifth(7 - labels)), "names do not matter"
    for label in range(num_classes):
        assert np.flatnonzero(held_out[labels == label]).tolist() == [4, 9, 14, 19]


def test_small_classes_hold_one_out_and_keep_one():
    labels = np.array([3, 3, 3, 3, 3, 0, 1, 1, 2, 2, 2, *[4] * 11])
    assert np.flatnonzero(held_out_fifth(labels)).tolist() == [4, 7, 10, 15, 20]


# ---- few-shot ----


@pytest.fixture(params=[FewShot, FewShotLogistic])
def few_shot(request, monkeypatch):
    """What holds does not hang on how many penalties are tried, or how often shots are drawn."""
    monkeypatch.setattr(fewshot, "COSTS", (1e-2, 1.0))
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    return request.param(name="given/fewshot", sources={})


@pytest.mark.parametrize("fewest", [10, 24, 25])
def test_no_number_of_shots_is_scored_that_a_class_does_not_have(few_shot, fewest):
    train, test = np.repeat([0, 1, 3], [40, fewest, 30]), RNG.choice([0, 1, 3], size=30)
    scores = few_shot.score(clusters(0.1, ("ant", "bee", "none", "cow"), train=train, test=test))
    first = 5 if isinstance(few_shot, FewShotLogistic) else 1
    scored = [f"acc1_{k}shot" for k in (1, 5, 10, 25) if first <= k <= fewest]
    for numbers in (scores.metrics, scores.stderr, scores.outcomes, scores.details["by_seed"]):
        assert list(numbers) == scored
    left_out = {} if fewest == 25 else {"acc1_25shot": f"'bee' has {fewest} training pictures"}
    stated = {"fewest_pictures_of_a_class": fewest, "classes_without_pictures": 1}
    assert {"left_out": left_out, **stated}.items() <= scores.details.items()


def test_without_ten_shots_of_each_class_few_shot_is_refused(few_shot):
    with refused("given/fewshot"):
        few_shot.score(clusters(0.1, "ab", train=np.repeat([0, 1], [9, 30]), test=np.arange(2)))


def test_few_shots_are_learned_from_the_shots_alone(few_shot, monkeypatch):
    monkeypatch.setattr(fewshot, "SHOTS", (1, 5, 10))
    train, test = RNG.integers(0, 3, size=200), RNG.integers(0, 3, size=60)
    features = clusters(0.7, "abc", train=train, test=test)
    scores = few_shot.score(features)
    assert 0.5 < scores.metrics["acc1_5shot"] <= scores.metrics["acc1_10shot"] + 0.1

    used = np.unique(np.concatenate([shot_indices(train, 10, seed, 3) for seed in (0, 1)]))
    features.images["train"][np.setdiff1d(np.arange(200), used)] = 1e6
    assert few_shot.score(features).metrics == scores.metrics, "images that no draw holds"
    features.data["test"].labels = (test + 1) % 3
    other = few_shot.score(features)
    assert other.details.get("cost_by_seed") == scores.details.get("cost_by_seed")


# ---- what else is asked ----


def test_captions_that_repeat_stand_once_in_the_gallery_and_are_right_for_each_image():
    dataset = GivenData(captions=[("x", "y"), ("y", "z", "z"), ("w",)])
    a, b, c = images = np.eye(4)[:3]
    embeddings = {"x": a, "y": a + 0.9 * b, "z": c, "w": c}
    features = GivenFeatures(data={"test": dataset}, images={"test": images}, texts=embeddings)
    scores = Retrieval(name="given/retrieval", sources={}).score(features)
    # image 1 asks for "y", and finds it; image 2 finds "w" tied with "z", which is not a hit
    assert scores.metrics["text_retrieval_recall@1"] == pytest.approx(2 / 3)
    # "x" and, for both of its images, "y" find one; "z" finds image 2, and "w" too, of which
    # one is right
    assert scores.metrics["image_retrieval_recall@1"] == pytest.approx(4 / 5)
    assert scores.chance == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)


def test_classes_of_one_name_are_ranked_as_an_argmax_ranks_them():
    """Two ImageNet classes are both a missile: the first of them is the answer.

    As in a peer that takes the largest.
    """
    texts = [["a cat"], ["a missile"], ["a dog"], ["a missile"], ["a bird"]]
    logits, labels = RNG.normal(size=(300, 5)), RNG.integers(5, size=300)
    logits[:, 3] = logits[:, 1] + 1e-9 * RNG.normal(size=300)  # equal up to the order of a sum
    ranks = ranks_among_namesakes(logits, labels, texts)
    logits[:, 3] = logits[:, 1]
    order = np.argsort(-logits, axis=1, kind="stable")  # of equals the lowest label first
    assert ranks.tolist() == np.argmax(order == labels[:, None], axis=1).tolist()
    assert (ranks[labels == 1] == 0).any()
    assert not (ranks[labels == 3] == 0).any()
