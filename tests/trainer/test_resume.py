"""A run that is killed or stopped anywhere and resumed ends bit for bit as the uninterrupted one.

Real processes die by SIGKILL here, one for every part of every run, at the places that ``LIVES``
names; only the files that the dead leave behind go on. The run that nothing interrupts is made in
this process.
"""

import errno
import io
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import forked
import lives
import pytest
import torch
from refusals import refused
from rich.console import Console
from runs import close, differing, end_of, equal, rows_of, run, saved_in
from torch.utils._pytree import tree_leaves

from silc_bench.errors import DataError, RunError
from silc_bench.system.lock import NAME
from silc_bench.system.processes import StoppedError
from silc_bench.trainer import loop, train
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints.stop import STOPPING, Stop
from silc_bench.trainer.device import DataWait
from silc_bench.trainer.monitor.log import RunLog
from silc_bench.trainer.silc.student import MicroBatches
from silc_bench.trainer.train import train_step

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("few_captions", "_uncounted")]
STEPS = 9  # a checkpoint after every second, a row of the log after every third

# Lives of a run: where each of its processes dies, and at which pass of the place; the last one is
# resumed to the end.
LIVES = {
    "dies in a step": [
        ("before a step", 4),
        ("between weights and teacher", 4),
        ("between teacher and centre", 5),
    ],
    "dies saving": [
        ("inside a checkpoint", 2),
        ("between a checkpoint's file and its words", 1),
        ("between words and their checkpoint", 2),
        ("before a checkpoint", 2),
        ("inside a checkpoint", 2),
    ],
    "dies of a scheduler's warning, twice": [("warned", 3), ("warned", 2)],
    "dies tidying up": [("before a file is removed", 1), ("before a file is removed", 2)],
    "dies logging, then of two signals": [("inside a row of the log", 1), ("two signals", 4)],
    "is stopped at once, in torch too": [
        ("two signals", 4),
        ("two signals while torch computes", 3),
    ],
    "dies, then is told to stop": [("before a step", 4), ("signal to the group", 3)],
}
# exit code; of every other place SIGKILL's
HOW = {
    "two signals": 1,
    "two signals while torch computes": 1,
    "signal to the group": 1,
    "warned": 1,
}
SAID = {
    "dies of a scheduler's warning, twice": [("SIGUSR1", "3"), ("SIGUSR1", "5")],
    "dies, then is told to stop": [("SIGTERM", "5")],
}
SOURCES = {"shapes": list(LIVES)[:6], "shards": list(LIVES)[6:]}
CASES = [(source, life) for source, lives in SOURCES.items() for life in lives]


def same_run(mine, other, but=()):
    """Final weights, average, centre, moments, counters and log of two run folders."""
    end = end_of(mine)
    assert end["step"] == STEPS
    assert differing(end, end_of(other)) <= {*but}
    assert "center" in end["teacher"]
    assert rows_of(mine) == rows_of(other)
    assert [row["step"] for row in rows_of(mine)] == [3, 6, 9]


@pytest.fixture(scope="module")
def _uncounted():
    """Counting a step's operations, for mfu alone, takes as long as the steps of so small a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.monitor.health.flops_per_image", lives.uncounted)
        yield


@pytest.fixture(scope="module")
def configs(tiny, shards):
    """Distillation of globals and locals in fp32 on generated scenes; bf16 on shards.

    Of the shards one image is damaged.
    """
    rhythm = {"steps": STEPS, "checkpoint_every": 2, "log_every": 3}
    return {
        "shapes": tiny(precision="fp32", distillation={"pairs": "local+global"}, **rhythm),
        "shards": tiny(precision="bf16", data={"source": shards}, **rhythm),
    }


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory, _uncounted):
    """{source: folder of the run that nothing interrupts}."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
        for source, config in configs.items():
            run(config, folder / source)
    return {source: folder / source for source in configs}


