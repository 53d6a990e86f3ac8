"""``silc-bench cache`` and the indexes of shards: listed, pruned, and never missed by a run.

They are listed by source, and pruned with everything else.
"""

import os
import time

import numpy as np
import pytest
from pairs import whole, write_shard
from test_shard_index import assert_same, looked_at  # noqa: F401
from typer.testing import CliRunner

from silc_bench.cli.app import app
from silc_bench.datasets.files import remote
from silc_bench.system import terminal
from silc_bench.system.cache import IN_USE, Store, default_folder, shards_folder
from silc_bench.trainer.data import samples as filters
from silc_bench.trainer.data import shard_index
from silc_bench.trainer.data.shard_index import listing


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "cache" / "features"))
    monkeypatch.setattr(terminal.console, "_width", 300)  # else that of whoever imported it first


@pytest.fixture
def folder(tmp_path):
    """Two sources: two shards, and one."""
    for name, numbers in (("first/0", (0, 1)), ("first/1", (2, 3)), ("second/0", (4, 5))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / f"{name}.tar", whole(*numbers))
    return tmp_path


def indexed(folder):
    mirror = remote.Mirror(shards_folder(), 2**30)
    return shard_index.index_all(shard_index.expand(str(folder)), filters.parse(""), mirror)


def cache(*words):
    done = CliRunner().invoke(app, ["cache", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def used(hours_ago, listed):
    os.utime(listed, (time.time() - 3600 * hours_ago,) * 2)


def test_they_are_listed_by_source(folder):
    indexed(folder / "first")
    indexed(folder / "second")
    Store(default_folder()).entry({"model": "m", "precision": "fp32"}).save(
        0, np.zeros((4, 4), np.float32)
    )
    found = cache("ls")
    assert f"2 indexes of shards in {folder}/first " in found
    assert f"index of a shard in {folder}/second " in found
    assert "4 entries, " in found
    assert f" in {default_folder()} and {shards_folder()}/indexes" in found
    assert "indexes" not in cache("ls", "--cache", str(default_folder())), (
        "a folder that is named is that folder alone"
    )


def test_an_url_is_a_source_up_to_its_last_slash(folder, monkeypatch):
    monkeypatch.setattr(remote.Mirror, "path", lambda *which: folder / "first" / "0.tar")
    shards = [(f"s3://bucket/set/{name}.tar", remote.Stamp(1, name)) for name in "ab"]
    shard_index.index_all(shards, filters.parse(""), remote.Mirror(shards_folder(), 2**30))
    assert "2 indexes of shards in s3://bucket/set " in cache("ls")


def test_they_are_pruned_with_the_embeddings_by_last_use(folder):
    (first, second), (third,) = indexed(folder / "first"), indexed(folder / "second")
    entry = Store(default_folder()).entry({"model": "m", "precision": "fp32"})
    entry.save(0, np.zeros((4, 4), np.float32))
    oldest, other, newest = sorted(listed.path for listed in listing(shards_folder()))
    for hours, path in ((9, oldest), (8, entry.folder / "entry.json"), (7, other), (6, newest)):
        used(hours, path)
    rest = other.stat().st_size + newest.stat().st_size
    assert "removed 2 entries" in cache("prune", f"--max-size={rest / 1000}KB")
    assert {listed.path for listed in listing(shards_folder())} == {other, newest}
    assert not entry.folder.exists()
    cache("prune", "--max-size=0", "--cache", str(default_folder()))
    assert len(listing(shards_folder())) == 2
    assert "removed 2 entries" in cache("prune", "--max-size=0")
    assert_same([*indexed(folder / "first"), *indexed(folder / "second")], [first, second, third])


def test_a_start_is_a_use(folder):
    indexed(folder / "first")
    one, other = (listed.path for listed in listing(shards_folder()))
    used(2, one)
    used(0.5, other)
    before = other.stat().st_mtime_ns
    indexed(folder / "first")
    assert time.time() - one.stat().st_mtime < IN_USE / 2
    assert other.stat().st_mtime_ns == before, "used within the hour: not one more write a start"


def test_evaluation_makes_no_room_of_them(folder):
    """A set of a billion pairs has more of them than the embeddings' limit, and a day's work."""
    indexed(folder / "first")
    for listed in listing(shards_folder()):
        used(1000, listed.path)
    Store(default_folder(), limit=0).trim()
    assert len(listing(shards_folder())) == 2


def test_a_run_that_begins_meanwhile_misses_none(folder, looked_at, monkeypatch):  # noqa: F811
    """They are there when it looks which are new, and gone when it reads them."""
    before, load = indexed(folder / "first"), shard_index.load
    monkeypatch.setattr(
        shard_index, "load", lambda place: cache("prune", "--max-size=0") and load(place)
    )
    looked_at.clear()
    assert_same(indexed(folder / "first"), before)
    assert looked_at == ["0.tar", "1.tar"]


def test_nothing_else_goes(folder):
    """Not what is being written, nor copies of shards, their locks, and files of others.

    What was left half-written does.
    """
    (index, _) = indexed(folder / "first")
    place = listing(shards_folder())[0].path
    begun, left = (place.with_name(f".{place.name}.{letter * 8}.tmp") for letter in "ab")
    others = [
        shards_folder() / name
        for name in ("0123-000.tar", ".0123-000.tar.lock", "indexes/mine.npz", "indexes/notes")
    ]
    for path in (begun, left, *others):
        path.write_bytes(b"PK")
    for path in (left, *others):
        used(2, path)
    assert "index of a shard in a place that is not known" in cache("ls")
    assert "removed 3 entries" in cache("prune", "--max-size=0")
    assert all(path.exists() for path in (begun, *others))
    assert not left.exists()
    shard_index.keep(index, folder / "first" / "0.tar", place)
    assert_same([shard_index.load(place)], [index])
