"""Checkpoints: all or nothing on disk, two kept, nothing executed or believed of other files."""

import errno
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import threading
import warnings
import zipfile
from contextlib import contextmanager

import pytest
import torch

from silc_bench.errors import RunError, UserError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.config.config import to_dict
from silc_bench.trainer.config.presets import shapes_tiny
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState


def payload(step=3):
    generator = torch.Generator().manual_seed(step)
    return {
        "config": json.dumps(to_dict(shapes_tiny())),
        "tokenizer": "{}",
        "student": {
            "weight": torch.randn(30, 20, generator=generator),
            "half": torch.randn(4, generator=generator).bfloat16(),
        },
        "teacher": {"center": torch.randn(7, generator=generator)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5)}},
            "param_groups": [{"lr": 0.1}],
        },
        "step": step,
        "samples_seen": 8 * step,
        "position": 8 * step + 1,
    }


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def refused(path):
    """The one sentence that ``path`` is answered with."""
    with pytest.raises(UserError) as caught:
        checkpoint.load(checkpoint.find(path))
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path}")
    assert "\n" not in message
    assert "expected a" in message or "no such file" in message
    return message


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return checkpoint.save(tmp_path_factory.mktemp("good"), payload())


# --- what is written ------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    path = checkpoint.save(tmp_path, payload())
    assert path == tmp_path / "checkpoints" / "step_00000003.pt"
    assert equal(checkpoint.load(path), {"format": checkpoint.FORMAT, **payload()})
    assert not equal(checkpoint.load(path), {"format": checkpoint.FORMAT, **payload(4)})


def test_the_words_beside_it(tmp_path):
    words = json.loads(checkpoint.save(tmp_path, payload()).with_suffix(".json").read_text())
    assert (words["step"], words["samples_seen"], words["position"], words["format"]) == (
        3,
        24,
        25,
        checkpoint.FORMAT,
    )
    assert words["config"]["preset"] == "shapes_tiny"


def test_the_newest_two_are_kept(tmp_path):
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, payload(step))
        assert checkpoint.find(tmp_path).name == f"step_{step:08d}.pt"
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step_{step:08d}.{kind}" for step in (10, 11) for kind in ("json", "pt")]


def test_find_takes_a_run_its_checkpoints_or_a_file(tmp_path):
    old, new = (checkpoint.save(tmp_path, payload(step)) for step in (9, 100))
    assert checkpoint.find(tmp_path) == checkpoint.find(tmp_path / "checkpoints") == new
    assert checkpoint.find(old) == old


# --- a disk that fills up -------------------------------------------------------------------------


def half_a_file(payload, path):
    """What torch.save leaves when the disk is full."""
    path.write_bytes(b"half a checkpoint")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def listing(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, payload(1))
    before = listing(tmp_path)
    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, payload(2))
    assert listing(tmp_path) == before
    assert equal(
        checkpoint.load(checkpoint.find(tmp_path)), {"format": checkpoint.FORMAT, **payload(1)}
    )


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
    return TrainState.create(
        tiny(), Tokenizer.train(["a red circle"] * 3, 300, 12), torch.device("cpu")
    )


def write_fails(run, state):
    """The sentence that a failing write of ``state`` ends the run with."""
    with checkpoint.Writer(run) as writer:
        with small_files():
            writer.write(state.payload())
            assert writer._pending.exception(timeout=60) is not None
        with pytest.raises(RunError) as caught:
            writer.check()
    return str(caught.value)


@pytest.mark.timing
def test_a_write_that_fails_names_the_last_good_checkpoint(tmp_path, state):
    message = write_fails(tmp_path, state)
    assert re.fullmatch(
        r"step 0: the checkpoint could not be written to .*; there is none yet", message
    )
    assert listing(tmp_path) == {}


@pytest.mark.timing
def test_a_write_that_failed_is_told_before_the_next_one_begins(tmp_path, monkeypatch):
    """And the last good one is the newest of those that are there."""
    kept = [checkpoint.save(tmp_path, payload(step)) for step in (1, 2)]
    monkeypatch.setattr(torch, "save", half_a_file)
    with checkpoint.Writer(tmp_path) as writer:
        writer.write(payload(3))
        with pytest.raises(
            RunError,
            match=rf"step 3: the checkpoint could not be written .*the last good one is {kept[1]}$",
        ):
            writer.write(payload(4))
        monkeypatch.undo()
        writer.write(payload(5), score=0.5)
        assert writer.wait() == checkpoint.best_in(tmp_path) == checkpoint.path_of(tmp_path, 5)


