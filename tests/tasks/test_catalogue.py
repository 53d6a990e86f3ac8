"""Tasks of the user's own data, of the named sets, and which of them a command can measure."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from silc_bench.datasets.public.counts import EXPECTED, Expected
from silc_bench.errors import UserError
from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.protocols import choose
from silc_bench.probes import patch_sgd
from silc_bench.results.record import load_all
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.selection import all_tasks, measurable, select, words_of

REAL = os.environ.get("SILC_BENCH_TEST_DATA")
LEARNED = tuple(
    name.split("/")[1]
    for name in all_tasks()
    if name.startswith("cifar10/") and name != "cifar10/zeroshot"
)


def image(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (value, 3 * value, 9)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own") / "my pets"
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(image(40 * label + i))
    lines = [f'{{"file": "test/cat/{i}.png", "caption": "cat {i}"}}' for i in range(3)]
    (root / "words.jsonl").write_text("\n".join(lines))
    return root


def names(*words):
    return [task.name for task in select(words)]


def test_the_families_that_the_data_allows(pets):
    assert set(LEARNED) >= {"fewshot", "knn", "linear"}
    assert names(f"folder:{pets}") == [f"my_pets/{family}" for family in LEARNED + ("zeroshot",)]
    assert names(f"folder:{pets}/test") == ["my_pets/zeroshot"]
    assert names(f"captions:{pets}/words.jsonl") == ["words/retrieval"]
    assert names(f"folder:{pets}#knn", "shapes/knn") == ["my_pets/knn", "shapes/knn"]
    assert names(f"folder:{pets}#knn", f"folder:{pets}#linear") == ["my_pets/knn", "my_pets/linear"]
    assert not [name for name in all_tasks() if name.startswith("my_pets")], (
        "a command's own tasks are not registered"
    )


def test_families_that_it_does_not_allow(pets, tmp_path):
    with pytest.raises(
        UserError, match="does not allow knn without a folder train/; it allows zeroshot"
    ):
        select([f"folder:{pets}/test#knn"])
    with pytest.raises(UserError, match="does not allow zeroshot; it allows retrieval"):
        select([f"captions:{pets}/words.jsonl#zeroshot"])
    with pytest.raises(UserError, match="did you mean zeroshot"):
        select([f"folder:{pets}#zeroshoot"])
    with pytest.raises(UserError, match="no such folder"):
        select([f"folder:{tmp_path}/none"])


def test_no_two_sets_share_a_name(pets, tmp_path):
    for name in ("cifar100", "my pets"):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
    with pytest.raises(
        UserError, match="would be called cifar100/zeroshot, as is a registered task; rename"
    ):
        select([f"folder:{tmp_path}/cifar100"])
    with pytest.raises(UserError, match=r"would be called my_pets/zeroshot, as is folder:.*own"):
        select([f"folder:{pets}", f"folder:{tmp_path}/my pets"])


def test_own_data_is_measured_and_its_records_can_be_read(
    pets, tmp_path, random_model, monkeypatch
):
    monkeypatch.setattr(fewshot, "COSTS", (1e-2, 1.0))
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    tasks = select([f"folder:{pets}", f"captions:{pets}/words.jsonl"])
    written = evaluate(
        random_model,
        tasks,
        model_source="random",
        data_root=None,
        results_dir=tmp_path,
        device="cpu",
    )
    assert [record.task.name for record in written] == [task.name for task in tasks]
    assert sorted(record.n for record in written) == [3, *[6] * (len(LEARNED) + 1)]
    assert {record.task.name for record in load_all(tmp_path)} == {task.name for task in tasks}


def test_own_prompts(pets):
    (task,) = select([f"folder:{pets}#zeroshot"])
    assert task.protocol()["templates"] == ["a photo of a {c}."]
    (pets / "zeroshot_classification_templates.txt").write_text("my {c}.\n")
    (task,) = select([f"folder:{pets}#zeroshot"])
    assert task.protocol()["templates"] == ["my {c}."]


def test_words_are_separated_by_commas_outside_braces():
    assert words_of("a/b, knn,wds:x/{a,b}/{0..3}.tar,") == ["a/b", "knn", "wds:x/{a,b}/{0..3}.tar"]
    assert words_of(" , ") == []
    assert words_of("seg:a,b/c, d.json#segmentation_linear,knn") == [
        "seg:a,b/c,d.json#segmentation_linear",
        "knn",
    ]
    assert words_of("knn,seg:a") == ["knn", "seg:a"]


# ---- what can be measured ----


def test_few_shot_is_left_out_where_a_class_has_too_few_images(pets, tmp_path):
    shutil.copytree(pets, tmp_path / "pets")
    (tmp_path / "pets/train/dog/0.png").unlink()
    word = f"folder:{tmp_path}/pets"
    kept, left_out = measurable(select([word]), [word], None)
    reason = "as 'dog' has 9 training pictures, and acc1_10shot needs 10 of each class"
    assert left_out == {"pets/fewshot": reason, "pets/fewshot_logistic": reason}
    assert [task.name for task in kept] == ["pets/knn", "pets/linear", "pets/zeroshot"]
    alone = select([f"{word}#fewshot"])
    assert measurable(alone, [f"{word}#fewshot"], None) == (alone, {}), (
        "asked for alone, it stays, to be refused"
    )


def test_without_a_data_root_only_what_needs_none():
    kept, left_out = measurable(select(["zeroshot"]), ["zeroshot"], None)
    assert [task.name for task in kept] == ["shapes/zeroshot", "shapes/zeroshot_unseen"]
    assert set(left_out.values()) == {"without --data-root"}
    assert "imagenet1k/zeroshot" in left_out


def test_with_a_data_root_what_it_holds(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "cifar10/test" / name).mkdir(parents=True)
    kept, left_out = measurable(
        select(["cifar10", "*/retrieval"]), ["cifar10", "*/retrieval"], tmp_path
    )
    assert [task.name for task in kept] == ["cifar10/zeroshot", "shapes/retrieval"], (
        "what is there and wrong is not left out"
    )
    assert set(left_out) == {
        *(f"cifar10/{family}" for family in LEARNED),
        "coco/retrieval",
        "flickr30k/retrieval",
    }
    assert set(left_out.values()) == {f"as not found under {tmp_path}"}


def test_what_was_named_in_full_or_alone_is_kept_to_fail(tmp_path):
    words = ["coco/retrieval", "shapes/knn", "linear"]
    kept, _ = measurable(select(words), words, tmp_path)
    assert [task.name for task in kept] == ["coco/retrieval", "shapes/knn", "shapes/linear"]
    assert measurable(select(["coco"]), ["coco"], tmp_path) == (select(["coco"]), {})


# ---- named sets ----


def test_a_named_set_is_counted_before_a_limit_is_taken(tmp_path, monkeypatch):
    for label, name in enumerate(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    ):
        (tmp_path / "cifar10/test" / name).mkdir(parents=True)
        (tmp_path / "cifar10/test" / name / "0.png").write_bytes(image(label))
    task = all_tasks()["cifar10/zeroshot"]
    with pytest.raises(UserError, match=r"10 pictures .* and the set has 10,000"):
        task.load(tmp_path, 2)
    monkeypatch.setitem(EXPECTED, ("cifar10", "test"), Expected(10, classes=10))
    assert task.load(tmp_path, 2)["test"].labels.tolist() == [0, 5]


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_the_known_part_of_cifar100_is_accepted_by_its_content(monkeypatch):
    data = all_tasks()["cifar100/zeroshot"].load(Path(REAL), None)["test"]
    assert (len(data), data.fingerprint) == (2000, "e81073476a0c5283")
    monkeypatch.setattr(
        "silc_bench.datasets.public.counts.PARTS", {("cifar100", "test"): {2000: "0" * 16}}
    )
    with pytest.raises(UserError, match=r"2,000 pictures .* and the set has 10,000"):
        all_tasks()["cifar100/zeroshot"].load(Path(REAL), 100)
    assert np.unique(data.labels).size == 100


# ---- images with masks ----


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Path:
    """Two pictures to learn from and two to be scored: the picture's brightness is its class."""
    root = tmp_path_factory.mktemp("masks") / "town"
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(2):
            mask = np.random.default_rng(i).integers(0, 3, (40, 50), dtype=np.uint8)
            Image.fromarray(mask).save(root / f"masks/{split}/{i}.png")
            Image.fromarray(np.stack([mask * 90 + i] * 3, axis=-1)).save(
                root / f"images/{split}/{i}.png"
            )
    (root / "classes.json").write_text(
        '{"names": ["background", "road", "tree"], "synonyms": {"tree": ["tree", "bush"]}}'
    )
    return root


