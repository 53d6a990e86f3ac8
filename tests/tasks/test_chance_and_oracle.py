"""Every registered task on ``shapes``: knowing nothing scores chance, knowing the answer 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from silc_bench.datasets.shapes.scenes import PAIRS, SHAPES
from silc_bench.errors import UserError
from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.features import Extractor
from silc_bench.probes import patch_knn as dense_knn
from silc_bench.probes import patch_sgd as dense_sgd
from silc_bench.results import outcomes
from silc_bench.results.record import load_all
from silc_bench.task import Scores, Task
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.classification import fewshot as shots
from silc_bench.tasks.retrieval import captions_of
from silc_bench.tasks.selection import all_tasks

pytestmark = pytest.mark.broad

TASKS = {name: task for name, task in all_tasks().items() if name.startswith("shapes/")}


@pytest.fixture(autouse=True)
def few_penalties(monkeypatch):
    """Two of few-shot's seven, and two seeds: what holds does not hang on how many there are."""
    monkeypatch.setattr(fewshot, "COSTS", fewshot.COSTS[2:4])
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    monkeypatch.setattr(shots, "POOL", 10)  # of a class, under a limit


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    """Enough for the answer to be found where it is there."""
    monkeypatch.setattr(dense_sgd, "PASSES", 1)
    monkeypatch.setattr(dense_sgd, "MIN_STEPS", 60)
    monkeypatch.setattr(dense_knn, "MAX_CELLS", 2000)


def score(task: Task, model, data: Mapping) -> Scores:
    extract = Extractor(
        model,
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=64,
        num_workers=0,
        progress=False,
    )
    return task.score(extract(data))


@pytest.fixture(scope="module")
def scores_of_noise(random_model):
    """name -> what the model that knows nothing scores on 100 pictures.

    Computed once; not to be changed.
    """
    return cache(lambda name: score(TASKS[name], random_model, TASKS[name].load(None, 100)))


def images_of(data: Mapping) -> Iterator:
    """(RGB bytes, dataset, index) of every picture of every role."""
    for dataset in data.values():
        for index in range(len(dataset)):
            yield np.array(dataset.image(index)).tobytes(), dataset, index


# ---- chance ----


@pytest.mark.parametrize("name", TASKS)
def test_noise_scores_chance(name, random_model):
    task = TASKS[name]
    scores = score(task, random_model, task.load(None, 300))
    assert task.main_metric in scores.stderr
    assert set(scores.stderr) <= set(scores.metrics)
    assert 0 < scores.chance < 0.5
    # the error estimated from one or two hits is no estimate: at least that of the chance level
    error = max(
        scores.stderr[task.main_metric], np.sqrt(scores.chance * (1 - scores.chance) / scores.n) / 3
    )
    assert abs(scores.metrics[task.main_metric] - scores.chance) < 4 * error


# ---- the answer is known ----


def knows_labels(lookup_model, data):
    labels = {key: dataset.labels[index] for key, dataset, index in images_of(data)}
    eye = np.eye(len(PAIRS))
    return lookup_model(
        len(PAIRS),
        image=lambda key: eye[labels[key]],
        text=lambda text: eye[next(i for i, pair in enumerate(PAIRS) if pair in text)],
    )


@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if "dense" not in task.requires]
)
def test_the_right_embedding_scores_one(name, lookup_model):
    task = TASKS[name]
    data = task.load(None, 400)
    if task.group == "retrieval":
        images, texts, captions = captions_of(data["test"])
        own = np.zeros((len(data["test"]), len(captions)))
        own[images, texts] = 1
        index_of = {key: index for key, _, index in images_of(data)}
        eye = dict(zip(captions, np.eye(len(captions)), strict=True))
        model = lookup_model(
            len(captions), image=lambda key: own[index_of[key]], text=eye.__getitem__
        )
    else:
        model = knows_labels(lookup_model, data)
    scores = score(task, model, data)
    known = np.isin(data["test"].labels, data["train"].labels).mean() if "train" in data else 1.0
    assert scores.metrics[task.main_metric] == pytest.approx(known, abs=1e-12)
    if task.group == "retrieval":
        assert {value for name, value in scores.metrics.items() if "recall" in name} == {1.0}
        assert (
            scores.metrics["image_retrieval_median_rank"]
            == scores.metrics["text_retrieval_median_rank"]
            == 1.0
        )


def knows_masks(lookup_model, data, patch_size):
    """Each patch holds the fractions of the classes in it.

    Names of shapes are their axes, the background has the first.
    """
    size = 64 // patch_size
    eye = np.eye(1 + len(SHAPES))
    fractions = {}
    for key, dataset, index in images_of(data):
        onehot = eye[dataset.mask(index)].reshape(size, patch_size, size, patch_size, -1)
        fractions[key] = onehot.mean(axis=(1, 3))
    return lookup_model(
        len(eye),
        text=lambda text: eye[
            1 + next(i for i, shape in enumerate(SHAPES) if text.endswith(shape))
        ],
        dense=lambda key, joint: fractions[key],
        patch_size=patch_size,
    )


def test_zeroshot_segmentation_of_the_right_pixels_scores_one(lookup_model):
    task = TASKS["shapes/segmentation_zeroshot"]
    data = task.load(None, 60)
    scores = score(task, knows_masks(lookup_model, data, patch_size=1), data)
    assert scores.metrics == {
        "mIoU": 1.0,
        "pixel_accuracy": 1.0,
        "mean_class_accuracy": 1.0,
        "boundary_mIoU": 1.0,
    }


