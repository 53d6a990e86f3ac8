"""Files are the old one or the new one; errors name the nearest names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from silc_bench.errors import RunError, UserError, unknown_name
from silc_bench.system.files import atomic_folder, atomic_path, check_writable, write_text_atomic


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- atomic files ----


def test_a_file_is_made_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    write_text_atomic(path, "old ±\n")
    assert path.read_bytes() == "old ±\n".encode()
    write_text_atomic(path, "new")
    assert path.read_text() == "new"
    assert names_in(path.parent) == ["c.txt"]


def test_until_the_end_readers_see_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent, "moving between file systems would not be atomic"
        assert temporary.match(".a.txt.*.tmp"), "what a killed process leaves is found by this name"
    assert path.read_text() == "half of the n"


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), OSError(28, "No space left on device"), KeyboardInterrupt()],
    ids=repr,
)
@pytest.mark.parametrize("has_old", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error, has_old):
    path = tmp_path / "a.txt"
    if has_old:
        path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert names_in(tmp_path) == (["a.txt"] if has_old else [])
    assert not has_old or path.read_text() == "old"


@pytest.mark.parametrize("made", [atomic_path, atomic_folder])
def test_a_full_disk_names_the_place_that_was_asked_for_and_another_file_its_own(tmp_path, made):
    def fail(*error):
        with made(tmp_path / "a") as temporary:
            raise OSError(*(str(temporary) if word == "temporary" else word for word in error))

    for words, named in (
        ((28, "No space left on device"), tmp_path / "a"),
        ((13, "Permission denied", "temporary"), tmp_path / "a"),
        ((5, "Input/output error"), None),
        ((2, "No such file", "source.tmp"), "source.tmp"),
    ):
        with pytest.raises(OSError, match=words[1]) as found:
            fail(*words)
        assert found.value.filename == (None if named is None else str(named))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_flush_or_move_leaves_the_old_file(tmp_path, monkeypatch, step):
    def fail(*args):
        raise OSError(5, "Input/output error")

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output"):
        write_text_atomic(path, "new")
    assert (names_in(tmp_path), path.read_text()) == (["a.txt"], "old")


@pytest.mark.timing
def test_a_file_that_the_system_cuts_off_leaves_the_old_one(tmp_path):
    """A real write that fails half-way, by the limit on a file's size."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import pathlib, resource, sys\n"
        "from silc_bench.system.files import write_text_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text_atomic(pathlib.Path(sys.argv[1]), 'x' * 100_000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=240
    )
    assert "File too large" in done.stderr
    assert (names_in(tmp_path), path.read_text()) == (["a.txt"], "old")


@pytest.mark.timing
def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import os, pathlib, signal, sys\n"
        "from silc_bench.system.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], timeout=240).returncode == -9
    assert path.read_text() == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text_atomic(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


def test_a_path_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text_atomic("a.txt", "x")
    assert names_in(tmp_path) == ["a.txt"]


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
    with pytest.raises(UserError) as caught:
        check_writable(tmp_path / name)
    there = tmp_path / name.split("/")[0]
    assert (
        str(caught.value)
        == f"cannot write to {tmp_path / name}: {there} is not a folder; choose another one"
    )


def test_a_folder_without_permission(tmp_path, monkeypatch):
    if os.geteuid() == 0:  # nothing is forbidden to root
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    tmp_path.chmod(0o555)
    with pytest.raises(
        UserError,
        match=rf"cannot write to {tmp_path}/runs/a: no permission to write in {tmp_path};",
    ):
        check_writable(tmp_path / "runs" / "a")


# ---- errors ----


def test_both_kinds_of_error_are_what_python_programs_expect():
    assert issubclass(UserError, ValueError)
    assert issubclass(RunError, RuntimeError)
    assert not issubclass(RunError, UserError)


def test_unknown_name_gives_the_nearest_or_all():
    assert (
        str(unknown_name("preset", "b61", ["b16", "l16", "g16"]))
        == "unknown preset 'b61'; did you mean b16?"
    )
    assert str(unknown_name("task", "xyz", ["b", "a"])) == "unknown task 'xyz'; known: a, b"
    assert str(unknown_name("task", "xyz", [])) == "unknown task 'xyz'; known: none"
    assert str(unknown_name("x", "skpi", iter(["skip"]))) == "unknown x 'skpi'; did you mean skip?"


@given(name=st.text("abcdefgh_", min_size=4, max_size=12), data=st.data())
def test_one_wrong_letter_is_understood(name, data):
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from("xyz"))
    typo = data.draw(
        st.sampled_from(
            [
                name[:at] + name[at + 1 :],
                name[:at] + letter + name[at:],
                name[:at] + letter + name[at + 1 :],
            ]
        )
    )
    assert f"did you mean {name}?" in str(unknown_name("word", typo, [name, "quite another"]))
