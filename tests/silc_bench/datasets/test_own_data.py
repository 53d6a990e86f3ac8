"""The user's own folders, shards and lists of captions: read as they are, or refused in words."""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata

import pytest
from commands import succeed
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from refusals import refused

from silc_bench.datasets.files.images import IMAGE_EXTENSIONS
from silc_bench.datasets.own_data import OwnData, name_of, parse
from silc_bench.errors import DataError, UserError
from silc_bench.results.schema import TASK_NAME

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".tar")  # of files, which are named without them


@pytest.fixture
def pets(make, tmp_path):
    """The function that writes two images a class, and returns their folder."""

    def write(folder="pets", names=("cat", "lap_dog", "newt"), more=()):
        numbered = [(name, 10 * label + i) for label, name in enumerate(names) for i in range(2)]
        files = [(f"{name}/{number % 10}.jpg", make.image(number)) for name, number in numbered]
        return make.tree(tmp_path / folder, [*files, *more])

    return write


def folder(path, split="test"):
    return parse(f"folder:{path}").load(split)


def shown(make, data):
    """The number of each image."""
    return [make.label_of(data.image(i)) for i in range(len(data))]


# ---- folder: ----


def test_a_folder_of_classes(make, pets):
    data = folder(pets())
    assert (data.name, data.split, data.class_names) == ("pets", "test", ("cat", "lap dog", "newt"))
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert shown(make, data) == [0, 1, 10, 11, 20, 21]
    assert data.captions is None
    assert parse(f"folder:{pets()}").load("test", limit=3).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_train_and_test(pets, tmp_path, test):
    pets("train")
    pets(test, ("lap_dog", "newt"))
    own = parse(f"folder:{tmp_path}")
    assert set(own.splits()) == {"test", "train"}
    assert own.load("test").labels.tolist() == [1, 1, 2, 2], "numbered by the training classes"
    assert own.load("test").class_names == own.load("train").class_names
    (note,) = own.read("test").notes
    assert "cat" in note
    pets(test, ("zebra",))
    with refused(tmp_path / test):
        own.load("test")


def test_numbered_classes_are_sorted_as_numbers_and_may_be_named(make, tmp_path):
    make.tree(tmp_path, [(f"{number}/a.png", make.image(number)) for number in (10, 9, 1)])
    data = folder(tmp_path)
    assert data.class_names == ("1", "9", "10")
    assert shown(make, data) == [1, 9, 10]
    (tmp_path / "classnames.txt").write_text("one\nnine\nten\n")
    assert folder(tmp_path).class_names == ("one", "nine", "ten")
    names = {"10": "TEN", "9": "NINE", "1": "ONE", "2": "unused"}
    (tmp_path / "classnames.json").write_text(json.dumps(names))
    assert folder(tmp_path).class_names == ("ONE", "NINE", "TEN")


def test_lists_beside_the_splits_hold_for_a_split_that_is_named_alone(pets, tmp_path):
    path = pets("pets/test", ("a", "b"))
    (tmp_path / "pets/classnames.txt").write_text("cat\ndog\n")
    assert folder(path).class_names == ("cat", "dog")


def test_prompts_beside_the_data(pets):
    own = parse(f"folder:{pets()}")
    assert own.templates() == ()
    pets(more=[("zeroshot_classification_templates.txt", b"a pet, {c}.\n{c}\n")])
    assert own.templates() == ("a pet, {c}.", "{c}")


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "val"), ("train", "Validation")])
def test_splits_are_splits_in_any_case(pets, tmp_path, names):
    for name in names:
        pets(f"pets/{name}", ("lap_dog", "newt"))
    own = parse(f"folder:{tmp_path}/pets")
    assert [own.splits()[split].name for split in ("train", "test")] == list(names)
    assert parse(f"folder:{tmp_path}/pets/{names[1]}").name == "pets"
    assert own.load("test").class_names == ("lap dog", "newt")


