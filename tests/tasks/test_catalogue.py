"""Tasks of the user's own data, of the named sets, and which of them a command can measure."""

from __future__ import annotations

import numpy as np
import pytest
from given import measured
from PIL import Image
from refusals import refused

from silc_bench.datasets.public.find import Expected
from silc_bench.datasets.public.load import SETS
from silc_bench.errors import UserError
from silc_bench.evaluation.protocols import choose
from silc_bench.probes import patch_sgd
from silc_bench.results.folders import read
from silc_bench.tasks.catalogue import FAMILIES
from silc_bench.tasks.classification import fewshot
from silc_bench.tasks.selection import all_tasks, measurable, select

LEARNED = [family for family, task in FAMILIES.items() if {"labels", "train"} <= task.needs]
LABELLED = sorted([*LEARNED, "zeroshot"])
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
OBJECTS = ["correspondence", "discovery"]
MASKED = [*OBJECTS, *(f"segmentation_{kind}" for kind in ("knn", "linear", "sgd", "zeroshot"))]


def save_images(folder, count, first=0):
    folder.mkdir(parents=True)
    for i in range(count):
        value = first + i
        Image.new("RGB", (64, 64), (value, 3 * value, 9)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Folders of images by class, with captions; images with masks; two names that clash."""
    root = tmp_path_factory.mktemp("own")
    pets = root / "my pets"
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            save_images(pets / split / name, count, 40 * label)
    lines = [f'{{"file": "test/cat/{i}.png", "caption": "cat {i}"}}' for i in range(3)]
    (pets / "words.jsonl").write_text("\n".join(lines))
    for clash in ("a/cifar100", "a/my pets"):
        for label in ("a", "b"):
            (root / clash / label).mkdir(parents=True)

    # an image's brightness is its class
    town = root / "town"
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (town / kind / split).mkdir(parents=True)
        for i in range(2):
            mask = np.random.default_rng(i).integers(0, 3, (40, 50), dtype=np.uint8)
            Image.fromarray(mask).save(town / f"masks/{split}/{i}.png")
            pixels = np.stack([mask * 90 + i] * 3, axis=-1)
            Image.fromarray(pixels).save(town / f"images/{split}/{i}.png")
    names = '{"names": ["background", "road", "tree"], "synonyms": {"tree": ["tree", "bush"]}}'
    (town / "classes.json").write_text(names)
    return root


def tasks_of(own, *words):
    seg = "seg:{own}/town/images,{own}/town/masks,{own}/town/classes.json"
    part = "seg:{own}/town/images/test,{own}/town/masks/test,{own}/town/classes.json"
    return select(
        [word.replace("SEG", seg).replace("PART", part).format(own=own) for word in words]
    )


@pytest.mark.parametrize(
    ("words", "name", "families"),
    [
        (["folder:{own}/my pets"], "my+pets", LABELLED),
        (["folder:{own}/my pets/test"], "my+pets", ["zeroshot"]),
        (["folder:{own}/my pets#knn", "folder:{own}/my pets#linear"], "my+pets", ["knn", "linear"]),
        (["captions:{own}/my pets/words.jsonl"], "words", ["retrieval"]),
        (["SEG"], "town", MASKED),
        (["PART"], "town", [*OBJECTS, "segmentation_zeroshot"]),
        (["SEG#segmentation_linear"], "town", ["segmentation_linear"]),
    ],
)
def test_the_families_that_the_data_allows(own, words, name, families):
    assert [task.name for task in tasks_of(own, *words)] == [f"{name}/{own}" for own in families]
    assert not [task for task in all_tasks() if task.startswith(f"{name}/")], "not registered"


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["folder:{own}/my pets/test#knn"], "my pets/test"),
        (["captions:{own}/my pets/words.jsonl#zeroshot"], "words.jsonl"),
        (["folder:{own}/my pets#zeroshoot"], "#zeroshoot"),
        (["PART#segmentation_linear"], "town"),
        (["SEG#knn"], "town"),
        (["folder:{own}/a/cifar100"], "a/cifar100"),
        (["folder:{own}/my pets", "folder:{own}/a/my pets"], "a/my pets"),
    ],
)
def test_words_that_are_refused(own, words, about):
    with refused(about):
        tasks_of(own, *words)


def test_own_data_is_measured_and_its_records_can_be_read(own, tmp_path, random_model, monkeypatch):
    monkeypatch.setattr(fewshot, "COSTS", (1e-2, 1.0))
    monkeypatch.setattr(fewshot, "SEEDS", (0, 1))
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 5)
    tasks = tasks_of(own, "folder:{own}/my pets", "captions:{own}/my pets/words.jsonl", "SEG")
    written = measured(random_model, tasks, tmp_path)
    assert [record.task.name for record in written] == [task.name for task in tasks]
    assert sorted(record.n for record in written) == [*[2] * 6, 3, *[6] * (len(LEARNED) + 1)]
    kept = {record.task.name: record for record in read([tmp_path]).records}
    assert kept == {record.task.name: record for record in written}

    policy = {"background": "label 0", "not_scored": "values 255"}
    masks = [record.question.dataset["masks"] or policy for record in written]
    assert masks == [policy] * len(written)
    details = kept["town/segmentation_zeroshot"].details
    assert list(details["iou"]) == ["background", "road", "tree"]
    assert list(details["iou_foreground"]) == ["road", "tree"]


def test_own_prompts_and_words(own):
    (native,) = tasks_of(own, "SEG#segmentation_zeroshot")
    for name in ("native", "tcl", "sclip"):
        words = native.under(choose(name)).protocol()["words"]
        assert words == [["background"], ["road"], ["tree", "bush"]]

    (before,) = tasks_of(own, "folder:{own}/my pets#zeroshot")
    (own / "my pets/zeroshot_classification_templates.txt").write_text("my {c}.\n")
    (after,) = tasks_of(own, "folder:{own}/my pets#zeroshot")
    assert before.protocol()["templates"] == ["a photo of a {c}."]
    assert after.protocol()["templates"] == ["my {c}."]


# ---- what can be measured ----


def names_of(tasks):
    return [task.name for task in tasks]


def test_few_shot_is_left_out_where_a_class_has_too_few_images(tmp_path):
    for split, count in (("train/cat", 10), ("train/dog", 9), ("test/cat", 1), ("test/dog", 1)):
        save_images(tmp_path / "pets" / split, count)
    word = f"folder:{tmp_path}/pets"
    kept, left_out = measurable(select([word]), [word], None)
    assert set(left_out) == {"pets/fewshot", "pets/fewshot_logistic", "pets/knn"}
    assert "19 training images" in left_out.pop("pets/knn"), "and 20 neighbours"
    assert all("'dog' has 9" in reason for reason in left_out.values())
    assert names_of(kept) == ["pets/linear", "pets/zeroshot"]
    alone = select([f"{word}#fewshot"])
    assert measurable(alone, [f"{word}#fewshot"], None) == (alone, {}), "it stays, to be refused"


def test_what_the_data_root_holds_is_kept_and_what_was_named_in_full(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "cifar10/test" / name).mkdir(parents=True)  # there, and wrong
    words = ["cifar10", "retrieval", "coco/retrieval"]
    kept, left_out = measurable(select(words), words, tmp_path)
    generated = ["places/retrieval", "shapes/retrieval"]
    assert names_of(kept) == ["cifar10/zeroshot", "coco/retrieval", *generated]
    assert set(left_out) == {*(f"cifar10/{family}" for family in LEARNED), "flickr30k/retrieval"}
    assert all(str(tmp_path) in reason for reason in left_out.values())

    kept, left_out = measurable(select(["zeroshot"]), ["zeroshot"], None)
    assert {name.split("/")[0] for name in names_of(kept)} == {"places", "places_things", "shapes"}
    assert set(left_out.values()) == {"as they wait for data"}
    assert measurable(select(["coco"]), ["coco"], tmp_path) == (select(["coco"]), {}), "alone"


# ---- named sets ----


def test_a_named_set_is_counted_before_a_limit_is_taken(tmp_path, monkeypatch):
    for label, name in enumerate(CIFAR10.split()):
        save_images(tmp_path / "cifar10/test" / name, 1, label)
    task = all_tasks()["cifar10/zeroshot"]
    with pytest.raises(UserError, match=r"10,000"):
        task.load(tmp_path, 2)
    monkeypatch.setitem(SETS["cifar10"].splits, "test", Expected(10, classes=10))
    assert task.load(tmp_path, 2)["test"].labels.tolist() == [0, 5]
