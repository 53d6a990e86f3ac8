"""What the tasks of the generated scenes load, and tasks found by the names people use."""

from __future__ import annotations

import pytest
from refusals import refused

from silc_bench import task as contract
from silc_bench.task import register
from silc_bench.tasks import selection
from silc_bench.tasks.classification.knn import Knn
from silc_bench.tasks.selection import all_tasks, select, words_of

TASKS = all_tasks()
OF_SHAPES = [name for name in TASKS if name.startswith("shapes/")]


@pytest.mark.parametrize("name", OF_SHAPES)
def test_loading_is_repeatable_and_limited_and_what_is_learned_from_is_not_scored(name):
    task = TASKS[name]
    whole, again, part = task.load(None, None), task.load(None, None), task.load(None, 10)
    assert whole["test"].split in ("test", "unseen")
    for role, dataset in whole.items():
        assert role == "test" or dataset.split == "train"
        assert dataset.fingerprint == again[role].fingerprint
        assert dataset.fingerprint != part[role].fingerprint
        # that pool keeps the shots of each class
        of_shots = role == "train" and task.group == "few-shot"
        assert len(part[role]) == (10 if not of_shots else 1399) < len(dataset)


@pytest.mark.parametrize(
    ("pattern", "is_meant"),
    [
        ("shapes/zeroshot", lambda dataset, family: (dataset, family) == ("shapes", "zeroshot")),
        ("zeroshot", lambda dataset, family: family.startswith("zeroshot")),
        ("segmentation", lambda dataset, family: family.startswith("segmentation_")),
        ("dense", lambda dataset, family: "dense" in TASKS[f"{dataset}/{family}"].requires),
        ("cifar100", lambda dataset, family: dataset == "cifar100"),
        ("*/knn", lambda dataset, family: family == "knn"),
        ("imagenet_*", lambda dataset, family: dataset.startswith("imagenet_")),
        ("*", lambda dataset, family: True),
    ],
)
def test_select(pattern, is_meant):
    meant = [name for name in TASKS if is_meant(*name.split("/"))]
    assert [task.name for task in select([pattern])] == meant
    assert select([pattern, pattern]) == select([pattern])


@pytest.mark.parametrize(
    "patterns",
    [["shapes/knn", "zeroshoot"], ["cifar1000/zeroshot"], ["Shapes"], ["imagenet/*"], []],
    ids=str,
)
def test_unknown_names_are_refused(patterns):
    with refused("--tasks"):
        select(patterns)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/b, knn,wds:x/{a,b}/{0..3}.tar,", ["a/b", "knn", "wds:x/{a,b}/{0..3}.tar"]),
        ("seg:a,b/c, d.json#knn,knn", ["seg:a,b/c,d.json#knn", "knn"]),
        ("knn,seg:a", ["knn", "seg:a"]),
    ],
)
def test_words_are_separated_by_commas_outside_braces(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize("name", ["shapes/knn", "knn"], ids=["twice", "no dataset/family"])
def test_a_wrong_name_is_not_registered(name):
    with pytest.raises(AssertionError, match=name):
        register(Knn(name=name, sources={}))


def test_other_packages_register_through_an_entry_point(monkeypatch):
    monkeypatch.setattr(contract, "_TASKS", dict(contract._TASKS))

    class Entry:
        def load(self):
            register(Knn(name="birds/knn", sources={}))

    entries = {"silc_bench.tasks": [Entry()]}
    monkeypatch.setattr(selection, "entry_points", lambda group: entries[group])
    selection._load_plugins.cache_clear()
    assert "birds/knn" in all_tasks()
