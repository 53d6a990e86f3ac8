"""Shards behind a URL: whatever a server does to the bytes, the pairs are those of the files.

Or the run says what it lacks.
"""

import itertools
import math
import socket
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
from fsspec.exceptions import FSTimeoutError
from refusals import refused

from silc_bench.datasets.files import remote
from silc_bench.datasets.files.shards import read_member
from silc_bench.errors import RunError

sys.path.insert(0, str(Path(__file__).parents[1]))
from faulty_server import FaultyServer, end_of_fetches
from pairs import numbered, numbers, source, take

PAIRS = list(range(57))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """57 pairs in 5 shards."""
    return numbered(tmp_path_factory.mktemp("shards"), 15, 15, 7, 11, 9)


pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("small_mirror")]


def stream(server, pattern="{url}/{{000..004}}.tar", **fields):
    return source(pattern.format(url=server.url), **({"shuffle_shards": 2} | fields))


def read(server, count=57, start=0, **fields):
    pairs = numbers(take(stream(server, **fields), 1, start, count))
    end_of_fetches()
    return pairs


def often(kind, of_five=3):
    """A fault of so many in a row of five requests for a file; several are fetched at once."""
    requests = Counter()

    def fault(name, start, count):
        requests[name] += 1
        return kind if requests[name] % 5 < of_five else None

    return fault


def test_a_copy_that_was_removed_takes_no_room_any_more(files):
    """The mirror holds fewer than the five; what a process has open would stay on the disk."""
    with FaultyServer(files) as server:
        pairs = stream(server)
        assert sorted(numbers(take(pairs, 1, 0, 57))) == PAIRS
        end_of_fetches()
    assert not pairs._reader._open_files._handles


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drop", "truncate", "error", "everything", "wrong"])
def test_a_faulty_server_loses_nothing(files, kind):
    with FaultyServer(files, often(kind)) as server:
        assert sorted(read(server)) == PAIRS
        assert sum(count for (_, what), count in server.requests.items() if what == kind) > 5


def test_a_server_that_stalls_is_asked_again(files, tmp_path, monkeypatch):
    """Every second request stalls.

    The limit of time is short for these alone: on a busy machine any other may take long.
    """
    read_range, calls = remote._read_range, itertools.count(1)

    def asked(*which):
        is_stalling = next(calls) % 2 == 1
        monkeypatch.setattr(remote, "STALL_SECONDS", 0.05 if is_stalling else 60.0)
        with pytest.raises(FSTimeoutError) if is_stalling else nullcontext():
            return read_range(*which)
        raise FSTimeoutError

    monkeypatch.setattr(remote, "_read_range", asked)
    with FaultyServer(
        files, lambda name, start, count: "stall" if remote.STALL_SECONDS < 1 else None
    ) as server:
        url = f"{server.url}/000.tar"
        remote.fetch(url, remote.stamp_of(url), tmp_path / "000.tar")
    assert (tmp_path / "000.tar").read_bytes() == files["000.tar"]
    assert next(calls) > 4


