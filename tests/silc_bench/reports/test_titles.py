"""Titles in words: every registered task and metric has them, and no heading holds a hash."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import record_of

from silc_bench.reports.titles import (
    DATASETS,
    FAMILIES,
    GROUPS,
    distinctions,
    metric_title,
    setup_labels,
    title,
)
from silc_bench.tasks.selection import all_tasks

HASH = re.compile(r"[0-9a-f]{8,}")
QUESTION, SETUP = record_of("a", 0.5).question, record_of("a", 0.5).setup


def test_every_registered_task_has_words():
    for name, task in all_tasks().items():
        dataset, family = name.split("/")
        assert dataset in DATASETS
        assert family in FAMILIES
        assert task.group in GROUPS
        assert metric_title(task.main_metric) != task.main_metric or task.main_metric == "mIoU"


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        ("cifar100/zeroshot", "acc1", "CIFAR-100 zero-shot, top-1"),
        ("shapes/fewshot", "acc1_5shot", "shapes few-shot ridge, top-1, 5-shot"),
        ("coco/retrieval", "image_retrieval_recall@5", "COCO retrieval, text to image R@5"),
        ("my_pets/knn", "acc1_20nn", "my_pets kNN, top-1, k = 20"),
        ("theirs/own_family", "own_metric", "theirs own family, own_metric"),
    ],
)
def test_titles(task, metric, words):
    assert title(task, metric) == words


def test_questions_are_told_apart_by_name_else_by_what_differs():
    def labels(*changes):
        return distinctions([replace(QUESTION, **change) for change in changes])

    assert labels({}) == [""]
    assert labels({}, {"protocol": "openai80"}) == ["native", "openai80"]
    assert labels({"asks": {"shots": 5}}, {"asks": {"shots": 10}}) == ["shots 5", "shots 10"]
    data = [{**QUESTION.dataset, "fingerprint": digit * 16} for digit in "12"]
    assert labels(*({"dataset": own} for own in data)) == [
        "fingerprint variant 1", "fingerprint variant 2"
    ]  # fmt: skip
    both = labels({}, {"protocol": "single"}, {"protocol": "single", "limit": 10})
    assert both == ["native", "single", "single, limit 10"]


def test_setups_are_told_apart_by_what_differs():
    def labels(*changes):
        return setup_labels([replace(SETUP, **change) for change in changes])

    assert labels({}) == [""]
    assert labels({}, {"precision": "bf16"}) == ["fp32", "bf16"]
    assert labels(*({"libraries": {"torch": v}} for v in ("2.11", "2.14"))) == [
        "torch 2.11", "torch 2.14"
    ]  # fmt: skip
    assert labels(*({"image": {"size": size}} for size in (224, 336))) == ["224 px", "336 px"]


VALUES = st.one_of(
    st.integers(0, 3), st.sampled_from("abc"), st.lists(st.integers(0, 9), max_size=40)
)


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES), unique_by=repr, min_size=2))
def test_no_two_labels_are_equal_and_none_is_a_hash(asks):
    questions = {q.hash: q for q in (replace(QUESTION, asks=own) for own in asks)}
    labels = distinctions(list(questions.values()))
    assert len(set(labels)) == len(questions)
    assert not any(HASH.search(label) for label in labels)
