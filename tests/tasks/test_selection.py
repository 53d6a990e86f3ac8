"""Every registered task keeps the contract, and tasks are found by the names people use."""

from __future__ import annotations

import json

import pytest

from silc_bench import task as contract
from silc_bench.errors import UserError
from silc_bench.task import Task, register
from silc_bench.tasks import selection
from silc_bench.tasks.selection import all_tasks, select

TASKS = all_tasks()
SHAPES = {
    "shapes/correspondence",
    "shapes/discovery",
    "shapes/fewshot",
    "shapes/fewshot_logistic",
    "shapes/knn",
    "shapes/linear",
    "shapes/retrieval",
    "shapes/segmentation_knn",
    "shapes/segmentation_linear",
    "shapes/segmentation_sgd",
    "shapes/segmentation_zeroshot",
    "shapes/zeroshot",
    "shapes/zeroshot_unseen",
}
LEARNED = {"fewshot", "fewshot_logistic", "knn", "linear", "zeroshot"}
CIFAR = {f"cifar100/{family}" for family in LEARNED}
ZEROSHOT = {
    f"{name}/zeroshot"
    for name in ("imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch", "objectnet")
}
NAMED = {f"{name}/{family}" for name in ("cifar10", "imagenet1k") for family in LEARNED} | ZEROSHOT
NAMED |= {"coco/retrieval", "flickr30k/retrieval"}
MASKED = (
    "ade20k150",
    "camvid",
    "camvid_mini",
    "cityscapes",
    "cocostuff",
    "pc59",
    "pc60",
    "voc20",
    "voc21",
)
SEGMENTED = {f"{name}/segmentation_zeroshot" for name in (*MASKED, "ade20k847", "coco_object")}
SEGMENTED |= {
    f"{name}/segmentation_{probe}" for name in MASKED for probe in ("linear", "sgd", "knn")
}
OBJECTS = {f"{name}/discovery" for name in ("voc21", "pc60", "coco_object")}
OBJECTS |= {f"{name}/correspondence" for name in (*MASKED, "ade20k847", "coco_object")}
NAMED |= SEGMENTED | OBJECTS
SEGMENTED |= {name for name in SHAPES if "/segmentation" in name}
OBJECTS |= {"shapes/correspondence", "shapes/discovery"}


def names(*patterns):
    return {task.name for task in select(patterns)}


def test_what_is_registered():
    assert set(TASKS) == SHAPES | CIFAR | NAMED


@pytest.mark.parametrize("name", TASKS)
def test_contract(name):
    task = TASKS[name]
    assert isinstance(task, Task)
    assert task.name == name
    assert task.version >= 1
    assert task.requires
    assert task.requires <= {"image", "text", "dense"}
    assert json.loads(json.dumps(task.protocol(), allow_nan=False)) == task.protocol(), (
        "JSON, and nothing that JSON changes"
    )


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_loading_is_repeatable_limited_and_scores_the_role_test(name):
    task = TASKS[name]
    whole, again, part = task.load(None, None), task.load(None, None), task.load(None, 10)
    assert "test" in whole
    for role, dataset in whole.items():
        assert dataset.fingerprint == again[role].fingerprint
        assert dataset.fingerprint != part[role].fingerprint
        # that pool keeps the shots of each class
        of_shots = role == "train" and task.group == "few-shot"
        assert len(part[role]) == (10 if not of_shots else 1399) < len(dataset)


def test_pools_that_are_learned_from_are_not_scored():
    for task in TASKS.values():
        if task.name.startswith("shapes/"):
            splits = {role: dataset.split for role, dataset in task.load(None, 10).items()}
            assert splits.get("train", "train") == "train"
            assert splits["test"] in ("test", "unseen")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shapes/zeroshot", {"shapes/zeroshot"}),
        ("zeroshot", {name for name in SHAPES | CIFAR | NAMED if "/zeroshot" in name}),
        ("segmentation", SEGMENTED),
        ("segmentation_linear", {name for name in SEGMENTED if name.endswith("_linear")}),
        ("dense", SEGMENTED | OBJECTS),
        ("cifar100", CIFAR),
        ("cifar100/*", CIFAR),
        ("*/knn", {"cifar10/knn", "cifar100/knn", "imagenet1k/knn", "shapes/knn"}),
        ("imagenet_*", ZEROSHOT - {"objectnet/zeroshot"}),
        ("*", SHAPES | CIFAR | NAMED),
    ],
)
def test_select(pattern, expected):
    assert names(pattern) == expected


def test_select_joins_and_sorts():
    assert [task.name for task in select(["shapes/zeroshot", "*/knn", "knn"])] == [
        "cifar10/knn",
        "cifar100/knn",
        "imagenet1k/knn",
        "shapes/knn",
        "shapes/zeroshot",
    ]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("zeroshoot", "zeroshot"),
        ("cifar1000/zeroshot", "cifar100/zeroshot"),
        ("Shapes", "shapes"),
        ("imagenet/*", "known: |did you mean"),
        ("folders:/data", "known: |did you mean"),
    ],
)
def test_unknown_names_give_the_nearest(pattern, hint):
    with pytest.raises(UserError, match=hint):
        select(["shapes/zeroshot", pattern])


def test_no_name_at_all():
    with pytest.raises(UserError, match="no task was named"):
        select([])


def test_a_name_is_registered_once_and_is_dataset_and_family(monkeypatch):
    monkeypatch.setattr(contract, "_TASKS", dict(contract._TASKS))
    with pytest.raises(AssertionError, match="registered twice"):
        register(TASKS["shapes/knn"])

    class Misnamed:
        name = "knn"

    with pytest.raises(AssertionError, match="not dataset/family"):
        register(Misnamed())


def test_other_packages_register_through_an_entry_point(monkeypatch):
    monkeypatch.setattr(contract, "_TASKS", dict(contract._TASKS))

    class Entry:
        def load(self):
            from silc_bench.tasks.classification.knn import Knn

            register(Knn(name="birds/knn", sources={}))

    monkeypatch.setattr(
        selection, "entry_points", lambda group: [Entry()] if group == "silc_bench.tasks" else []
    )
    assert "birds/knn" in all_tasks()
