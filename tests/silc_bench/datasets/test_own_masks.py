"""The user's own images with masks: what CLASSES.json may say, and what a command makes of it."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from silc_bench.datasets.check import check
from silc_bench.datasets.dataset import ignore_of
from silc_bench.datasets.masks import read_values
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
        ('["Background", "a"]', True, None),
        ('["_background_", "a"]', True, None),
        ('["__background__", "a"]', True, None),
        ('["BACKGROUND", "a"]', True, None),
        ('["backgrounds", "a"]', False, None),
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


def test_a_background_behind_other_names_is_said_to_be_a_class(town):
    (note,) = parse(town(["sky", "road", "Background"])).read("test").notes
    assert note.startswith("'Background' is label 2")


# names and stored values -> whether 255, which nobody mentioned, may be a class; ignore, if any
BLACK, GREY, WHITE = 0, 1, 255
SUSPECTED = [
    (["ground", "tree"], (BLACK, WHITE), True),
    (["ground", "path", "tree"], (BLACK, GREY, WHITE), True),
    ({"0": "ground", "2": "path", "7": "tree"}, (BLACK, 7, WHITE), True),
    (["ground", "tree"], (BLACK, GREY, WHITE), False),
    (["ground", "path", "tree"], (BLACK, GREY), False),
    (["ground", "path", "tree", "car"], (BLACK, GREY, WHITE), False),
    ({"0": "ground", "255": "tree"}, (BLACK, WHITE), False),
]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize(("names", "values", "is_suspected"), SUSPECTED)
def test_the_usual_value_of_what_is_not_scored_may_be_a_class(
    make, town, tmp_path, kind, names, values, is_suspected
):
    word = town({"names": names}, ())
    labels = np.array(values, np.uint8)[np.arange(12).reshape(3, 4) % len(values)]
    end = {"PPM": "pgm"}.get(kind, kind.lower())
    content = [
        ("images/a.jpg", make.encoded(labels)),
        (f"masks/a.{end}", make.encoded(labels, kind)),
    ]
    make.tree(tmp_path, content)
    if not is_suspected:
        parse(word).load("test")
        assert not check(word).problems
        return
    with refused("classes.json", DataError) as caught:
        parse(word).load("test", limit=1)
    assert '"255": "' in caught.value.fix
    assert len(check(word).problems) == 1
    town({"names": names, "ignore": [255]}, ())
    assert parse(word).load("test").findings.has_ignored


def test_a_class_of_another_split_is_not_missing(make, town, tmp_path):
    word = town(["ground", "tree"], ())
    for split, values in (("train", [[0, 1]]), ("test", [[0, 255]])):
        mask = make.encoded(np.array(values, np.uint8))
        make.tree(tmp_path, [(f"{kind}/{split}/a.png", mask) for kind in ("images", "masks")])
    parse(word).load("test")
    make.tree(tmp_path, [("masks/train/a.png", make.encoded(np.array([[0, 255]], np.uint8)))])
    with refused("classes.json", DataError):
        parse(word).load("test")


def test_masks_without_a_scored_pixel(make, town, tmp_path):
    word = town(["sky", "road", "tree"])
    nothing = make.encoded(np.full(make.mask(0).shape, 255, np.uint8))
    make.tree(tmp_path, [("masks/a.png", nothing)])
    (note,) = parse(word).load("test").notes
    assert ": 1 mask has " in note
    assert note.endswith("images/a.jpg")
    make.tree(tmp_path, [("masks/deep/b.png", make.encoded(np.full((9, 9), 255, np.uint8)))])
    with refused(tmp_path / "images", DataError):
        parse(word).load("test")


MUTATIONS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6)


def mutated(whole, changes, keep):
    """Bytes of a file with some of them changed, and cut off."""
    data = bytearray(whole)
    for at, value in changes:
        data[at % len(data)] = value
    return bytes(data[: int(len(data) * keep) + 1])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150)
@given(st.sampled_from(["PNG", "TIFF", "BMP", "PPM", "GIF"]), MUTATIONS, st.floats(0.2, 1))
def test_broken_masks_raise_nothing_else(make, kind, changes, keep):
    try:
        values = read_values(mutated(make.encoded(make.mask(2), kind), changes, keep), "a")
    except DataError:
        return
    assert values.dtype in (np.uint8, np.uint16)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(MUTATIONS, st.floats(0.2, 1))
def test_broken_classes_json_raises_nothing_else(tmp_path, changes, keep):
    whole = json.dumps(
        {"names": {"0": "a", "7": "b"}, "ignore": [3], "synonyms": {"a": ["c"]}, "background": True}
    )
    (tmp_path / "c.json").write_bytes(mutated(whole.encode(), changes, keep))
    with contextlib.suppress(UserError):
        read_classes(tmp_path / "c.json")


# a format and its options -> whether it keeps the values of a mask
KEPT = [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]
LOST = [
    *(("GIF", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("AVIF", {})),
    ("TIFF", {"compression": "jpeg"}),
]


@pytest.mark.parametrize(("kind", "options"), KEPT)
def test_formats_that_keep_the_values_of_a_mask(make, kind, options):
    labels = make.mask(3, 255)
    np.testing.assert_array_equal(read_values(make.encoded(labels, kind, **options), "a"), labels)


@pytest.mark.parametrize(("kind", "options"), LOST)
def test_formats_that_lose_the_values_of_a_mask(make, kind, options):
    with refused("a.mask", DataError):
        read_values(make.encoded(make.mask(0), kind, **options), "a.mask")


@given(st.integers(1, 65535), st.data())
def test_a_pgm_has_the_values_that_stand_in_it_whatever_its_greatest(greatest, data):
    stored = data.draw(st.lists(st.integers(0, greatest), min_size=1, max_size=9))
    dtype = "u1" if greatest < 256 else ">u2"
    header = b"P5 %d 1 %d\n" % (len(stored), greatest)
    content = header + np.array(stored, dtype).tobytes()
    assert read_values(content, "a.pgm").tolist() == [stored]
    plain = b"P2 %d 1 %d\n%s\n" % (len(stored), greatest, b" ".join(b"%d" % v for v in stored))
    assert read_values(plain, "a.pgm").tolist() == [stored]


def test_a_mask_as_gif_is_told_that_it_lost_its_values(make, town, tmp_path):
    word = town(folders=())
    make.tree(tmp_path, [("images/a.png", make.image(0))])
    make.tree(tmp_path, [("masks/a.gif", make.encoded(np.eye(4, dtype=np.uint8), "GIF"))])
    with refused("masks/a.gif", DataError):
        parse(word).load("test")


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
