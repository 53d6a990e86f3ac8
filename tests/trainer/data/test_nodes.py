"""Shards that belong to machines: together they read each pair once an epoch, each shard once."""

import errno
import itertools
import pickle
import sys
import tracemalloc
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from faulty_server import FaultyServer, end_of_fetches
from pairs import as_ranks, encoded, numbered, numbers, shard, table_of
from refusals import refused

from silc_bench.datasets.files import remote, shards
from silc_bench.datasets.files.shards import Damage, OpenFiles
from silc_bench.errors import DataError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import samples, shard_index
from silc_bench.trainer.data.samples import keyed, order_key
from silc_bench.trainer.data.shards import ShardsReader, order_of_shards, owners_of
from silc_bench.trainer.data.sources import MixedReader
from silc_bench.trainer.data.stream import BATCHES_AHEAD, Source

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("small_mirror")]
SIZES = (15, 15, 7, 11, 9, 1, 12)
PAIRS = list(range(sum(SIZES)))


def opened(pattern, num_nodes, damage=None, **fields):
    fields = {"decode_size": 16, "num_workers": 0, "shuffle_shards": 2} | fields
    config = DataConfig(source=str(pattern), **fields)
    reader = ShardsReader.open(config.source, config, damage or Damage(), (0, num_nodes))
    return Source(reader, config, Damage())


def batches_of(streams, batch_size, count, start=0, nodes=()):
    """The first batches of all ranks, one rank beside the other."""

    def work(rank, tell):
        part = (batch_size, start, rank, len(streams), tell, nodes)
        with closing(streams[rank].batches(*part)) as batches:
            return list(itertools.islice(batches, count))

    return as_ranks(len(streams), work)


# --- an order without a table ---------------------------------------------------------------------


def test_a_keyed_order_has_every_place_once():
    for count in [*range(1, 400), 1000, 4093, 4096, 5001]:
        key = order_key(3, count, 1)
        assert sorted(keyed(place, count, key) for place in range(count)) == list(range(count))


@pytest.mark.parametrize("count", [2, 3, 5, 12, 37])
def test_a_keyed_order_sends_each_place_anywhere_equally_often(count):
    """Within five deviations of chance, and so for the pair of a place and the next one."""
    num_keys = 150 * count
    met, steps = Counter(), Counter()
    for part in range(num_keys):
        key = order_key(0, 0, part)
        order = [keyed(place, count, key) for place in range(count)]
        met.update(enumerate(order))
        steps[(order[1] - order[0]) % count] += 1
    expected = num_keys / count
    assert len(met) == count**2
    assert all(abs(times - expected) < 6 * expected**0.5 for times in met.values())
    expected = num_keys / (count - 1)
    assert all(abs(times - expected) < 6 * expected**0.5 for times in steps.values())


def test_a_keyed_order_is_the_same_on_every_machine():
    key = order_key(7, 2, 1)
    order = [keyed(place, 10**9, key) for place in (0, 1, 999_999_999)]
    assert order == [415_833_056, 924_073_340, 211_404_233]


# --- each pair once -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize(("num_nodes", "per_node"), [(1, 1), (2, 1), (2, 2), (3, 1), (5, 1)])
def test_all_nodes_together_read_each_pair_once_an_epoch(tmp_path, num_nodes, per_node, seed):
    """Also where shards are unequal, and an epoch is no whole number of batches."""
    numbered(tmp_path, *SIZES)
    ranks = num_nodes * per_node
    streams = [opened(tmp_path, num_nodes, seed=seed) for _ in range(ranks)]
    batch_size, num_epochs = 2 * ranks, 4 * ranks
    answers = batches_of(streams, batch_size, num_epochs * len(PAIRS) // batch_size)
    assert len({tuple(batch.position for batch in answer) for answer in answers}) == 1
    read = [numbers(batches) for batches in answers]

    met = Counter(itertools.chain(*read))
    assert set(met) == set(PAIRS)
    assert set(met.values()) == {num_epochs}
    assert answers[0][-1].position == num_epochs * len(PAIRS)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    num_nodes=st.integers(2, 6),
    group=st.integers(1, 4),
    epoch=st.integers(0, 5),
)
def test_nodes_cut_an_epoch_into_parts_of_equal_length(sizes, num_nodes, group, epoch):
    total = sum(sizes)
    table = table_of(sizes)
    files = [shard_index.Shard(str(number)) for number in range(len(sizes))]
    config = DataConfig(shuffle_shards=group)
    reader = ShardsReader(files, table, config, remote.Mirror("", 1), num_nodes)
    positions = range(epoch * total, (epoch + 1) * total)
    found = {position: reader.find(position) for position in positions}
    assert {epoch_of for epoch_of, _ in found.values()} == {epoch}
    assert sorted(index for _, index in found.values()) == list(range(total))

    met = [set() for _ in range(num_nodes)]
    for position, (_, index) in found.items():
        met[position % num_nodes].add(table.shard_of(index))
    assert sum(map(len, met)) <= len(sizes) + num_nodes - 1, "only a cut goes through a shard"