def test_of_two_folders_to_score_the_one_that_is_not_read_is_named(pets, tmp_path):
    for name in ("train", "test", "val"):
        pets(f"pets/{name}", ("lap_dog", "newt"))
    own = parse(f"folder:{tmp_path}/pets")
    assert own.splits()["test"].name == "test"
    (note,) = own.read("test").notes
    assert "val/" in note


def test_folders_are_not_split_in_two_spellings(pets, tmp_path):
    for name in ("train", "test", "Test"):
        pets(f"pets/{name}", ("lap_dog", "newt"))
    with refused(tmp_path / "pets", DataError):
        parse(f"folder:{tmp_path}/pets").splits()


# names of a list -> whether they are right for the folders b_1, b_2 and b_10, or B and a
NATURAL, MIXED = ("b_1", "b_2", "b_10"), ("B", "a")
ORDERS = [
    (NATURAL, ("one", "two", "ten"), "folders in two orders"),
    (MIXED, ("ant", "bee"), "folders in two orders"),
    (("cat", "dog", "lap_dog"), ("Dog", "Cat", "Lap Dog"), "another order of the folders' names"),
    (("cat", "dog", "lap_dog"), ("poodle", "cat", "hound"), "a name at another place"),
    (("cat", "dog", "lap_dog"), ("Cat", "DOG", "lap dog"), None),
    (("n01", "n02", "n03"), ("poodle", "cat", "hound"), None),
    (("1", "2", "10"), ("one", "two", "ten"), None),
]


@pytest.mark.parametrize("ending", ["txt", "json"])
@pytest.mark.parametrize(("folders", "names", "fault"), ORDERS)
def test_a_list_of_names_is_taken_where_its_order_is_certain(
    make, tmp_path, folders, names, fault, ending
):
    make.tree(tmp_path, [(f"{name}/0.png", make.image(i)) for i, name in enumerate(folders)])
    text = "\n".join(names) if ending == "txt" else json.dumps(names)
    (tmp_path / f"classnames.{ending}").write_text(text)
    if fault is None:
        data = folder(tmp_path)
        assert data.class_names == names
        (note,) = data.notes
        assert note.endswith(f"{folders[-1]!r} as {names[-1]!r}"), "what was guessed is said"
        return
    with refused(f"classnames.{ending}", DataError):
        folder(tmp_path)
    (tmp_path / f"classnames.{ending}").unlink()
    mapping = dict(zip(folders, names, strict=True))
    (tmp_path / "classnames.json").write_text(json.dumps(mapping))
    assert set(folder(tmp_path).class_names) == set(names)


def test_data_check_prints_which_name_each_folder_has(pets):
    path = pets(more=[("classnames.txt", b"tom\nfido\nolm\n")])
    shown = succeed(f"data check folder:{path}")
    assert "    cat is tom\n    lap_dog is fido\n    newt is olm\n" in shown


