"""Named protocols: what a name means, and that each choice reaches the hash.

Nothing is measured twice under two names.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from given import measured
from refusals import refused

from silc_bench.evaluation.prompts import Prompts
from silc_bench.evaluation.protocols import choose
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.results.question import MODELS_OWN
from silc_bench.tasks.selection import all_tasks, select

PIPELINE = ImagePipeline(64, (0.5,) * 3, (0.5,) * 3)
CROPPED = replace(PIPELINE, resize="shortest", resize_size=73, crop="center")
MODEL = {
    "name": "m",
    "image_protocol": PIPELINE.as_dict(),
    "text_protocol": {"length": 8},
    "pipeline": PIPELINE,
    "feature_points": {"pooled": 4},
}
TASKS = all_tasks()
ZEROSHOT = TASKS["shapes/zeroshot"]
CELLS = [f"segmentation_{kind}" for kind in ("linear", "sgd", "knn")]
CELLS += ["discovery", "correspondence"]


def model(**changes):
    return SimpleNamespace(**MODEL | changes)


def changed(protocol, *names):
    """Whether the protocol changes each of these tasks."""
    return [protocol.changes(TASKS[name]) for name in names]


def test_bigvision_crops_classification_and_its_probes_only():
    named = choose("bigvision")
    for family in ("zeroshot", "fewshot", "linear", "knn"):
        assert named.pipeline(model(), TASKS[f"shapes/{family}"]) == CROPPED
    for family in ("retrieval", "segmentation_linear", "segmentation_zeroshot"):
        assert named.pipeline(model(), TASKS[f"shapes/{family}"]) is None
    for size, resized in ((224, 256), (256, 292), (384, 438)):
        other = model(pipeline=replace(PIPELINE, size=size))
        assert named.pipeline(other, TASKS["shapes/knn"]).resize_size == resized
    with refused("naflex"):
        named.pipeline(model(name="naflex", pipeline=object()), TASKS["shapes/knn"])


@pytest.mark.parametrize(
    ("name", "changes", "leaves"),
    [
        ("native", [], ["shapes/zeroshot", "shapes/knn", "shapes/segmentation_zeroshot"]),
        (
            "openai80",
            ["shapes/zeroshot", "cifar10/zeroshot"],
            ["shapes/knn", "imagenet1k/zeroshot", "imagenet_a/zeroshot", "shapes/discovery"],
        ),
        ("openai7", ["shapes/zeroshot", "imagenet1k/zeroshot"], ["shapes/knn"]),
        ("single", ["shapes/zeroshot", "imagenet_a/zeroshot"], ["shapes/knn"]),
        (
            "bigvision",
            ["shapes/zeroshot", "imagenet1k/zeroshot", "shapes/knn"],
            ["shapes/retrieval", "shapes/segmentation_linear"],
        ),
        (
            "sclip",
            ["shapes/segmentation_zeroshot", *(f"shapes/{family}" for family in CELLS)],
            ["shapes/zeroshot", "shapes/knn", "shapes/retrieval"],
        ),
    ],
)
def test_a_protocol_that_changes_nothing_is_native(name, changes, leaves):
    protocol = choose(name)
    assert all(changed(protocol, *changes))
    assert not any(changed(protocol, *leaves))


def test_prompts_and_crops_count_by_what_they_are_and_not_by_name():
    own = choose("native", Prompts("mine", ("my {c}",)))
    assert own.name == "native+mine"
    assert changed(own, "shapes/zeroshot", "shapes/knn") == [True, False]
    assert not changed(choose("native", ZEROSHOT.prompts), "shapes/zeroshot")[0]
    assert choose("bigvision").changes(TASKS["shapes/knn"]), "whatever a model does by itself"


@pytest.mark.parametrize("family", CELLS)
def test_what_reads_patches_sees_the_windows_of_a_segmentation_protocol(family):
    task = TASKS[f"shapes/{family}"]
    view = TASKS["shapes/segmentation_zeroshot"].under(choose("sclip")).view
    asked = task.under(choose("sclip"))
    assert asked.view == view != task.view
    assert asked.protocol() == {**task.protocol(), "view": view.as_dict()}
    blocks = choose("native", dense_method="tokens:4")
    assert blocks.name == "native+tokens:4"
    others = ("zeroshot", "knn", "retrieval", "segmentation_zeroshot")
    assert not any(changed(blocks, *(f"shapes/{other}" for other in others)))
    asked = task.under(blocks)
    assert asked.dense_needs() == dict.fromkeys(task.sources, ("tokens:4",))
    assert changed(blocks, task.name)[0]
    both = task.under(choose("sclip", dense_method="tokens:2"))
    assert (both.method, both.view) == ("tokens:2", view)


@pytest.mark.parametrize(
    ("args", "about"),
    [
        (["openai8"], "--protocol"),
        (["native", None, "sclap"], "--dense-method"),
        (["native", None, "tokens"], "--dense-method"),
        (["native", None, "tokens:1"], "--dense-method"),
        (["native", None, "tokens:04"], "--dense-method"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen(args, about):
    with refused(about):
        choose(*args)


def test_records_under_protocols_stand_side_by_side(tmp_path, random_model):
    """One model, three protocols: zero-shot thrice, kNN under its native name and cropped once."""
    tasks, protocols, news = select(["shapes/zeroshot", "shapes/knn"]), {}, []
    for name in ("native", "openai7", "bigvision"):
        settings = {"limit": 30, "protocol": choose(name)}
        settings["on_result"] = lambda record, is_new: news.append(is_new)
        for record in measured(random_model, tasks, tmp_path, **settings):
            protocols[name, record.task.name] = record.question
    assert news == [True, True, False, True, True, True], "openai7 leaves kNN native, and known"
    for (name, task), protocol in protocols.items():
        is_unchanged = (name, task) == ("openai7", "shapes/knn")
        assert protocol.protocol == ("native" if is_unchanged else name)
        assert (protocol.image != MODELS_OWN) == (name == "bigvision")
    assert len({protocol.hash for protocol in protocols.values()}) == 5
    # names count where they are asked for
    assert protocols["native", "shapes/zeroshot"].class_names["count"] == 64
    assert protocols["native", "shapes/knn"].class_names == {}
