"""Every registered task on stand-in data: the answer scores 1, noise chance, order is nothing.

Most sets need files. Here each registered task scores arrays in place of its own images, so that
a set which is registered with a family that cannot score it, or with prompts that do not tell its
classes apart, is found. As the arrays are the same for every set, tasks that differ in nothing but
their set give the same numbers: one of them is scored.
"""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import fields
from functools import cache

import numpy as np
import pytest
from given import GivenData, GivenFeatures

from silc_bench.models.windows import DenseImage, View
from silc_bench.probes import patch_knn, patch_sgd
from silc_bench.results import outcomes
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.dense.segmentation_zeroshot import HELD_OUT, ZeroShotSegmentation
from silc_bench.tasks.selection import all_tasks

pytestmark = pytest.mark.broad

TASKS = all_tasks()
NAMES = tuple(f"thing {letter}" for letter in "abcdef")
# the fields of a task that say which images, not what is done
OF_THE_SET = {"name", "sources", "needs_data_root"}
SIDE = 6  # of masks, and of patches: one a pixel


def one_of_a_kind(left_out):
    """The first of the tasks that agree in family, roles and fields, except ``left_out``."""
    kinds = []
    for name, task in TASKS.items():
        own = [getattr(task, field.name) for field in fields(task) if field.name not in left_out]
        kind = type(task), sorted(task.sources), own
        if kind not in kinds:
            kinds.append(kind)
            yield name


WITH_PROMPTS = list(one_of_a_kind(OF_THE_SET))  # each set of prompts is read
FAMILIES = list(one_of_a_kind(OF_THE_SET | {"prompts"}))


class Given(GivenFeatures):
    """``patches`` by role; ``words`` maps a text to its embedding."""

    def text(self, texts):
        return np.stack([self.words(text) for text in texts])

    def grids(self, role, view, method):
        layout = View(SIDE, SIDE, SIDE).layout(SIDE, SIDE, 1)
        for index, grid in enumerate(self.patches[role]):
            yield DenseImage(index, grid, layout)


@pytest.fixture(autouse=True)
def few_fits(monkeypatch):
    """The sweep is the same for every data set; a part of it will do."""
    monkeypatch.setattr(fewshot, "SHOTS", (1, 10))
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    monkeypatch.setattr(fewshot, "COSTS", (1e-2, 1.0))
    monkeypatch.setattr(patch_sgd, "PASSES", 1)
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 40)
    monkeypatch.setattr(patch_sgd, "LEARNING_RATE", 1e-2)  # so that few are enough
    monkeypatch.setattr(patch_knn, "MAX_CELLS", 2000)


def chooses_on_test(task):
    """Whether some images that could be scored choose a threshold, for there are no others."""
    is_swept = isinstance(task, ZeroShotSegmentation) and task.scores_background
    return is_swept and "train" not in task.sources


def noise(task):
    """Noise for labels, captions, masks and features; background is mostly what masks hold."""
    rng = np.random.default_rng(0)
    given = Given(data={}, images={}, patches={}, words=noise_of)
    count = 8 if isinstance(task, ZeroShotSegmentation) else 30  # there an image holds many pixels
    for role in task.sources:
        labels = rng.permutation(np.repeat(np.arange(len(NAMES)), count))
        captions = []
        for i in range(len(labels)):
            captions.append(tuple(f"{role} image {i}, caption {k}" for k in range(1 + i % 5)))
        # noise leads a probe to say nothing but the background
        is_thing = rng.random((len(labels), SIDE, SIDE)) < 0.2
        masks = (is_thing * rng.integers(1, 1 + len(NAMES), size=is_thing.shape)).astype(np.uint8)
        what = {"class_names": NAMES, "mask_names": ("background", *NAMES), "has_background": True}
        given.data[role] = GivenData(labels=labels, captions=captions, masks=masks, **what)
        given.images[role] = rng.normal(size=(len(labels), 24)).astype(np.float32)
        given.patches[role] = rng.normal(size=(*masks.shape, 24)).astype(np.float32)
    return given


