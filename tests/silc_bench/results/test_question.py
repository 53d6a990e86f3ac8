"""What is asked and how a model takes it in: where each field goes, and what shares a column."""

import hashlib
import json
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from silc_bench.evaluation.prompts import Prompts
from silc_bench.evaluation.protocols import choose
from silc_bench.results.question import Question
from silc_bench.results.setup import Setup
from silc_bench.tasks.selection import all_tasks

DATA = SimpleNamespace(
    name="any",
    split="test",
    fingerprint="0" * 16,
    class_names=("cat", "dog"),
    mask_names=("sky", "road"),
    mask_policy={"background": "none", "not_scored": "values 255"},
)
MODEL = SimpleNamespace(
    image_protocol={"size": 64, "resize": "squash", "mean": [0.5, 0.5, 0.5]},
    text_protocol={"length": 32, "cleaning": "canonicalize"},
    settings={"quick_gelu": True},
    libraries=("timm",),
)
TASKS = all_tasks()

# Every field that decides a number, and why it stands where it stands.
OF_THE_QUESTION = {
    "task": "what is measured, on which data",
    "task_version": "another rule of the task gives another number",
    "main_metric": "another metric is another question",
    "protocol": "the name of what the evaluation imposes",
    "protocol_version": "the name may come to mean something else",
    "image": "crop or windows that a protocol imposes, for models of any size",
    "class_names": "the words that all models are asked with",
    "asks": "prompts, text cleaning, shots, draws, penalties, dense method: the task's own choices",
    "dataset": "the images that are scored and learned from, and what masks mean",
    "limit": "part of the data is other data",
}
OF_THE_SETUP = {
    "image": "size, resize, crop, interpolation, mean and std come with the checkpoint",
    "text": "tokenizer, cleaning and length come with the checkpoint",
    "network": "activations come with the checkpoint, though no weight tells them",
    "feature_point": "where the run reads the model",
    "precision": "of the run",
    "device": "of the run",
    "libraries": "of the run: another Pillow resizes, another torch multiplies otherwise",
}


def asked(task="shapes/zeroshot", protocol="native", data=DATA, limit=None, **prompts):
    named = choose(protocol, **prompts)
    own = TASKS[task].under(named)
    return Question.of(
        own, {"test": data}, limit=limit, protocol=named.name, image=named.images(own)
    )


def taken(model=MODEL, **run):
    return Setup.of(model, **{"precision": "fp32", "device": "cpu", **run})


def with_fields(**changes):
    return SimpleNamespace(**{**vars(MODEL), **changes})