# case -> what the error is about, classes, and other files
FOLDERS = {
    "a test folder without classes": (
        *("pets/test", ()),
        [(f"{role}/{name}/0.jpg", b"") for role in ("train", "val") for name in "ab"]
        + [("test/0.jpg", b"")],
    ),
    "no classes": ("pets", (), [("me.jpg", b"")]),
    "train alone": ("pets", (), [("train/a/0.jpg", b"")]),
    "classes beside train": ("pets", ("cat",), [("train/a/0.jpg", b""), ("test/a/0.jpg", b"")]),
    "an empty class": ("pets/dog", ("cat", "newt"), [("dog/notes.txt", b"")]),
    "a class without a name": ("classnames.json", ("a", "b"), [("classnames.json", b'{"a": "c"}')]),
    "too few names": ("classnames.json", ("a", "b"), [("classnames.json", b'["a"]')]),
    "names that are no list": ("classnames.json", ("a", "b"), [("classnames.json", b"[3, 4]")]),
    "no JSON": ("classnames.json", ("a", "b"), [("classnames.json", b"{")]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_refused(pets, case):
    about, names, more = FOLDERS[case]
    kind = UserError if case == "names that are no list" else DataError
    with refused(about, kind):
        folder(pets(names=names, more=more))


def test_a_corrupt_image_is_named(make, pets):
    path = pets(more=[("cat/0.jpg", make.image(0)[:30])])
    with refused(path / "cat/0.jpg", DataError, is_kept=False):
        folder(path).image(0)


def test_what_is_an_image_and_what_is_passed_over(make, tmp_path):
    """Every listed ending is read, in any case; other images are counted by their ending."""
    for name in "ab":
        make.tree(tmp_path / name, [(f"{end}.{end}", make.image(1)) for end in IMAGE_EXTENSIONS])
        make.tree(tmp_path / name, [("UP.JPG", make.image(1)), ("c.heic", b""), ("d.HEIC", b"")])
    make.tree(tmp_path / "b", [("e.jxl", b""), ("f.md", b"")])
    split = parse(f"folder:{tmp_path}").read("test")
    assert len(split.images) == 2 * (len(IMAGE_EXTENSIONS) + 1)
    unread, other = split.notes
    assert unread.startswith("skipped 5 ")
    assert "(4 .heic, 1 .jxl)" in unread
    assert unread.endswith(" a/c.heic")
    assert other.endswith(" b/f.md")


def test_a_class_of_images_that_are_not_read_is_no_empty_class(pets):
    with refused("pets/newt", DataError) as caught:
        folder(pets(names=("cat", "dog"), more=[("newt/0.heic", b""), ("newt/1.heic", b"")]))
    assert "2 others, such as newt/0.heic" in caught.value.problem


def test_folders_behind_links_are_read_once(make, tmp_path):
    make.tree(tmp_path, [("pets/a/0.png", make.image(0)), ("more/1.png", make.image(1))])
    (tmp_path / "pets/b").symlink_to(tmp_path / "more")
    (tmp_path / "pets/a/up").symlink_to(tmp_path / "pets")
    (tmp_path / "pets/a/here").symlink_to(tmp_path / "pets/a")
    (tmp_path / "more/round").symlink_to(tmp_path / "other")  # and back from there
    make.tree(tmp_path, [("other/2.png", make.image(2))])
    (tmp_path / "other/back").symlink_to(tmp_path / "more")
    split = parse(f"folder:{tmp_path}/pets").read("test")
    assert [(image.path.name, image.label) for image in split.images] == [
        ("0.png", 0),
        ("1.png", 1),
        ("2.png", 1),
    ]
    (note,) = split.notes
    assert note.startswith("skipped 3 ")


def test_stray_files_and_loose_images(make, pets):
    empty = ("Thumbs.db", ".DS_Store", "cat/._0.jpg", "cat/notes.txt")
    path = pets(more=[*((name, b"") for name in empty), ("me.jpg", make.image(3))])
    split = parse(f"folder:{path}").read("test")
    assert len(split.images) == 6
    stray, other, loose = split.notes
    assert stray.endswith(": 1 .DS_Store, 1 ._*, 1 Thumbs.db")
    assert other.endswith("cat/notes.txt")
    assert loose.endswith("me.jpg")


# ---- captions: ----


@pytest.fixture
def listed(make, tmp_path):
    """The function that writes a list of captions beside two images."""

    def write(name, text):
        content = text if isinstance(text, bytes) else text.encode()
        images = [(f"images/{file}", make.image(i)) for i, file in enumerate(("a.jpg", "b.jpg"))]
        make.tree(tmp_path, [*images, (name, content)])
        return parse(f"captions:{tmp_path / name}")

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "x.jsonl",
            '{"file": "a.jpg", "captions": ["one", "two, too"]}\n\n'
            '{"file": "b.jpg", "captions": ["drei"]}\n',
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
def test_lists_of_captions(make, listed, name, text):
    data = listed(name, text).load("test")
    assert data.captions == [("one", "two, too"), ("drei",)]
    assert data.labels is None
    assert shown(make, data) == [0, 1]


# case -> where the error is, and what the list holds
LISTS = {
    "no column of images": ("x.csv", "photo,caption\na.jpg,one\n"),
    "no column of captions": ("x.csv", "file,words\na.jpg,one\n"),
    "a bare comma": ("x.csv:2", "file,caption\na.jpg,one, two\n"),
    "a field is missing": ("x.csv:2", "file,caption\na.jpg\n"),
    "an open quote": ("x.csv:1", 'file,caption\na.jpg,"one\n'),
    "an empty caption": ("x.csv:2", "file,caption\na.jpg,  \n"),
    "a name that is too long": ("x.csv:2", f"file,caption\n{'a' * 5000}.jpg,one\n"),
    "a header alone": ("x.csv", "file,caption\n"),
    "nothing": ("x.csv", ""),
    "a missing image": ("x.csv", "file,caption\nc.jpg,one\na.jpg,two\n"),
    "not UTF-8": ("x.csv", "file,caption\na.jpg,gr\xfcn\n".encode("latin1")),
    "cut JSON": ("x.jsonl:2", '{"file": "a.jpg", "captions": "one"}\n{"file": '),
    "no object": ("x.jsonl:1", "[1]"),
    "no captions": ("x.jsonl:1", '{"file": "a.jpg", "captions": []}'),
    "a number for a caption": ("x.jsonl:1", '{"file": "a.jpg", "captions": [1]}'),
    "a number for a name": ("x.jsonl:1", '{"file": 1, "captions": "a"}'),
    "another ending": ("x.txt", "a.jpg one"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_refused(listed, case):
    place, text = LISTS[case]
    with refused(place, UserError if place == "x.txt" else DataError):
        listed(place.partition(":")[0], text).load("test")


def test_quotes_are_letters_in_a_tsv(listed):
    text = 'file\tcaption\na.jpg\t"one" two\nb.jpg\tthree\na.jpg\t"four"\nb.jpg\tfive"\n'
    split = listed("x.tsv", text).read("test")
    assert [image.captions for image in split.images] == [
        ('"one" two', '"four"'),
        ("three", 'five"'),
    ]
    (note,) = split.notes
    assert note.startswith("1 ")
    assert note.endswith("x.tsv:4")


CAPTIONS_OF_SEVERAL_LINES = (
    'file,caption\na.jpg,"one\n two"\n\nb.jpg,"a dog, and\r\nanother, b.jpg no"\n',
    'caption,file\n"one\n two",a.jpg\n"a dog, and\r\nanother, b.jpg no",b.jpg\n',
)


@pytest.mark.parametrize("text", CAPTIONS_OF_SEVERAL_LINES)
def test_a_quoted_caption_may_have_several_lines(listed, text):
    captions = listed("x.csv", text).load("test").captions
    assert captions == [("one\n two",), ("a dog, and\r\nanother, b.jpg no",)]


@pytest.mark.parametrize("ending", ["csv", "tabbed csv"])
@pytest.mark.parametrize("is_image_first", [True, False])
@pytest.mark.parametrize("closed_at", [2, 3])
def test_a_quote_that_swallows_rows_is_refused(listed, ending, is_image_first, closed_at):
    rows = [
        ["a.jpg", '"green square'],
        ["b.jpg", "a red one"],
        ["a.jpg", "blue"],
        ["b.jpg", "four"],
    ]
    rows[closed_at][1] += '"'
    columns = [["file", "caption"], *rows]
    if not is_image_first:
        # the quote is closed where a caption ends, or the reader says that it is no CSV
        columns = [row[::-1] for row in columns]
    text = "\n".join(("\t" if ending == "tabbed csv" else ",").join(row) for row in columns)
    with refused("x.csv:2", DataError):
        listed("x.csv", text).load("test")


def test_two_columns_of_one_name_are_refused(listed):
    with refused("x.csv", DataError):
        listed("x.csv", "file,caption,caption\na.jpg,one,two\n").load("test")


def test_a_json_of_objects_and_cocos_captions(make, listed, tmp_path):
    rows = [{"image": "a.jpg", "caption": ["one", "two"]}, {"image": "b.jpg", "caption": "three"}]
    expected = [("one", "two"), ("three",)]
    assert listed("x.json", json.dumps(rows)).load("test").captions == expected

    coco = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 3, "id": 1, "caption": "three"},
            {"image_id": 7, "id": 2, "caption": "one"},
            {"image_id": 7, "id": 3, "caption": "two "},
        ],
    }
    make.tree(tmp_path / "coco", [(f"val2017/{name}.jpg", make.image(0)) for name in "ab"])
    path = tmp_path / "coco/annotations/captions_val2017.json"
    make.tree(tmp_path, [(str(path), json.dumps(coco).encode())])
    own = parse(f"captions:{path}")
    assert own.load("test").captions == expected
    assert own.name == "captions_val2017"
    for wrong in ({}, {"images": []}, [1], {"images": [{"id": 1}], "annotations": []}, 3):
        path.write_text(json.dumps(wrong))
        with refused(path, DataError):
            own.load("test")
    path.write_text('{"images": [], "images": []}')
    with refused(path, DataError):
        own.load("test")


WHOLE_LISTS = {
    "csv": 'file,caption,n\na.jpg,"one, ""or"" two",3\nb.jpg,dr\u00e9i,4\n',
    "tsv": 'file\tcaption\na.jpg\t"one" two\nb.jpg\tdrei\n',
    "jsonl": '{"file": "a.jpg", "captions": ["one", "two"]}\n{"file": "b.jpg", "caption": "3"}\n',
    "json": '{"images": [{"id": 1, "file_name": "a.jpg"}], '
    '"annotations": [{"image_id": 1, "caption": "one"}]}',
}


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.sampled_from(sorted(WHOLE_LISTS)),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    st.floats(0.5, 1),
)
def test_broken_lists_raise_nothing_else(make, tmp_path, ending, changes, keep):
    make.tree(tmp_path, [("a.jpg", make.image(0)), ("b.jpg", make.image(1))])
    data = bytearray(WHOLE_LISTS[ending].encode())
    for at, value in changes:
        data[at % len(data)] = value
    (tmp_path / f"x.{ending}").write_bytes(data[: int(len(data) * keep) + 1])
    with contextlib.suppress(UserError):
        assert parse(f"captions:{tmp_path}/x.{ending}").load("test").captions


