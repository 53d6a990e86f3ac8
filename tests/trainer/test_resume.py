"""A run that is killed or stopped anywhere and resumed ends bit for bit as the uninterrupted one.

Real processes die by SIGKILL here, one for every part of every run, at the places that ``LIVES``
names; only the files that the dead leave behind go on. The run that nothing interrupts is made in
this process.
"""

import io
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import forked
import lives
import pytest
import torch
from rich.console import Console

from silc_bench.errors import RunError, UserError
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.silc.student import MicroBatches

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("few_captions", "_uncounted")]
CPU = torch.device("cpu")
STEPS = 9  # a checkpoint after every second, a row of the log after every third
TIMING = ("images_per_second", "data_wait_share", "seconds_left", "mfu")

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
    "dies, then is told to stop": [("before a step", 4), ("signal to the group", 3)],
}
# exit code; of every other place SIGKILL's
HOW = {"two signals": -signal.SIGTERM, "signal to the group": 1, "warned": 1}
SOURCES = {"shapes": list(LIVES)[:5], "shards": list(LIVES)[5:]}
CASES = [(source, life) for source, lives in SOURCES.items() for life in lives]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def rows(run):
    """The log without what a clock says."""
    parsed = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING} for row in parsed]


def same_run(one, other):
    """Final weights, average, centre, moments, counters and log of two run folders."""
    ends = [checkpoint.load(checkpoint.find(run)) for run in (one, other)]
    assert ends[0]["step"] == STEPS
    assert [name for name in ends[0] if not equal(ends[0][name], ends[1][name])] == []
    assert "center" in ends[0]["teacher"]
    assert rows(one) == rows(other)
    assert [row["step"] for row in rows(one)] == [3, 6, 9]
    assert [p.name for p in checkpoint.all_in(one)] == ["step_00000008.pt", "step_00000009.pt"]


@pytest.fixture(scope="module")
def _uncounted():
    """Counting a step's operations, for mfu alone, takes as long as the steps of so small a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.monitor.health.flops_per_image", lives.uncounted)
        yield


@pytest.fixture(scope="module")
def configs(tiny, shards):
    """Distillation of globals and locals in fp32 on generated scenes; bf16 on shards.

    Of the shards one picture is damaged.
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
            run_training(
                config,
                folder / source,
                resume=False,
                device=CPU,
                console=Console(file=io.StringIO()),
            )
    return {source: folder / source for source in configs}