@pytest.mark.parametrize(("made", "table"), [(asked(), OF_THE_QUESTION), (taken(), OF_THE_SETUP)])
def test_every_field_has_its_place_and_counts(made, table):
    assert [field.name for field in fields(made)] == list(table)
    stated = made.as_dict()
    content = {name: value for name, value in stated.items() if name != "hash"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert made.hash == stated["hash"] == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert type(made).from_dict(stated) == type(made)(**content)
    for name in table:
        changed = replace(made, **{name: {"another": 1}})
        assert changed.hash != made.hash
        with pytest.raises(ValueError, match="hash"):
            type(made).from_dict({**changed.as_dict(), "hash": made.hash})


@pytest.mark.parametrize("bad", [float("nan"), np.float32(1), {1, 2}])
def test_what_is_not_json_is_refused(bad):
    for made, name in ((asked(), "asks"), (taken(), "image")):
        with pytest.raises(ValueError, match="plain JSON"):
            replace(made, **{name: {"mean": bad}})


OTHER_MODELS = {
    "size": with_fields(image_protocol={**MODEL.image_protocol, "size": 224}),
    "mean": with_fields(image_protocol={**MODEL.image_protocol, "mean": [0.4, 0.4, 0.4]}),
    "crop": with_fields(image_protocol={**MODEL.image_protocol, "crop": "center"}),
    "tokenizer": with_fields(text_protocol={**MODEL.text_protocol, "tokenizer": "clip"}),
    "activation": with_fields(settings={"quick_gelu": False}),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
@pytest.mark.parametrize("task", ["shapes/zeroshot", "shapes/segmentation_zeroshot", "shapes/knn"])
@pytest.mark.parametrize("protocol", ["native", "bigvision", "tcl"])
def test_models_of_any_preprocessing_are_asked_the_same(name, task, protocol):
    """A question is made without a model; nothing of one can reach it."""
    before = asked(task, protocol).hash
    assert taken(OTHER_MODELS[name]).hash != taken().hash
    text = json.dumps(asked(task, protocol).as_dict())
    assert asked(task, protocol).hash == before
    assert not any(word in text for word in ('mean":', 'std":', "tokenizer", "quick_gelu"))


DISTINCT = {
    "prompt sets": [asked(), asked(protocol="openai80"), asked(protocol="single")],
    "own prompts": [asked(), asked(prompts=Prompts("mine", ("my {c}",)))],
    "text cleaning": [
        asked(prompts=Prompts("mine", ("my {c}",), text_cleaning=cleaning))
        for cleaning in ("none", "bigvision")
    ],
    "crops": [asked("shapes/knn"), asked("shapes/knn", "bigvision")],
    "views": [
        asked("shapes/segmentation_linear", protocol) for protocol in ("native", "tcl", "sclip")
    ],
    "dense methods": [
        asked("shapes/segmentation_zeroshot", dense_method=method) for method in (None, "sclip")
    ],
    "shots": [asked("shapes/fewshot"), asked("shapes/fewshot_logistic")],
    "masks": [
        asked("shapes/discovery", data=SimpleNamespace(**{**vars(DATA), "mask_policy": policy}))
        for policy in ({"background": "none"}, {"background": "label 0"})
    ],
    "class names": [
        asked(data=SimpleNamespace(**{**vars(DATA), "class_names": names}))
        for names in (("cat", "dog"), ("dog", "cat"))
    ],
    "data": [
        asked(data=SimpleNamespace(**{**vars(DATA), "fingerprint": digit * 16})) for digit in "12"
    ],
    "limits": [asked(), asked(limit=10)],
}


@pytest.mark.parametrize("name", DISTINCT)
def test_what_the_evaluation_imposes_makes_another_question(name):
    hashes = [question.hash for question in DISTINCT[name]]
    assert len(set(hashes)) == len(hashes)


def test_names_of_classes_count_where_they_are_read_as_words():
    sha256 = hashlib.sha256(b'["cat", "dog"]').hexdigest()[:16]
    assert asked().class_names == {"count": 2, "sha256": sha256}
    assert asked("shapes/knn").class_names == {}
    names = asked("shapes/segmentation_zeroshot").class_names
    assert names["sha256"] == hashlib.sha256(b'["sky", "road"]').hexdigest()[:16]
    assert asked("shapes/segmentation_linear").dataset["masks"] == DATA.mask_policy
    pools = {"test": DATA, "train": SimpleNamespace(fingerprint="1" * 16)}
    assert Question.of(TASKS["shapes/knn"], pools).dataset["pools"] == {"train": "1" * 16}


def test_a_run_is_one_row_wherever_its_tasks_read():
    setups = [taken(feature_point=point) for point in ("pooled", "patches")]
    assert setups[0].hash != setups[1].hash
    assert setups[0].row == setups[1].row != taken(feature_point="mean_patch").row
    assert taken(precision="bf16").row != taken().row
    assert set(taken().libraries) == {"torch", "pillow", "timm"}
    bare = taken(SimpleNamespace(image_protocol={}))
    assert (bare.text, bare.network, set(bare.libraries)) == ({}, {}, {"torch", "pillow"})
    assert asdict(taken())["network"] == {"quick_gelu": True}