def seg(town, images="images", masks="masks"):
    return f"seg:{town}/{images},{town}/{masks},{town}/classes.json"


def test_the_families_of_images_with_masks(town):
    objects, learned = (
        ["town/correspondence", "town/discovery"],
        [f"town/segmentation_{kind}" for kind in ("knn", "linear", "sgd")],
    )
    assert names(seg(town)) == [*objects, *learned, "town/segmentation_zeroshot"]
    assert names(f"{seg(town)}#segmentation_linear") == ["town/segmentation_linear"]
    only = seg(town, "images/test", "masks/test")
    assert names(only) == [*objects, "town/segmentation_zeroshot"]
    with pytest.raises(
        UserError,
        match=r"does not allow segmentation_linear without a folder train/; it allows .*_zeroshot",
    ):
        select([f"{only}#segmentation_linear"])
    with pytest.raises(UserError, match=r"unknown family in .* 'knn'"):
        select([f"{only}#knn"])


def test_synonyms_are_asked_for_under_every_protocol(town):
    (native,) = select([f"{seg(town)}#segmentation_zeroshot"])
    for name in ("native", "tcl", "sclip"):
        task = choose(name).task(native)
        assert task.words == (("background",), ("road",), ("tree", "bush"))
        assert task.protocol()["words"] == [["background"], ["road"], ["tree", "bush"]]