def test_a_list_of_captions_is_no_pattern_of_shards(tmp_path):
    """What lies beside it is looked for before it is read, so a missing one is told as a list."""
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n")
    own = parse(f"captions:{tmp_path}/no{{0..3}}.jsonl")
    assert own.templates() == ("a photo of {c}",)
    with refused(about=tmp_path / "no{0..3}.jsonl"):
        own.load("test")


def test_a_caption_given_twice_is_noted(listed):
    (note,) = listed("x.csv", "file,caption\na.jpg,one\na.jpg,one\n").read("test").notes
    assert note.startswith("1 ")


# ---- wds: ----


def test_shards_with_labels(make, tmp_path):
    make.shard(tmp_path / "birds/test/0.tar", [2, 0])
    make.shard(tmp_path / "birds/train/0.tar", [0, 1, 2])
    own = parse(f"wds:{tmp_path}/birds")
    with refused(tmp_path / "birds", DataError):  # no names
        own.load("test")
    (tmp_path / "birds/classnames.txt").write_text("robin\njay\ncrane\n")
    assert own.load("test").labels.tolist() == [2, 0]
    assert own.load("train").class_names == ("robin", "jay", "crane")
    pattern = parse(f"wds:{tmp_path}/birds/{{test,train}}/0.tar")
    assert pattern.load("test").labels.tolist() == [2, 0, 0, 1, 2]
    assert set(pattern.splits()) == {"test"}
    (tmp_path / "birds/classnames.txt").write_text("robin\njay\n")
    with refused(tmp_path / "birds/test/0.tar:s0000000"):
        own.load("test")


