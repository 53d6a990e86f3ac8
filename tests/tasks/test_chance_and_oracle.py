"""Every task on ``shapes``: what it writes, and what a model that knows the masks scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from given import extractor, measured
from refusals import refused

from silc_bench.datasets.shapes.scenes import SHAPES
from silc_bench.probes import patch_knn, patch_sgd
from silc_bench.results.record import load_all
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.selection import all_tasks

pytestmark = pytest.mark.broad

TASKS = {name: task for name, task in all_tasks().items() if name.startswith("shapes/")}


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    """Enough for the answer to be found where it is there."""
    monkeypatch.setattr(fewshot, "COSTS", fewshot.COSTS[2:4])
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    monkeypatch.setattr(fewshot, "POOL", 10)  # of a class, under a limit
    monkeypatch.setattr(patch_sgd, "PASSES", 1)
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 60)
    monkeypatch.setattr(patch_knn, "MAX_CELLS", 2000)


def score(task, model, data):
    return task.score(extractor(model, batch_size=64)(data))


def images_of(data):
    """(RGB bytes, dataset, index) of every image of every role."""
    for dataset in data.values():
        for index in range(len(dataset)):
            yield np.array(dataset.image(index)).tobytes(), dataset, index


def test_every_task_writes_a_record_that_can_be_read(random_model, tmp_path):
    written = measured(random_model, list(TASKS.values()), tmp_path, limit=40, batch_size=16)
    assert [record.task.name for record in written] == list(TASKS)
    read = {record.task.name: record for record in load_all(tmp_path)}
    assert [read[name] for name in TASKS] == written
    for record in written:
        assert record.n == record.limit == 40
        assert record.task.main_metric in record.stderr
        assert set(record.stderr) <= set(record.metrics)


@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("name", TASKS)
def test_a_handful_of_images_is_scored_or_refused(name, limit, random_model):
    task = TASKS[name]
    data = task.load(None, limit)
    too_few = {
        "shapes/linear": "train" in data and len(set(data["train"].labels)) == limit,
        "shapes/segmentation_linear": limit == 1,
        "shapes/correspondence": limit <= 2,
    }
    if too_few.get(name):
        with refused(name):
            score(task, random_model, data)
        return
    scores = score(task, random_model, data)
    values = [*scores.metrics.values(), *scores.stderr.values(), scores.chance]
    assert np.isfinite(values).all()


# ---- the masks are known ----


@pytest.fixture
def of_masks(lookup_model):
    """(scores, data, model) where each patch holds the fractions of the classes in it.

    Names of shapes are their axes, the background has the first.
    """

    def scored(family, patch_size):
        task = TASKS[f"shapes/{family}"]
        data = task.load(None, 60)
        size = 64 // patch_size
        eye = np.eye(1 + len(SHAPES))
        fractions = {}
        for key, dataset, index in images_of(data):
            onehot = eye[dataset.mask(index)].reshape(size, patch_size, size, patch_size, -1)
            fractions[key] = onehot.mean(axis=(1, 3))

        def text(text):
            return eye[1 + next(i for i, shape in enumerate(SHAPES) if text.endswith(shape))]

        dense = lambda key, joint: fractions[key]  # noqa: E731
        model = lookup_model(len(eye), text=text, dense=dense, patch_size=patch_size)
        return score(task, model, data), data, fractions

    return scored


def test_zeroshot_segmentation_is_limited_by_the_size_of_patches_alone(of_masks):
    from torchmetrics import JaccardIndex

    fine, _, _ = of_masks("segmentation_zeroshot", 1)
    assert list(fine.metrics) == ["mIoU", "pixel_accuracy", "mean_class_accuracy", "boundary_mIoU"]
    assert set(fine.metrics.values()) == {1.0}

    coarse, data, fractions = of_masks("segmentation_zeroshot", 8)
    guesses, truths = [], []
    for key, dataset, index in images_of(data):
        patches = torch.from_numpy(fractions[key].astype(np.float16)).float()  # as they are kept
        cosine = F.normalize(patches, dim=-1)[..., 1:].permute(2, 0, 1)[None]
        large = F.interpolate(cosine, size=(64, 64), mode="bilinear", align_corners=False)
        guesses.append(large.argmax(dim=1))
        mask = torch.from_numpy(dataset.mask(index)).long()
        truths.append(torch.where(mask == 0, 255, mask - 1)[None])
    peer = JaccardIndex("multiclass", num_classes=len(SHAPES), ignore_index=255)
    expected = float(peer(torch.cat(guesses), torch.cat(truths)))
    assert coarse.metrics["mIoU"] == pytest.approx(expected, abs=1e-4)
    assert coarse.metrics["mIoU"] > 0.5


@pytest.mark.parametrize("family", ["linear", "sgd", "knn"])
def test_learned_segmentation_of_the_right_patches(family, of_masks):
    fine, coarse = (of_masks(f"segmentation_{family}", size)[0] for size in (2, 8))
    assert fine.metrics["mIoU"] > (0.8 if family == "sgd" else 0.9)  # few steps
    assert 0.4 < coarse.metrics["mIoU"] < fine.metrics["mIoU"]
    assert set(fine.details["iou"]) == {"background", *SHAPES}


def test_correspondence_of_the_right_patches(of_masks):
    scores, _, _ = of_masks("correspondence", 2)
    assert scores.metrics["patch_recall@1"] > 0.95
    assert scores.chance < 0.2
