"""Named protocols: what a name means, and that each choice reaches the hash.

Nothing is measured twice under two names.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from silc_bench.errors import UserError
from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.prompts import Prompts, own_templates
from silc_bench.evaluation.protocols import choose
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.results.protocol import Protocol
from silc_bench.tasks.selection import select

NAMES = ("native", "openai80", "openai7", "single", "bigvision")
PIPELINE = ImagePipeline(64, (0.5,) * 3, (0.5,) * 3)
MODEL = SimpleNamespace(
    name="m",
    image_protocol=PIPELINE.as_dict(),
    text_protocol={"length": 8},
    pipeline=PIPELINE,
    feature_points={"pooled": 4},
)


def task_of(name):
    return select([name])[0]


def protocol_of(named, task, **options):
    pipeline = named.pipeline(MODEL, task)
    image = pipeline.as_dict() if pipeline else None
    return Protocol.of(
        MODEL,
        named.task(task),
        "fp32",
        name=named.name,
        version=named.version,
        image=image,
        **options,
    )


def test_what_the_names_mean():
    task = task_of("shapes/zeroshot")
    asked = {name: choose(name).task(task).prompts for name in NAMES}
    assert asked["native"] is task.prompts
    assert {
        name: len(prompts.templates) for name, prompts in asked.items() if name != "native"
    } == {
        "openai80": 80,
        "openai7": 7,
        "single": 1,
        "bigvision": 80,
    }
    assert set(asked["openai7"].templates) < set(asked["openai80"].templates)
    assert asked["single"].texts(["red circle"]) == [["a photo of a red circle."]]
    assert asked["bigvision"].texts(["Red_circle"])[0][0] == "a bad photo of a red circle"
    assert asked["openai80"].texts(["Red_circle"])[0][0] == "a bad photo of a Red_circle."


def test_bigvision_crops_classification_and_its_probes_only():
    named = choose("bigvision")
    expected = replace(PIPELINE, resize="shortest", resize_size=73, crop="center")
    for name in ("shapes/zeroshot", "shapes/fewshot", "shapes/linear", "shapes/knn"):
        assert named.pipeline(MODEL, task_of(name)) == expected
    for name in ("shapes/retrieval", "shapes/segmentation_linear", "shapes/segmentation_zeroshot"):
        assert named.pipeline(MODEL, task_of(name)) is None
        assert not named.changes(MODEL, task_of(name))
    for size, resized in ((224, 256), (256, 292), (384, 438)):
        model = SimpleNamespace(name="m", pipeline=replace(PIPELINE, size=size))
        assert named.pipeline(model, task_of("shapes/knn")).resize_size == resized


@pytest.mark.parametrize(
    "family",
    ["segmentation_linear", "segmentation_sgd", "segmentation_knn", "discovery", "correspondence"],
)
def test_what_reads_patches_sees_the_windows_of_a_segmentation_protocol(family):
    task = task_of(f"shapes/{family}")
    zeroshot = choose("sclip").task(task_of("shapes/segmentation_zeroshot"))
    asked = choose("sclip").task(task)
    assert asked.view == zeroshot.view != task.view
    assert task.view is None, "the registered task is left as it is"
    assert asked.protocol() == {**task.protocol(), "view": zeroshot.view.as_dict()}
    assert choose("sclip").changes(MODEL, task)
    assert choose("openai80").task(task) is task


def test_a_model_without_a_fixed_size_is_refused():
    model = SimpleNamespace(name="naflex", pipeline=object())
    with pytest.raises(
        UserError, match="protocol bigvision crops to a fixed size, which naflex has not"
    ):
        choose("bigvision").pipeline(model, task_of("shapes/knn"))


def test_every_choice_changes_the_hash():
    task = task_of("shapes/zeroshot")
    hashes = [protocol_of(choose(name), task).hash for name in NAMES]
    hashes.append(protocol_of(choose("openai80", average="logits"), task).hash)
    hashes.append(protocol_of(choose("native", Prompts("mine", ("my {c}",))), task).hash)
    hashes.append(protocol_of(choose("native", Prompts("mine", ("my {c}",)), "logits"), task).hash)
    hashes.append(
        protocol_of(
            choose("native", Prompts("mine", ("my {c}",), text_cleaning="bigvision")), task
        ).hash
    )
    hashes.append(protocol_of(replace(choose("native"), version=2), task).hash)
    hashes.append(protocol_of(choose("native"), task, feature_point="mean_patch").hash)
    assert len(set(hashes)) == len(hashes)


OTHERS = {
    "image path": {
        "model": {"image_protocol": {**MODEL.image_protocol, "interpolation": "bilinear"}}
    },
    "text cleaning of the model": {"model": {"text_protocol": {"length": 8, "cleaning": "lower"}}},
    "token length": {"model": {"text_protocol": {"length": 9}}},
    "prompts": {"task": {"prompts": Prompts("mine", ("my {c}",))}},
    "text cleaning of the prompts": {
        "task": {"prompts": Prompts("shapes", own_templates("shapes"), text_cleaning="bigvision")}
    },
    "average": {"task": {"prompts": Prompts("shapes", own_templates("shapes"), average="logits")}},
    "metric": {"task": {"main_metric": "acc5"}},
    "task version": {"task": {"version": 99}},
    "class names": {"how": {"class_names": ("red disc", "blue square")}},
    "order of the class names": {"how": {"class_names": ("blue square", "red circle")}},
    "feature point": {"how": {"feature_point": "mean_patch"}},
    "precision": {"precision": "bf16"},
    "protocol": {"how": {"name": "single"}},
    "version of the protocol": {"how": {"version": 2}},
}


def hash_with(model=None, task=None, precision="fp32", how=None):
    changed = SimpleNamespace(**{**vars(MODEL), **(model or {})})
    names = {"class_names": ("red circle", "blue square"), **(how or {})}
    return Protocol.of(
        changed, replace(task_of("shapes/zeroshot"), **(task or {})), precision, **names
    ).hash


def test_what_is_changed_is_another_measurement():
    hashes = {
        "as it is": hash_with(),
        **{what: hash_with(**change) for what, change in OTHERS.items()},
    }
    assert len(set(hashes.values())) == len(hashes), hashes
    assert hash_with(how={"class_names": ["red circle", "blue square"]}) == hashes["as it is"]


def test_class_names_count_where_they_are_asked_for(tmp_path, random_model):
    names = select(["shapes/zeroshot", "shapes/knn"])
    knn, zeroshot = evaluate(
        random_model,
        sorted(names, key=lambda task: task.name),
        model_source="x",
        data_root=None,
        results_dir=tmp_path,
        limit=20,
        device="cpu",
    )
    assert zeroshot.protocol["class_names"]["count"] == 64
    assert knn.protocol["class_names"] == {}


def test_imagenets_own_prompts_are_native_by_whatever_name_they_are_asked_for():
    for name in ("imagenet1k/zeroshot", "imagenet_a/zeroshot"):
        assert not choose("openai80").changes(MODEL, task_of(name))
        assert choose("openai80", average="logits").changes(MODEL, task_of(name))
        for other in ("openai7", "single", "bigvision"):
            assert choose(other).changes(MODEL, task_of(name))
    assert choose("openai80").changes(MODEL, task_of("cifar10/zeroshot"))
    own = task_of("shapes/zeroshot").prompts
    assert not choose("native", own).changes(MODEL, task_of("shapes/zeroshot")), (
        "a file that says the same"
    )


def test_a_model_that_crops_so_by_itself_is_native():
    crops = replace(PIPELINE, resize="shortest", resize_size=73, crop="center")
    model = SimpleNamespace(**{**vars(MODEL), "pipeline": crops, "image_protocol": crops.as_dict()})
    assert not choose("bigvision").changes(model, task_of("shapes/knn"))
    assert choose("bigvision").changes(model, task_of("shapes/zeroshot")), "its words are others"


def test_a_protocol_that_changes_nothing_is_native():
    for name in ("openai80", "openai7", "single"):
        assert not choose(name).changes(MODEL, task_of("shapes/knn"))
        assert choose(name).task(task_of("shapes/knn")) is task_of("shapes/knn")
        assert choose(name).changes(MODEL, task_of("shapes/zeroshot"))
    assert choose("bigvision").changes(MODEL, task_of("shapes/knn"))
    assert not any(choose("native").changes(MODEL, task) for task in select(["shapes/*"]))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("openai8",), "unknown protocol 'openai8'; did you mean openai80"),
        (("native", None, "logits"), "protocol 'native' has no prompts of its own"),
        (("single", None, "mean"), "unknown average over prompts 'mean'"),
    ],
)
def test_what_cannot_be_chosen(args, words):
    with pytest.raises(UserError, match=words):
        choose(*args)


def test_records_under_protocols_stand_side_by_side(tmp_path, random_model):
    """One model, three protocols: zero-shot thrice, kNN under its native name and cropped once."""
    random_model.name, random_model.revision, random_model.num_params = "random", "0" * 16, 1
    random_model.pipeline = PIPELINE
    measured = {}
    for name in ("native", "openai7", "bigvision"):
        evaluate(
            random_model,
            select(["shapes/zeroshot", "shapes/knn"]),
            model_source="random",
            data_root=None,
            results_dir=tmp_path,
            limit=30,
            device="cpu",
            protocol=choose(name),
            on_result=lambda record, is_new, name=name: measured.__setitem__(
                (name, record.task.name), (record, is_new)
            ),
        )
    names = {key: record.protocol["name"] for key, (record, _) in measured.items()}
    assert names["openai7", "shapes/knn"] == "native"
    assert not measured["openai7", "shapes/knn"][1], "known already"
    assert names["bigvision", "shapes/knn"] == names["bigvision", "shapes/zeroshot"] == "bigvision"
    assert measured["bigvision", "shapes/zeroshot"][0].protocol["image"]["crop"] == "center"
    assert len({record.protocol["hash"] for record, _ in measured.values()}) == 5


def test_blocks_side_by_side_are_for_what_reads_patches():
    """`tokens:4` reaches the hash and the name of probes, and leaves everything else as it is."""
    chosen = choose("native", dense_method="tokens:4")
    assert chosen.name == "native+tokens:4"
    for name in ("segmentation_linear", "segmentation_knn", "discovery", "correspondence"):
        task = task_of(f"shapes/{name}")
        asked = chosen.task(task)
        assert asked.dense_needs() == dict.fromkeys(task.sources, ("tokens:4",))
        assert protocol_of(chosen, task).hash != protocol_of(choose("native"), task).hash
        assert chosen.changes(MODEL, task)
    both = choose("sclip", dense_method="tokens:2").task(task_of("shapes/segmentation_linear"))
    assert (both.method, both.view) == (
        "tokens:2",
        choose("sclip").task(task_of("shapes/segmentation_linear")).view,
    )
    for name in ("zeroshot", "knn", "retrieval", "segmentation_zeroshot"):
        assert (
            chosen.task(task_of(f"shapes/{name}")).protocol()
            == task_of(f"shapes/{name}").protocol()
        )
    for word in ("tokens", "tokens:1", "tokens:x", "tokens:04"):
        with pytest.raises(UserError, match=f"unknown dense method '{word}'"):
            choose("native", dense_method=word)