@pytest.mark.parametrize(("source", "life"), CASES)
def test_a_killed_run_ends_as_the_uninterrupted_one(whole, configs, tmp_path, source, life):
    config, folder, printed, codes = configs[source], tmp_path / "run", tmp_path / "printed", []
    for number, (place, count) in enumerate([*LIVES[life], (None, 0)]):
        # how many read the data is no part of the result
        workers = 1 if place == "signal to the group" else 0
        used = replace(config, data=replace(config.data, num_workers=workers))
        is_waiting = life != "dies saving"  # there the main thread trains on while the writer dies
        process = forked.start(
            printed, lives.live, used, folder, number > 0, place, count, is_waiting
        )
        codes.append(forked.ended(process))
    words = printed.read_text()
    assert codes == [*(HOW.get(place, -signal.SIGKILL) for place, _ in LIVES[life]), 0], words
    same_run(folder, whole[source])
    assert saved_in(folder) == [8, 9]
    kinds = {path.suffix for path in (folder / "checkpoints").iterdir()}
    assert kinds == {".json", ".pt"}, "no half file is left"
    # A process that was told to stop says so, and nothing else: none of its workers died on the
    # way.
    num_silent = life.count("in torch")  # says it without a traceback
    num_said = words.count("StoppedError: stopped by ")
    assert words.count("Traceback") == num_said == codes.count(1) - num_silent
    assert words.count("error: stopped by ") == num_silent
    assert re.findall(r"(SIG\w+) after step (\d)", words) == SAID.get(life, [])


def test_a_resumed_run_goes_on_with_what_suits_this_machine(whole, configs):
    """And says that: it named the workers of the machine where it began."""
    config = configs["shapes"]
    data = replace(config.data, num_workers=3, mirror_gb=7.0)
    asked = replace(config, data=data, log_every=5, checkpointing="blocks")
    state = loop._restored(asked, end_of(whole["shapes"]), torch.device("cpu"))
    assert state.config == replace(asked, compile="false")


def test_a_run_that_goes_on_with_other_nodes_says_so_once(tiny, shards, tmp_path):
    config = tiny("contrastive", steps=4, data={"source": shards}, checkpoint_every=1)
    run(config, tmp_path)
    (tmp_path / "checkpoints/step_00000004.pt").unlink()
    payload = end_of(tmp_path)
    del payload["format"]
    nodes = {"nodes": [payload["position"] - 3, 3]}
    checkpoint.save(tmp_path, payload | {"data": json.dumps(json.loads(payload["data"]) | nodes)})

    _, printed = run(config, tmp_path, resume=True)
    assert "the data was read on 2 nodes and is read on 1 node now" in printed
    assert "nodes" not in json.loads(end_of(tmp_path)["data"])


