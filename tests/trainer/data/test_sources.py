"""What a source may be besides shards: lists and folders of captioned pictures, mixtures.

Several captions; filters.
"""

import collections
import io
import itertools
import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import UserError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import sources as mixture
from silc_bench.trainer.data.samples import (
    CAPTION,
    MIXTURE,
    ORDER,
    UnreadableError,
    captions_of,
    choose_caption,
    columns_of,
    parse,
    random_words,
    shuffled,
)
from silc_bench.trainer.data.shards import ShardsReader
from silc_bench.trainer.data.stream import open_source

from test_data import encoded, numbers, whole, write_shard  # isort: skip


def stream(source, **fields):
    return open_source(DataConfig(**({"source": str(source), "decode_size": 16} | fields)))


def take(source, count, start=0, **fields):
    """Texts of ``count`` entries."""
    with closing(stream(source, **fields).batches(1, start)) as batches:
        return [batch.texts[0] for batch in itertools.islice(batches, count)]


def shard(path, samples):
    """A tar with the samples {extension: bytes or object}."""
    members = []
    for key, sample in enumerate(samples):
        for extension, value in sample.items():
            data = (
                value
                if isinstance(value, bytes)
                else value.encode()
                if isinstance(value, str)
                else json.dumps(value).encode()
            )
            members.append((f"{key:05}.{extension}", data))
    write_shard(path, members)
    return str(path)


