"""What each family decides by itself: prompts, shots, penalties, captions that repeat, chance."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given import GivenData, GivenFeatures, Means, extractor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from silc_bench.evaluation.prompts import Prompts
from silc_bench.metrics import iou
from silc_bench.probes.closed_form import shot_indices
from silc_bench.system.cache import Store
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.classification.fewshot import FewShot, FewShotLogistic
from silc_bench.tasks.classification.knn import Knn
from silc_bench.tasks.classification.linear import COSTS, Linear, held_out_fifth
from silc_bench.tasks.classification.scores import frequency_chance, uniform_chance
from silc_bench.tasks.classification.zeroshot import ZeroShot, ranks_among_namesakes
from silc_bench.tasks.dense.scores import constant_miou, shares_miou
from silc_bench.tasks.dense.segmentation_probes import (
    KnnSegmentation,
    LinearSegmentation,
    SgdSegmentation,
)
from silc_bench.tasks.retrieval import Retrieval, captions_of, same_images

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


class Colors(GivenData):
    """An image of one colour a class."""

    def __init__(self, colors):
        super().__init__(class_names=tuple(colors), labels=np.arange(len(colors)))
        self.colors = list(colors.values())

    def image(self, index):
        return Image.new("RGB", (8, 8), self.colors[index])


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
    names = np.array([0, 1, 2, 1, 4])
    logits, labels = RNG.normal(size=(300, 5)), RNG.integers(5, size=300)
    logits[:, 3] = logits[:, 1] + 1e-9 * RNG.normal(size=300)  # equal up to the order of a sum
    ranks = ranks_among_namesakes(logits, labels, names)
    logits[:, 3] = logits[:, 1]
    order = np.argsort(-logits, axis=1, kind="stable")  # of equals the lowest label first
    assert ranks.tolist() == np.argmax(order == labels[:, None], axis=1).tolist()
    assert (ranks[labels == 1] == 0).any()
    assert not (ranks[labels == 3] == 0).any()


class LowerCase(Means):
    """Reads the first six letters in lower case, without punctuation."""

    def tokenize(self, texts):
        kept = ["".join(filter(str.isalpha, text.lower()))[:6].ljust(6) for text in texts]
        return torch.tensor([[ord(letter) for letter in text] for text in kept])

    def encode_text(self, tokens):
        """Red, green or blue by the first letter; an embedding that depends on its batch."""
        colors = torch.stack([(tokens[:, 0] == ord(first)).float() for first in "rgb"], dim=1)
        return colors + 1e-6 * len(tokens)


ALIKE = {
    "case": ("Red", "red"),
    "punctuation": ("red", "red!"),
    "behind the limit": ("redred one", "redred two"),
}


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize("was_stored", [False, True])
def test_classes_that_are_one_text_for_the_model_are_namesakes(tmp_path, kind, was_stored):
    """Whatever was encoded before, in whatever batch: of such classes the first is answered."""
    first, second = ALIKE[kind]
    store = Store(tmp_path)
    if was_stored:
        extractor(LowerCase(), store=store).text([second, "green"])
    colors = {first: (255, 0, 0), second: (250, 0, 0), "blue": (0, 0, 255)}
    dataset = Colors(colors)
    task = ZeroShot(name="given/zeroshot", sources={}, prompts=Prompts("p", ("{c}",)))
    scores = task.score(extractor(LowerCase(), store=store)({"test": dataset}))
    assert scores.metrics["acc1"] == pytest.approx(2 / 3)
    assert scores.details["acc1_by_class"] == [[first, 1.0], [second, 0.0], ["blue", 1.0]]
    (note,) = scores.notes
    assert "2 of 3 classes" in note
    assert repr(first) in note
    assert repr(second) in note


def test_captions_that_are_one_text_for_the_model_count_once():
    dataset = Colors({"Red": (255, 0, 0), "red": (250, 0, 0), "blue": (0, 0, 255)})
    dataset.captions = [("Red.",), ("red",), ("blue",)]
    scores = Retrieval(name="given/retrieval", sources={}).score(
        extractor(LowerCase())({"test": dataset})
    )
    assert scores.metrics["text_retrieval_recall@1"] == 1.0
    assert scores.details["distinct_captions"] == 2
    assert "1 of 3 captions" in scores.notes[0]


def test_one_long_caption_does_not_widen_all_others():
    """An array of texts is as wide as the longest one, times their number: 800 MB here."""
    captions = [(f"caption {number}",) for number in range(2_000)]
    dataset = GivenData(captions=[*captions, ("long " * 20_000,)])
    tracemalloc.start()
    images, texts, distinct = captions_of(dataset)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == len(texts) == len(distinct) == 2_001
    assert peak < 5_000_000


def test_repeated_images_share_their_captions():
    """Four copies with a caption each: any of the four is right for each of them."""
    dataset = Colors(dict.fromkeys("abcd", (255, 0, 0)) | {"e": (0, 0, 255)})
    dataset.captions = [("red a",), ("red b",), ("red c",), ("red d",), ("blue",)]
    scores = Retrieval(name="given/retrieval", sources={}).score(
        extractor(LowerCase())({"test": dataset})
    )
    assert scores.metrics["text_retrieval_recall@1"] == 1.0
    assert scores.metrics["image_retrieval_recall@1"] == 1.0
    assert scores.n == 5
    assert scores.details["distinct_images"] == 2
    assert "3 of 5 images repeat" in scores.notes[0]
    assert len(scores.outcomes["image_retrieval_rank"]) == 5


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_same_images_are_found_by_their_pixels(kinds, seed):
    rng = np.random.default_rng(seed)
    # two kinds have one colour on average, and so one embedding, but other pixels
    embeddings = np.eye(4)[[0, 1, 2, 3, 3]][kinds] + 1e-7 * rng.normal(size=(len(kinds), 4))
    dataset = SimpleNamespace(image=lambda index: Image.new("L", (kinds[index] + 1, 2), 7))
    firsts = [kinds.index(kind) for kind in kinds]
    assert same_images(dataset, embeddings).tolist() == firsts


def test_neighbours_that_are_more_than_there_are_images_are_refused():
    train = np.arange(19) % 3
    features = clusters(0.5, "abc", train=train, test=np.arange(6) % 3)
    with refused("given/knn"):
        Knn(name="given/knn", sources={}).score(features)


@pytest.mark.parametrize("kind", [LinearSegmentation, SgdSegmentation, KnnSegmentation])
def test_training_masks_without_a_class_are_refused(kind):
    nothing = GivenData(masks=np.full((3, 4, 4), 255, np.uint8), mask_names=("a", "b"))
    features = GivenFeatures(data={"train": nothing, "test": nothing}, images={}, texts={})
    with refused("given/x"):
        kind(name="given/x", sources={}).score(features)