def test_shards_with_captions(make, tmp_path):
    texts = [("0.txt", b"one\ntwo\n"), ("1.txt", b"three")]
    images = [(f"{i}.jpg", make.image(i)) for i in range(2)]
    own = parse(f"wds:{make.tar(tmp_path / 'a.tar', sorted([*texts, *images]))}")
    assert not own.has_labels()
    assert own.load("test").captions == [("one", "two"), ("three",)]


# case -> what the error is about, and the members of a shard
SHARDS = {
    "no member": ("a.tar", []),
    "no image": ("a.tar:0", [("0.txt", b"x")]),
    "no caption": ("a.tar:1", [("0.jpg", b""), ("0.txt", b"x"), ("1.jpg", b"")]),
    "an empty caption": ("a.tar:0", [("0.jpg", b""), ("0.txt", b" \n")]),
    "damage": ("a.tar", [("0.jpg", b""), ("0.txt", b"x"), ("0.txt", b"y")]),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_that_are_refused(make, tmp_path, case):
    about, members = SHARDS[case]
    path = make.tar(tmp_path / "a.tar", members)
    with refused(tmp_path / about, UserError if case in ("no image", "no caption") else DataError):
        parse(f"wds:{path}").load("test")


@pytest.mark.parametrize(
    ("word", "about", "kind"),
    [
        ("wds:{}/*.tar", "*.tar", UserError),
        ("wds:{}", "{}", DataError),
        ("folder:{}/none", "{}/none", UserError),
        ("captions:{}/x.csv", "{}/x.csv", UserError),
        ("captions:", "captions:", UserError),
        ("seg:", "seg:", UserError),
        ("seg:{0}/images,{0}/masks", "seg:", UserError),
        ("seg:{0}/a,{0}/masks,{0}/classes.json", "{}/a", UserError),
        ("seg:{0}/images,{0}/b,{0}/classes.json", "{}/b", UserError),
        ("seg:{0}/images,{0}/masks,{0}/c.json", "{}/c.json", UserError),
    ],
)
def test_words_that_name_nothing(town, tmp_path, word, about, kind):
    town()
    with refused(about.format(tmp_path), kind):
        parse(word.format(tmp_path)).load("test")


# ---- names ----


@pytest.mark.parametrize(
    ("kind", "where", "name"),
    [
        ("folder", "/data/My Pets!", "My+Pets_+5cf8a464"),
        ("folder", "/data/my pets", "my+pets"),
        ("folder", "/data/pets/test", "pets"),
        ("folder", "/data/pets.v2/", "pets.v2"),
        ("captions", "/data/coco_mini/meta.jsonl", "coco_mini"),
        ("captions", "/data/list.csv", "list"),
        ("wds", "/data/birds/{000..009}.tar", "birds"),
        ("wds", "/data/birds/test/*.tar", "birds"),
        ("wds", "/data/birds-val.tar", "birds-val"),
        ("folder", "/", "own"),
        ("folder", "/data/images", "images"),
        ("folder", "/größe", "gr_e+d353a267"),
        ("folder", "/data/猫", "own+a810bf84"),
        ("folder", "/data/" + "a" * 300, "a" * 100 + "+9835fa6b"),
        ("captions", "/data/annotations/captions_val2017.json", "captions_val2017"),
    ],
)
def test_a_set_is_named_after_the_last_part_that_says_something(kind, where, name):
    assert OwnData(kind, where).name == name


NAMES_OF_FOLDERS = st.text(st.characters(codec="utf-8", exclude_characters="/\0*?[{"), min_size=1)


@example("猫", "犬")
@example("a b", "a_b")
@example("a b", "a+b")
@example("a", "_a")
@example("a" * 200, "a" * 201)
@example("猫", name_of("猫"))
@example("own 38443a9c", "own+38443a9c")
@example("cafe\u0301", "caf\xe9")
@given(NAMES_OF_FOLDERS | st.sampled_from(["猫 a", "犬 a"]), NAMES_OF_FOLDERS)
def test_two_folders_never_share_a_name_and_every_name_can_be_a_records(one, other):
    assume({one, other}.isdisjoint({".", ".."}))
    assume(not (one.lower().endswith(ENDINGS) or other.lower().endswith(ENDINGS)))
    names = [name_of(f"/top/{folder}") for folder in (one, other)]
    are_one = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (names[0] == names[1]) == are_one
    for name in names:
        assert re.fullmatch(TASK_NAME["pattern"], f"{name}/knn")
        assert len(name) < 128


def test_other_words_are_no_data():
    assert parse("shapes/zeroshot") is parse("folders:/x") is None
