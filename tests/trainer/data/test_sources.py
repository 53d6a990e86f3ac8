"""What a source may be besides shards: lists and folders of captioned images, mixtures.

Several captions; filters.
"""

import collections
import io
import itertools
import json
import pickle
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from silc_bench.datasets.files import remote
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import DataError
from silc_bench.trainer.config.config import DataConfig, TextConfig
from silc_bench.trainer.data.pack import look
from silc_bench.trainer.data.samples import (
    CAPTION,
    MIXTURE,
    ORDER,
    TURNED,
    UnreadableError,
    captions_of,
    choose_caption,
    columns_of,
    parse,
    random_words,
    shuffled,
)
from silc_bench.trainer.data.shard_index import Shard
from silc_bench.trainer.data.shards import ShardsReader
from silc_bench.trainer.data.sources import BLOCK, MixedReader, open_reader

from pairs import encoded, numbers, shard, source, table_of  # isort: skip
from pairs import take, texts_of, whole, write_shard  # isort: skip


# --- each sample once, for any number of shards, workers and ranks, from any point ----------------


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    group=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    is_remote=st.booleans(),
    data=st.data(),
)
def test_every_epoch_is_a_permutation_that_is_the_same_from_any_position(
    sizes, group, seed, is_remote, data
):
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    files = [Shard("x", remote.Stamp(1, "") if is_remote else None)] * len(sizes)
    config = DataConfig(seed=seed, shuffle_shards=group)
    n = len(shard_of)

    def read(start):
        reader = ShardsReader(files, table_of(sizes), config, None)
        reader._fetch_ahead = lambda *which: None
        return [reader.find(p)[1] for p in range(start, 3 * n)]

    stream = read(0)
    start = data.draw(st.integers(0, 3 * n))
    assert read(start) == stream[start:]
    for epoch in np.reshape(stream, (3, n)):
        assert sorted(epoch) == list(range(n))
        if is_remote:  # so many shards at a time, each of them whole
            turns = {}
            groups = [turns.setdefault(shard, len(turns)) // group for shard in shard_of[epoch]]
            assert groups == sorted(groups)


# --- several captions -----------------------------------------------------------------------------


def test_a_caption_a_line_and_which_is_f_of_seed_epoch_and_sample(tmp_path):
    samples = [{"png": encoded(n), "txt": f"{n} a\n{n} b\n{n} c"} for n in range(20)]
    path = shard(tmp_path / "a.tar", samples)
    texts = texts_of(path, 20 * 30)
    times = collections.Counter(texts)
    assert len(times) == 60, "every caption of every image is read in time"
    for letter in "abc":
        assert 160 < sum(times[f"{n} {letter}"] for n in range(20)) < 240
    assert texts[100:200] == texts_of(path, 100, start=100)
    assert texts != texts_of(path, 600, seed=1)


def test_no_use_of_random_words_sees_anothers():
    """Of three uses, epochs and samples, eight words each, which stay: or no run could resume."""
    uses, numbers = (ORDER, CAPTION, MIXTURE), range(3)
    keys = itertools.product(uses, numbers, numbers)
    words = [random_words(7, use, counter, 8, inner) for use, counter, inner in keys]
    assert len(set(np.concatenate(words).tolist())) == 27 * 8
    assert not set(random_words(8, ORDER, 0, 8).tolist()) & set(words[0].tolist())
    assert shuffled(7, 1, 10).tolist() == [2, 5, 7, 8, 1, 9, 3, 4, 0, 6]
    assert shuffled(7, 1, 10, np.arange(10) % 2).tolist() == [2, 8, 4, 0, 6, 5, 7, 1, 9, 3]
    assert choose_caption("abcdefg", 7, 1, 2) == "b"


@pytest.mark.parametrize(
    ("text", "columns", "captions"),
    [
        (b" a ring \r\n \n\nred\n", None, ["a ring", "red"]),
        (b" a ring\nred\n", {}, ["a ring\nred"]),
        (b"ring", {"captions": [" one", "", "two "], "caption": "three"}, ["one", "two"]),
        (b"ring", {"captions": "no list", "caption": "three"}, ["ring"]),
        (None, {"caption": " three "}, ["three"]),
    ],
)
def test_what_the_captions_of_a_sample_are(text, columns, captions):
    assert captions_of(text, columns, "a.tar") == captions


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff{}"])
def test_a_json_without_columns_cannot_be_read(data):
    with pytest.raises(UnreadableError, match=r"'JSON that cannot be read', 'a\.tar'"):
        columns_of(data, "a.tar")


def test_img2dataset_is_read_as_it_is(tmp_path):
    """The text is one caption whatever its lines; without a .txt the JSON has it."""
    columns = {"url": "http://x", "caption": "two\nlines", "width": 12, "similarity": 0.31}
    rest = [
        {"json": columns, "txt": "two\nlines"},
        {"json": {**columns, "caption": "from the JSON"}},
        {"json": b"{", "txt": "x"},
    ]
    samples = [{"jpg": encoded(n, kind="JPEG"), **files} for n, files in enumerate(rest)]
    stream = source(shard(tmp_path / "00000.tar", samples))
    (tmp_path / "00000_stats.json").write_text("{}")
    assert {batch.texts[0] for batch in take(stream, 1, 0, 6)} == {"two\nlines", "from the JSON"}
    assert stream.damage.counts == {"JSON that cannot be read": 1}


# --- lists and folders ----------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    return tmp_path


def write_list(folder, rows):
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_a_list_of_captions(images):
    rows = [{"file": f"{n}.png", "caption": f"number {n}", "lang": "en"} for n in range(6)]
    for file, caption in (("0.png", "another of 0"), ("gone.png", "x"), ("1.png", " ")):
        rows.append({"file": file, "caption": caption})
    write_list(images, rows)
    stream = source(images)
    assert stream.num_samples == 6
    assert stream.damage.counts == {"missing image": 1, "empty text": 1}
    texts = texts_of(images, 60)
    assert set(texts) == {f"number {n}" for n in range(6)} | {"another of 0"}
    for epoch in np.reshape(texts, (10, 6)):
        assert sorted(text[-1] for text in epoch) == list("012345")

    assert texts_of(images / "list.jsonl", 60) == texts, "the only list of a folder is read"
    (images / "second.csv").write_text("file,caption\n0.png,zero\n")
    with refused(images):
        source(images)


def test_a_list_at_home_in_capitals(images, monkeypatch):
    (images / "LIST.CSV").write_text("file,caption\n0.png,zero\n")
    monkeypatch.setenv("HOME", str(images))
    assert texts_of("~/LIST.CSV", 1) == ["zero"]


def test_a_folder_with_texts_beside_the_images(images):
    for n in range(5):
        (images / f"{n}.txt").write_text(f"number {n}\n" if n < 4 else " \n")
    stream = source(images)
    assert stream.num_samples == 4
    assert stream.damage.counts == {"empty text": 1, "image without a text": 1}
    assert texts_of(images, 8, seed=1) != texts_of(images, 8)

    (images / "2.png").unlink()
    (images / "3.png").write_bytes(b"no image")
    assert sorted(numbers(take(stream, 2, 0, 1))) == [0, 1]
    take(stream, 2, 0, 3)
    of_reading = {"missing image": 1, "corrupt image": 1}
    assert stream.damage.counts == {"empty text": 1, "image without a text": 1} | of_reading


def test_folders_without_pairs_are_refused(images, tmp_path_factory):
    for folder in (images, tmp_path_factory.mktemp("empty")):
        with refused(folder):
            source(folder)


# --- filters --------------------------------------------------------------------------------------


SAMPLES = [
    {
        "png": encoded(n, size=(8 + n, 20)),
        "txt": "word " * n + "end",
        "json": {"lang": "en" if n % 2 else "de", "score": n / 10},
    }
    for n in range(10)
]


@pytest.mark.parametrize(
    ("filters", "kept", "reasons"),
    [
        ("text>=13", range(2, 10), {"length of text": 2}),
        ("width<10 height=20", range(2), {"width": 8}),
        ("lang=EN|fr", range(1, 10, 2), {"lang": 5}),
        ("side>=12 lang=de", (4, 6, 8), {"side": 4, "lang": 3}),
    ],
)
def test_filters_leave_out_and_say_why(tmp_path, filters, kept, reasons):
    stream = source(shard(tmp_path / "a.tar", SAMPLES), filters=filters)
    assert stream.num_samples == len(kept)
    assert sorted(text.count("word") for text in stream.captions(100)) == sorted(kept)
    for reason, count in reasons.items():
        assert f"{count} {reason}" in stream.describe()


def test_a_list_is_filtered_by_its_columns(images):
    rows = [{"file": f"{n}.png", "caption": [f"number {n}", "no"], "score": n} for n in range(6)]
    write_list(images, rows)
    texts = set(texts_of(images, 30, filters="score<3 text>=4"))
    assert texts == {"number 0", "number 1", "number 2"}
    assert source(images, filters="side>=9").num_samples == 6
    with refused(images, DataError) as caught:
        source(images, filters="quality>1")
    assert "6 no quality" in caught.value.problem


@pytest.mark.parametrize(
    ("words", "kept", "left_out"),
    [
        ("n>=3", (3, 3.5, "3"), (2.9, "2")),
        ("n>3", (3.1, "4"), (3, "3.0")),
        ("n<=3", (3, 2, "3"), (3.1, "4")),
        ("n<3", (2.9, "2"), (3, "3.0")),
        ("exif.iso-speed<800", (100,), (800,)),
        ("lang=en|de", ("en", "DE", " de\n"), ("fr", "e", "en|de")),
    ],
)
def test_a_condition_at_its_bound(words, kept, left_out):
    """Columns of a list of captions are words; they compare as numbers too."""
    filters = parse(words)
    name = filters.conditions[0].name
    for values, reason in ((kept, None), (left_out, name)):
        assert {filters.reason(["a caption"], {name: value}) for value in values} == {reason}


@pytest.mark.parametrize("value", ["high", "", [3]])
def test_a_column_that_is_no_number_leaves_its_sample_out_and_not_the_run(value):
    assert parse("score>=3").reason(["a caption"], {"score": value}) == "score that is no number"


@pytest.mark.parametrize(
    "words", ["text>>3", "text>=many", "text=many", "score>=x", "side=wide", "=3", "text"]
)
def test_what_is_no_filter(words):
    with refused("data.filters"):
        parse(words)


def test_filters_that_leave_nothing(tmp_path):
    with refused(tmp_path, DataError) as caught:
        source(shard(tmp_path / "a.tar", SAMPLES), filters="text>=1000")
    assert "10 length of text" in caught.value.problem


# --- mixtures -------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    weights=st.lists(st.floats(0.05, 20), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    block=st.integers(0, 5),
)
def test_every_block_has_each_source_in_its_share_and_each_inner_stream_is_whole(
    weights, seed, block
):
    reader = MixedReader([mock.Mock(num_nodes=1)] * len(weights), weights, seed)
    entries = [reader.find(p) for p in range(block * BLOCK, (block + 1) * BLOCK)]
    for number, weight in enumerate(weights):
        own = [inner for which, inner in entries if which == number]
        assert abs(len(own) - BLOCK * weight / sum(weights)) < 1
        assert own == list(range(block * len(own), (block + 1) * len(own)))


