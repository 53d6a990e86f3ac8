"""Every registered task on stand-in data: the answer scores 1, noise chance, order is nothing.

Twice is once.

Most sets need files. Here each registered task scores arrays in place of its own pictures, so that
a set which is registered with a family that cannot score it, or with prompts that do not tell its
classes apart, is found. As the arrays are the same for every set, tasks that differ in nothing but
their set give the same numbers: one of them is scored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from silc_bench.models.windows import DenseImage, View
from silc_bench.probes import patch_knn as dense_knn
from silc_bench.probes import patch_sgd as dense_sgd
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.dense.segmentation_zeroshot import HELD_OUT, ZeroShotSegmentation
from silc_bench.tasks.retrieval import captions_of
from silc_bench.tasks.selection import all_tasks

pytestmark = pytest.mark.broad

TASKS = all_tasks()
NAMES = tuple(f"thing {letter}" for letter in "abcdef")
# the fields of a task that say which images, not what is done
OF_THE_SET = frozenset({"name", "sources", "needs_data_root"})
SIDE = 6  # of masks, and of patches: one a pixel


def one_of_a_kind(*, leave_out):
    """The first of the tasks that agree in family, roles and fields, except ``leave_out``."""
    kinds, names = [], []
    for name, task in TASKS.items():
        told_apart = [
            getattr(task, field.name) for field in fields(task) if field.name not in leave_out
        ]
        kind = type(task), sorted(task.sources), told_apart
        if kind not in kinds:
            kinds.append(kind)
            names.append(name)
    return names


WITH_PROMPTS = one_of_a_kind(leave_out=OF_THE_SET)  # each set of prompts is read
FAMILIES = one_of_a_kind(leave_out=OF_THE_SET | {"prompts"})


@dataclass(frozen=True)
class StandIn:
    """Labels, captions and masks without pictures.

    Mask value 0 is the background, as in every set that has masks.
    """

    labels: np.ndarray
    captions: tuple[tuple[str, ...], ...]
    masks: np.ndarray
    name: str = "stand-in"
    split: str = "test"
    fingerprint: str = "0" * 16
    class_names: tuple[str, ...] = NAMES
    mask_names: tuple[str, ...] = ("background", *NAMES)
    has_background: bool = True

    def __len__(self):
        return len(self.labels)

    def mask(self, index):
        return self.masks[index]


@dataclass(frozen=True)
class Given:
    """Features from arrays: what the task asks for, computed beforehand.

    ``words`` maps a text to its embedding.
    """

    data: dict
    images: dict
    patches: dict
    words: object
    device: str = "cpu"

    def image(self, role):
        return self.images[role]

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
    monkeypatch.setattr(dense_sgd, "PASSES", 1)
    monkeypatch.setattr(dense_sgd, "MIN_STEPS", 40)
    monkeypatch.setattr(dense_sgd, "LEARNING_RATE", 1e-2)  # so that few are enough
    monkeypatch.setattr(dense_knn, "MAX_CELLS", 2000)


def images_a_class(task):
    return 8 if isinstance(task, ZeroShotSegmentation) else 30  # there an image holds many pixelss


def stand_ins(task, seed=0):
    rng = np.random.default_rng(seed)
    data = {}
    for role in task.sources:
        labels = rng.permutation(np.repeat(np.arange(len(NAMES)), images_a_class(task)))
        captions = tuple(
            tuple(f"{role} picture {i}, caption {k}" for k in range(1 + i % 5))
            for i in range(len(labels))
        )
        # mostly background: noise leads a probe to say nothing else
        is_thing = rng.random((len(labels), SIDE, SIDE)) < 0.2
        masks = (is_thing * rng.integers(1, 1 + len(NAMES), size=is_thing.shape)).astype(np.uint8)
        data[role] = StandIn(labels, captions, masks)
    return data


def chooses_on_test(task):
    """Whether some pictures that could be scored choose a threshold, for there are no others."""
    return (
        isinstance(task, ZeroShotSegmentation)
        and task.scores_background
        and "train" not in task.sources
    )


def noise(task, data, seed=0):
    rng = np.random.default_rng(seed + 1)
    images = {
        role: rng.normal(size=(len(part), 24)).astype(np.float32) for role, part in data.items()
    }
    patches = {
        role: rng.normal(size=(len(part), SIDE, SIDE, 24)).astype(np.float32)
        for role, part in data.items()
    }

    def words(text):
        return np.random.default_rng(
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        ).normal(size=24)

    return Given(data, images, patches, words)


@cache
def scores_of_noise(name):
    """Computed once; not to be changed."""
    return TASKS[name].score(noise(TASKS[name], stand_ins(TASKS[name])))


def is_discovery(task):
    return task.main_metric == "foreground_iou"


def knows(task, data):
    """Each class, or each picture where captions are asked for, has an axis of its own."""
    eye = np.eye(1 + len(NAMES), dtype=np.float32)
    # what discovery is to find is no class, but objects
    patches = {
        role: eye[np.minimum(part.masks, 1) if is_discovery(task) else part.masks]
        for role, part in data.items()
    }
    if task.group == "retrieval":
        axes = np.eye(len(data["test"]), dtype=np.float32)
        owner = {text: picture for picture, own in enumerate(data["test"].captions) for text in own}
        return Given(data, {"test": axes}, patches, lambda text: axes[owner[text]])
    images = {role: eye[1 + part.labels] for role, part in data.items()}
    owner = (
        {text: c for c, own in enumerate(task.prompts.texts(NAMES)) for text in own}
        if hasattr(task, "prompts")
        else {}
    )
    return Given(data, images, patches, lambda text: eye[1 + owner[text]])


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_the_answer_scores_one(name):
    task = TASKS[name]
    scores = task.score(knows(task, stand_ins(task)))
    assert scores.metrics[task.main_metric] == 1.0
    assert scores.stderr[task.main_metric] == 0.0
    count = len(NAMES) * images_a_class(task)
    assert scores.n == (count - len(range(0, count, HELD_OUT)) if chooses_on_test(task) else count)


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_scores_chance(name):
    task, scores = TASKS[name], scores_of_noise(name)
    assert 0 < scores.chance < 0.5
    # the error estimated from one or two hits is no estimate: at least that of the chance level
    error = max(
        scores.stderr[task.main_metric], np.sqrt(scores.chance * (1 - scores.chance) / scores.n) / 3
    )
    assert abs(scores.metrics[task.main_metric] - scores.chance) < 4 * error


@pytest.mark.parametrize("name", FAMILIES)
def test_two_runs_are_identical(name):
    task = TASKS[name]
    first, second = scores_of_noise(name), task.score(noise(task, stand_ins(task)))
    assert first == second
    assert first.outcomes.keys() == second.outcomes.keys()
    assert all(np.array_equal(first.outcomes[key], second.outcomes[key]) for key in first.outcomes)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_the_images_does_not_matter(name):
    task = TASKS[name]
    if chooses_on_test(task):
        pytest.skip(
            "which of its pictures choose the threshold is decided by their place among them"
        )
    features = noise(task, stand_ins(task))
    # which images are shots, or held out, is decided by their place among the training images:
    # those stay
    shuffled_roles = [role for role in features.data if role == "test" or task.group == "knn"]
    orders = {
        role: np.random.default_rng(9).permutation(len(part))
        for role, part in features.data.items()
    }
    orders = {
        role: order if role in shuffled_roles else np.sort(order) for role, order in orders.items()
    }
    data = {
        role: replace(
            part,
            labels=part.labels[orders[role]],
            captions=tuple(part.captions[i] for i in orders[role]),
            masks=part.masks[orders[role]],
        )
        for role, part in features.data.items()
    }
    images = {role: rows[orders[role]] for role, rows in features.images.items()}
    patches = {role: rows[orders[role]] for role, rows in features.patches.items()}
    again = task.score(replace(features, data=data, images=images, patches=patches))
    scores = scores_of_noise(name)
    assert again.metrics == pytest.approx(scores.metrics, abs=1e-12)
    assert again.chance == pytest.approx(scores.chance, abs=1e-12)
    for key, outcome in scores.outcomes.items():
        # the queries stand in another order, and the images have other numbers
        if key == "image_retrieval_picture":
            assert sorted(orders["test"][again.outcomes[key]].tolist()) == outcome.tolist()
        elif len(outcome) == scores.n:
            assert np.array_equal(again.outcomes[key], outcome[orders["test"]]), key
        else:
            assert sorted(again.outcomes[key].tolist()) == sorted(outcome.tolist()), key


def test_captions_of_stand_ins_are_several_an_image():
    test = stand_ins(SimpleNamespace(sources=["test"], group="retrieval"))["test"]
    pictures, _, captions = captions_of(test)
    assert sorted(set(np.bincount(pictures))) == [1, 2, 3, 4, 5]
    assert len(captions) == len(pictures)