def test_a_pair_that_cannot_be_read_costs_its_own_node_one_entry(tmp_path):
    """The others read what is theirs, so that none of them needs a shard of another."""
    broken = (3, 4, 5, 30)
    for number in range(4):
        pairs = [
            {"png": encoded(n)[: 30 if n in broken else None], "txt": f"number {n}"}
            for n in range(10 * number, 10 * number + 10)
        ]
        shard(tmp_path / f"{number}.tar", pairs)
    streams = [opened(tmp_path, 2, shuffle_shards=1) for _ in range(2)]
    whole, batch_size = set(range(40)) - set(broken), 4
    answers = batches_of(streams, batch_size, 30)

    # Each node has gone through its own entries, whole epochs of which hold each pair once.
    last = answers[0][-1]
    assert sum(last.nodes) == last.position > 30 * batch_size
    assert last.nodes[0] != last.nodes[1]
    met = Counter(numbers(itertools.chain(*answers)))
    assert set(met) == whole

    # From any batch on, the same follows.
    for begun in (1, 7, 20):
        at = answers[0][begun - 1]
        again = batches_of(streams, batch_size, 30 - begun, at.position, at.nodes)
        assert [numbers(each) for each in again] == [numbers(each[begun:]) for each in answers]


def test_a_mixture_keeps_the_parts_of_each_source(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, sizes in ((first, (9, 5, 4)), (second, (6, 6, 6))):
        folder.mkdir()
        numbered(folder, *sizes)
    config = DataConfig(decode_size=16, shuffle_shards=1)
    readers = [ShardsReader.open(str(path), config, Damage(), (0, 3)) for path in (first, second)]
    mixed = MixedReader(readers, [1, 1], 0)
    found = [mixed.find(position) for position in range(3000)]
    assert all(inner % 3 == position % 3 for position, (_, inner) in enumerate(found))
    for which in (0, 1):
        assert sorted(inner for reader, inner in found if reader == which) == list(range(1500))


# --- another number of nodes ----------------------------------------------------------------------


def test_a_node_fewer_goes_on_at_the_same_position_and_the_next_epoch_is_whole(tmp_path):
    """Of the epoch at hand some pairs come twice and as many do not."""
    numbered(tmp_path, *SIZES)
    before = batches_of([opened(tmp_path, 3) for _ in range(3)], 6, 6)
    read = numbers(itertools.chain(*before))
    last = before[0][-1]
    assert last.position == 36

    streams = [opened(tmp_path, 2) for _ in range(2)]
    after = batches_of(streams, 2, 17 + 70, 36, last.nodes)
    rest = numbers(itertools.chain(*(batches[:17] for batches in after)))
    assert after[0][16].position == len(PAIRS)
    assert len(read) == len(set(read)) == 36
    assert len(rest) == len(set(rest)) == len(PAIRS) - 36
    twice, never = set(read) & set(rest), set(PAIRS) - {*read, *rest}
    assert len(twice) == len(never) > 0
    next_epochs = Counter(numbers(itertools.chain(*(batches[17:] for batches in after))))
    assert next_epochs == Counter(PAIRS * 2)


# --- what is fetched ------------------------------------------------------------------------------


def test_an_epoch_of_two_nodes_fetches_each_shard_once(tmp_path, monkeypatch):
    """By counting what a server sends to two caches: at most 1.1 times the shards."""
    (tmp_path / "shards").mkdir()
    files = numbered(tmp_path / "shards", *[6] * 24)
    with FaultyServer(files) as server:
        pattern = f"{server.url}/{{000..023}}.tar"
        found = []
        for node in range(2):
            monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / f"cache{node}"))
            found.append(opened(pattern, 2))
            end_of_fetches()
            for path in (tmp_path / f"cache{node}").rglob("*.tar"):
                path.unlink()
        server.bytes_sent.clear()
        answers = batches_of(found, 6, 24 - BATCHES_AHEAD)  # others are read ahead
        end_of_fetches()
        assert len(set(numbers(itertools.chain(*answers)))) == 6 * (24 - BATCHES_AHEAD)
        assert server.bytes_sent.total() <= 1.1 * sum(map(len, files.values()))