def test_what_has_arrived_is_not_fetched_again(files):
    """A server that sends a third of each file and then nothing, until it is mended.

    The rest is all that is asked for.
    """
    limit = {name: len(data) // 3 for name, data in files.items()}

    def broken(name, start, count):
        return "error" if start + count > limit[name] else None

    with FaultyServer(files, broken) as server:
        with refused("/000.tar", RunError, is_kept=False) as caught:
            read(server)
        assert "6 attempts" in caught.value.problem
        sent = server.bytes_sent.pop("000.tar")
        server.fault = lambda name, start, count: None
        assert sorted(read(server)) == PAIRS
        assert server.bytes_sent["000.tar"] == len(files["000.tar"]) - sent < len(files["000.tar"])


def test_a_file_that_changes_while_it_is_fetched_is_never_joined_with_the_old_one(files):
    def changing(name, start, count):
        if name == "001.tar" and start > 0:
            server.files[name] = files[name][:-1] + b"!"

    with FaultyServer(files, changing) as server, refused("/001.tar", is_kept=False):
        read(server)


def test_a_file_that_is_not_there_is_the_users_error(files):
    with FaultyServer(files) as server, refused("/005.tar"):
        read(server, pattern="{url}/{{000..005}}.tar")


def test_a_server_that_never_answers_is_named():
    with socket.socket() as bound:  # the port is taken, and nobody listens
        bound.bind(("127.0.0.1", 0))
        with refused("/000.tar", RunError, is_kept=False):
            remote.stamp_of(f"http://127.0.0.1:{bound.getsockname()[1]}/000.tar")


def test_waiting_for_a_server_is_said_once_for_many_shards(files, capsys, monkeypatch):
    monkeypatch.setattr(remote, "_said", -math.inf)
    monkeypatch.setattr(remote, "SAID_EVERY", 3600.0)
    with FaultyServer(files, lambda name, start, count: "error") as server, pytest.raises(RunError):
        stream(server)
    (line,) = capsys.readouterr().err.splitlines()
    assert "/00" in line
    assert "attempt 2 of 6" in line


@pytest.mark.parametrize("url", ["http://127.0.0.1/*.tar", "nosuch://place/000.tar"])
def test_an_url_that_means_nothing_is_refused(url):
    with refused(url, is_kept=False):
        [remote.stamp_of(shard) for shard in remote.expand(url)]


# --- the mirror -----------------------------------------------------------------------------------


def test_a_second_run_fetches_what_is_new_alone(files):
    with FaultyServer(files) as server:
        first = read(server)
        server.bytes_sent.clear()
        assert read(server) == first
        assert server.bytes_sent.total() == 0
        server.files["004.tar"] = files["003.tar"]
        assert sorted(read(server, 59)) == sorted([*range(48), *range(37, 48)])


def test_a_small_mirror_makes_room_and_reads_on(files, small_mirror):
    largest = max(map(len, files.values()))
    with FaultyServer(files) as server:
        pairs = read(server, 114, shuffle_shards=1, mirror_gb=2.5 * largest / 2**30)
        kept = small_mirror.glob("[!.]*.tar")
        assert sum(path.stat().st_size for path in kept) <= 2.5 * largest
        assert server.bytes_sent.total() > sum(map(len, files.values()))
    assert sorted(pairs[:57]) == sorted(pairs[57:]) == PAIRS


def test_a_mirror_too_small_for_two_groups_is_refused(files):
    with FaultyServer(files) as server, refused("data.mirror_gb"):
        read(server, mirror_gb=1e-6)


def test_the_index_of_a_shard_is_kept_when_the_shard_is_not(files, small_mirror):
    with FaultyServer(files) as server:
        first = read(server)
        for path in small_mirror.glob("*.tar"):
            path.unlink()
        server.bytes_sent.clear()
        assert stream(server).num_samples == 57
        assert server.bytes_sent.total() == 0
        assert read(server) == first


@pytest.mark.parametrize("times", [remote.READS - 1, 99])
def test_a_copy_that_makes_room_while_it_is_read_is_fetched_again(files, tmp_path, times):
    """Until it never stays."""
    paths = []

    def looking(path):
        paths.append(path)
        if len(paths) <= times:
            path.unlink()
        return read_member(path, (512, 20))

    with FaultyServer(files) as server:
        url = f"{server.url}/000.tar"
        stays = times < remote.READS
        with nullcontext() if stays else refused(url):
            mirror, stamp = remote.Mirror(tmp_path, 2**30), remote.stamp_of(url)
            assert mirror.read(url, stamp, looking) == files["000.tar"][512:532]
        assert server.bytes_sent["000.tar"] == remote.READS * len(files["000.tar"])


def test_a_copy_that_is_damaged_is_complained_of_in_the_name_of_its_url(files, small_mirror):
    """And not fetched again, which would mend what should not happen and hide it."""
    with FaultyServer(files) as server:
        opened = stream(server)
        for path in small_mirror.glob("*.tar"):
            path.write_bytes(path.read_bytes()[:600])
        server.bytes_sent.clear()
        with refused(f"{server.url}/00"):
            take(opened, 1, 0, 1)
        assert server.bytes_sent.total() == 0


# --- the order ------------------------------------------------------------------------------------


def test_resuming_within_a_group_with_workers_continues_exactly(files):
    with FaultyServer(files, often("drop", 1)) as server:
        reference = read(server, 80)
        for start in (23, 57):
            assert read(server, 80 - start, start, num_workers=2) == reference[start:]


def test_local_and_remote_shards_are_one_source(files, tmp_path):
    (tmp_path / "000.tar").write_bytes(files["000.tar"])
    with FaultyServer(files) as server:
        pattern = f"{tmp_path / '000.tar'} {{url}}/{{{{001..004}}}}.tar"
        assert sorted(read(server, pattern=pattern)) == PAIRS