# --- each sample once, for any number of shards, workers and ranks, from any point ----------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    group=st.integers(1, 4),
    ranks=st.sampled_from([1, 2, 3, 4]),
    share=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_every_order_is_a_permutation_that_any_number_of_ranks_divides(
    sizes, group, ranks, share, seed, data
):
    """What ranks read of each global batch, put together, is the stream; an epoch has all.

    By positions, and from any batch on.
    """
    places = np.zeros((sum(sizes), 7), np.int64)
    places[:, 0] = np.repeat(np.arange(len(sizes)), sizes)
    is_remote = data.draw(st.booleans())
    files = [("http://x", None) if is_remote else Path("x")] * len(sizes)
    config = DataConfig(seed=seed, shuffle_shards=group)
    reader = ShardsReader(files, places, config, None, collections.Counter(), None)
    object.__setattr__(reader, "_fetch_ahead", lambda *args: None)
    n, batch = sum(sizes), ranks * share
    whole_stream = [reader.find(p)[1] for p in range(3 * n)]
    assert all(sorted(whole_stream[e * n : (e + 1) * n]) == list(range(n)) for e in range(3))
    start = data.draw(st.integers(0, 2 * n // batch)) * batch
    again = ShardsReader(files, places, config, None, collections.Counter(), None)
    object.__setattr__(again, "_fetch_ahead", lambda *args: None)
    for first in range(start, 3 * n - batch, batch):
        of_ranks = [
            [again.find(first + r * share + i)[1] for i in range(share)] for r in range(ranks)
        ]
        assert list(itertools.chain(*of_ranks)) == whole_stream[first : first + batch]
    if is_remote:  # within an epoch, a group's shards are read before any of the next group
        for epoch in range(3):
            of = [
                reader.groups(epoch)[places[i, 0]]
                for i in whole_stream[epoch * n : (epoch + 1) * n]
            ]
            assert of == sorted(of)


@pytest.mark.timing
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@settings(max_examples=6, deadline=None)
@given(workers=st.sampled_from([0, 1, 2]), batch=st.integers(1, 7), resume=st.integers(0, 40))
@pytest.mark.timing
def test_workers_and_the_point_of_resuming_change_nothing(tmp_path_factory, workers, batch, resume):
    folder = tmp_path_factory.getbasetemp() / "resuming"
    if not folder.exists():
        folder.mkdir()
        for number, indices in enumerate([range(6), range(6, 13), range(13, 17)]):
            write_shard(
                folder / f"{number}.tar", itertools.chain.from_iterable(map(whole, indices))
            )
    source = str(folder / "{0..2}.tar")
    with closing(stream(source).batches(1, 0)) as batches:
        reference = numbers(itertools.islice(batches, resume + 4 * batch))
    with closing(stream(source, num_workers=workers).batches(batch, resume)) as batches:
        assert numbers(itertools.islice(batches, 4)) == reference[resume:]


# --- several captions -----------------------------------------------------------------------------


def test_a_caption_a_line_and_which_is_f_of_seed_epoch_and_sample(tmp_path):
    source = shard(
        tmp_path / "a.tar",
        [{"png": encoded(n), "txt": "\n".join(f"{n} {c}" for c in "abc")} for n in range(20)],
    )
    texts = take(source, 20 * 30)
    epochs = [dict(text.split() for text in texts[20 * e : 20 * e + 20]) for e in range(30)]
    assert all(len(epoch) == 20 for epoch in epochs)
    seen = collections.Counter((n, c) for epoch in epochs for n, c in epoch.items())
    assert len(seen) == 60, "every caption of every picture is read in time"
    letters = collections.Counter(c for epoch in epochs for c in epoch.values())
    assert all(160 < count < 240 for count in letters.values())
    assert texts[100:200] == take(source, 100, start=100)
    assert texts != take(source, 600, seed=1)


def test_a_choice_needs_no_other_choice():
    captions = list("abcdefg")
    picks = [choose_caption(captions, 3, epoch, index) for epoch in range(4) for index in range(50)]
    assert picks == [
        choose_caption(captions, 3, epoch, index) for epoch in range(4) for index in range(50)
    ]
    assert len(set(picks)) == 7
    assert choose_caption(["one"], 0, 0, 0) == "one"


def test_no_use_of_random_words_sees_anothers():
    """Of three uses, epochs and samples, eight words each, which stay: or no run could resume."""
    uses, numbers = (ORDER, CAPTION, MIXTURE), range(3)
    words = [
        random_words(7, use, counter, 8, inner)
        for use in uses
        for counter in numbers
        for inner in numbers
    ]
    assert len(set(np.concatenate(words).tolist())) == 27 * 8
    assert not set(random_words(8, ORDER, 0, 8).tolist()) & set(words[0].tolist())
    assert shuffled(7, 1, 10).tolist() == [2, 5, 7, 8, 1, 9, 3, 4, 0, 6]
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


@pytest.mark.parametrize("data", [b"[1]", b'"en"', b"{", b"\xff{}"])
def test_a_json_without_columns_cannot_be_read(data):
    with pytest.raises(UnreadableError) as caught:
        columns_of(data, "a.tar")
    assert (caught.value.cause, caught.value.where) == ("JSON that cannot be read", "a.tar")


def test_img2dataset_is_read_as_it_is(tmp_path):
    """.jpg, .txt and .json a sample: the text is one caption; without a .txt the JSON has it.

    One caption whatever its lines.
    """
    columns = {
        "url": "http://x",
        "caption": "two\nlines",
        "status": "success",
        "width": 12,
        "height": 9,
        "similarity": 0.31,
    }
    samples = [
        {"jpg": encoded(0, kind="JPEG"), "json": columns, "txt": "two\nlines"},
        {"jpg": encoded(1, kind="JPEG"), "json": {**columns, "caption": "from the JSON"}},
        {"jpg": encoded(2, kind="JPEG"), "json": {**columns, "caption": None}},
        {"jpg": encoded(3, kind="JPEG"), "json": b"{", "txt": "x"},
        {
            "jpg": encoded(4, kind="JPEG"),
            "json": {"captions": ["one", "two", " "]},
            "txt": "ignored",
        },
    ]
    source = stream(shard(tmp_path / "00000.tar", samples))
    (tmp_path / "00000_stats.json").write_text("{}")
    with closing(source.batches(1, 0)) as batches:
        texts = {batch.texts[0] for batch in itertools.islice(batches, 30)}
    assert texts == {"two\nlines", "from the JSON", "one", "two"}
    assert source.damage.counts == {"empty text": 1, "JSON that cannot be read": 1}


# --- lists and folders ----------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    return tmp_path


def test_a_list_of_captions(images):
    rows = [{"file": f"{n}.png", "caption": f"number {n}", "lang": "en"} for n in range(6)]
    rows += [
        {"file": "0.png", "caption": "another of 0"},
        {"file": "gone.png", "caption": "x"},
        {"file": "1.png", "caption": " "},
    ]
    (images / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = stream(images / "list.jsonl")
    assert source.num_samples == 6
    assert source.damage.counts == {"missing picture": 1, "empty text": 1}
    texts = take(images / "list.jsonl", 60)
    assert set(texts) == {f"number {n}" for n in range(6)} | {"another of 0"}
    assert all(len({text.split()[-1] for text in texts[6 * e : 6 * e + 6]}) == 6 for e in range(10))
    assert take(images, 60) == texts, "the folder that holds one list is that list"
    (images / "list.csv").write_text("file,caption\n0.png,zero\n")
    assert take(images / "list.csv", 2) == ["zero", "zero"]
    with pytest.raises(UserError, match=r"holds 2 lists of captions, such as list.csv; name one"):
        stream(images)


def test_a_list_at_home_in_capitals(images, monkeypatch):
    (images / "LIST.CSV").write_text("file,caption\n0.png,zero\n")
    monkeypatch.setenv("HOME", str(images))
    assert take("~/LIST.CSV", 1) == ["zero"]


def test_a_folder_with_texts_beside_the_images(images):
    for n in range(5):
        (images / f"{n}.txt").write_text(f"number {n}\nagain {n}\n")
    (images / "4.txt").write_text(" \n")
    source = stream(images)
    assert source.num_samples == 4
    assert source.damage.counts == {"empty text": 1, "picture without a text": 1}
    assert {text.split()[-1] for text in take(images, 4)} == set("0123")


def test_an_image_that_disappears_or_is_broken_is_counted(images):
    for n in range(6):
        (images / f"{n}.txt").write_text(f"number {n}")
    source = stream(images)
    (images / "2.png").unlink()
    (images / "3.png").write_bytes(b"no picture")
    with closing(source.batches(4, 0)) as batches:
        assert sorted(numbers([next(batches)])) == [0, 1, 4, 5]
        next(batches)
    assert source.damage.counts == {"missing picture": 1, "corrupt image": 1}


def test_folders_without_pairs_say_what_is_missing(images, tmp_path_factory):
    with pytest.raises(
        UserError, match=r"holds 6 pictures and no caption of any: write NAME.txt beside NAME.jpg"
    ):
        stream(images)
    with pytest.raises(UserError, match=r"holds neither pictures, nor shards"):
        stream(tmp_path_factory.mktemp("empty"))


@pytest.mark.skipif(
    "SILC_BENCH_TEST_DATA" not in os.environ,
    reason="SILC_BENCH_TEST_DATA names no folder of real data",
)
def test_coco_photographs_with_five_captions_each():
    source = stream(
        Path(os.environ["SILC_BENCH_TEST_DATA"], "coco_mini", "meta.jsonl"), decode_size=64
    )
    assert source.num_samples == 159
    with closing(source.batches(53, 0)) as batches:
        epochs = [
            [text for batch in itertools.islice(batches, 3) for text in batch.texts]
            for _ in range(2)
        ]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 2
    assert source.damage.total == 0


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
        ("side>=12", range(4, 10), {"side": 4}),
        ("width<10 height=20", range(2), {"width": 8}),
        ("lang=EN|fr", range(1, 10, 2), {"lang": 5}),
        ("score>=0.3 lang=de", (4, 6, 8), {"score": 3, "lang": 4}),
        ("side>=12 lang=de", (4, 6, 8), {"side": 4, "lang": 3}),
    ],
)
def test_filters_leave_out_and_say_why(tmp_path, filters, kept, reasons):
    source = stream(shard(tmp_path / "a.tar", SAMPLES), filters=filters)
    assert source.num_samples == len(kept)
    assert sorted(text.count("word") for text in source.captions(100)) == sorted(kept)
    for reason, count in reasons.items():
        assert f"{count} {reason}" in source.describe()


def test_a_list_is_filtered_by_its_columns(images):
    rows = [{"file": f"{n}.png", "caption": [f"number {n}", "no"], "score": n} for n in range(6)]
    (images / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(take(images, 30, filters="score<3 text>=4")) == {
        "number 0",
        "number 1",
        "number 2",
    }
    assert stream(images, filters="side>=9").num_samples == 6
    with pytest.raises(UserError, match=r"no pair .*filters left out 6: 6 no quality"):
        stream(images, filters="quality>1")


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
    (condition,) = filters.conditions
    reasons = [
        filters.reason(["a caption"], {condition.name: value}) for value in (*kept, *left_out)
    ]
    assert [reason is None for reason in reasons] == [True] * len(kept) + [False] * len(left_out)


@pytest.mark.parametrize("value", ["high", "", [3]])
def test_a_column_that_is_no_number_leaves_its_sample_out_and_not_the_run(value):
    assert parse("score>=3").reason(["a caption"], {"score": value}) == "score that is no number"


@pytest.mark.parametrize(
    "words", ["text>>3", "text>=many", "text=many", "score>=x", "side=wide", "=3", "text"]
)
def test_what_is_no_filter(tmp_path, words):
    with pytest.raises(UserError, match=r"data.filters: "):
        stream(shard(tmp_path / "a.tar", SAMPLES), filters=words)


def test_filters_that_leave_nothing(tmp_path):
    with pytest.raises(UserError, match=r"filters left out 10: 10 length of text"):
        stream(shard(tmp_path / "a.tar", SAMPLES), filters="text>=1000")


# --- mixtures -------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 20), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    block=st.integers(0, 5),
)
def test_every_block_has_each_source_in_its_share_and_each_inner_stream_is_whole(
    weights, seed, block
):
    reader = mixture.MixedReader([None] * len(weights), weights, seed)
    found = [reader.find(p) for p in range(block * mixture.BLOCK, (block + 1) * mixture.BLOCK)]
    for source, weight in enumerate(weights):
        mine = [inner for which, inner in found if which == source]
        assert abs(len(mine) - mixture.BLOCK * weight / sum(weights)) < 1
        assert mine == list(range(block * len(mine), (block + 1) * len(mine)))


@pytest.fixture
def two(tmp_path):
    one = shard(tmp_path / "one.tar", [{"png": encoded(n), "txt": f"one {n}"} for n in range(30)])
    other = shard(
        tmp_path / "other.tar", [{"png": encoded(n), "txt": f"other {n}"} for n in range(10)]
    )
    return one, other


def test_weights_are_shares_of_the_stream(two):
    texts = take(f"3 * {two[0]} | 1 * {two[1]}", 1000)
    mine = [text for text in texts if text.startswith("one")]
    assert len(mine) == 750
    assert all(len(set(mine[30 * e : 30 * e + 30])) == 30 for e in range(25)), (
        "each source goes through whole epochs"
    )
    assert texts[400:500] == take(f"3 * {two[0]} | 1 * {two[1]}", 100, start=400)
    assert [text.split()[0] for text in texts] != [
        text.split()[0] for text in take(f"3 * {two[0]} | 1 * {two[1]}", 1000, seed=1)
    ]


def test_without_weights_sources_are_as_large_as_they_are(two):
    texts = take(f"{two[0]} | {two[1]}", 1000)
    assert sum(text.startswith("one") for text in texts) == 750
    assert (
        stream(f"{two[0]} | {two[1]}").describe()
        == "75 % 30 pairs in 1 shard + 25 % 10 pairs in 1 shard"
    )


def test_a_pattern_that_begins_with_a_number_is_no_weight(tmp_path, monkeypatch):
    shard(tmp_path / "00.tar", [{"png": encoded(0), "txt": "zero"}])
    monkeypatch.chdir(tmp_path)
    assert take("0*.tar", 1) == take("2.5 * 0*.tar", 1) == ["zero"]


def test_scenes_can_be_mixed_in(two):
    texts = take(f"1 * shapes | 1 * {two[1]}", 40)
    assert 10 < sum(text.startswith("other") for text in texts) < 30


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("2 * {0} | {1}", "give each source a weight, or none"),
        ("0 * {0} | 1 * {1}", "a weight is a number above 0, not 0"),
        ("1.2.3 * {0} | 1 * {1}", "a weight is a number above 0, not 1.2.3"),
        ("{0} |", "a source is empty"),
        ("shapes | {0}", "shapes never ends, so its share is yours to say"),
        ("1 * {0} | 0.0001 * {1}", "the least that can be met is 0.1 %"),
    ],
)
def test_mixtures_that_mean_nothing(two, source, words):
    with pytest.raises(UserError, match=words):
        stream(source.format(*two))


def test_damage_of_each_source_is_counted(two, tmp_path):
    broken = shard(
        tmp_path / "broken.tar", [{"png": encoded(n)[:40], "txt": "x"} for n in range(3)]
    )
    source = stream(f"9 * {two[0]} | 1 * {broken}")
    with closing(source.batches(10, 0)) as batches:
        for _ in range(10):
            next(batches)
    assert source.damage.counts == {"corrupt image": 3}


def test_grey_and_palette_images_have_a_size_too(tmp_path):
    file = io.BytesIO()
    Image.new("P", (30, 10)).save(file, "PNG")
    source = shard(tmp_path / "a.tar", [{"png": file.getvalue(), "txt": "x"}])
    assert stream(source, filters="width=30 side=10").num_samples == 1
    assert Damage().total == 0
