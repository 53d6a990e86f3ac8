"""Checkpoints: all or nothing on disk, two kept, nothing executed or believed of other files."""

import errno
import hashlib
import json
import os
import resource
import shutil
import threading
import zipfile
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from random_runs import fresh_state, random_state
from refusals import refused
from runs import differing, equal, saved_in

from silc_bench.errors import RunError, UserError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.file import DamagedCheckpointError
from silc_bench.trainer.config.config import to_dict
from silc_bench.trainer.config.presets import shapes_tiny


def payload(step=3):
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(step))
    return {
        "config": json.dumps(to_dict(shapes_tiny())),
        "tokenizer": "{}",
        "student": {"weight": weight, "half": weight[0].bfloat16()},
        "teacher": {"center": weight[1]},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5)}},
            "param_groups": [{"lr": 0.1}],
        },
        "step": step,
        "samples_seen": 8 * step,
        "position": 8 * step + 1,
    }


def save(run, *steps):
    return [checkpoint.save(run, payload(step)) for step in steps]


def whole(step=3):
    """What is read of ``payload(step)`` after it was written."""
    return {"format": checkpoint.FORMAT, **payload(step)}


# --- what is written ------------------------------------------------------------------------------


def test_the_note_beside_it(tmp_path):
    path = checkpoint.save(tmp_path, payload(), score=0.5)
    note = json.loads(path.with_suffix(".json").read_text())
    assert note.pop("config")["preset"] == "shapes_tiny"
    assert note.pop("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    del note["checksums"]
    numbers = {"step": 3, "samples_seen": 24, "position": 25, "score": 0.5}
    assert note == {"format": checkpoint.FORMAT, **numbers}


def test_the_newest_two_are_kept(tmp_path):
    for step in (8, 9, 10, 11):
        assert save(tmp_path, step) == [checkpoint.find(tmp_path)]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step_{step:08d}.{kind}" for step in (10, 11) for kind in ("json", "pt")]
    assert checkpoint.best_in(tmp_path) is None, "none was scored"


def test_those_of_every_so_many_steps_stay(tmp_path):
    config = json.dumps(to_dict(shapes_tiny()) | {"checkpoint_keep_every": 4})
    for step in range(1, 12):
        checkpoint.save(tmp_path, payload(step) | {"config": config})
    assert saved_in(tmp_path) == [4, 8, 10, 11]


@pytest.mark.parametrize("name", ["step_best.pt", "step_4_copy.pt", "step_0000000a.json"])
def test_files_of_other_names_are_no_checkpoints_of_the_run(tmp_path, name):
    (first,) = save(tmp_path, 4)
    theirs = shutil.copy(first, first.with_name(name))
    for step in (5, 6, 7):
        save(tmp_path, step)
    assert theirs.exists()
    assert saved_in(tmp_path) == [6, 7]
    assert checkpoint.find(tmp_path) == checkpoint.path_of(tmp_path, 7)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_of_a_checkpoint_on_another_disk_the_link_is_removed(tmp_path, is_sharded):
    place = checkpoint.path_of(tmp_path / "run", 1, is_sharded)
    place.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / checkpoint.PLAIN).touch()
    place.symlink_to(elsewhere if is_sharded else elsewhere / checkpoint.PLAIN)
    save(tmp_path / "run", 2, 3)
    assert saved_in(tmp_path / "run") == [2, 3]
    assert not [*place.parent.glob(".*")]
    assert (elsewhere / checkpoint.PLAIN).exists()


# --- a disk that fills up -------------------------------------------------------------------------