def test_images_with_masks_are_measured_and_their_records_say_what_is_scored(
    town, tmp_path, random_model, monkeypatch
):
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 5)
    tasks = select([seg(town)])
    written = evaluate(
        random_model,
        tasks,
        model_source="random",
        data_root=None,
        results_dir=tmp_path,
        device="cpu",
    )
    assert [record.task.name for record in written] == [task.name for task in tasks]
    assert {record.task.name: record for record in load_all(tmp_path)} == {
        record.task.name: record for record in written
    }
    for record in written:
        assert record.protocol["task"]["masks"] == {
            "background": "label 0",
            "not_scored": "values 255",
        }
    assert list(written[-1].details["iou"]) == ["background", "road", "tree"]
    assert list(written[-1].details["iou_foreground"]) == ["road", "tree"]


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_real_streets_are_measured(tmp_path, random_model):
    (task,) = select(["camvid_mini/segmentation_zeroshot"])
    (record,) = evaluate(
        random_model,
        [task],
        model_source="random",
        data_root=Path(str(REAL)),
        results_dir=tmp_path,
        limit=3,
        device="cpu",
    )
    assert (record.dataset.name, record.n) == ("camvid_mini", 3)
    left, out = measurable(
        select(["camvid_mini", "camvid", "voc20"]),
        ["camvid_mini", "camvid", "voc20"],
        Path(str(REAL)),
    )
    assert {task.name.split("/")[0] for task in left} == {"camvid_mini"}
    assert {name.split("/")[0] for name in out} == {"camvid", "voc20"}
