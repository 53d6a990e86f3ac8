"""Checkpoints: all or nothing on disk, two kept, nothing executed or believed of other files."""

import errno
import hashlib
import json
import os
import resource
import threading
import zipfile
from contextlib import contextmanager

import pytest
import torch
from refusals import refused

from silc_bench.errors import RunError, UserError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.file import DamagedCheckpointError
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


def whole(step=3):
    """What is read of ``payload(step)`` after it was written."""
    return {"format": checkpoint.FORMAT, **payload(step)}


def names(run):
    return [path.name for path in checkpoint.all_in(run)]


# --- what is written ------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    path = checkpoint.save(tmp_path, payload())
    assert path == tmp_path / "checkpoints" / "step_00000003.pt"
    assert equal(checkpoint.load(path), whole())
    assert not equal(checkpoint.load(path), whole(4))


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
        checkpoint.save(tmp_path, payload(step))
        assert checkpoint.find(tmp_path).name == f"step_{step:08d}.pt"
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step_{step:08d}.{kind}" for step in (10, 11) for kind in ("json", "pt")]


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
    kept = [checkpoint.save(tmp_path, payload(step)) for step in (1, 2)]
    monkeypatch.setattr(torch, "save", half_a_file)
    with checkpoint.Writer(tmp_path) as writer:
        writer.write(payload(3))
        with refused(about=tmp_path, kind=RunError, is_kept=False) as caught:
            writer.write(payload(4))
        assert "step 3" in caught.value.problem
        assert str(kept[1]) in caught.value.problem
        monkeypatch.undo()
        writer.write(payload(5), score=0.5)
        assert writer.wait() == checkpoint.best_in(tmp_path) == checkpoint.path_of(tmp_path, 5)


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
def test_the_writer_writes_in_order_and_ends_with_the_last(tmp_path):
    with checkpoint.Writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(payload(step))
        assert writer.wait().name == "step_00000005.pt"
    assert names(tmp_path) == ["step_00000004.pt", "step_00000005.pt"]


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
    assert names(tmp_path) == [f"step_{step:08d}.pt" for step in (3, 6, 7)]
    assert checkpoint.best_in(tmp_path).name == "step_00000003.pt"
    checkpoint.save(tmp_path, payload(8), 0.6)
    assert names(tmp_path) == ["step_00000007.pt", "step_00000008.pt"]
    notes = sorted((tmp_path / "checkpoints").glob("*.json"))
    assert [note.stem for note in notes] == ["step_00000007", "step_00000008"]


def test_without_scores_none_is_best(tmp_path):
    checkpoint.save(tmp_path, payload())
    assert checkpoint.best_in(tmp_path) is None


def test_the_note_comes_first_and_a_checkpoint_needs_none(tmp_path, monkeypatch):
    """So no checkpoint is ever without its checksum.

    Where the note is lost the archive has checksums of its own.
    """
    placed, real = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda old, new: placed.append(os.path.basename(new)) or real(old, new)
    )
    path = checkpoint.save(tmp_path, payload(), score=0.5)
    assert placed == ["step_00000003.json", "step_00000003.pt"]
    for note in ("", "{", "[1]", "3"):
        path.with_suffix(".json").write_text(note)
        assert equal(checkpoint.load(path), whole())
        assert checkpoint.best_in(tmp_path) is None


def test_padding_that_no_archive_checks_is_under_the_checksum(tmp_path):
    """The one place where the archive's own checksums are blind."""
    path = checkpoint.save(tmp_path, payload())
    content = bytearray(path.read_bytes())
    alone = tmp_path / "alone.pt"
    for place in range(len(content)):
        content[place] ^= 1
        alone.write_bytes(content)
        try:
            checkpoint.load(alone)
            break
        except UserError:
            content[place] ^= 1
    else:
        pytest.fail("every byte is checked by the archive: this test tests nothing")
    path.write_bytes(content)
    with refused(about=path, kind=DamagedCheckpointError):
        checkpoint.load(path)


def test_a_checkpoint_is_hashed_once(tmp_path, monkeypatch):
    """As a whole where its note says what it was, else by its parts."""
    path = checkpoint.save(tmp_path, payload())
    monkeypatch.setattr(checkpoint, "_checksums", lambda payload: pytest.fail("hashed again"))
    assert equal(checkpoint.load(path), whole())