@pytest.fixture
def two(tmp_path):
    sources = []
    for name, count in (("one", 30), ("other", 10)):
        samples = [{"png": encoded(n), "txt": f"{name} {n}"} for n in range(count)]
        sources.append(shard(tmp_path / f"{name}.tar", samples))
    return sources


def test_weights_are_shares_of_the_stream(two):
    weighted = "3 * {} | 1 * {}".format(*two)
    texts = texts_of(weighted, 1000)
    of_one = [text for text in texts if text.startswith("one")]
    assert len(of_one) == 750
    for epoch in np.reshape(of_one, (25, 30)):
        assert len(set(epoch)) == 30, "each source goes through whole epochs"
    assert texts[400:500] == texts_of(weighted, 100, start=400)
    is_one = [[text in of_one for text in texts_of(weighted, 1000, seed=seed)] for seed in (0, 1)]
    assert is_one[0] != is_one[1]


def test_without_weights_sources_are_as_large_as_they_are(two):
    texts = texts_of(f"{two[0]} | {two[1]}", 1000)
    assert sum(text.startswith("one") for text in texts) == 750
    description = source(f"{two[0]} | {two[1]}").describe()
    assert description == "75 % 30 pairs in 1 shard + 25 % 10 pairs in 1 shard"


def test_a_reader_is_the_same_in_another_process(two):
    """It is copied there; where processes are not forked, by pickle."""
    reader = open_reader(DataConfig(source=f"3 * {two[0]} | 1 * {two[1]}"), Damage())
    readers = (reader, pickle.loads(pickle.dumps(reader)))
    texts, again = ([reader.text(p) for p in range(5)] for reader in readers)
    assert texts == again