def half_a_file(payload, path):
    """What torch.save leaves when the disk is full."""
    path.write_bytes(b"half a checkpoint")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def listing(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextmanager
def small_files():
    """No file of this process may grow beyond 8,000 bytes: the call fails as on a full disk.

    The system call fails inside torch's writer.

    Held around the one call only: pytest's own progress may be going to a file too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def state(tiny):
    return fresh_state(tiny())


@pytest.mark.timing
@pytest.mark.parametrize("has_earlier", [False, True])
def test_a_write_that_fails_names_the_last_good_checkpoint_and_keeps_it(
    tmp_path, state, has_earlier
):
    last = "there is none yet"
    if has_earlier:
        last = str(checkpoint.save(tmp_path, state.payload()))
        state.step = 1
    before = listing(tmp_path)
    with checkpoint.Writer(tmp_path) as writer:
        with small_files():
            writer.write(state.payload())
            assert writer._pending.exception(timeout=60) is not None
        with refused(about=tmp_path, kind=RunError, is_kept=False) as caught:
            writer.check()
    assert last in caught.value.problem
    assert listing(tmp_path) == before


@pytest.mark.timing
def test_a_write_that_failed_is_told_before_the_next_one_begins(tmp_path, monkeypatch):
    """And the last good one is the newest of those that are there."""
    _, newest = save(tmp_path, 1, 2)
    monkeypatch.setattr(torch, "save", half_a_file)
    with checkpoint.Writer(tmp_path) as writer:
        writer.write(payload(3))
        with refused(about=tmp_path, kind=RunError, is_kept=False) as caught:
            writer.write(payload(4))
        assert "step 3" in caught.value.problem
        assert str(newest) in caught.value.problem
        monkeypatch.undo()
        writer.write(payload(5), score=0.5)
        assert writer.wait() == checkpoint.best_in(tmp_path) == checkpoint.path_of(tmp_path, 5)


def free(monkeypatch, num_bytes):
    usage = SimpleNamespace(free=num_bytes)
    monkeypatch.setattr("silc_bench.trainer.checkpoints.file.shutil.disk_usage", lambda _: usage)


def test_a_disk_that_is_too_small_is_said_before_the_first_step(tmp_path, state, monkeypatch):
    """Three checkpoints: the newest two, and the one that is written."""
    size = checkpoint.size_of(state.payload()) + 2 * checkpoint.size_of(state.student.state_dict())
    for num_bytes, is_said in ((3 * size, False), (3 * size - 1, True)):
        free(monkeypatch, num_bytes)
        said = checkpoint.room_for(tmp_path, state.payload(), num_moments=2)
        assert (said is not None) == is_said
    assert str(tmp_path) in said

    # with three that stay until the end
    config = json.loads(state.payload()["config"])
    config |= {"samples": 30 * config["batch_size"], "checkpoint_keep_every": 10}
    more = state.payload() | {"config": json.dumps(config)}
    for num_bytes, is_said in ((6 * size, False), (6 * size - 1, True)):
        free(monkeypatch, num_bytes)
        assert bool(checkpoint.room_for(tmp_path, more, num_moments=2)) == is_said


@pytest.mark.timing
@pytest.mark.parametrize(("num_bytes", "is_full"), [(0, True), (2**40, False)])
def test_torchs_error_of_a_full_disk_is_put_in_words(
    tmp_path, state, monkeypatch, num_bytes, is_full
):
    free(monkeypatch, num_bytes)
    with checkpoint.Writer(tmp_path) as writer:
        with small_files():
            writer.write(state.payload())
            assert isinstance(writer._pending.exception(timeout=60), RuntimeError)
        with refused(about=tmp_path, kind=RunError, is_kept=False) as caught:
            writer.check()
    assert ("MiB, and 0.0 MiB are free" in caught.value.problem) == is_full
    assert ("RuntimeError" in caught.value.problem) != is_full


# --- written while the run goes on ----------------------------------------------------------------


@pytest.mark.timing
def test_the_writer_copies_before_it_returns(tmp_path, monkeypatch):
    """What training does to the state while the file is being written is not in the file."""
    go_on, real = threading.Event(), checkpoint.save

    def held(*args):
        assert go_on.wait(60)
        return real(*args)

    monkeypatch.setattr(checkpoint, "save", held)
    moving = payload()
    with checkpoint.Writer(tmp_path) as writer:
        writer.write(moving)
        writer.check()  # under way: nothing to notice, nothing to wait for
        assert writer.path is None
        moving["student"]["weight"].zero_()
        moving["optimizer"]["state"][0]["exp_avg"].zero_()
        go_on.set()
    assert writer.path == checkpoint.find(tmp_path)
    assert equal(checkpoint.load(writer.path), whole())


@pytest.mark.timing
def test_an_error_of_the_run_is_not_hidden_by_that_of_a_write(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", half_a_file)

    def fail():
        with checkpoint.Writer(tmp_path) as writer:
            writer.write(payload())
            raise KeyError("the run's own")

    with pytest.raises(KeyError, match="the run's own"):
        fail()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


# --- the best one, and damaged ones ---------------------------------------------------------------


def test_the_best_stays_beside_the_newest(tmp_path):
    for step, score in enumerate([0.1, 0.5, None, 0.5, 0.2, None, None, 0.4]):
        checkpoint.save(tmp_path, payload(step), score)
    assert saved_in(tmp_path) == [3, 6, 7]
    assert checkpoint.best_in(tmp_path) == checkpoint.path_of(tmp_path, 3)
    checkpoint.save(tmp_path, payload(8), 0.6)
    assert saved_in(tmp_path) == [7, 8]
    notes = sorted((tmp_path / "checkpoints").glob("*.json"))
    assert [note.stem for note in notes] == ["step_00000007", "step_00000008"]


def test_the_note_comes_first(tmp_path, monkeypatch):
    """So no checkpoint is ever without its checksum."""
    placed, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: placed.append(new) or real(old, new))
    (path,) = save(tmp_path, 3)
    assert list(map(str, placed)) == [str(path.with_suffix(".json")), str(path)]


def test_what_no_part_covers_is_under_the_checksum_of_the_file(tmp_path):
    (path,) = save(tmp_path, 3)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0] + ".more", "")
    alone = shutil.copy(path, tmp_path / "alone.pt")
    assert equal(checkpoint.load(alone), whole())
    with refused(about=path, kind=DamagedCheckpointError):
        checkpoint.load(path)


def test_a_checkpoint_is_hashed_once(tmp_path, monkeypatch):
    """As a whole where its note says what it was, else by its parts."""
    (path,) = save(tmp_path, 3)
    monkeypatch.setattr(checkpoint, "_checksums", lambda payload: pytest.fail("hashed again"))
    assert equal(checkpoint.load(path), whole())


def test_a_damaged_newest_falls_back_to_the_one_before_and_is_told(tmp_path):
    older, newest = save(tmp_path, 1, 2)
    os.truncate(newest, 2000)
    path, loaded, (sentence,) = checkpoint.load_newest(tmp_path)
    assert (path, loaded["step"]) == (older, 1)
    assert sentence.startswith(f"{newest}: damaged")
    save(tmp_path, 1)
    assert not newest.exists(), "else it would count as one of the newest"


def test_nothing_whole_to_fall_back_to(tmp_path):
    """The newest is the one that is told of."""
    for path in save(tmp_path, 1, 2):
        path.write_bytes(b"")
    with refused(about="step_00000002.pt", kind=DamagedCheckpointError):
        checkpoint.load_newest(tmp_path)


def test_a_foreign_newest_is_not_passed_over(tmp_path):
    save(tmp_path, 1)
    torch.save({"state_dict": {}}, checkpoint.path_of(tmp_path, 2))
    with refused(about="step_00000002.pt"):
        checkpoint.load_newest(tmp_path)


# --- files that are none --------------------------------------------------------------------------


class Shell:
    """Unpickling it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_nothing_is_executed(tmp_path):
    """One of the parts is hostile. The models' tests try what is no checkpoint at all."""
    marker, path = tmp_path / "marker", tmp_path / "step_00000001.pt"
    torch.save({**whole(), "optimizer": Shell(marker)}, path)
    with refused(about=path):
        checkpoint.load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload was harmless: this test tests nothing"


def archive_of(name):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "")

    return write


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (archive_of("readme.txt"), DamagedCheckpointError),
        (archive_of("archive/data.pkl"), DamagedCheckpointError),
        (lambda path: torch.save({"format": checkpoint.FORMAT}, path), UserError),
        (lambda path: torch.save({**whole(), "zebra": 1}, path), UserError),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, write, kind):
    """The models' tests try more of them."""
    path = tmp_path / "x.pt"
    write(path)
    with refused(about=path, kind=kind, is_kept=kind is UserError):
        checkpoint.load(path)


# --- as a model to be measured --------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_a_branch_is_loaded_as_it_was(tmp_path, tiny, branch):
    state = random_state(tiny())
    checkpoint.save(tmp_path, state.payload())
    model = native.load(tmp_path, branch)
    assert not differing(model.vision, getattr(state, branch).vision)
    assert not differing(model.text, state.student.text)
    assert torch.equal(model.tokenize(["a blue square"]), state.tokenizer(["a blue square"]))
