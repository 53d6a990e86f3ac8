"""Each shard is looked through once: the second start reads what was kept of that very version."""

import os
import select
import shutil
import signal
import threading
from pathlib import Path

import forked
import pytest
from pairs import as_ranks, whole, write_shard
from refusals import refused

from silc_bench.datasets.files import remote, shards
from silc_bench.errors import RunError
from silc_bench.trainer.data import samples as filters
from silc_bench.trainer.data import shard_index

pytestmark = pytest.mark.timing
SHARDS = ["0.tar", "1.tar", "2.tar"]


@pytest.fixture
def folder(tmp_path):
    """Three shards of five pairs; the second lacks a sample's image, the third is cut off."""
    for number, name in enumerate(SHARDS):
        members = whole(*range(5 * number, 5 * number + 5))
        write_shard(tmp_path / name, members[1:] if number == 1 else members)
    os.truncate(tmp_path / "2.tar", 3000)
    return tmp_path


def content(index):
    return index.rows.tolist(), index.rows.dtype, index.damage, index.left_out


def indexed(folder, conditions="", kept=None):
    """What the index of each shard of a folder holds."""
    mirror = remote.Mirror(kept or folder / "kept", 2**30)
    all_shards = shard_index.expand(str(folder))
    return [*map(content, shard_index.index_all(all_shards, filters.parse(conditions), mirror))]


def num_rows(indexes):
    return [len(rows) for rows, *_ in indexes]


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
    assert looked_at == SHARDS
    assert num_rows(first) == [5, 4, 1]
    assert [damage.total for *_, damage, _ in first] == [0, 1, 2]
    assert indexed(folder) == first
    assert looked_at == SHARDS


@pytest.mark.parametrize("name", [b"caf\xe9", b"[a] {b,c} *.tar", "ö".encode()])
def test_the_name_of_a_folder_may_be_any_bytes(tmp_path, looked_at, name):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    folder.mkdir()
    write_shard(folder / "0.tar", whole(1))
    assert indexed(folder) == indexed(folder)
    assert looked_at == ["0.tar"]


def test_a_changed_shard_is_looked_at_again(folder, looked_at):
    indexed(folder)
    looked_at.clear()
    os.utime(folder / "0.tar", ns=(1, 1))  # written anew, with as many bytes
    write_shard(folder / "2.tar", whole(7))
    assert num_rows(indexed(folder)) == [5, 4, 1]
    shutil.copytree(folder, folder.parent / "copy")
    indexed(folder.parent / "copy")  # another path, though its mirror came along
    assert looked_at == ["0.tar", "2.tar", *SHARDS]


def test_filters_have_an_index_of_their_own(folder, looked_at):
    everything, none = indexed(folder), indexed(folder, "text>=100")
    assert num_rows(none) == [0, 0, 0]
    assert sum(left_out.total() for *_, left_out in none) == 10
    looked_at.clear()
    assert (indexed(folder), indexed(folder, "text>=100")) == (everything, none)
    assert looked_at == []


def test_where_nothing_can_be_kept_the_run_begins_all_the_same(folder, looked_at, capsys):
    (folder / "kept").write_text("a file is in the place of the folder")
    assert indexed(folder) == indexed(folder)
    assert looked_at == 2 * SHARDS
    assert capsys.readouterr().err.count(str(folder / "kept" / "indexes")) == 2


def test_a_folder_that_may_not_be_looked_into_costs_time_only(folder, looked_at, monkeypatch):
    first, is_file = indexed(folder), Path.is_file

    def forbidden(path):
        if path.suffix == ".npz":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert indexed(folder) == first
    assert looked_at == 2 * SHARDS


def two_at_once(patch):
    patch.setattr(shard_index, "MANY", 2)
    patch.setattr(shard_index, "num_cores", lambda: 2)


@pytest.fixture
def two_processes(monkeypatch):
    two_at_once(monkeypatch)


def test_many_shards_are_looked_through_by_processes(folder, request, looked_at):
    alone = indexed(folder)
    shutil.rmtree(folder / "kept")
    request.getfixturevalue("two_processes")
    assert indexed(folder) == alone
    assert looked_at == SHARDS  # not again in this process
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


def is_at_work(shard, *_):
    """Says so by the pipe beside the shard, which the system closes when this process ends."""
    os.write(os.open(Path(shard.name).with_name("pipe"), os.O_WRONLY), b"!")
    signal.pause()


def look_through(folder):
    with pytest.MonkeyPatch.context() as patch:
        two_at_once(patch)
        patch.setattr(shard_index, "_look_at", is_at_work)
        indexed(folder)


def test_processes_end_with_the_one_that_started_them(folder):
    """However it ends: they would wait for more to do."""
    os.mkfifo(folder / "pipe")
    process = forked.start(folder / "output", look_through, folder)
    with open(folder / "pipe", "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"!"
        process.kill()
        while select.select([pipe], [], [], forked.SECONDS)[0]:
            if not pipe.read(1):
                return
    pytest.fail("one lives on")


# --- ranks, as threads ----------------------------------------------------------------------------


@pytest.fixture
def on_two_ranks(folder, monkeypatch):
    """What two ranks have of the folder's shards."""
    here = threading.local()
    functions = {
        "rank": lambda: here.rank,
        "num_ranks": lambda: 2,
        "concatenated": lambda values: here.tell(values),
    }

    def work(rank, tell):
        here.rank, here.tell = rank, tell
        return indexed(folder)

    def run():
        with monkeypatch.context() as patch:
            for name, function in functions.items():
                patch.setattr(shard_index, name, function)
            return as_ranks(2, work)

    return run


def test_each_rank_looks_through_its_own_part(folder, on_two_ranks, looked_at):
    answers = on_two_ranks()
    assert sorted(looked_at) == SHARDS  # none twice
    assert answers == [indexed(folder)] * 2


def test_an_error_of_one_rank_is_the_error_of_all(folder, on_two_ranks):
    (folder / "1.tar").write_bytes(b"no shard at all")
    assert [error.about for error in on_two_ranks()] == [str(folder / "1.tar")] * 2
