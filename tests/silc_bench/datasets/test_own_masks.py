"""The user's own masked pictures: what CLASSES.json may say, and what a command makes of it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from silc_bench.datasets.check import check
from silc_bench.datasets.dataset import ignore_of
from silc_bench.datasets.own_data import parse, read_classes
from silc_bench.errors import UserError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def labels(index, classes=3):
    return np.random.default_rng(index).integers(0, classes, (8 + index, 9), dtype=np.uint8)


def write(root, make, classes, folders=("",)):
    files = [("classes.json", json.dumps(classes).encode())]
    for folder in folders:
        for index, stem in enumerate(("a", "deep/b")):
            mask = labels(index)
            files.append((f"images/{folder}{stem}.jpg", encoded(np.stack([mask] * 3, axis=-1))))
            files.append((f"masks/{folder}{stem}.png", encoded(mask)))
    make.tree(root, files)
    return f"seg:{root}/images,{root}/masks,{root}/classes.json"


def test_a_list_of_names_is_enough(make, tmp_path):
    own = parse(write(tmp_path / "my town", make, ["sky", "road", "tree"]))
    assert own.name == "my_town"
    assert list(own.splits()) == ["test"]
    data = own.load("test")
    assert (data.mask_names, data.has_background) == (("sky", "road", "tree"), False)
    for index in range(2):
        np.testing.assert_array_equal(data.mask(index), labels(index))
    assert data.mask_policy == {"background": "none", "not_scored": "values 255"}


def test_values_that_are_no_row_of_numbers(make, tmp_path):
    word = write(tmp_path, make, {"names": {"2": "tree", "0": "sky"}, "ignore": [1]})
    data = parse(word).load("test")
    assert data.mask_names == ("sky", "tree")
    np.testing.assert_array_equal(data.mask(0), np.array([0, 255, 1], np.uint8)[labels(0)])
    assert data.mask_policy["not_scored"] == "values 1"


def test_the_background_is_the_first_name_where_it_is_called_so(make, tmp_path):
    write(tmp_path, make, [])
    for content, has_background in (
        (["background", "a", "b"], True),
        (["a", "background", "b"], False),
        ({"names": ["background", "a", "b"], "background": False}, False),
        ({"names": ["other", "a", "b"], "background": True}, True),
    ):
        (tmp_path / "classes.json").write_text(json.dumps(content))
        assert read_classes(tmp_path / "classes.json").rule.has_background == has_background


def test_synonyms_replace_the_name(tmp_path):
    (tmp_path / "c.json").write_text(
        json.dumps({"names": ["tree", "car"], "synonyms": {"tree": [" tree ", "bush"]}})
    )
    assert read_classes(tmp_path / "c.json").words == (("tree", "bush"), ("car",))
    (tmp_path / "c.json").write_text(json.dumps(["tree", "car"]))
    assert read_classes(tmp_path / "c.json").words is None


@pytest.mark.parametrize(("count", "ignored"), [(254, 255), (255, 65535), (847, 65535)])
def test_many_classes_need_16_bits(make, tmp_path, count, ignored):
    word = write(tmp_path, make, [f"class {i}" for i in range(count)])
    mask = np.array([[0, count - 1, ignored]], np.uint16)
    make.tree(
        tmp_path,
        [("masks/a.png", encoded(mask)), ("images/a.jpg", encoded(np.zeros((1, 3, 3), np.uint8)))],
    )
    found = parse(word).load("test").mask(0)
    assert found.dtype == (np.uint8 if count == 254 else np.uint16)
    assert found.tolist() == [[0, count - 1, ignore_of(found)]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "classes.json has no names; give each class a name"),
        ([1, 2], "has no names; write"),
        ("cat", "holds a str; write a list of names"),
        ({}, "has no names; write"),
        (["a", " "], "has an empty name"),
        (["a", "b", "a"], "names 'a' twice"),
        ({"names": {"x": "a"}}, "names the value 'x'"),
        ({"names": {"65535": "a"}}, "names the value '65535'"),
        ({"names": {"1": "a", "01": "b"}}, "names a value twice"),
        ({"names": ["a"], "ignored": [1]}, "did you mean ignore"),
        ({"names": ["a"], "ignore": 255}, "ignore is 255; write a list"),
        ({"names": ["a", "b"], "ignore": [1]}, "the value 1 is 'b' and is ignored"),
        ({"names": ["a"], "background": "a"}, "background is 'a'; write true"),
        ({"names": ["tree"], "synonyms": {"trees": ["a"]}}, "did you mean tree"),
        ({"names": ["tree"], "synonyms": {"tree": "bush"}}, "the synonyms of 'tree' are 'bush'"),
        ({"names": ["tree"], "synonyms": ["bush"]}, "synonyms is"),
    ],
)
def test_what_classes_json_may_not_say(make, tmp_path, content, sentence):
    word = write(tmp_path, make, content)
    with pytest.raises(UserError, match=sentence):
        parse(word).load("test")


def test_a_list_that_is_too_short_or_too_long(make, tmp_path):
    word = write(tmp_path, make, ["sky", "road"])
    with pytest.raises(
        UserError,
        match=(
            r"a.png has the value 2 in .* the 2 classes have the values 0 to 1, "
            r"and 255 is not scored;"
        ),
    ):
        parse(word).load("test")
    (tmp_path / "classes.json").write_text(json.dumps(["sky", "road", "tree", "sea", "car"]))
    assert "  2 of the classes are in no mask: sea, car" in check(word).found


def test_train_and_test_folders(make, tmp_path):
    own = parse(write(tmp_path, make, ["sky", "road", "tree"], ("train/", "val/")))
    assert {split: folder.name for split, folder in own.splits().items()} == {
        "test": "val",
        "train": "train",
    }
    assert (len(own.load("train")), own.load("test").split) == (2, "test")
    (tmp_path / "masks/train").rename(tmp_path / "masks/trian")
    with pytest.raises(
        UserError, match=r"images/train holds pictures, and .*masks/train is missing"
    ):
        own.splits()


def test_folders_beside_train_and_test_are_not_passed_over(make, tmp_path):
    own = parse(write(tmp_path, make, ["sky", "road", "tree"], ("train/", "test/", "more/")))
    with pytest.raises(
        UserError, match=r"holds test and train and more; put the pictures to be scored into"
    ):
        own.splits()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("seg:", "names 0 of three paths; write seg:IMAGES,MASKS,CLASSES.json"),
        ("seg:{root}/images,{root}/masks", "names 2 of three paths"),
        (
            "seg:{root}/a,{root}/masks,{root}/classes.json",
            "a is no folder; give one that holds the pictures",
        ),
        (
            "seg:{root}/images,{root}/b,{root}/classes.json",
            "b is no folder; give one that holds the masks",
        ),
        (
            "seg:{root}/images,{root}/masks,{root}/c.json",
            "c.json is no file; give one that names the classes",
        ),
    ],
)
def test_words_that_name_nothing(make, tmp_path, word, sentence):
    write(tmp_path, make, ["sky", "road", "tree"])
    with pytest.raises(UserError, match=sentence):
        parse(word.format(root=tmp_path)).splits()


def test_images_and_masks_that_do_not_match(make, tmp_path):
    word = write(tmp_path, make, ["sky", "road", "tree"])
    make.tree(tmp_path, [("images/a.png", encoded(np.zeros((8, 9, 3), np.uint8)))])
    with pytest.raises(
        UserError, match=r"holds a\.(jpg|png) and a\.(jpg|png); two files of one name: keep one"
    ):
        parse(word).load("test")
    (tmp_path / "images/a.png").unlink()
    (tmp_path / "masks/deep/b.png").unlink()
    with pytest.raises(
        UserError,
        match=(
            r"1 of 2 pictures .* have no mask, such as b.jpg; "
            r"its mask would be .*masks/deep/b.png"
        ),
    ):
        parse(word).load("test")


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_real_masks_of_coco():
    root = Path(str(REAL)) / "coco_mini"
    report = check(f"seg:{root}/images,{root}/masks,{root}/classes.json")
    assert not report.problems
    assert (
        "  159 masks of 81 classes; background: label 0; not scored: values 255, "
        "0.7 % of the pixels"
    ) in report.found
