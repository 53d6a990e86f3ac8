"""What a tokenizer is trained on: the data decides it, and no seed, order, worker or rank does."""

import itertools
import json
from collections import Counter

import pytest

from silc_bench.trainer.silc.tokenizers import Tokenizer

from faulty_server import FaultyServer  # isort: skip
from pairs import encoded, numbered, shard, source, take  # isort: skip

ROWS = [
    {"file": f"{n}.png", "captions": [f"number {n}", f"the {n}th"], "lang": "en"} for n in range(9)
]


def write_list(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """37 pairs in three shards, 9 images in two lists of the same rows, and 9 with texts."""
    folder = tmp_path_factory.mktemp("data")
    numbered(folder, 15, 15, 7)
    (folder / "texts").mkdir()
    for n in range(9):
        (folder / f"{n}.png").write_bytes(encoded(n))
        (folder / "texts" / f"{n}.png").write_bytes(encoded(n))
        (folder / "texts" / f"{n}.txt").write_text(f"number {n}")
    write_list(folder / "list.jsonl", ROWS)
    write_list(folder / "again.jsonl", ROWS[::-1])
    return folder


SOURCES = {
    "scenes": ("shapes", "shapes"),
    "places": ("places", "places"),
    "so many places": ("places:num_pairs=20", "places:num_pairs=20"),
    "shards": ("{0}/000.tar {0}/001.tar {0}/002.tar", "{0}/002.tar {0}/00{{1,0}}.tar"),
    "a list": ("{0}/list.jsonl", "{0}/again.jsonl"),
    "a folder": ("{0}/texts", "{0}/texts"),
    "a mixture": (
        "3 * {0}/00{{0..2}}.tar | 1 * {0}/texts | 1 * shapes",
        "1 * shapes | 3 * {0}/00{{2,1,0}}.tar | 1 * {0}/texts",
    ),
}


@pytest.mark.parametrize("count", [5, 1000], ids=["some", "all"])
@pytest.mark.parametrize("kind", SOURCES)
def test_two_seeds_learn_a_tokenizer_of_the_same_captions(folder, kind, count):
    """The second run has another seed, more workers, and names the same data in another order."""
    first, second = (pattern.format(folder) for pattern in SOURCES[kind])
    streams = [
        source(first, seed=0, shuffle_shards=8),
        source(second, seed=7, num_workers=2, shuffle_shards=1),
    ]
    read = [stream.captions(count) for stream in streams]
    assert Counter(read[0]) == Counter(read[1])
    tokenizers = [Tokenizer.train(captions, 300, 12).to_json() for captions in read]
    assert tokenizers[0] == tokenizers[1]


def test_the_seeds_above_read_different_batches(folder):
    """Else the test above would hold whatever the tokenizer is trained on."""
    for first, _ in SOURCES.values():
        streams = [source(first.format(folder), seed=seed) for seed in (0, 7)]
        texts = [next(iter(take(stream, 8, 0, 1))).texts for stream in streams]
        assert texts[0] != texts[1], first


@pytest.mark.parametrize("count", [1, 4, 37, 73, 1000])
def test_captions_are_spread_over_the_data(folder, count):
    captions = source(folder / "00{0..2}.tar").captions(count)
    read = [int(text.split()[1]) for text in captions]
    assert read == sorted(set(read))
    assert len(read) == min(count, 37)
    gaps = {after - before for before, after in itertools.pairwise(read)}
    assert len(gaps) <= 2, "as evenly as whole numbers can be"


@pytest.mark.parametrize(("count", "each"), [(9, 1), (17, 1), (18, 2), (1000, 2)])
def test_of_few_images_all_captions_are_read(folder, count, each):
    captions = source(folder / "list.jsonl").captions(count)
    assert captions == [text for row in ROWS for text in row["captions"][:each]]


def test_captions_that_a_filter_leaves_out_are_not_learned(folder):
    captions = source(folder / "list.jsonl", filters="text>=8").captions(1000)
    assert captions == [row["captions"][0] for row in ROWS]


def test_unreadable_captions_are_counted_where_a_batch_meets_them(tmp_path):
    samples = [{"png": encoded(n), "txt": f"number {n}" if n % 3 else b"caf\xe9"} for n in range(9)]
    stream = source(shard(tmp_path / "a.tar", samples))
    assert len(stream.captions(1000)) == 6
    assert stream.damage.total == 0


@pytest.mark.timing
@pytest.mark.usefixtures("small_mirror")
@pytest.mark.parametrize(("count", "fetched"), [(10, 1), (20, 2), (1000, 5)])
def test_of_remote_shards_no_more_are_read_than_hold_the_captions(tmp_path, count, fetched):
    """Each is fetched whole: a tokenizer must not cost a pass over all data."""
    files = numbered(tmp_path, *[12] * 5)
    with FaultyServer(files) as server:
        captions = [
            source(f"{server.url}/00{order}.tar", seed=seed).captions(count)
            for seed, order in enumerate(("{0..4}", "{4..0}"))
        ]
    assert captions[0] == captions[1]
    assert len({int(text.split()[1]) // 12 for text in captions[0]}) == fetched
