"""Tasks of the user's own data, of the named sets, and which of them a command can measure."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from silc_bench.datasets.expected import EXPECTED, Expected
from silc_bench.errors import UserError
from silc_bench.evaluate import evaluate
from silc_bench.registry import all_tasks, measurable, select, words_of
from silc_bench.results import load_all

REAL = os.environ.get("SILC_BENCH_TEST_DATA")
LEARNED = tuple(name.split("/")[1] for name in all_tasks() if name.startswith("cifar10/") and name != "cifar10/zeroshot")


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (value, 3 * value, 9)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own") / "my pets"
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(picture(40 * label + i))
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
    assert not [name for name in all_tasks() if name.startswith("my_pets")], "a command's own tasks are not registered"


def test_families_that_it_does_not_allow(pets, tmp_path):
    with pytest.raises(UserError, match="does not allow knn without a folder train/; it allows zeroshot"):
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
    with pytest.raises(UserError, match="would be called cifar100/zeroshot, as is a registered task; rename"):
        select([f"folder:{tmp_path}/cifar100"])
    with pytest.raises(UserError, match=r"would be called my_pets/zeroshot, as is folder:.*own"):
        select([f"folder:{pets}", f"folder:{tmp_path}/my pets"])


def test_own_data_is_measured_and_its_records_can_be_read(pets, tmp_path, random_model):
    tasks = select([f"folder:{pets}", f"captions:{pets}/words.jsonl"])
    written = evaluate(random_model, tasks, model_source="random", data_root=None, results_dir=tmp_path, device="cpu")
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


# ---- what can be measured ----


def test_without_a_data_root_only_what_needs_none():
    kept, left_out = measurable(select(["zeroshot"]), ["zeroshot"], None)
    assert [task.name for task in kept] == ["shapes/zeroshot", "shapes/zeroshot_unseen"]
    assert set(left_out.values()) == {"without --data-root"}
    assert "imagenet1k/zeroshot" in left_out


def test_with_a_data_root_what_it_holds(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "cifar10/test" / name).mkdir(parents=True)
    kept, left_out = measurable(select(["cifar10", "*/retrieval"]), ["cifar10", "*/retrieval"], tmp_path)
    assert [task.name for task in kept] == ["cifar10/zeroshot", "shapes/retrieval"], "what is there and wrong is not left out"
    assert set(left_out) == {*(f"cifar10/{family}" for family in LEARNED), "coco/retrieval", "flickr30k/retrieval"}
    assert set(left_out.values()) == {f"as not found under {tmp_path}"}


def test_what_was_named_in_full_or_alone_is_kept_to_fail(tmp_path):
    words = ["coco/retrieval", "shapes/knn", "linear"]
    kept, _ = measurable(select(words), words, tmp_path)
    assert [task.name for task in kept] == ["coco/retrieval", "shapes/knn", "shapes/linear"]
    assert measurable(select(["coco"]), ["coco"], tmp_path) == (select(["coco"]), {})


# ---- named sets ----


def test_a_named_set_is_counted_before_a_limit_is_taken(tmp_path, monkeypatch):
    for label, name in enumerate(("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")):
        (tmp_path / "cifar10/test" / name).mkdir(parents=True)
        (tmp_path / "cifar10/test" / name / "0.png").write_bytes(picture(label))
    task = all_tasks()["cifar10/zeroshot"]
    with pytest.raises(UserError, match=r"10 pictures .* and the set has 10,000"):
        task.load(tmp_path, 2)
    monkeypatch.setitem(EXPECTED, ("cifar10", "test"), Expected(10, classes=10))
    assert task.load(tmp_path, 2)["test"].labels.tolist() == [0, 5]


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_the_known_part_of_cifar100_is_accepted_by_its_content(monkeypatch):
    data = all_tasks()["cifar100/zeroshot"].load(Path(REAL), None)["test"]
    assert (len(data), data.fingerprint) == (2000, "e81073476a0c5283")
    monkeypatch.setattr("silc_bench.datasets.expected.PARTS", {("cifar100", "test"): {2000: "0" * 16}})
    with pytest.raises(UserError, match=r"2,000 pictures .* and the set has 10,000"):
        all_tasks()["cifar100/zeroshot"].load(Path(REAL), 100)
    assert np.unique(data.labels).size == 100
