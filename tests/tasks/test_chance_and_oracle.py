"""Every task on a handful of ``shapes``, and what a model that knows the masks scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from given import extractor
from refusals import refused

from silc_bench.datasets.generated.shapes.scenes import SHAPES
from silc_bench.probes import patch_knn, patch_sgd
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.selection import all_tasks

pytestmark = pytest.mark.broad

TASKS = {name: task for name, task in all_tasks().items() if name.startswith("shapes/")}


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(fewshot, "COSTS", fewshot.COSTS[2:4])
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    monkeypatch.setattr(fewshot, "POOL", 10)  # of a class, under a limit
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 5)
    monkeypatch.setattr(patch_knn, "MAX_CELLS", 2000)


def score(task, model, data):
    return task.score(extractor(model, batch_size=64)(data))


@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("name", TASKS)
def test_a_handful_of_images_is_scored_or_refused(name, limit, random_model):
    task = TASKS[name]
    data = task.load(None, limit)
    too_few = {
        "shapes/linear": "train" in data and len(set(data["train"].labels)) == limit,
        "shapes/segmentation_linear": limit == 1,
        "shapes/correspondence": limit <= 2,
        "shapes/knn": True,
    }
    if too_few.get(name):
        with refused(name):
            score(task, random_model, data)
        return
    scores = score(task, random_model, data)
    values = [*scores.metrics.values(), *scores.stderr.values(), scores.chance]
    assert np.isfinite(values).all()


def test_zeroshot_segmentation_is_limited_by_the_size_of_patches_alone(lookup_model):
    """Each patch holds the fractions of the classes in it, and names of shapes are their axes."""
    from torchmetrics import JaccardIndex

    task = TASKS["shapes/segmentation_zeroshot"]
    data, eye = task.load(None, 60), np.eye(1 + len(SHAPES))
    test = data["test"]
    scores = {}
    for patch_size in (1, 8):
        size = 64 // patch_size
        fractions = {}
        for index in range(len(test)):
            onehot = eye[test.mask(index)].reshape(size, patch_size, size, patch_size, -1)
            fractions[np.array(test.image(index)).tobytes()] = onehot.mean(axis=(1, 3))
        model = lookup_model(
            len(eye),
            text=lambda text: eye[1 + next(i for i, s in enumerate(SHAPES) if text.endswith(s))],
            dense=lambda key, joint, fractions=fractions: fractions[key],
            patch_size=patch_size,
        )
        scores[patch_size] = score(task, model, data).metrics
    assert set(scores[1].values()) == {1.0}

    peer = JaccardIndex("multiclass", num_classes=len(SHAPES), ignore_index=255)
    for index, coarse in enumerate(fractions.values()):
        patches = torch.from_numpy(coarse.astype(np.float16)).float()  # as they are kept
        cosine = F.normalize(patches, dim=-1)[..., 1:].permute(2, 0, 1)[None]
        large = F.interpolate(cosine, size=(64, 64), mode="bilinear", align_corners=False)
        mask = torch.from_numpy(test.mask(index)).long()
        peer.update(large.argmax(dim=1), torch.where(mask == 0, 255, mask - 1)[None])
    assert 0.5 < scores[8]["mIoU"] == pytest.approx(float(peer.compute()), abs=1e-4)