def test_a_pattern_that_begins_with_a_number_is_no_weight(tmp_path, monkeypatch):
    shard(tmp_path / "00.tar", [{"png": encoded(0), "txt": "zero"}])
    monkeypatch.chdir(tmp_path)
    assert texts_of("0*.tar", 1) == texts_of("2.5 * 0*.tar", 1) == ["zero"]


@pytest.mark.parametrize(
    ("mixture", "about"),
    [
        ("2 * {0} | {1}", "{1}"),
        ("0 * {0} | 1 * {1}", "0 * "),
        ("1.2.3 * {0} | 1 * {1}", "1.2.3"),
        ("{0} |", "{0} |"),
        ("shapes | {0}", "shapes | "),
        ("1 * {0} | 0.0001 * {1}", "data.source"),
    ],
)
def test_mixtures_that_mean_nothing(two, mixture, about):
    with refused(about.format(*two)):
        source(mixture.format(*two))


@pytest.mark.parametrize("name", ["my data", "a [x]", "b#1", "c,d", "e {1..2}", "f*"])
def test_a_path_of_odd_letters_is_a_source(tmp_path, name):
    home = tmp_path / name
    (home / "images").mkdir(parents=True)
    (home / "images/0.png").write_bytes(encoded(0))
    (home / "images/0.txt").write_text("number 0")
    (home / "x.csv").write_text("file,caption\n0.png,number 0\n")
    write_shard(home / "000.tar", whole(0))
    for data in ("images", "x.csv", "000.tar", "*.tar", "{000..000}.tar"):
        assert texts_of(home / data, 1) == ["number 0"]


