"""What no sample may do: end the run, or be learnt from as if it were a caption.

Each loss is counted, with its first place, whoever reads.
"""

import json
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from silc_bench.datasets.files import images
from silc_bench.trainer.config.config import DataConfig, TextConfig
from silc_bench.trainer.data.pack import look, pack
from silc_bench.trainer.data.samples import UnreadableError, captions_of, columns_of
from silc_bench.trainer.data.shard_index import DOTTED

from pairs import encoded, shard, source, take, texts_of, write_shard  # isort: skip

LONE = "\ud800 half a pair"


# --- what is a caption ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "captions", "num_skipped"),
    [
        ({"captions": [{"id": 3, "caption": "a cat"}]}, ["a cat"], 0),
        ({"captions": [{"text": " a cat "}, "a dog"]}, ["a cat", "a dog"], 0),
        ({"captions": [None, "a cat"]}, ["a cat"], 1),
        ({"captions": [3, True, 0.5, [], {}, "a cat"]}, ["a cat"], 1),
        ({"captions": [LONE, "a cat"]}, ["a cat"], 1),
        ({"captions": "a cat"}, ["a cat"], 0),
        ({"caption": {"text": "a cat"}}, ["a cat"], 0),
        ({"text": "a cat"}, ["a cat"], 0),
        ({"captions": [" ", "...", "a cat"]}, ["a cat"], 0),
    ],
    ids=str,
)
def test_a_caption_in_json_is_a_text_or_an_object_with_one(columns, captions, num_skipped):
    skipped = []
    assert captions_of(None, columns, "a.tar", skipped) == captions
    assert [error.cause for error in skipped] == ["unreadable caption beside others"] * num_skipped


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({"caption": float("nan")}, "unreadable caption"),
        ({"caption": 7}, "unreadable caption"),
        ({"captions": [None, 7, ["a cat"], {"id": 3}]}, "unreadable caption"),
        ({"caption": LONE}, "unreadable caption"),
        ({"caption": None}, "empty text"),
        ({"captions": []}, "empty text"),
        ({"caption": "?! _ ..."}, "empty text"),
        ({"caption": "！？"}, "empty text"),  # NFKC makes ASCII of them
        ({}, "empty text"),
    ],
    ids=str,
)
def test_what_is_no_caption_is_never_learnt_from(columns, cause):
    with pytest.raises(UnreadableError) as caught:
        captions_of(None, columns, "a.tar")
    assert caught.value.cause == cause


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["caption", "id"]), inner),
)


@given(JSON, st.sampled_from(["caption", "captions", "text"]))
def test_whatever_json_holds_a_caption_is_a_text_of_letters(value, name):
    columns = columns_of(json.dumps({name: value}).encode(), "a.tar")
    try:
        captions = captions_of(None, columns, "a.tar")
    except UnreadableError:
        return
    for caption in captions:
        assert caption == caption.encode().decode().strip()
        assert set(caption) - set(string.punctuation)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("inside", ["\u2028", "\x85", "\v", "\f", "\x1c"])
def test_only_line_ends_end_a_caption(end, inside):
    text = f"\ufeffa{inside}b{end}c{end}".encode()
    assert captions_of(text, None, "a.tar") == [f"a{inside}b", "c"]


# --- one sample never ends a run ------------------------------------------------------------------


PNG = encoded(0)
AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40)
HOSTILE = [
    ({"png": PNG, "json": b"[" * 100_000}, "JSON that cannot be read"),
    ({"png": PNG, "json": b"1" * 5_000}, "JSON that cannot be read"),
    ({"png": PNG, "json": {"caption": LONE}}, "unreadable caption"),
    ({"png": PNG, "txt": b"caf\xe9"}, "text that is not UTF-8"),
    ({"png": PNG, "txt": "...!"}, "empty text"),
    ({"jpg": AVIF, "txt": "x"}, "image"),
    ({"png": PNG[:40], "txt": "x"}, "corrupt image"),
    ({"png": b"", "txt": "x"}, "corrupt image"),
]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hostile_sample_is_its_own_failure(tmp_path, workers):
    good = [{"png": encoded(n), "txt": f"number {n}"} for n in range(3)]
    path = shard(tmp_path / "a.tar", [*good, *(sample for sample, _ in HOSTILE)])
    stream = source(path, num_workers=workers)
    texts = {text for batch in take(stream, 2, 0, 6) for text in batch.texts}
    assert texts == {"number 0", "number 1", "number 2"}
    assert stream.damage.total == len(HOSTILE)
    for _, cause in HOSTILE:
        assert path in " ".join(w for name, w in stream.damage.first.items() if cause in name)