def test_the_first_look_divides_shards_as_the_first_epoch_does_by_their_bytes():
    """As many bytes on each node as can be, whatever their sizes; no node goes without."""
    sizes = [900, 1, 1, 300, 1, 1, 1, 300, 1, 294]
    files = [
        shard_index.Shard(f"s3://a/{number}.tar", remote.Stamp(size, ""))
        for number, size in enumerate(sizes)
    ]
    for seed in range(10):
        owners = owners_of(seed, files, 2)
        order = order_of_shards(seed, 0, len(files)).tolist()
        in_order = [owners[number] for number in order]
        assert in_order == sorted(in_order)
        assert set(owners) == {0, 1}
        of_first = sum(size for size, owner in zip(sizes, owners, strict=True) if owner == 0)
        assert abs(of_first - 900) <= 450, "half of the largest one, which a cut may go through"


def test_nodes_that_see_other_shards_are_refused(tmp_path, monkeypatch):
    """By every rank alike; each would have an order of its own, and pairs come twice or never."""
    numbered(tmp_path, *SIZES)
    seen = iter([[5, 5, 6, 6], [7, 7, 6, 6], [70, 70, 58, 58]])
    monkeypatch.setattr("silc_bench.trainer.data.shards.num_ranks", lambda: 4)
    monkeypatch.setattr("silc_bench.trainer.data.shards.of_all", lambda number: next(seen))
    with refused(tmp_path) as caught:
        opened(tmp_path, 1)
    assert "rank 2: 6 with 58 pairs" in caught.value.problem


# --- one table a node -----------------------------------------------------------------------------


@pytest.fixture
def mapped(monkeypatch):
    monkeypatch.setattr(shard_index, "SMALL", 0)
    monkeypatch.setattr(samples, "LARGEST_TABLE", 2**24)


@pytest.mark.usefixtures("mapped")
def test_the_table_of_all_samples_is_a_file_that_workers_map_too(tmp_path, monkeypatch):
    numbered(tmp_path, *SIZES)
    reader = opened(tmp_path, 1)._reader
    path = reader.table.path
    assert path.suffix == ".rows"
    assert reader.table.rows.nbytes == 24 * len(PAIRS)
    sent = pickle.dumps(reader)
    assert len(sent) < 24 * len(PAIRS) + 3000
    copy = pickle.loads(sent)
    assert isinstance(copy.table.rows.base, np.memmap)
    assert [copy.text(p) for p in range(70)] == [reader.text(p) for p in range(70)]

    # A second start reads it and no index; the order and the identity are those of a small set.
    monkeypatch.setattr(shard_index, "load", None)
    again = opened(tmp_path, 1)._reader
    monkeypatch.undo()
    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "other"))
    small = opened(tmp_path, 1)._reader
    assert small.table.path is None
    assert again.fingerprint() == small.fingerprint()
    assert [again.find(p) for p in range(140)] == [small.find(p) for p in range(140)]