def test_a_damaged_newest_falls_back_to_the_one_before_and_is_told(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, payload(step))
    newest = checkpoint.find(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    path, found, damaged = checkpoint.load_newest(tmp_path)
    assert path.name == "step_00000001.pt"
    assert found["step"] == 1
    assert len(damaged) == 1
    assert damaged[0].startswith(f"{newest}: damaged")
    checkpoint.save(tmp_path, payload(1))
    assert not newest.exists(), "else it would count as one of the newest"


def test_nothing_whole_to_fall_back_to(tmp_path):
    """The newest is the one that is told of."""
    for step in (1, 2):
        checkpoint.save(tmp_path, payload(step)).write_bytes(b"")
    with refused(about="step_00000002.pt", kind=DamagedCheckpointError):
        checkpoint.load_newest(tmp_path)


def test_a_foreign_newest_is_not_passed_over(tmp_path):
    checkpoint.save(tmp_path, payload(1))
    torch.save({"state_dict": {}}, tmp_path / "checkpoints" / "step_00000002.pt")
    with refused(about="step_00000002.pt"):
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


@pytest.mark.parametrize("is_legacy", [False, True])
def test_nothing_is_executed(tmp_path, is_legacy):
    """One of the parts is hostile. The models' tests try what is no checkpoint at all."""
    marker, path = tmp_path / "marker", tmp_path / "step_00000001.pt"
    content = {**whole(), "optimizer": Shell(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    with refused(about=path, kind=DamagedCheckpointError if is_legacy else UserError):
        checkpoint.load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload was harmless: this test tests nothing"


def an_archive_of(name):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "")

    return write


def holding(content):
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda path: path.write_bytes(b""), DamagedCheckpointError),
        (an_archive_of("readme.txt"), DamagedCheckpointError),
        (an_archive_of("archive/data.pkl"), DamagedCheckpointError),
        (holding(torch.zeros(3)), UserError),
        (holding({"state_dict": {}, "epoch": 3}), UserError),
        (holding({**payload(), "format": "silc-bench-checkpoint/0"}), UserError),
        (holding({"format": checkpoint.FORMAT, "student": {}}), UserError),
        (holding({**whole(), "zebra": 1}), UserError),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, write, kind):
    path = tmp_path / "x.pt"
    write(path)
    with refused(about=path, kind=kind, is_kept=kind is UserError):
        checkpoint.load(path)


@pytest.mark.parametrize("read", [checkpoint.find, checkpoint.load])
@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_not_there(tmp_path, read, name):
    with refused(about=tmp_path / name):
        read(tmp_path / name)


# --- as a model to be measured --------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, state):
    with torch.no_grad():
        for p in state.teacher.vision.parameters():
            p.add_(0.01)
    checkpoint.save(tmp_path, state.payload())
    return tmp_path


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_a_branch_is_loaded_as_it_was(run, state, branch):
    images = torch.randn(2, 3, 16, 16)
    texts = ["a red circle", "a blue square"]
    vision = getattr(state, branch).vision
    model = native.load(run, branch)
    assert model.name == f"tiny-silc:{branch}"
    assert model.logit_scale == pytest.approx(10.0)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), vision(images))
        patches = model.encode_dense(images, ["tokens"])["tokens"].flatten(1, 2)
        assert torch.equal(patches, vision.tokens(images))
        expected = state.student.text(state.tokenizer(texts))
        assert torch.equal(model.encode_text(model.tokenize(texts)), expected)
    is_default = native.load(checkpoint.find(run)).revision == model.revision
    assert is_default == (branch == "student")


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"student": {}}, "x.pt"),
        ({"config": "{}"}, "x.pt, config"),
    ],
)
def test_parts_that_do_not_fit_are_refused(run, tmp_path, change, about):
    path = tmp_path / "x.pt"
    saved = checkpoint.load(checkpoint.find(run))
    torch.save(checkpoint.with_checksums({**saved, **change}), path)
    with refused(about=about, is_kept=False):
        native.load(path)