@pytest.mark.parametrize(
    "error", [RuntimeError, MemoryError, RecursionError, KeyError, AssertionError, OSError(5, "x")]
)
def test_whatever_a_decoder_raises_is_of_its_sample(tmp_path, monkeypatch, error):
    decode = images.decode_within

    def decode_or_fail(data, *args, **options):
        if data == encoded(1):
            raise error
        return decode(data, *args, **options)

    monkeypatch.setattr(images, "decode_within", decode_or_fail)
    path = shard(tmp_path / "a.tar", [{"png": encoded(n), "txt": f"number {n}"} for n in range(3)])
    stream = source(path)
    texts = {batch.texts[0] for batch in take(stream, 1, 0, 6)}
    assert texts == {"number 0", "number 2"}
    assert list(stream.damage.counts.values()) == [1]
    assert path in stream.damage.summary()


def test_an_unreadable_caption_beside_others_is_counted_and_costs_no_pair(tmp_path):
    samples = [{"png": PNG, "json": {"captions": [None, f"number {n}"]}} for n in range(3)]
    path = shard(tmp_path / "a.tar", [*samples, {"png": PNG[:40], "txt": "x"}])
    streams = [source(path, num_workers=workers) for workers in (0, 2)]
    for stream in streams:
        stream.captions(10)
        assert not stream.damage.total, "counted when a batch meets it"
        assert {batch.texts[0] for batch in take(stream, 1, 0, 6)} == {
            "number 0",
            "number 1",
            "number 2",
        }
    assert streams[0].damage == streams[1].damage
    assert streams[0].damage.counts == {"unreadable caption beside others": 3, "corrupt image": 1}
    assert look(DataConfig(source=path), 4, TextConfig())["damage"] == streams[0].damage.counts


def test_a_filter_meets_hostile_samples_too(tmp_path):
    samples = [sample for sample, _ in HOSTILE]
    samples += [{"png": PNG, "txt": "yes", "json": {"score": score}} for score in (1, 10**400)]
    path = shard(tmp_path / "a.tar", samples)
    stream = source(path, filters="score>=1 side>=2")
    assert "1 score that is no number" in stream.describe()
    assert {batch.texts[0] for batch in take(stream, 1, 0, 4)} == {"yes"}


def members_of(*names):
    return [(name, PNG if name.endswith("png") else b"words") for name in names]


@pytest.mark.parametrize(
    ("names", "num_pairs", "num_lost", "first"),
    [
        (["cat.1.png", "cat.1.txt", "cat.2.png", "cat.2.txt"], 0, 2, "cat.1.png"),
        ([f"v1.{n:02}.{end}" for n in range(20) for end in ("png", "txt")], 0, 20, "v1.00.png"),
        (["a.png", "a.txt", "a.b.png", "a.b.txt", "a.c.png", "a.c.json"], 1, 2, "a.b.png"),
        (["a.png", "a.txt", "a.seg.png", "a.depth.exr"], 1, 0, None),  # meant as members
        (["a/b.c/d.png", "a/b.c/d.txt"], 1, 0, None),  # a dot in a folder
    ],
    ids=str,
)
def test_every_image_that_a_dot_in_its_name_loses_is_counted(
    tmp_path, names, num_pairs, num_lost, first
):
    write_shard(tmp_path / "a.tar", members_of("whole.png", "whole.txt", *names))
    stream = source(tmp_path / "a.tar")
    assert stream.num_samples == 1 + num_pairs
    assert stream.damage.counts == ({DOTTED: num_lost} if num_lost else {})
    assert stream.damage.first == ({DOTTED: f"{tmp_path / 'a.tar'}:{first}"} if num_lost else {})


# --- lists and folders ----------------------------------------------------------------------------


