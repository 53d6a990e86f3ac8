"""Each task on ``places`` as it is: a model that knows the answers scores 1, noise chance."""

from __future__ import annotations

import numpy as np
import pytest
from given import extractor

from silc_bench.datasets.generated.places.dataset import PlacesThings
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.probes import patch_knn, patch_sgd
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.selection import all_tasks

pytestmark = pytest.mark.broad

TASKS = {name: task for name, task in all_tasks().items() if name.startswith("places")}
LIMIT = 160  # images a split: enough that each class is there
MASKED = 16  # of tasks on masks


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(fewshot, "SHOTS", (1, 10))
    monkeypatch.setattr(fewshot, "COSTS", (1e-2, 1.0))
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    monkeypatch.setattr(patch_sgd, "PASSES", 1)
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 40)
    monkeypatch.setattr(patch_sgd, "LEARNING_RATE", 1e-2)  # so that few are enough
    monkeypatch.setattr(patch_knn, "MAX_CELLS", 4000)


def loaded(task):
    return task.load(None, MASKED if task.group == "dense" else LIMIT)


def score(task, model, data):
    return task.score(extractor(model, batch_size=64)(data))


def key_of(data, index):
    return np.array(data.image(index)).tobytes()


def knows_images(task, data, lookup_model):
    """Each class has an axis; where captions are asked for, each image."""
    meaning = {}
    if task.group == "retrieval":
        axes = len(data["test"])
        place = {key_of(data["test"], i): i for i in range(axes)}
        # images share captions: such a one means all of its images
        for index, own in enumerate(data["test"].captions):
            for text in own:
                meaning[text] = meaning.get(text, 0) + np.eye(axes)[index]
    else:
        axes = len(data["test"].class_names)
        place = {
            key_of(part, i): label for part in data.values() for i, label in enumerate(part.labels)
        }
        if hasattr(task, "prompts"):
            meaning = meant(task, data["test"].class_names)
    eye = np.eye(axes)
    return lookup_model(axes, image=lambda key: eye[place[key]], text=meaning.get)


def meant(task, names):
    """The axis of the class that each prompt names."""
    texts, eye = task.prompts.texts(names), np.eye(len(names))
    return {text: eye[label] for label, own in enumerate(texts) for text in own}


def knows_pixels(task, data, lookup_model):
    """Each label has an axis. Each pixel is a patch; where patches themselves are scored, 8 x 8."""
    is_coarse = task.main_metric == "patch_recall@1"
    names = data["test"].mask_names
    eye, grids = np.eye(len(names)), {}
    for part in data.values():
        for index in range(len(part)):
            mask = part.mask(index)
            if task.main_metric == "foreground_iou":
                mask = np.minimum(mask, 1)  # what it is to find is no class, but things
            grids[key_of(part, index)] = eye[mask]
    patch_size = 8 if is_coarse else 1
    if is_coarse:
        for key, grid in grids.items():
            shares = grid.reshape(8, 8, 8, 8, -1).mean(axis=(1, 3))
            grids[key] = eye[shares.argmax(-1)]
    model = lookup_model(
        len(names),
        text=meant(task, names).get if hasattr(task, "prompts") else None,
        dense=lambda key, joint: grids[key],
        patch_size=patch_size,
    )
    model.image_size = data["test"].size
    model.pipeline = ImagePipeline(model.image_size, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    return model


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_knows_the_answers_scores_one(name, lookup_model):
    task = TASKS[name]
    data = loaded(task)
    if task.main_metric == "foreground_iou":
        # few pixels, so that each can be a patch; and things are the smaller side there
        small = PlacesThings("test", 4 * MASKED, size=16)
        are_smaller = [i for i in range(len(small)) if (small.mask(i) > 0).mean() < 0.5]
        data = {"test": small.part(are_smaller)}
    knows = knows_pixels if task.group == "dense" else knows_images
    scores = score(task, knows(task, data, lookup_model), data)
    assert scores.metrics[task.main_metric] == 1.0


@pytest.mark.parametrize("name", TASKS)
def test_noise_scores_chance(name, random_model):
    task = TASKS[name]
    scores = score(task, random_model, loaded(task))
    assert 0 < scores.chance < 0.5
    # the error estimated from one or two hits is no estimate: at least that of the chance level
    least = np.sqrt(scores.chance * (1 - scores.chance) / scores.n) / 3
    error = max(scores.stderr[task.main_metric], least)
    assert abs(scores.metrics[task.main_metric] - scores.chance) < 4 * error