@pytest.mark.parametrize(
    ("saved", "num_nodes", "words"),
    [
        ({}, 1, None),
        ({}, 3, "on 1 node and is read on 3 nodes now"),
        ({"nodes": [4, 4]}, 2, None),
        ({"nodes": [4, 4]}, 3, "on 2 nodes and is read on 3 nodes now"),
    ],
)
def test_which_numbers_of_nodes_cut_an_epoch_anew(saved, num_nodes, words):
    assert (words or "None") in str(loop._cut_anew(saved, num_nodes))


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(whole, configs, tmp_path):
    """The run goes on from the one before, says so, and ends as if nothing had happened."""
    interrupted(configs["shards"], tmp_path, signal.SIGTERM, 5)
    newest = checkpoint.find(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    _, printed = run(configs["shards"], tmp_path, resume=True)
    (line,) = [line for line in printed.splitlines() if "sha256" in line]
    assert str(newest) in line
    assert line.endswith(str(checkpoint.path_of(tmp_path, 4)))
    same_run(tmp_path, whole["shards"])


def test_minutes_are_a_rhythm_of_their_own_and_change_nothing_else(
    whole, configs, tmp_path, monkeypatch
):
    """With a clock that advances a minute a step: every third one."""
    clock, step = [0.0], loop.train_step

    def in_a_minute(state, batch):
        clock[0] += 60
        return step(state, batch)

    times = {"perf_counter": time.perf_counter, "monotonic": lambda: clock[0]}
    monkeypatch.setattr(loop, "time", SimpleNamespace(**times))
    monkeypatch.setattr(loop, "train_step", in_a_minute)
    saved, write = [], checkpoint.Writer.write

    def noted(writer, payload, score):
        saved.append(payload["step"])
        write(writer, payload, score)

    monkeypatch.setattr(checkpoint.Writer, "write", noted)
    config = replace(configs["shapes"], checkpoint_every=1000, checkpoint_minutes=3.0)
    run(config, tmp_path)
    assert saved == [3, 6, 9]
    same_run(tmp_path, whole["shapes"], but=["config"])


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [({"checkpointing": "blocks", "checkpoint_every": 5}, 0.0), ({"micro_batch": 3}, 1e-4)],
    ids=str,
)
def test_what_suits_the_machine_may_change(configs, whole, tmp_path, monkeypatch, changes, allowed):
    """Blocks computed anew end to the bit; parts of a batch at a time add in another order.

    Both are really in use.
    """
    interrupted(configs["shapes"], tmp_path, signal.SIGTERM, 4)
    states, real = [], loop._loop
    monkeypatch.setattr(
        loop, "_loop", lambda state, *rest: states.append(state) or real(state, *rest)
    )
    run(replace(configs["shapes"], **changes), tmp_path, resume=True)
    (state,) = states
    assert bool(state.student.vision.blocks.num_checkpointed) == ("checkpointing" in changes)
    assert isinstance(state.forward, MicroBatches) == ("micro_batch" in changes)
    assert saved_in(tmp_path) == ([5, 9] if "checkpoint_every" in changes else [8, 9])
    theirs = end_of(whole["shapes"])["student"]
    close(end_of(tmp_path)["student"], dict(theirs), 0, atol=allowed)


def test_killed_before_the_first_checkpoint_it_starts_anew(configs, tmp_path):
    """There is nothing to resume; the same command without --resume succeeds, its log whole."""
    with (
        mock.patch.object(loop, "train_step", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run(configs["shapes"], tmp_path)
    with refused(about=tmp_path):
        run(configs["shapes"], tmp_path, resume=True)
    run(configs["shapes"], tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)] == [3, 6, 9]


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _answered_here(monkeypatch):
    """However slow this process is, no thread of it ends it before it has answered a signal."""
    monkeypatch.setattr("silc_bench.trainer.checkpoints.stop.GRACE", forked.SECONDS)


@contextmanager
def signalled(kind, step):
    """This process gets ``kind`` inside optimiser step ``step``."""

    def stepped(state, batch):
        if state.step + 1 == step:
            os.kill(os.getpid(), kind)
        return train_step(state, batch)

    with mock.patch.object(loop, "train_step", stepped):
        yield


def interrupted(config, folder, kind, step):
    """A run that is stopped, and its error."""
    with signalled(kind, step), pytest.raises(StoppedError) as caught:
        run(config, folder)
    return caught.value


@pytest.mark.parametrize(
    ("source", "kind", "step"),
    [
        ("shapes", signal.SIGTERM, 5),
        ("shards", signal.SIGINT, 4),
        ("shards", signal.SIGHUP, 3),
        ("shards", signal.SIGUSR2, 5),
    ],
)
def test_a_signal_is_answered_with_a_checkpoint(whole, configs, tmp_path, source, kind, step):
    """The step that is under way is finished, saved, and the run continues from exactly there."""
    handlers = [signal.getsignal(kind) for kind in STOPPING]
    error = interrupted(configs[source], tmp_path, kind, step)
    assert f"{kind.name} after step {step}" in error.problem
    assert str(checkpoint.path_of(tmp_path, step)) in error.fix
    # what was left out is said of a stopped run too
    assert ("left out:" in error.printed) == (source == "shards")
    assert end_of(tmp_path)["step"] == step
    assert [signal.getsignal(kind) for kind in STOPPING] == handlers
    run(configs[source], tmp_path, resume=True)
    same_run(tmp_path, whole[source])


@pytest.mark.parametrize(
    ("moment", "saved"), [("before the step", 4), ("in the step", 4), ("in the update", 5)]
)
def test_a_second_signal_loses_the_step_at_most(
    whole, configs, tmp_path, monkeypatch, moment, saved
):
    """The first comes in step 4 or 5; what the second interrupts is not finished, but an update."""
    config = configs["shapes"]
    owner, name = {
        "before the step": (loop, "train_step"),
        "in the step": (train, "distillation"),
        "in the update": (torch.optim.AdamW, "step"),
    }[moment]
    real = getattr(owner, name)
    calls = []

    def twice(*args, **kwargs):
        calls.append(name)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, twice)
    handlers = [signal.getsignal(kind) for kind in STOPPING]
    with pytest.raises(StoppedError) as caught:
        run(config, tmp_path)
    assert str(checkpoint.path_of(tmp_path, saved)) in caught.value.fix
    assert end_of(tmp_path)["step"] == saved
    assert [signal.getsignal(kind) for kind in STOPPING] == handlers
    assert not (tmp_path / NAME).exists()
    run(config, tmp_path, resume=True)
    same_run(tmp_path, whole["shapes"])