LINES = [
    ('{"file": "0.png", "captions": [{"caption": "zero"}]}', None),
    ("{", "line that is no row"),
    ("[" * 100_000, "line that is no row"),
    ("[3]", "line that is no row"),
    ('{"file": "0.png", "captions": 3}', "unreadable caption"),
    ('{"file": "0.png", "captions": [null, "nought"]}', "unreadable caption beside others"),
    ('{"file": "0.png", "captions": "\\ud800"}', "unreadable caption"),
    ('{"file": "0.png", "captions": null}', "empty text"),
    ('{"file": "0.png"}', "empty text"),
    ('{"file": 3, "captions": "x"}', "row without the name of an image"),
    ('{"captions": "x"}', "row without the name of an image"),
    ('{"file": "\\u0000", "captions": "x"}', "missing image"),
    ('{"file": "gone.png", "captions": "x"}', "missing image"),
]


def test_a_line_of_a_list_is_its_own_failure(tmp_path):
    (tmp_path / "0.png").write_bytes(PNG)
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(line for line, _ in LINES))
    stream = source(path)
    assert set(texts_of(path, 20)) == {"zero", "nought"}
    causes = [cause for _, cause in LINES if cause]
    assert stream.damage.counts == {cause: causes.count(cause) for cause in causes}
    assert f"{path}:2" in stream.damage.first["line that is no row"]


def test_a_row_with_too_many_fields_is_its_own_failure(tmp_path):
    (tmp_path / "0.png").write_bytes(PNG)
    (tmp_path / "list.csv").write_text("file,caption\n0.png,zero\n0.png,a, b\n0.png\n")
    stream = source(tmp_path / "list.csv")
    assert stream.captions(9) == ["zero"]
    assert stream.damage.counts == {"line that is no row": 1, "empty text": 1}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def put(folder, *names, text="words"):
    """Files: images, and texts of ``text``."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if name.lower().endswith("txt") else PNG)


def test_a_text_belongs_to_its_image_whatever_the_case(folder):
    put(folder, "UP.PNG", "UP.TXT", "down.png", "down.Txt", "mixed.PnG", "mixed.txt")
    stream = source(folder)
    assert (stream.num_samples, stream.damage.total) == (3, 0)


def test_a_linked_folder_belongs_to_it_once(folder):
    put(folder, "0.png", "0.txt")
    put(folder.parent / "elsewhere", "1.png", "1.txt")
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    (folder / "link again").symlink_to(folder.parent / "elsewhere")
    (folder / "loop").symlink_to(folder)
    stream = source(folder)
    assert stream.num_samples == 2
    assert stream.damage.counts == {"folder that is linked twice": 2}


def test_a_file_of_another_kind_with_a_text_is_said(folder):
    put(folder, "0.png", "0.txt", "a.heic", "a.txt", "b.heic", "b.txt", "notes.doc")
    stream = source(folder)
    assert stream.num_samples == 1
    ((cause, count),) = stream.damage.counts.items()
    assert (cause.startswith("file with a text that is none of"), count) == (True, 2)
    assert stream.damage.first[cause] == str(folder / "a.heic")

    (folder / "0.png").unlink()
    with refused(folder):
        source(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["1.png", "1.txt"])
def test_a_file_that_may_not_be_read_is_its_own_failure(folder, name):
    put(folder, "0.png", "0.txt", "1.png", "1.txt")
    (folder / name).chmod(0)
    stream = source(folder)
    take(stream, 1, 0, 4)
    assert stream.damage.counts == {"file that cannot be read (Permission denied)": 1}


def test_an_image_that_becomes_a_folder_is_its_own_failure(folder):
    """As a file that may not be read, which root may."""
    put(folder, "0.png", "0.txt", "1.png", "1.txt")
    stream = source(folder)
    (folder / "1.png").unlink()
    (folder / "1.png").mkdir()
    take(stream, 1, 0, 4)
    assert stream.damage.counts == {"file that cannot be read (Is a directory)": 1}


def test_packing_leaves_out_what_cannot_be_written(folder):
    put(folder, "0.png", "0.txt", "1.png")
    (folder / "1.json").write_text('{"caption": "x", "also": "\\ud800"}')
    packed = pack(folder, folder.parent / "shards")
    assert packed.pairs == {"": 1}
    assert packed.damage.counts == {"sample that cannot be read (UnicodeEncodeError)": 1}
