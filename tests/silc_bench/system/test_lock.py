"""One process at a time in a folder; what was left behind is told apart."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest
from refusals import refused

from silc_bench.system.lock import NAME, is_in_use, locked

pytestmark = pytest.mark.timing


HOLD = """
import pathlib, sys
from silc_bench.system.lock import locked
with locked(pathlib.Path(sys.argv[1]), print):
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "there\n"
        yield process
        process.kill()


def enter(folder):
    """What is said of a file that was left behind."""
    said = []
    with locked(folder, said.append):
        note = json.loads((folder / NAME).read_text())
        assert (note["host"], note["pid"]) == (socket.gethostname(), os.getpid())
    assert not (folder / NAME).exists()
    return said


def test_the_second_is_refused_until_the_first_ends(tmp_path, holder):
    for _ in range(2):
        with refused(tmp_path / "run", is_kept=False) as caught, locked(tmp_path / "run", print):
            pass
        assert f"process {holder.pid} on {socket.gethostname()}, since 20" in caught.value.problem
    holder.communicate()
    assert holder.returncode == 0
    (tmp_path / "run").mkdir()
    assert enter(tmp_path / "run") == []


def test_whether_a_folder_is_in_use_is_seen_without_taking_it(tmp_path, holder):
    assert not is_in_use(tmp_path)
    assert [is_in_use(tmp_path / "run") for _ in range(2)] == [True, True]
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / NAME).exists()
    assert not is_in_use(tmp_path / "run")


def test_a_file_that_a_killed_process_left_is_taken_over_with_a_word(tmp_path, holder):
    holder.kill()
    holder.wait()
    (said,) = enter(tmp_path / "run")
    assert f"process {holder.pid} on" in said
    assert enter(tmp_path / "run") == []


@pytest.mark.parametrize("content", ["", "{", "3", '{"pid": "x"}'])
def test_a_file_of_anything_is_taken_over(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    assert len(enter(tmp_path)) == (content.startswith('{"'))


@pytest.mark.parametrize(
    ("note", "is_refused"),
    [
        ({"host": "another host", "pid": 1}, True),
        ({"host": socket.gethostname(), "pid": os.getppid()}, True),
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, False),  # above any process's
    ],
)
def test_where_nothing_can_be_locked_the_file_alone_counts(tmp_path, monkeypatch, note, is_refused):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    (tmp_path / NAME).write_text(json.dumps(note))
    if not is_refused:
        assert len(enter(tmp_path)) == 1
        return
    with refused(tmp_path, is_kept=False), locked(tmp_path, print):
        pass
    assert (tmp_path / NAME).exists()


def test_a_folder_in_which_nothing_was_written_does_not_stay(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "run", print):
        raise KeyError
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with refused(tmp_path / "file"), locked(tmp_path / "file", print):
        pass