def test_before_its_first_step_a_run_that_is_stopped_at_once_leaves_nothing_to_go_on_from(
    configs, tmp_path, monkeypatch
):
    def stopped(*args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "train_step", stopped)
    with pytest.raises(StoppedError) as caught:
        run(configs["shapes"], tmp_path)
    assert caught.value.fix == "start it anew"
    assert not saved_in(tmp_path)


def test_the_first_signal_is_answered_while_torch_computes(tiny, tmp_path, monkeypatch):
    """Inside a call that lets no handler in Python come to its turn, and waits for the answer."""
    answered, answer = os.pipe()

    class Answered(io.StringIO):
        def write(self, text):
            if "stopping after this step; again to stop now" in text:
                os.write(answer, b"!")
            return super().write(text)

    def computing(state, batch):
        commands = f"kill -TERM {os.getpid()}; timeout {forked.SECONDS} head -c 1"
        assert lives.within_one_call(commands, answered) == 0, "it was answered"
        return train_step(state, batch)

    monkeypatch.setattr(loop, "train_step", computing)
    console = Console(file=Answered(), width=200)
    with pytest.raises(StoppedError):
        loop.run_training(
            tiny("contrastive"), tmp_path, resume=False, device=torch.device("cpu"), console=console
        )
    os.close(answered)
    os.close(answer)
    assert end_of(tmp_path)["step"] == 1


@pytest.mark.parametrize(
    ("left", "words"), [(16.4, "about 16 s; again"), (0.9, "this step; again")]
)
def test_the_answer_says_how_long_the_step_takes(left, words):
    assert words in Stop(Console(quiet=True))._answer(left)


def test_a_later_signal_ends_a_process_that_others_wait_for(tmp_path):
    code = forked.ended(forked.start(tmp_path / "output", lives.signalled_again))
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGUSR1)


def test_what_is_before_a_long_step_is_saved_while_it_computes(tiny, tmp_path, monkeypatch):
    """The step waits for it, and goes on."""
    monkeypatch.setattr("silc_bench.trainer.checkpoints.stop.LONG", -math.inf)
    kept = threading.Event()
    real = checkpoint.Writer.write

    def written(writer, payload, score=None):
        real(writer, payload, score)
        writer.wait()
        kept.set()

    monkeypatch.setattr(checkpoint.Writer, "write", written)

    def computing(state, batch):
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            assert kept.wait(forked.SECONDS)
        return train_step(state, batch)

    monkeypatch.setattr(loop, "train_step", computing)
    with pytest.raises(StoppedError):
        run(tiny("contrastive", steps=3, checkpoint_every=10), tmp_path)
    assert saved_in(tmp_path) == [1, 2]


