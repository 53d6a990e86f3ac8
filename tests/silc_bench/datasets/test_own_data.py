"""The user's own folders, shards and lists of captions: read as they are, or refused in words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from silc_bench.datasets.own_data import OwnData, parse
from silc_bench.errors import DataError, UserError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")


def pets(make, names=("cat", "lap_dog", "newt")):
    return [
        (f"{name}/{i}.jpg", make.image(10 * label + i))
        for label, name in enumerate(names)
        for i in range(2)
    ]


def folder(path, split="test"):
    return parse(f"folder:{path}").load(split)


# ---- folder: ----


def test_a_folder_of_classes(make, tmp_path):
    data = folder(make.tree(tmp_path / "pets", pets(make)))
    assert (data.name, data.split, data.class_names) == ("pets", "test", ("cat", "lap dog", "newt"))
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [make.label_of(data.image(i)) for i in range(6)] == [0, 1, 10, 11, 20, 21]
    assert data.captions is None
    assert parse(f"folder:{tmp_path}/pets").load("test", limit=3).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_train_and_test(make, tmp_path, test):
    make.tree(tmp_path / "train", pets(make))
    make.tree(tmp_path / test, pets(make)[2:])
    own = parse(f"folder:{tmp_path}")
    assert set(own.splits()) == {"test", "train"}
    assert own.load("test").labels.tolist() == [1, 1, 2, 2], (
        "labels are those of the training classes"
    )
    assert own.load("test").class_names == own.load("train").class_names
    assert own.read("test").notes == [
        f"1 classes to learn are not scored: cat has no pictures in {tmp_path / test}"
    ]
    make.tree(tmp_path / test, [("zebra/0.jpg", make.image(0))])
    with pytest.raises(UserError, match="'zebra'"):
        own.load("test")


def test_numbered_classes_are_sorted_as_numbers_and_may_be_named(make, tmp_path):
    make.tree(tmp_path, [(f"{number}/a.png", make.image(number)) for number in (10, 9, 1)])
    data = folder(tmp_path)
    assert data.class_names == ("1", "9", "10")
    assert [make.label_of(data.image(i)) for i in range(3)] == [1, 9, 10]
    (tmp_path / "classnames.txt").write_text("one\nnine\nten\n")
    assert folder(tmp_path).class_names == ("one", "nine", "ten")
    (tmp_path / "classnames.json").write_text(
        json.dumps({"10": "TEN", "9": "NINE", "1": "ONE", "2": "unused"})
    )
    assert folder(tmp_path).class_names == ("ONE", "NINE", "TEN")
    for text, sentence in (
        ('{"1": "one"}', "no class for the folder '9'"),
        ('["a"]', "names 1 classes, and there are 3"),
        ("{", "not JSON"),
    ):
        (tmp_path / "classnames.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            folder(tmp_path)


def test_prompts_beside_the_data(make, tmp_path):
    make.tree(tmp_path, pets(make))
    assert parse(f"folder:{tmp_path}").templates() == ()
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a pet, {c}.\n{c}\n")
    assert parse(f"folder:{tmp_path}").templates() == ("a pet, {c}.", "{c}")


def test_folders_that_are_no_classes(make, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        parse(f"folder:{tmp_path}/none").splits()
    with pytest.raises(DataError, match="holds 0 class folders"):
        folder(tmp_path)
    make.tree(tmp_path / "a", pets(make))
    (tmp_path / "a/empty").mkdir()
    with pytest.raises(DataError, match="a/empty holds no pictures; fill the class or remove"):
        folder(tmp_path / "a")
    make.tree(tmp_path / "b/train", pets(make))
    with pytest.raises(
        DataError,
        match=r"holds train and nothing else; put the pictures to be scored into .*b/test",
    ):
        folder(tmp_path / "b")
    make.tree(tmp_path / "b", [*pets(make), ("test/cat/0.jpg", make.image(0))])
    with pytest.raises(DataError, match="holds test and train and cat, lap_dog, newt"):
        folder(tmp_path / "b")


def test_a_corrupt_image_is_named(make, tmp_path):
    make.tree(tmp_path, [*pets(make), ("cat/0.jpg", make.image(0)[:30])])
    with pytest.raises(
        DataError, match=r"cannot be scored, .*cat/0\.jpg is damaged: corrupt image"
    ):
        folder(tmp_path).image(0)


def test_stray_files_and_loose_images(make, tmp_path):
    make.tree(
        tmp_path,
        [
            *pets(make),
            ("Thumbs.db", b""),
            (".DS_Store", b""),
            ("cat/._0.jpg", b""),
            ("me.jpg", make.image(3)),
            ("cat/notes.txt", b""),
        ],
    )
    found = parse(f"folder:{tmp_path}").read("test")
    assert len(found.images) == 6
    assert found.notes == [
        "skipped stray files of the system: 1 ._*, 1 .DS_Store, 1 Thumbs.db".replace(
            "1 ._*, 1 .DS_Store", "1 .DS_Store, 1 ._*"
        ),
        "skipped 1 files that are no pictures, such as cat/notes.txt",
        "skipped 1 pictures outside the class folders, such as me.jpg",
    ]


# ---- captions: ----


def listed(make, tmp_path, name, text, images=("a.jpg", "b.jpg")):
    make.tree(tmp_path / "images", [(file, make.image(i)) for i, file in enumerate(images)])
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(f"captions:{tmp_path / name}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "x.jsonl",
            (
                '{"file": "a.jpg", "captions": ["one", "two, too"]}\n\n{"file": "b.jpg", '
                '"captions": ["drei"]}\n'
            ),
        ),
        (
            "x.jsonl",
            '{"image": "a.jpg", "caption": "one"}\n{"image": "a.jpg", "caption": "two, too"}\n'
            '{"image": "images/b.jpg", "caption": "drei"}',
        ),
        ("x.csv", 'filepath,title\na.jpg,one\na.jpg,"two, too"\nb.jpg,drei\n'),
        ("x.csv", b'\xef\xbb\xbffile,caption\r\na.jpg,one\r\na.jpg,"two, too"\r\nb.jpg,drei\r\n'),
        ("x.csv", "filepath\ttitle\na.jpg\tone\na.jpg\ttwo, too\nb.jpg\tdrei\n"),
        ("x.tsv", "title\tother\timage\none\t1\ta.jpg\ntwo, too\t2\ta.jpg\ndrei\t3\tb.jpg"),
    ],
)
def test_lists_of_captions(make, tmp_path, name, text):
    data = listed(make, tmp_path, name, text).load("test")
    assert data.captions == [("one", "two, too"), ("drei",)]
    assert data.labels is None
    assert [make.label_of(data.image(i)) for i in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "x.csv",
            "photo,caption\na.jpg,one\n",
            "no column of pictures: it has 'photo', 'caption'; call it one of file, ",
        ),
        (
            "x.csv",
            "file,words\na.jpg,one\n",
            "no column of captions: it has 'file', 'words'; call it one of captions, ",
        ),
        (
            "x.csv",
            "file,caption\na.jpg,one, two\n",
            r"x.csv:2 has more fields than the header; put captions .* in double quotes",
        ),
        ("x.csv", "file,caption\na.jpg\n", "x.csv:2: 'file' or 'caption' is missing"),
        ("x.csv", 'file,caption\na.jpg,"one\n', "cannot be read"),
        ("x.csv", "file,caption\na.jpg,  \n", r"x.csv:2: a.jpg has an empty caption"),
        ("x.csv", "file,caption\n", "lists no pictures"),
        ("x.csv", "", "lists no pictures"),
        (
            "x.csv",
            "file,caption\nc.jpg,one\na.jpg,two\n",
            r"1 of the 2 pictures .* are missing, such as .*c\.jpg; file names are relative",
        ),
        (
            "x.csv",
            "file,caption\na.jpg,gr\xfcn\n".encode("latin1"),
            r"not UTF-8 \(byte 21\); iconv",
        ),
        ("x.jsonl", '{"file": "a.jpg", "captions": "one"}\n{"file": ', "x.jsonl:2 is not JSON"),
        ("x.jsonl", "[1]", "x.jsonl:1 holds a list"),
        ("x.jsonl", '{"file": "a.jpg", "captions": []}', "empty caption"),
        ("x.jsonl", '{"file": "a.jpg", "captions": [1]}', "missing or no text"),
        ("x.jsonl", '{"file": 1, "captions": "a"}', "missing or no text"),
        ("x.json", "[]", r"a list of captions is a file \.jsonl, \.csv, \.tsv, not \.json"),
    ],
)
def test_lists_that_are_refused(make, tmp_path, name, text, sentence):
    with pytest.raises(UserError, match=sentence):
        listed(make, tmp_path, name, text).load("test")


def test_no_list(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        parse(f"captions:{tmp_path}/x.csv").load("test")
    with pytest.raises(UserError, match="'captions:' names no data; write captions:FILE"):
        parse("captions:")


def test_a_caption_given_twice_is_said(make, tmp_path):
    own = listed(make, tmp_path, "x.csv", "file,caption\na.jpg,one\na.jpg,one\n")
    assert own.read("test").notes == ["1 rows repeat a caption of their picture"]


# ---- wds: ----


def test_shards_with_labels(make, tmp_path):
    make.shard(tmp_path / "birds/test/0.tar", [2, 0])
    make.shard(tmp_path / "birds/train/0.tar", [0, 1, 2])
    own = parse(f"wds:{tmp_path}/birds")
    with pytest.raises(
        DataError, match=r"no names for them; write .* into classnames\.txt beside the shards"
    ):
        own.load("test")
    (tmp_path / "birds/classnames.txt").write_text("robin\njay\ncrane\n")
    assert own.load("test").labels.tolist() == [2, 0]
    assert own.load("train").class_names == ("robin", "jay", "crane")
    pattern = parse(f"wds:{tmp_path}/birds/{{test,train}}/0.tar")
    assert pattern.load("test").labels.tolist() == [2, 0, 0, 1, 2]
    assert set(pattern.splits()) == {"test"}
    (tmp_path / "birds/classnames.txt").write_text("robin\njay\n")
    with pytest.raises(UserError, match="label b'2'; a label is a number from 0 to 1"):
        own.load("test")


def test_shards_with_captions(make, tmp_path):
    make.tar(
        tmp_path / "a.tar",
        [
            ("0.jpg", make.image(0)),
            ("0.txt", b"one\ntwo\n"),
            ("1.jpg", make.image(1)),
            ("1.txt", b"three"),
        ],
    )
    own = parse(f"wds:{tmp_path}/a.tar")
    assert not own.has_labels()
    assert own.load("test").captions == [("one", "two"), ("three",)]


def test_no_shards(tmp_path):
    with pytest.raises(UserError, match="no shard found"):
        parse(f"wds:{tmp_path}/*.tar").load("test")
    with pytest.raises(DataError, match=r"holds no \*\.tar"):
        parse(f"wds:{tmp_path}").load("test")


# ---- names ----


@pytest.mark.parametrize(
    ("kind", "where", "name"),
    [
        ("folder", "/data/My Pets!", "My_Pets_"),
        ("folder", "/data/pets/test", "pets"),
        ("folder", "/data/pets.v2/", "pets.v2"),
        ("captions", "/data/coco_mini/meta.jsonl", "coco_mini"),
        ("captions", "/data/list.csv", "list"),
        ("wds", "/data/birds/{000..009}.tar", "birds"),
        ("wds", "/data/birds/test/*.tar", "birds"),
        ("wds", "/data/birds-val.tar", "birds-val"),
        ("folder", "/", "own"),
        ("folder", "/größe", "gr_e"),
    ],
)
def test_a_set_is_named_after_the_last_part_that_says_something(kind, where, name):
    assert OwnData(kind, where).name == name


def test_other_words_are_no_data():
    assert parse("shapes/zeroshot") is None
    assert parse("folders:/x") is None


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_real_data():
    data = parse(f"captions:{REAL}/coco_mini/meta.jsonl").load("test")
    assert (data.name, len(data), {len(own) for own in data.captions}) == ("coco_mini", 159, {5})
    assert data.image(0).size == (640, 399)
    shards = parse(f"wds:{Path(REAL) / 'cifar100'}")
    assert shards.load("test", limit=200).class_names[:2] == ("apple", "aquarium fish")
    assert set(shards.splits()) == {"test", "train"}