def noise_of(text):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=24)


def answer(task):
    """Each class, or each image where captions are asked for, has an axis of its own."""
    given = noise(task)
    eye = np.eye(1 + len(NAMES), dtype=np.float32)
    owner = {}
    if task.group == "retrieval":
        eye = np.eye(len(given.data["test"]), dtype=np.float32)
        for image, own in enumerate(given.data["test"].captions):
            owner |= dict.fromkeys(own, image)
        given.images = {"test": eye}
    else:
        given.images = {role: eye[1 + part.labels] for role, part in given.data.items()}
        for label, own in enumerate(task.prompts.texts(NAMES) if hasattr(task, "prompts") else ()):
            owner |= dict.fromkeys(own, 1 + label)
        for role, part in given.data.items():
            # what discovery is to find is no class, but objects
            is_discovery = task.main_metric == "foreground_iou"
            given.patches[role] = eye[np.minimum(part.masks, 1) if is_discovery else part.masks]
    given.words = lambda text: eye[owner[text]]
    return given


@cache
def scores_of_noise(name):
    """Computed once; not to be changed."""
    return TASKS[name].score(noise(TASKS[name]))


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_the_answer_scores_one(name):
    task = TASKS[name]
    given = answer(task)
    scores = task.score(given)
    assert scores.metrics[task.main_metric] == 1.0
    assert scores.stderr[task.main_metric] == 0.0
    count = len(given.data["test"])
    assert scores.n == (count - len(range(0, count, HELD_OUT)) if chooses_on_test(task) else count)


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_scores_chance_twice_alike_and_each_metric_follows_from_the_outcomes(name):
    task, scores = TASKS[name], scores_of_noise(name)
    assert 0 < scores.chance < 0.5
    # the error estimated from one or two hits is no estimate: at least that of the chance level
    least = np.sqrt(scores.chance * (1 - scores.chance) / scores.n) / 3
    error = max(scores.stderr[task.main_metric], least)
    assert abs(scores.metrics[task.main_metric] - scores.chance) < 4 * error

    again = task.score(noise(task))
    assert again == scores
    assert again.outcomes.keys() == scores.outcomes.keys()
    assert all(np.array_equal(again.outcomes[key], scores.outcomes[key]) for key in again.outcomes)
    for metric, value in scores.metrics.items():
        parts = outcomes.per_image(scores.outcomes, metric)
        if parts is None:
            assert metric.endswith("median_rank")
        else:
            total = parts.statistic(parts.counts.sum(axis=0)[None])[0]
            assert total == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_the_images_does_not_matter(name):
    task = TASKS[name]
    if chooses_on_test(task):
        pytest.skip("which of its images choose the threshold is decided by their place")
    given = noise(task)
    order = np.random.default_rng(9).permutation(len(given.data["test"]))
    for role, part in deepcopy(given.data).items():
        # which images are shots, or held out, is decided by their place among the training images:
        # those stay
        if role == "test" or task.group == "knn":
            data = given.data[role]
            data.labels, data.masks = part.labels[order], part.masks[order]
            data.captions = [part.captions[i] for i in order]
            given.images[role] = given.images[role][order]
            given.patches[role] = given.patches[role][order]
    again, scores = task.score(given), scores_of_noise(name)
    assert again.metrics == pytest.approx(scores.metrics, abs=1e-12)
    assert again.chance == pytest.approx(scores.chance, abs=1e-12)
    for key, outcome in scores.outcomes.items():
        # the queries stand in another order, and the images have other numbers
        if key == "image_retrieval_picture":
            assert sorted(order[again.outcomes[key]].tolist()) == outcome.tolist()
        elif len(outcome) == scores.n:
            assert np.array_equal(again.outcomes[key], outcome[order]), key
        else:
            assert sorted(again.outcomes[key].tolist()) == sorted(outcome.tolist()), key