def test_zeroshot_segmentation_of_the_right_patches_is_limited_by_their_size_alone(lookup_model):
    from torchmetrics import JaccardIndex

    task = TASKS["shapes/segmentation_zeroshot"]
    data = task.load(None, 60)
    model = knows_masks(lookup_model, data, patch_size=8)
    guesses, truths = [], []
    for key, dataset, index in images_of(data):
        # as they are kept
        patches = torch.from_numpy(model._dense(key, True).astype(np.float16)).float()
        cosine = F.normalize(patches, dim=-1)[..., 1:].permute(2, 0, 1)[None]
        guesses.append(
            F.interpolate(cosine, size=(64, 64), mode="bilinear", align_corners=False).argmax(dim=1)
        )
        mask = torch.from_numpy(dataset.mask(index)).long()
        truths.append(torch.where(mask == 0, 255, mask - 1)[None])
    expected = JaccardIndex("multiclass", num_classes=len(SHAPES), ignore_index=255)(
        torch.cat(guesses), torch.cat(truths)
    )
    scores = score(task, model, data)
    assert scores.metrics["mIoU"] == pytest.approx(float(expected), abs=1e-4)
    assert scores.metrics["mIoU"] > 0.5


@pytest.mark.parametrize("family", ["linear", "sgd", "knn"])
def test_learned_segmentation_of_the_right_patches(family, lookup_model):
    task = TASKS[f"shapes/segmentation_{family}"]
    data = task.load(None, 60)
    fine, coarse = (
        score(task, knows_masks(lookup_model, data, patch_size), data) for patch_size in (2, 8)
    )
    assert fine.metrics["mIoU"] > (0.8 if family == "sgd" else 0.9)  # few steps
    assert 0.4 < coarse.metrics["mIoU"] < fine.metrics["mIoU"]
    assert set(fine.details["iou"]) == {"background", *SHAPES}


def test_correspondence_of_the_right_patches(lookup_model):
    task = TASKS["shapes/correspondence"]
    data = task.load(None, 60)
    scores = score(task, knows_masks(lookup_model, data, patch_size=2), data)
    assert scores.metrics["patch_recall@1"] > 0.95
    assert scores.chance < 0.2


# ---- what must not matter ----


class Reordered:
    """The same samples in another order."""

    def __init__(self, dataset, seed):
        self._dataset, self._order = dataset, np.random.default_rng(seed).permutation(len(dataset))
        self.name, self.split, self.fingerprint = dataset.name, dataset.split, f"{seed:016x}"
        self.class_names, self.mask_names = dataset.class_names, dataset.mask_names
        self.has_background = dataset.has_background
        self.labels = dataset.labels[self._order]
        self.captions = [dataset.captions[i] for i in self._order]

    def __len__(self):
        return len(self._order)

    def image(self, index):
        return self._dataset.image(self._order[index])

    def mask(self, index):
        return self._dataset.mask(self._order[index])


@pytest.mark.parametrize("name", TASKS)
def test_the_order_of_the_scored_images_does_not_matter(name, random_model, scores_of_noise):
    task = TASKS[name]
    data = task.load(None, 100)
    scores = scores_of_noise(name)
    reordered = score(task, random_model, {**data, "test": Reordered(data["test"], seed=1)})
    assert reordered.metrics == pytest.approx(scores.metrics, abs=1e-12)
    assert reordered.chance == pytest.approx(scores.chance, abs=1e-12)
    assert reordered.n == scores.n


# ---- records ----


def test_every_task_writes_a_record_that_can_be_read(random_model, tmp_path):
    written = evaluate(
        random_model,
        list(TASKS.values()),
        model_source="random",
        data_root=None,
        results_dir=tmp_path,
        limit=40,
        device="cpu",
        batch_size=16,
    )
    assert [record.task.name for record in written] == list(TASKS)
    read = {record.task.name: record for record in load_all(tmp_path)}
    assert [read[name] for name in TASKS] == written
    assert all(record.n == record.limit == 40 for record in written)


@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("name", TASKS)
def test_a_handful_of_images_is_scored_or_refused(name, limit, random_model):
    task = TASKS[name]
    data = task.load(None, limit)
    refused = {
        "shapes/linear": (
            "train" in data and len(set(data["train"].labels)) == limit,
            "two training pictures of a class",
        ),
        "shapes/segmentation_linear": (limit == 1, "two training pictures or more"),
        "shapes/correspondence": (limit <= 2, "no class occurs in two of the"),
    }
    is_refused, message = refused.get(name, (False, ""))
    if is_refused:
        with pytest.raises(UserError, match=message):
            score(task, random_model, data)
    else:
        scores = score(task, random_model, data)
        assert all(
            np.isfinite(value)
            for value in [*scores.metrics.values(), *scores.stderr.values(), scores.chance]
        )


# ---- outcomes ----


@pytest.mark.parametrize("name", TASKS)
def test_metrics_follow_from_the_outcomes_of_each_sample(name, scores_of_noise):
    scores = scores_of_noise(name)
    again = {metric: outcomes.per_image(scores.outcomes, metric) for metric in scores.metrics}
    silent = {metric for metric, parts in again.items() if parts is None}
    assert silent == {metric for metric in scores.metrics if metric.endswith("median_rank")}
    for metric in again.keys() - silent:
        parts = again[metric]
        assert len(parts.counts) == scores.n, metric
        assert parts.statistic(parts.counts.sum(axis=0)[None])[0] == pytest.approx(
            scores.metrics[metric], abs=1e-12
        )
