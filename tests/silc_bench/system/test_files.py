"""Files are the old one or the new one, and what stands in their way is found before the work."""

import os

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
    monkeypatch.chdir(path.parent)
    write_text_atomic("d.txt", "x")
    assert names_in(path.parent) == ["c.txt", "d.txt"]


def test_until_the_end_readers_see_the_old_file(path):
    """So a process that is killed leaves it too."""
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent, "moving between file systems would not be atomic"
        assert temporary.match(".a.txt.*.tmp"), "what a killed process leaves is found by this name"
    assert path.read_text() == "half of the n"


@pytest.mark.parametrize("name", ["a.txt", "b.txt"])
@pytest.mark.parametrize("made", [atomic_path, atomic_folder])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_else(path, made, error, name):
    def write_half():
        with made(path.with_name(name)) as temporary:
            (temporary / "x" if made is atomic_folder else temporary).write_text("half")
            raise error

    with pytest.raises(error):
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
    place = tmp_path / "place"
    place.mkdir()

    def write(name):
        with atomic_folder(place) as temporary:
            (temporary / name).touch()

    write("mine")
    with pytest.raises(OSError, match="not empty"):
        write("theirs")
    assert names_in(tmp_path) == ["place"]
    assert names_in(place) == ["mine"]


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