@pytest.fixture(scope="module")
def stopped(configs, tmp_path_factory, _uncounted):
    """The folder of a run on shapes that a signal stopped after step 4, to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
        interrupted(configs["shapes"], folder, signal.SIGTERM, 4, patch)
    return folder


@pytest.mark.parametrize(("source", "life"), CASES)
def test_a_killed_run_ends_as_the_uninterrupted_one(whole, configs, tmp_path, source, life):
    config, run, said, codes = configs[source], tmp_path / "run", tmp_path / "said", []
    for number, (place, count) in enumerate([*LIVES[life], (None, 0)]):
        # how many read the data is no part of the result
        workers = 1 if place == "signal to the group" else 0
        used = replace(config, data=replace(config.data, num_workers=workers))
        is_waiting = life != "dies saving"  # there the main thread trains on while the writer dies
        codes.append(
            forked.ended(
                forked.start(said, lives.live, used, run, number > 0, place, count, is_waiting)
            )
        )
    words = said.read_text()
    assert codes == [*(HOW.get(place, -signal.SIGKILL) for place, _ in LIVES[life]), 0], words
    same_run(run, whole[source])
    assert {p.suffix for p in (run / "checkpoints").iterdir()} == {".json", ".pt"}, (
        "no half file is left"
    )
    # A process that was told to stop says so, and nothing else: none of its workers died on the
    # way.
    assert words.count("Traceback") == words.count("StoppedError: stopped by ") == codes.count(1)
    assert [
        name
        for name in ("SIGUSR1 after step 3", "SIGUSR1 after step 5", "SIGTERM after step 5")
        if name in words
    ] == {
        "dies of a scheduler's warning, twice": ["SIGUSR1 after step 3", "SIGUSR1 after step 5"],
        "dies, then is told to stop": ["SIGTERM after step 5"],
    }.get(life, [])


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    whole, configs, tmp_path, monkeypatch
):
    """The run goes on from the one before, says so, and ends as if nothing had happened."""
    interrupted(configs["shards"], tmp_path, signal.SIGTERM, 5, monkeypatch)
    newest = checkpoint.find(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    console = Console(file=io.StringIO(), width=200)
    run_training(configs["shards"], tmp_path, resume=True, device=CPU, console=console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "sha256" in line]
    assert line.startswith(f"{newest}: damaged")
    assert line.endswith(f"going on from {tmp_path / 'checkpoints' / 'step_00000004.pt'}")
    same_run(tmp_path, whole["shards"])


def test_minutes_are_a_rhythm_of_their_own_and_change_nothing_else(
    whole, configs, tmp_path, monkeypatch
):
    """With a clock that advances a minute a step: every third one."""
    clock, saved, step, save = [0.0], [], loop.train_step, checkpoint.save

    def in_a_minute(state, batch):
        clock[0] += 60
        return step(state, batch)

    monkeypatch.setattr(
        loop, "time", SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: clock[0])
    )
    monkeypatch.setattr(loop, "train_step", in_a_minute)
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda run, payload, score: saved.append(payload["step"]) or save(run, payload),
    )
    config = replace(configs["shapes"], checkpoint_every=1000, checkpoint_minutes=3.0)
    run_training(config, tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO()))
    assert saved == [3, 6, 9]
    ends = [checkpoint.load(checkpoint.find(run)) for run in (tmp_path, whole["shapes"])]
    assert [
        name for name in ends[0] if name != "config" and not equal(ends[0][name], ends[1][name])
    ] == []
    assert rows(tmp_path) == rows(whole["shapes"])


def test_another_rhythm_of_checkpoints_is_no_other_run(configs, whole, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    changed = replace(configs["shapes"], checkpoint_every=5)
    run_training(changed, tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO()))
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step_00000005.pt", "step_00000009.pt"]
    assert rows(tmp_path) == rows(whole["shapes"])


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [({"checkpointing": "blocks"}, 0.0), ({"micro_batch": 3}, 1e-4)],
    ids=str,
)
def test_what_a_step_keeps_in_memory_may_change(
    configs, whole, stopped, tmp_path, monkeypatch, changes, allowed
):
    """Blocks computed anew end to the bit; parts of a batch at a time add in another order.

    Both are really in use.
    """
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    states, real = [], loop._loop
    monkeypatch.setattr(
        loop, "_loop", lambda state, *rest: states.append(state) or real(state, *rest)
    )
    changed = replace(configs["shapes"], **changes)
    run_training(changed, tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO()))
    (state,) = states
    assert state.student.vision.blocks.is_checkpointed == ("checkpointing" in changes)
    assert isinstance(state.forward, MicroBatches) == ("micro_batch" in changes)
    ours, theirs = (
        checkpoint.load(checkpoint.find(run))["student"] for run in (tmp_path, whole["shapes"])
    )
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=allowed, rtol=0), name


def test_killed_before_the_first_checkpoint_it_starts_anew(configs, tmp_path, monkeypatch):
    """There is nothing to resume; the same command without --resume succeeds, its log whole."""
    config = configs["shapes"]

    def stop(state, batch):
        if state.step == 1:
            raise KeyboardInterrupt
        return real(state, batch)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run_training(
            config, tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO())
        )
    monkeypatch.setattr(loop, "train_step", real)
    assert checkpoint.all_in(tmp_path) == []
    with pytest.raises(UserError, match="leave --resume out to start anew"):
        run_training(config, tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO()))
    run_training(config, tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO()))
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9]


# --- signals --------------------------------------------------------------------------------------


def interrupted(config, run, kind, step, monkeypatch):
    """Start ``config``, send this process ``kind`` inside optimiser step ``step``.

    What was printed and what was raised.
    """
    real, console = loop.train_step, Console(file=io.StringIO(), width=200)

    def signalled(state, batch):
        if state.step + 1 == step:
            os.kill(os.getpid(), kind)
        return real(state, batch)

    monkeypatch.setattr(loop, "train_step", signalled)
    try:
        with pytest.raises(RunError) as caught:
            run_training(config, run, resume=False, device=CPU, console=console)
    finally:
        monkeypatch.setattr(loop, "train_step", real)
    return console.file.getvalue(), str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind", "step"), [("shapes", signal.SIGTERM, 5), ("shards", signal.SIGINT, 4)]
)
def test_a_signal_is_answered_with_a_checkpoint(
    whole, configs, tmp_path, monkeypatch, source, kind, step
):
    """The step that is under way is finished, saved, and the run continues from exactly there."""
    handlers = [signal.getsignal(s) for s in loop.STOPPING]
    printed, message = interrupted(configs[source], tmp_path, kind, step, monkeypatch)
    newest = tmp_path / "checkpoints" / f"step_{step:08d}.pt"
    assert (
        message
        == f"stopped by {kind.name} after step {step}; {newest} is saved, continue with --resume"
    )
    assert checkpoint.load(checkpoint.find(tmp_path))["step"] == step
    assert [signal.getsignal(s) for s in loop.STOPPING] == handlers
    assert ("left out:" in printed) == (source == "shards"), (
        "what was left out is said of a stopped run too"
    )
    run_training(
        configs[source], tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO())
    )
    same_run(tmp_path, whole[source])


@pytest.mark.parametrize("objective", ["contrastive", "contrastive+views"])
def test_the_other_objectives_resume_as_well(tiny, tmp_path, monkeypatch, objective):
    """Without a head, centre or targets; softmax instead of sigmoid."""
    config = tiny(objective, steps=5, contrastive={"loss": "softmax"})
    interrupted(config, tmp_path / "a", signal.SIGTERM, 2, monkeypatch)
    paths = [
        run_training(
            config,
            tmp_path / name,
            resume=name == "a",
            device=CPU,
            console=Console(file=io.StringIO()),
        )
        for name in ("a", "b")
    ]
    assert equal(*map(checkpoint.load, paths))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_signal_at_the_last_step_changes_nothing(configs, whole, tmp_path, monkeypatch):
    real = loop.train_step

    def signalled(state, batch):
        if state.step + 1 == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(state, batch)

    monkeypatch.setattr(loop, "train_step", signalled)
    run_training(
        configs["shapes"], tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO())
    )
    same_run(tmp_path, whole["shapes"])


def test_another_place_of_the_data_is_another_configuration(configs, whole):
    config = configs["shapes"]
    moved = replace(config, data=replace(config.data, source="elsewhere/*.tar"))
    with pytest.raises(UserError, match=r"data.source 'shapes' -> 'elsewhere/\*.tar'"):
        run_training(
            moved, whole["shapes"], resume=True, device=CPU, console=Console(file=io.StringIO())
        )
