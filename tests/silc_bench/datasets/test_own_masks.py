"""The user's own images with masks: what CLASSES.json may say, and what a command makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from refusals import refused

from silc_bench.datasets.check import check
from silc_bench.datasets.dataset import ignore_of
from silc_bench.datasets.own_data import parse, read_classes
from silc_bench.errors import DataError, UserError


def test_a_list_of_names_is_enough(make, town, tmp_path):
    own = parse(town(root=tmp_path / "my town"))
    assert (own.name, list(own.splits())) == ("my+town", ["test"])
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
        ('["background", "a"]', True, None),
        ('["a", "background"]', False, None),
        ('{"names": ["background", "a"], "background": false}', False, None),
        ('{"names": ["other", "a"], "background": true}', True, None),
        ('{"names": ["a", "b"], "synonyms": {"a": [" a ", "c"]}}', False, (("a", "c"), ("b",))),
    ],
)
def test_the_background_and_the_synonyms(tmp_path, content, has_background, words):
    (tmp_path / "c.json").write_text(content)
    classes = read_classes(tmp_path / "c.json")
    assert (classes.rule.has_background, classes.words) == (has_background, words)


@pytest.mark.parametrize(("count", "ignored"), [(254, 255), (255, 65535), (847, 65535)])
def test_many_classes_need_16_bits(make, town, tmp_path, count, ignored):
    word = town([f"class {i}" for i in range(count)])
    stored = make.encoded(np.array([[0, count - 1, ignored]], np.uint16))
    make.tree(tmp_path, [("masks/a.png", stored), ("images/a.jpg", stored)])
    mask = parse(word).load("test").mask(0)
    assert mask.dtype == (np.uint8 if count == 254 else np.uint16)
    assert mask.tolist() == [[0, count - 1, ignore_of(mask)]]


WRONG = """
[]
[1, 2]
"cat"
{}
["a", " "]
["a", "b", "a"]
{"names": {"x": "a"}}
{"names": {"65535": "a"}}
{"names": {"1": "a", "01": "b"}}
{"names": ["a"], "ignored": [1]}
{"names": ["a"], "ignore": 255}
{"names": ["a", "b"], "ignore": [1]}
{"names": ["a"], "background": "a"}
{"names": ["tree"], "synonyms": {"trees": ["a"]}}
{"names": ["tree"], "synonyms": {"tree": "bush"}}
{"names": ["tree"], "synonyms": ["bush"]}
"""


@pytest.mark.parametrize("content", WRONG.split("\n")[1:-1])
def test_what_classes_json_may_not_say(town, content):
    is_unknown = "ignored" in content or "trees" in content
    with refused("classes.json", kind=UserError if is_unknown else DataError):
        parse(town(json.loads(content))).load("test")


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
