"""The user's own images with masks: what CLASSES.json may say, and what a command makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from silc_bench.datasets.check import check
from silc_bench.datasets.dataset import ignore_of
from silc_bench.datasets.own_data import parse, read_classes
from silc_bench.errors import DataError, UserError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")


def test_a_list_of_names_is_enough(make, town, tmp_path):
    own = parse(town(root=tmp_path / "my town"))
    assert (own.name, list(own.splits())) == ("my_town", ["test"])
    data = own.load("test")
    assert (data.mask_names, data.has_background) == (("sky", "road", "tree"), False)
    for index in range(2):
        np.testing.assert_array_equal(data.mask(index), make.mask(index))
    assert data.mask_policy == {"background": "none", "not_scored": "values 255"}


def test_values_that_are_no_row_of_numbers(make, town):
    data = parse(town({"names": {"2": "tree", "0": "sky"}, "ignore": [1]})).load("test")
    assert data.mask_names == ("sky", "tree")
    np.testing.assert_array_equal(data.mask(0), np.array([0, 255, 1], np.uint8)[make.mask(0)])
    assert data.mask_policy["not_scored"] == "values 1"


@pytest.mark.parametrize(
    ("content", "has_background", "words"),
    [
        (["background", "a"], True, None),
        (["a", "background"], False, None),
        ({"names": ["background", "a"], "background": False}, False, None),
        ({"names": ["other", "a"], "background": True}, True, None),
        (
            {"names": ["tree", "car"], "synonyms": {"tree": [" tree ", "bush"]}},
            False,
            (("tree", "bush"), ("car",)),
        ),
    ],
)
def test_the_background_and_the_synonyms(tmp_path, content, has_background, words):
    (tmp_path / "c.json").write_text(json.dumps(content))
    classes = read_classes(tmp_path / "c.json")
    assert (classes.rule.has_background, classes.words) == (has_background, words)


@pytest.mark.parametrize(("count", "ignored"), [(254, 255), (255, 65535), (847, 65535)])
def test_many_classes_need_16_bits(make, town, tmp_path, count, ignored):
    word = town([f"class {i}" for i in range(count)])
    stored = make.encoded(np.array([[0, count - 1, ignored]], np.uint16))
    image = make.encoded(np.zeros((1, 3, 3), np.uint8))
    make.tree(tmp_path, [("masks/a.png", stored), ("images/a.jpg", image)])
    mask = parse(word).load("test").mask(0)
    assert mask.dtype == (np.uint8 if count == 254 else np.uint16)
    assert mask.tolist() == [[0, count - 1, ignore_of(mask)]]


CLASSES = {
    "no names": [],
    "numbers": [1, 2],
    "a string": "cat",
    "no field": {},
    "an empty name": ["a", " "],
    "a name twice": ["a", "b", "a"],
    "a value that is none": {"names": {"x": "a"}},
    "a value too large": {"names": {"65535": "a"}},
    "a value twice": {"names": {"1": "a", "01": "b"}},
    "an unknown field": {"names": ["a"], "ignored": [1]},
    "ignore is no list": {"names": ["a"], "ignore": 255},
    "a class is ignored": {"names": ["a", "b"], "ignore": [1]},
    "background is a name": {"names": ["a"], "background": "a"},
    "synonyms of no class": {"names": ["tree"], "synonyms": {"trees": ["a"]}},
    "a synonym is no list": {"names": ["tree"], "synonyms": {"tree": "bush"}},
    "synonyms are a list": {"names": ["tree"], "synonyms": ["bush"]},
}


@pytest.mark.parametrize("case", CLASSES)
def test_what_classes_json_may_not_say(town, case):
    is_unknown = case in ("an unknown field", "synonyms of no class")
    with refused("classes.json", kind=UserError if is_unknown else DataError):
        parse(town(CLASSES[case])).load("test")


def test_a_list_that_is_too_short_or_too_long(town, tmp_path):
    word = town(["sky", "road"])
    with refused(tmp_path / "masks/a.png", DataError) as caught:
        parse(word).load("test")
    assert "value 2 " in caught.value.problem
    town(["sky", "road", "tree", "sea", "car"])
    assert "  2 of the classes are in no mask: sea, car" in check(word).found


def test_train_and_test_folders(town, tmp_path):
    own = parse(town(folders=("train/", "val/")))
    folders = {split: folder.name for split, folder in own.splits().items()}
    assert folders == {"test": "val", "train": "train"}
    assert (len(own.load("train")), own.load("test").split) == (2, "test")
    (tmp_path / "masks/train").rename(tmp_path / "masks/trian")
    with refused(tmp_path / "masks/train", DataError):
        own.splits()
    town(folders=["more/"])
    with refused(tmp_path / "images", DataError):
        own.splits()


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_real_masks_of_coco():
    root = Path(str(REAL)) / "coco_mini"
    report = check(f"seg:{root}/images,{root}/masks,{root}/classes.json")
    assert not report.problems
    assert (
        "  159 masks of 81 classes; background: label 0; not scored: values 255, "
        "0.7 % of the pixels"
    ) in report.found
