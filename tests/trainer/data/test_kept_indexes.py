"""``silc-bench cache`` and the indexes of shards: listed, pruned, and never missed by a run.

They are listed by source, and pruned with everything else.
"""

import os
import time

import numpy as np
import pytest
from commands import succeed
from pairs import numbered
from test_shard_index import indexed, looked_at  # noqa: F401

from silc_bench.datasets.files import remote
from silc_bench.system import terminal
from silc_bench.system.cache import IN_USE, Store, default_folder, shards_folder
from silc_bench.trainer.data import samples as filters
from silc_bench.trainer.data import shard_index
from silc_bench.trainer.data.shard_index import Shard, listing


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two sources, of two shards and of one, with their indexes in a cache of their own."""
    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "cache" / "features"))
    monkeypatch.setattr(terminal.console, "_width", 300)  # else that of whoever imported it first
    for name, sizes in (("first", (2, 2)), ("second", (2,))):
        (tmp_path / name).mkdir()
        numbered(tmp_path / name, *sizes)
        start(tmp_path / name)
    return tmp_path


def start(source):
    return indexed(source, kept=shards_folder())


def kept():
    """The files of the indexes."""
    return sorted(listed.path for listed in listing(shards_folder()))


def idle(*hours):
    """The same, of which each is now unused for so long."""
    for hours_ago, path in zip(hours, kept(), strict=True):
        used(hours_ago, path)
    return kept()


def used(hours_ago, path):
    os.utime(path, (time.time() - 3600 * hours_ago,) * 2)


def embeddings():
    entry = Store(default_folder()).entry({"model": "m", "precision": "fp32"})
    entry.save(0, np.zeros((4, 4), np.float32))
    return entry.folder / "entry.json"


def test_they_are_listed_by_source(folder, monkeypatch):
    embeddings()
    monkeypatch.setattr(remote.Mirror, "path", lambda *which: folder / "first" / "000.tar")
    shards = [Shard(f"s3://bucket/set/{name}.tar", remote.Stamp(1, name)) for name in "ab"]
    shard_index.index_all(shards, filters.parse(""), remote.Mirror(shards_folder(), 2**30))
    table = succeed("cache ls")
    for part in (
        f"2 indexes of shards in {folder}/first ",
        f"index of a shard in {folder}/second ",
        "2 indexes of shards in s3://bucket/set ",
        "6 entries, ",
        f" in {default_folder()} and {shards_folder()}/indexes",
    ):
        assert part in table
    alone = succeed(f"cache ls --cache {default_folder()}")
    assert "indexes" not in alone, "a folder that is named is that folder alone"


def test_they_are_pruned_with_the_embeddings_by_last_use(folder):
    before, entry = start(folder / "first"), embeddings()
    others = idle(9, 7, 6)[1:]
    used(8, entry)
    rest = sum(path.stat().st_size for path in others)
    assert "removed 2 entries" in succeed(f"cache prune --max-size={rest / 1000}KB")
    assert (kept(), entry.exists()) == (others, False)
    succeed(f"cache prune --max-size=0 --cache {default_folder()}")
    assert kept() == others
    assert "removed 2 entries" in succeed("cache prune --max-size=0")
    assert start(folder / "first") == before


def test_a_start_is_a_use(folder):
    idle(2, 2, 2)
    start(folder / "first")
    start(folder / "second")
    assert all(time.time() - path.stat().st_mtime < IN_USE / 2 for path in kept())
    recent = idle(0.5, 0.5, 0.5)
    before = [path.stat().st_mtime_ns for path in recent]
    start(folder / "first")
    assert [path.stat().st_mtime_ns for path in recent] == before, "no write within the hour"


def test_evaluation_makes_no_room_of_them(folder):
    """A set of a billion pairs has more of them than the embeddings' limit, and a day's work."""
    before = idle(1000, 1000, 1000)
    Store(default_folder(), limit=0).trim()
    assert kept() == before


def test_a_run_that_begins_meanwhile_misses_none(folder, looked_at, monkeypatch):  # noqa: F811
    """They are there when it looks which are new, and gone when it reads them."""
    before, load = start(folder / "first"), shard_index.load
    monkeypatch.setattr(
        shard_index, "load", lambda place: succeed("cache prune --max-size=0") and load(place)
    )
    looked_at.clear()
    assert start(folder / "first") == before
    assert looked_at == ["000.tar", "001.tar"]


def test_nothing_else_goes(folder):
    """Not what is being written, nor copies of shards, their locks, and files of others.

    What was left half-written does.
    """
    place = kept()[0]
    begun, left = (place.with_name(f".{place.name}.{letter * 8}.tmp") for letter in "ab")
    others = [
        shards_folder() / name
        for name in ("0123-000.tar", ".0123-000.tar.lock", "indexes/mine.npz", "indexes/notes")
    ]
    for path in (begun, left, *others):
        path.write_bytes(b"PK")
    for path in (left, *others):
        used(2, path)
    assert "index of a shard in a place that is not known" in succeed("cache ls")
    assert "removed 4 entries" in succeed("cache prune --max-size=0")
    assert all(path.exists() for path in (begun, *others))
    assert not left.exists()
