"""Each shard is looked through once: the second start reads what was kept of that very version."""

import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from pairs import whole, write_shard
from refusals import refused
from test_shares import Ranks

from silc_bench.datasets.files import remote, shards
from silc_bench.errors import RunError, UserError
from silc_bench.trainer.data import samples as filters
from silc_bench.trainer.data import shard_index

pytestmark = pytest.mark.timing


@pytest.fixture
def folder(tmp_path):
    """Three shards of five pairs; the second lacks a sample's image, the third is cut off."""
    for shard in range(3):
        members = whole(*range(5 * shard, 5 * shard + 5))
        write_shard(tmp_path / f"{shard}.tar", members[1:] if shard == 1 else members)
    cut = tmp_path / "2.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    return tmp_path


def indexed(folder, conditions=""):
    found = shard_index.expand(str(folder))
    mirror = remote.Mirror(folder / "kept", 2**30)
    return shard_index.index_all(found, filters.parse(conditions), mirror)


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        assert one.rows.dtype == other.rows.dtype == np.int64
        assert (one.damage, one.left_out) == (other.damage, other.left_out)


@pytest.fixture
def looked_at(monkeypatch):
    """The names of the shards that are looked through from now on."""
    names, index_shard = [], shards.index_shard
    monkeypatch.setattr(
        shards, "index_shard", lambda path: names.append(path.name) or index_shard(path)
    )
    return names


def test_a_second_start_looks_at_nothing_and_finds_the_same(folder, looked_at):
    first = indexed(folder)
    assert looked_at == ["0.tar", "1.tar", "2.tar"]
    assert [len(index.rows) for index in first] == [5, 4, 1]
    assert [index.damage.total for index in first] == [0, 1, 2]
    assert_same(indexed(folder), first)
    assert len(looked_at) == 3


def test_a_changed_shard_is_looked_at_again(folder, looked_at):
    indexed(folder)
    looked_at.clear()
    os.utime(folder / "0.tar", ns=(1, 1))  # written anew, with as many bytes
    write_shard(folder / "2.tar", whole(7))
    assert [len(index.rows) for index in indexed(folder)] == [5, 4, 1]
    assert looked_at == ["0.tar", "2.tar"]
    shutil.copytree(folder, folder.parent / "copy")
    looked_at.clear()
    indexed(folder.parent / "copy")  # another path, though its mirror came along
    assert looked_at == ["0.tar", "1.tar", "2.tar"]


def test_filters_have_an_index_of_their_own(folder, looked_at):
    everything, none = indexed(folder), indexed(folder, "text>=100")
    assert [len(index.rows) for index in none] == [0, 0, 0]
    assert sum(index.left_out.total() for index in none) == 10
    looked_at.clear()
    assert_same(indexed(folder, "text>=100"), none)
    assert_same(indexed(folder), everything)
    assert looked_at == []


def test_a_damaged_index_is_made_anew(folder, looked_at):
    first = indexed(folder)
    for path in (folder / "kept" / "indexes").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-40])
    for _ in range(2):  # the second time it is mended
        assert_same(indexed(folder), first)
        assert len(looked_at) == 6


def test_where_nothing_can_be_kept_the_run_begins_all_the_same(folder, looked_at, capsys):
    (folder / "kept").write_text("a file is in the place of the folder")
    assert_same(indexed(folder), indexed(folder))
    assert len(looked_at) == 6
    assert capsys.readouterr().err.count(str(folder / "kept" / "indexes")) == 2


def test_a_folder_that_may_not_be_looked_into_costs_time_only(folder, looked_at, monkeypatch):
    first, is_file = indexed(folder), Path.is_file

    def forbidden(path):
        if path.suffix == ".npz":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert_same(indexed(folder), first)
    assert len(looked_at) == 6


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(shard_index, "MANY", 2)
    monkeypatch.setattr("silc_bench.system.processes.num_cores", lambda: 2)


def test_many_shards_are_looked_through_by_processes(folder, request, looked_at):
    alone = indexed(folder)
    shutil.rmtree(folder / "kept")
    looked_at.clear()
    request.getfixturevalue("two_processes")
    assert_same(indexed(folder), alone)
    assert looked_at == []  # not in this process
    (folder / "1.tar").write_bytes(b"no shard at all")
    with refused(folder / "1.tar"):
        indexed(folder)


def dies(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("two_processes")
def test_a_process_that_is_killed_is_an_error_in_words(folder, monkeypatch):
    monkeypatch.setattr(shard_index, "_look_at", dies)
    with refused("shards", RunError):
        indexed(folder)


# --- ranks, as threads ----------------------------------------------------------------------------


def on_ranks(count, monkeypatch, work):
    """What ``work`` gives on each of ``count`` ranks, or its error in words."""
    ranks, answers, who = Ranks(count), [None] * count, threading.local()
    functions = {
        "rank": lambda: who.rank,
        "num_ranks": lambda: count,
        "concatenated": lambda values: ranks.tell(who.rank)(values),
    }
    for name, function in functions.items():
        monkeypatch.setattr(f"silc_bench.system.processes.{name}", function)

    def run(rank):
        who.rank = rank
        try:
            answers[rank] = work()
        except UserError as error:
            answers[rank] = error.about

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_each_rank_looks_through_its_own_part(folder, monkeypatch, looked_at):
    answers = on_ranks(2, monkeypatch, lambda: indexed(folder))
    assert sorted(looked_at) == ["0.tar", "1.tar", "2.tar"]  # none twice
    monkeypatch.undo()
    for found in answers:
        assert_same(found, indexed(folder))


def test_an_error_of_one_rank_is_the_error_of_all(folder, monkeypatch):
    (folder / "1.tar").write_bytes(b"no shard at all")
    answers = on_ranks(2, monkeypatch, lambda: indexed(folder))
    assert answers == [str(folder / "1.tar")] * 2