@pytest.mark.timing
def test_a_write_that_fails_keeps_the_one_before(tmp_path, state):
    kept = checkpoint.save(tmp_path, state.payload())
    before = listing(tmp_path)
    state.step = 1
    assert write_fails(tmp_path, state).endswith(f"the last good one is {kept}")
    assert listing(tmp_path) == before


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
    assert equal(checkpoint.load(writer.path), {"format": checkpoint.FORMAT, **payload()})


@pytest.mark.timing
def test_the_writer_writes_in_order_and_ends_with_the_last(tmp_path):
    with checkpoint.Writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(payload(step))
        assert writer.wait().name == "step_00000005.pt"
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step_00000004.pt", "step_00000005.pt"]


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
    assert [p.name for p in checkpoint.all_in(tmp_path)] == [
        f"step_{step:08d}.pt" for step in (3, 6, 7)
    ]
    assert checkpoint.best_in(tmp_path).name == "step_00000003.pt"
    checkpoint.save(tmp_path, payload(8), 0.6)
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step_00000007.pt", "step_00000008.pt"]
    assert sorted(p.suffix for p in (tmp_path / "checkpoints").iterdir()) == [
        ".json",
        ".json",
        ".pt",
        ".pt",
    ]


def test_without_scores_none_is_best(tmp_path):
    checkpoint.save(tmp_path, payload())
    assert checkpoint.best_in(tmp_path) is None


def test_the_words_hold_the_checksum(tmp_path):
    path = checkpoint.save(tmp_path, payload())
    words = json.loads(path.with_suffix(".json").read_text())
    assert words["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_words_come_first_and_a_checkpoint_needs_none(tmp_path, monkeypatch):
    """So no checkpoint is ever without its checksum.

    Where the words are lost the archive has checksums of its own.
    """
    placed, real = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda old, new: placed.append(os.path.basename(new)) or real(old, new)
    )
    path = checkpoint.save(tmp_path, payload(), score=0.5)
    assert placed == ["step_00000003.json", "step_00000003.pt"]
    for words in ("", "{", "[1]", "3"):
        path.with_suffix(".json").write_text(words)
        assert equal(checkpoint.load(path), {"format": checkpoint.FORMAT, **payload()})
        assert checkpoint.best_in(tmp_path) is None


def test_padding_that_no_archive_checks_is_under_the_checksum(tmp_path):
    """The one place where the archive's own checksums are blind."""
    path = checkpoint.save(tmp_path, payload())
    whole = bytearray(path.read_bytes())
    alone = tmp_path / "alone.pt"
    for place in range(len(whole)):
        whole[place] ^= 1
        alone.write_bytes(whole)
        try:
            checkpoint.load(alone)
            break
        except UserError:
            whole[place] ^= 1
    else:
        pytest.fail("every byte is checked by the archive: this test tests nothing")
    path.write_bytes(whole)
    assert "its sha256 is not that of step_00000003.json" in refused(path)


def test_a_damaged_newest_falls_back_to_the_one_before_and_is_told(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, payload(step))
    newest = checkpoint.find(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    path, found, damaged = checkpoint.load_newest(tmp_path)
    assert path.name == "step_00000001.pt"
    assert found["step"] == 1
    assert len(damaged) == 1
    assert damaged[0].startswith(f"checkpoint {newest}: damaged")
    checkpoint.save(tmp_path, payload(1))
    assert not newest.exists(), "else it would count as one of the newest"


def test_nothing_whole_to_fall_back_to(tmp_path):
    """The newest is the one that is told of."""
    for step in (1, 2):
        checkpoint.save(tmp_path, payload(step)).write_bytes(b"")
    with pytest.raises(
        checkpoint.DamagedCheckpointError,
        match=r"step_00000002\.pt: damaged: its sha256 is not that of",
    ):
        checkpoint.load_newest(tmp_path)


def test_a_foreign_newest_is_not_passed_over(tmp_path):
    checkpoint.save(tmp_path, payload(1))
    another_programs(tmp_path / "checkpoints" / "step_00000002.pt")
    with pytest.raises(UserError, match="another program's file"):
        checkpoint.load_newest(tmp_path)


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path):
    path = checkpoint.save(tmp_path, payload(1))
    left = path.parent / ".step_00000002.pt.abc.tmp"
    left.write_bytes(b"half")
    assert checkpoint.find(tmp_path) == path
    checkpoint.save(tmp_path, payload(2))
    assert not left.exists()