def test_under_nohup_the_end_of_the_terminal_stops_nothing(tiny, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signalled(signal.SIGHUP, 2):
            run(tiny("contrastive", steps=3), tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end_of(tmp_path)["step"] == 3


def fails_in(monkeypatch, owner, name, number, error):
    """Call ``number`` (from 1) of owner.name raises."""
    real, calls = getattr(owner, name), []

    def called(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize(
    ("owner", "name", "number", "step"),
    [
        (DataWait, "next", 6, 5),
        (RunLog, "write", 1, 3),
        (RunLog, "write_note", 1, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("error", [DataError("gone", about="a.tar", fix="x"), OSError(28, "full")])
def test_an_error_that_leaves_the_state_good_comes_after_a_checkpoint(
    whole, configs, tmp_path, monkeypatch, owner, name, number, step, error
):
    with monkeypatch.context() as patch:
        patch.setattr("silc_bench.trainer.monitor.watch.MAX_LEFT_OUT", -1.0)  # a note at once
        fails_in(patch, owner, name, number, error)
        with pytest.raises(type(error)) as caught:
            run(configs["shards"], tmp_path)
    assert f"{checkpoint.path_of(tmp_path, step)} is saved" in caught.value.printed
    assert end_of(tmp_path)["step"] == step
    run(configs["shards"], tmp_path, resume=True)
    # all but the row that could not be written
    assert not differing(end_of(tmp_path), end_of(whole["shards"]))


@pytest.mark.parametrize(
    ("owner", "name", "saved"),
    [
        (train, "make_views", [2, 4, 5]),
        (train, "contrastive", [2, 4, 5]),
        (train, "ema_at", [2, 4]),  # the weights have moved, and the teacher has not followed
    ],
    ids=str,
)
def test_a_step_without_memory_comes_after_a_checkpoint_unless_the_weights_have_moved(
    whole, configs, tmp_path, monkeypatch, owner, name, saved
):
    with monkeypatch.context() as patch:
        fails_in(patch, owner, name, 6, torch.OutOfMemoryError("out of memory"))
        with pytest.raises(torch.OutOfMemoryError):
            run(configs["shards"], tmp_path)
    assert saved_in(tmp_path) == saved[-2:]
    run(configs["shards"], tmp_path, resume=True)
    same_run(tmp_path, whole["shards"])


def test_values_that_are_not_finite_are_never_saved(configs, tmp_path, monkeypatch):
    """Nor the weights before them, which are on their way there."""
    real, steps = train.contrastive, []

    def diverging(*args):
        steps.append(1)
        return real(*args) * (math.nan if len(steps) == 6 else 1)

    monkeypatch.setattr(train, "contrastive", diverging)
    with refused("step 6", RunError, is_kept=False):
        run(configs["shards"], tmp_path)
    assert saved_in(tmp_path) == [2, 4]


def test_where_nothing_is_new_no_checkpoint_is_written(configs, tmp_path, monkeypatch):
    error = DataError("gone", about="a.tar", fix="x")
    fails_in(monkeypatch, DataWait, "next", 1, error)
    with refused("a.tar", DataError):
        run(configs["shards"], tmp_path)
    assert saved_in(tmp_path) == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_another_process_trains_is_refused(tiny, tmp_path, monkeypatch, resume):
    """Before anything is read or written there."""

    def used_by_another(*args):
        raise BlockingIOError(errno.EAGAIN, "locked")

    config = tiny("contrastive", steps=2)
    (tmp_path / NAME).write_text('{"host": "h", "pid": 7, "since": "today"}')
    with monkeypatch.context() as patch, refused(tmp_path) as caught:
        patch.setattr("fcntl.lockf", used_by_another)
        run(config, tmp_path, resume=resume)
    assert "process 7 on h, since today" in caught.value.problem
    assert [path.name for path in tmp_path.iterdir()] == [NAME]

    _, printed = run(config, tmp_path)
    assert "process 7 on h, since today" in printed
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("place", "name"), [(train.TrainState, "create"), (torch.optim.AdamW, "load_state_dict")]
)
def test_a_device_that_is_full_is_no_fault_of_the_checkpoint(
    whole, configs, monkeypatch, place, name
):
    fails_in(monkeypatch, place, name, 1, torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        loop._restored(configs["shapes"], end_of(whole["shapes"]), torch.device("cpu"))


def test_parts_that_do_not_fit_are_refused(whole, configs):
    payload = end_of(whole["shapes"])
    payload["student"]["log_scale"] = torch.zeros(3)
    with refused("--resume"):
        loop._restored(configs["shapes"], payload, torch.device("cpu"))


def test_a_run_without_a_teacher_resumes_as_well(tiny, tmp_path):
    """Without a head, centre or targets; softmax instead of sigmoid."""
    config = tiny("contrastive+views", steps=5, contrastive={"loss": "softmax"})
    interrupted(config, tmp_path / "parts", signal.SIGTERM, 2)
    run(config, tmp_path / "parts", resume=True)
    run(config, tmp_path / "whole")
    assert not differing(end_of(tmp_path / "parts"), end_of(tmp_path / "whole"))
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_a_run_goes_on_with_the_same_data_elsewhere_and_refuses_other_data(tiny, shards, tmp_path):
    """A run of an earlier version kept no fingerprint: its source has to have the same name."""
    folder = Path(shards).parent
    config = tiny("contrastive", steps=4, data={"source": shards})
    interrupted(config, tmp_path / "run", signal.SIGTERM, 2)
    shutil.copytree(folder, tmp_path / "moved")
    moved = replace(config, data=replace(config.data, source=str(tmp_path / "moved" / "*.tar")))
    shutil.copy(tmp_path / "moved/000.tar", tmp_path / "moved/002.tar")
    before = saved_in(tmp_path / "run")
    with refused(about=tmp_path / "moved") as caught:
        run(moved, tmp_path / "run", resume=True)
    assert "21 pairs in 2 shards then, 33 pairs in 3 shards now" in caught.value.problem
    assert saved_in(tmp_path / "run") == before

    (tmp_path / "moved/002.tar").unlink()
    run(moved, tmp_path / "run", resume=True)
    run(config, tmp_path / "whole")
    end = end_of(tmp_path / "run")
    assert differing(end, end_of(tmp_path / "whole")) == {"config"}
    assert json.loads(end["config"])["data"]["source"] == moved.data.source

    older = {name: part for name, part in end.items() if name != "data"}
    with refused(about=tmp_path):
        loop._check_same_configuration(config, older, tmp_path)


def test_a_checkpoint_of_the_format_before_goes_on_to_the_same_bits(tiny, tmp_path):
    """There scale and bias, their averages and what the optimiser keeps had no dimension."""
    for kind in ("adamw", "adafactor"):
        config = tiny(steps=4, optim={"kind": kind}, average_momentum=0.9)
        whole, cut = tmp_path / kind / "whole", tmp_path / kind / "cut"
        run(config, whole)
        shutil.copytree(whole, cut)
        last, first = checkpoint.all_in(cut)[::-1][:2]
        last.unlink()
        payload = checkpoint.load(first)
        old = {name: lowered(part) for name, part in payload.items()}
        assert len(scalars(old)) == len(scalars(payload)) + 8
        torch.save(checkpoint.with_checksums(old | {"format": checkpoint.EARLIER}), first)
        first.with_suffix(".json").unlink()
        assert equal(checkpoint.load(first), payload)
        run(config, cut, resume=True)
        assert equal(end_of(cut), end_of(whole))


def lowered(part):
    """The same with each tensor of shape [1] as a scalar."""
    if isinstance(part, dict):
        return {name: lowered(inner) for name, inner in part.items()}
    is_one = isinstance(part, torch.Tensor) and part.shape == (1,)
    return part.reshape(()) if is_one else part


def scalars(payload):
    return [
        leaf for leaf in tree_leaves(payload) if isinstance(leaf, torch.Tensor) and not leaf.ndim
    ]