def test_cocos_captions_are_a_source(tmp_path):
    coco = {
        "images": [{"id": 5, "file_name": "5.png"}, {"id": 4, "file_name": "4.png"}],
        "annotations": [{"image_id": n, "caption": f"number {n}"} for n in (4, 5)],
    }
    for folder in ("annotations", "train2017"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "annotations/captions_train2017.json"
    path.write_text(json.dumps(coco))
    for n in (4, 5):
        (tmp_path / f"train2017/{n}.png").write_bytes(encoded(n))
    assert sorted(numbers(take(source(path), 1, 0, 2))) == [4, 5]


def test_quotes_that_a_tsv_keeps_are_said(tmp_path, capsys):
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    (tmp_path / "x.tsv").write_text('file\tcaption\n0.png\tnumber "0"\n1.png\t"number 1"\n')
    assert set(texts_of(tmp_path / "x.tsv", 2)) == {'number "0"', '"number 1"'}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 caption in quotes")
    assert line.endswith("x.tsv:3")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_turned_are_counted_and_nothing_is_lost(tmp_path, workers):
    exif = Image.Exif()
    exif[0x0112] = 8
    buffer = io.BytesIO()
    Image.new("RGB", (12, 6)).save(buffer, "JPEG", exif=exif)
    samples = [{"jpg": buffer.getvalue(), "txt": "a"}] * 2 + [{"png": encoded(0), "txt": "b"}]
    path = shard(tmp_path / "a.tar", samples)
    stream = source(path, num_workers=workers)
    batches = take(stream, 3, 0, 2)
    sizes = {tuple(size) for batch in batches for size in batch.sizes.tolist()}
    assert sizes == {(12, 6), (9, 12)}, "height and width as they are shown"
    assert stream.changed.counts == {TURNED: 2}
    assert stream.damage.total == 0
    seen = look(DataConfig(source=path), 3, TextConfig())
    assert (seen["changed"], seen["damage"]) == ({TURNED: 2}, {})