# --- files that are none --------------------------------------------------------------------------


class Shell:
    """Unpickling it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "inside"])
def test_nothing_is_executed(tmp_path, kind):
    marker, path = tmp_path / "marker", tmp_path / "step_00000001.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Shell(marker)))
    else:
        hostile = (
            {"format": checkpoint.FORMAT, **payload(), "optimizer": Shell(marker)}
            if kind == "inside"
            else Shell(marker)
        )
        torch.save(hostile, path, _use_new_zipfile_serialization=kind != "legacy")
    message = refused(path)
    assert not marker.exists()
    if kind in ("zip", "inside"):
        assert "nothing was executed" in message
        assert "system" in message
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the payload was harmless: this test tests nothing"


def a_zip_of_words(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def an_empty_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", "")


def another_programs(path):
    torch.save({"state_dict": {"w": torch.zeros(3)}, "epoch": 3}, path)


def another_version(path):
    torch.save({**payload(), "format": "silc-bench-checkpoint/0"}, path)


def missing_fields(path):
    torch.save({"format": checkpoint.FORMAT, "student": {}}, path)


def later_fields(path):
    torch.save({"format": checkpoint.FORMAT, **payload(), "zebra": 1}, path)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: p.write_text("these are not weights\n"), "(22 bytes: File is not a zip file)"),
        (a_zip_of_words, "of another kind"),
        (an_empty_archive, "of another kind"),
        (lambda p: torch.save(torch.zeros(3), p), "another program's file (it holds Tensor)"),
        (another_programs, "another program's file (it holds ['epoch', 'state_dict'])"),
        (another_version, f"format {checkpoint.FORMAT}"),
        (missing_fields, "another program's file (it holds ['format', 'student'])"),
        (later_fields, "another program's file (it holds ['config', 'format', "),
    ],
)
def test_a_foreign_file_says_what_it_is(tmp_path, write, words):
    path = tmp_path / "x.pt"
    write(path)
    assert words in refused(path)


def test_a_scripted_model_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
        refused(path)


def test_what_is_not_there(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "nowhere")
    assert "a folder without checkpoints" in refused(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path)


def test_a_flipped_weight_names_the_checksum(tmp_path, good):
    whole, weight = good.read_bytes(), checkpoint.load(good)["student"]["weight"]
    place = whole.index(weight.numpy().tobytes()) + 40
    path = tmp_path / "flipped.pt"
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert "wrong checksum" in refused(path)


# --- as a model to be measured --------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, state):
    with torch.no_grad():
        for p in state.teacher.vision.parameters():
            p.add_(0.01)
    checkpoint.save(tmp_path, state.payload())
    return tmp_path


def test_student_and_teacher_are_loaded_as_they_were(run, state):
    images = torch.randn(2, 3, 16, 16)
    tokens = state.tokenizer(["a red circle", "a blue square"])
    for branch, vision in (("student", state.student.vision), ("teacher", state.teacher.vision)):
        model = native.load(run, branch)
        assert model.name == f"tiny-silc:{branch}"
        with torch.no_grad():
            assert torch.equal(model.encode_image(images), vision(images))
            patches = model.encode_dense(images, ["tokens"])["tokens"].flatten(1, 2)
            assert torch.equal(patches, vision.tokens(images))
            assert torch.equal(
                model.encode_text(model.tokenize(["a red circle", "a blue square"])),
                state.student.text(tokens),
            )
        assert model.logit_scale == pytest.approx(10.0)
    assert (
        native.load(run).revision
        == native.load(run / "checkpoints" / "step_00000000.pt", "student").revision
    )
    assert native.load(run, "teacher").revision != native.load(run).revision


def test_a_foreign_model_is_a_users_error(run, tmp_path_factory):
    with pytest.raises(UserError, match=r"'studnet'; did you mean student"):
        native.load(run, "studnet")
    path = tmp_path_factory.mktemp("foreign") / "x.pt"
    shutil.copy(checkpoint.find(run), path)
    saved = checkpoint.load(path)
    for change, words in (
        ({"student": {}}, "do not fit its own configuration"),
        ({"student": 3}, "do not fit its own configuration"),
        ({"config": "{"}, "config is not JSON"),
        ({"config": None}, "config is not JSON"),
        ({"config": "{}"}, "not a configuration of this version"),
        ({"tokenizer": "{}"}, "tokenizer is damaged"),
    ):
        torch.save(checkpoint.with_checksums({**saved, **change}), path)
        with pytest.raises(UserError, match=words):
            native.load(path)