def most_bytes(work):
    """The most that is allocated at once, beyond what was before, and what ``work`` returns."""
    tracemalloc.start()
    try:
        answer = work()
        return tracemalloc.get_traced_memory()[1], answer
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("mapped")
def test_more_pairs_take_24_bytes_each_in_a_file_and_none_in_a_process(tmp_path, monkeypatch):
    """New shards, a second start, the order and the identity; of 5,000 pairs and of 20,000."""
    per_shard = 2500
    rows = np.tile(np.array([512, 60, 1024, 20, 0, -1]), (per_shard, 1))

    def looked_through(path, filters):
        return shard_index.ShardIndex(rows.copy(), Damage(), Counter())

    monkeypatch.setattr(shard_index, "_index", looked_through)
    numbered(tmp_path, *[1] * 8)
    opened(tmp_path / "000.tar", 1)  # imports what is used

    def held(last):
        with monkeypatch.context() as patch:
            patch.setattr("silc_bench.trainer.data.shards.LARGEST_TABLE", 1000)
            pattern = tmp_path / f"{{000..{last:03}}}.tar"
            yield most_bytes(lambda: opened(pattern, 1))[0]
            num_bytes, source = most_bytes(lambda: opened(pattern, 1))
            yield num_bytes
        reader = source._reader
        assert reader.num_samples == per_shard * (last + 1)
        assert reader.table.path.stat().st_size < 24 * reader.num_samples + 2000
        seen = np.zeros(reader.num_samples, bool)

        def read():
            for position in range(reader.num_samples):
                _, number = reader.find(position)
                reader.table.check(reader.table.shard_of(number))
                assert reader.table.member(number, 1) == (1024, 20)
                seen[number] = True

        yield most_bytes(read)[0]
        assert seen.all()
        yield most_bytes(reader.fingerprint)[0]

    few, many = list(held(1)), list(held(7))
    grown = [more - less for more, less in zip(many, few, strict=True)]
    assert max(grown) < 4 * 6 * per_shard, "not even a number of 32 bits a pair"


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("place", ["rows", "notes", "end", "cut"])
def test_a_damaged_table_is_not_served(tmp_path, place):
    numbered(tmp_path, *SIZES)
    reader = opened(tmp_path, 1)._reader
    path, before = reader.table.path, [reader.text(p) for p in range(20)]
    content = bytearray(path.read_bytes())
    at = {"rows": 4, "notes": 24 * len(PAIRS) + 5, "end": len(content) - 3, "cut": None}[place]
    if at is None:
        content = content[:-50]
    else:
        content[at] ^= 1
    del reader
    path.unlink()
    path.write_bytes(content)
    damaged = opened(tmp_path, 1)._reader
    if place == "rows":
        # its name is a hash of where the shards lie and when they were written
        with refused(path, DataError, is_kept=False):
            [damaged.text(p) for p in range(70)]
    else:
        assert [damaged.text(p) for p in range(20)] == before


def full(path):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def not_mapped(*_, **__):
    raise OSError(errno.ENODEV, "No such device")


@pytest.mark.parametrize(
    ("place", "fails", "reason"),
    [
        (shard_index, full, "No space left on device"),
        (np, not_mapped, "No such device"),  # as of some disks of a network
    ],
)
@pytest.mark.usefixtures("mapped")
def test_a_table_that_cannot_be_kept_is_said_and_in_memory(
    tmp_path, monkeypatch, capsys, place, fails, reason
):
    numbered(tmp_path, *SIZES)
    expected = opened(tmp_path, 1)._reader
    expected.table.path.unlink()
    monkeypatch.setattr(place, "memmap" if place is np else "atomic_path", fails)
    capsys.readouterr()
    reader = opened(tmp_path, 1)._reader
    said = "".join(capsys.readouterr().err.split())
    assert f"cannotkeepatablein{expected.table.path.parent}({reason})".replace(" ", "") in said
    assert reader.table.path is None
    assert [reader.text(p) for p in range(70)] == [expected.text(p) for p in range(70)]


def test_files_stay_open_up_to_a_limit(tmp_path, monkeypatch):
    paths = [tmp_path / str(number) for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 9)
    opened_paths, system_open = [], shards.os.open
    monkeypatch.setattr(
        shards.os, "open", lambda path, flags: opened_paths.append(path) or system_open(path, flags)
    )
    files = OpenFiles(3)
    for path in [*paths[:3] * 4, paths[3], paths[1], paths[0]]:
        assert files.read(path, (2, 3)) == bytes([paths.index(path)]) * 3
    assert opened_paths == [*paths[:3], paths[3], paths[0]]
    assert pickle.loads(pickle.dumps(files))._handles == {}
    with refused(paths[0]):
        files.read(paths[0], (7, 3))


def test_more_pairs_than_a_table_of_the_order_have_none(tmp_path, monkeypatch):
    numbered(tmp_path, *SIZES)
    before = opened(tmp_path, 1)._reader.fingerprint()
    for module in ("samples", "shards"):
        monkeypatch.setattr(f"silc_bench.trainer.data.{module}.LARGEST_TABLE", 9)
    reader = opened(tmp_path, 1)._reader
    assert sorted(reader.find(p)[1] for p in range(len(PAIRS))) == PAIRS
    assert not reader._orders
    assert reader.fingerprint() != before, "a run of an earlier version had another order"
