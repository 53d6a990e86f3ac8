"""Files are the old one or the new one, and what stands in their way is found before the work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from refusals import refused

from silc_bench.system.files import atomic_folder, atomic_path, check_writable, write_text_atomic


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- atomic files ----


@pytest.fixture
def path(tmp_path):
    """A file that holds "old", alone in its folder."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    return path


def assert_old(path):
    assert (names_in(path.parent), path.read_text()) == (["a.txt"], "old")


def test_a_file_is_made_with_its_folders(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b" / "c.txt"
    write_text_atomic(path, "±\n")
    assert path.read_bytes() == "±\n".encode()
    assert names_in(path.parent) == ["c.txt"]
    monkeypatch.chdir(path.parent)
    write_text_atomic("d.txt", "x")
    assert names_in(path.parent) == ["c.txt", "d.txt"]


def test_until_the_end_readers_see_the_old_file(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent, "moving between file systems would not be atomic"
        assert temporary.match(".a.txt.*.tmp"), "what a killed process leaves is found by this name"
    assert path.read_text() == "half of the n"


@pytest.mark.parametrize("has_old", [True, False])
@pytest.mark.parametrize("made", [atomic_path, atomic_folder])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_what_was_there_and_nothing_else(path, made, error, has_old):
    target = path if has_old else path.with_name("b.txt")

    def write_half():
        with made(target) as temporary:
            (temporary / "x" if made is atomic_folder else temporary).write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert_old(path)


@pytest.mark.parametrize("made", [atomic_path, atomic_folder])
@pytest.mark.parametrize(
    ("error", "named"),
    [
        ((28, "No space left on device"), "{folder}/a"),
        ((13, "Permission denied", "{temporary}"), "{folder}/a"),
        ((5, "Input/output error"), None),
        ((2, "No such file", "source.tmp"), "source.tmp"),
    ],
)
def test_a_full_disk_names_the_place_that_was_asked_for_and_another_file_its_own(
    tmp_path, made, error, named
):
    def fail():
        with made(tmp_path / "a") as temporary:
            number, *words = error
            raise OSError(number, *(word.format(temporary=temporary) for word in words))

    with pytest.raises(OSError, match=error[1]) as caught:
        fail()
    assert caught.value.filename == (named and named.format(folder=tmp_path))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_flush_or_move_leaves_the_old_file(path, monkeypatch, step):
    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output"):
        write_text_atomic(path, "new")
    assert_old(path)


def test_a_folder_takes_an_empty_place_and_no_other(tmp_path):
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine").write_text("x")

    def write(name):
        with atomic_folder(tmp_path / name) as temporary:
            (temporary / "theirs").write_text("x")

    write("empty")
    with pytest.raises(OSError, match="not empty"):
        write("full")
    assert names_in(tmp_path) == ["empty", "full"]
    assert names_in(tmp_path / "empty") == ["theirs"]
    assert names_in(tmp_path / "full") == ["mine"]


CUT_OFF = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_text_atomic(sys.argv[1], 'x' * 100_000)
"""
KILLED = """
import os, signal
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.timing
@pytest.mark.parametrize(("program", "code"), [(CUT_OFF, 1), (KILLED, -9)], ids=["cut", "killed"])
def test_a_process_that_the_system_stops_leaves_the_old_file(path, program, code):
    """By the limit on a file's size, in the middle of a real write; or by a signal."""
    program = f"import sys\nfrom silc_bench.system.files import *\n{program}"
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == code
    assert ("File too large" in done.stderr) == (code == 1)
    for left_behind in path.parent.glob(".a.txt.*.tmp") if code == -9 else ():
        left_behind.unlink()
    assert_old(path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text_atomic(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


# ---- folders to write in ----


@pytest.mark.parametrize("name", ["", "new", "new/newer/newest"])
def test_a_folder_that_could_be_made_is_not_made(tmp_path, name, monkeypatch):
    check_writable(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    check_writable(type(tmp_path)(name))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["file", "file/runs/a", "dangling", "dangling/a"])
def test_what_stands_in_the_way_is_named(tmp_path, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with refused(about=tmp_path / name) as caught:
        check_writable(tmp_path / name)
    assert f"{tmp_path / name.split('/')[0]} is not a folder" in caught.value.problem


def test_a_folder_without_permission(tmp_path, monkeypatch):
    if os.geteuid() == 0:  # nothing is forbidden to root
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    tmp_path.chmod(0o555)
    with refused(about=tmp_path / "runs" / "a"):
        check_writable(tmp_path / "runs" / "a")
