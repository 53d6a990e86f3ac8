"""A run that is killed or stopped anywhere and resumed ends bit for bit where the uninterrupted one does.

Real processes die by SIGKILL here. One process imports torch once and forks a child for every part of every run (``SERVER``),
with the place of death that ``LIVES`` names; only the files that the dead leave behind go on.
"""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from silc_bench.errors import RunError, UserError
from trainer import checkpoint, loop
from trainer.config import to_dict
from trainer.loop import run_training
from trainer.micro_batches import MicroBatches

pytestmark = pytest.mark.usefixtures("few_captions")
CPU = torch.device("cpu")
STEPS = 9  # a checkpoint after every second, a row of the log after every third
TIMING = ("images_per_second", "data_wait_share", "seconds_left", "mfu")

SERVER = '''
import io, json, os, signal, sys
from pathlib import Path
import torch
import torch.utils.tensorboard
from rich.console import Console
from trainer import checkpoint, loop
from trainer.config import from_dict
from trainer.log import RunLog
from trainer.teacher import Teacher

loop.TOKENIZER_CAPTIONS = 50


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def at(step, owner, name, act):
    """Before call number ``step`` of this process (from 1) of owner.name, do ``act`` with its arguments."""
    real, calls = getattr(owner, name), [0]

    def replaced(*args, **kwargs):
        calls[0] += 1
        if calls[0] == step:
            act(*args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, replaced)


def half_a_checkpoint(payload, path):
    whole = io.BytesIO()
    save(payload, whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    die()


def half_a_row(log, step, row):
    log._file.write(json.dumps({"step": step, **row})[:40])
    log._file.flush()
    die()


def two_signals(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


torch.optim.AdamW([torch.zeros(1)])  # the first one imports torch._dynamo, a second for every child
def signal_to_the_group(*args):
    """As a scheduler does, from outside: the process that reads the data is told to stop as well."""
    group, sender = os.getpgrp(), os.fork()
    if sender == 0:
        os.setsid()
        os.killpg(group, signal.SIGTERM)
        os._exit(0)
    os.waitpid(sender, 0)


def written_at_once(writer, payload, score):
    """So that the place of death alone says which checkpoints there are."""
    write(writer, payload, score)
    writer.wait()


save, write = torch.save, checkpoint.Writer.write
PLACES = {
    "before a step": lambda n: at(n, loop, "train_step", die),
    "between weights and teacher": lambda n: at(n, Teacher, "update", die),
    "between teacher and centre": lambda n: at(n, Teacher, "update_center", die),
    "before a checkpoint": lambda n: at(n, checkpoint, "save", die),
    "inside a checkpoint": lambda n: at(n, torch, "save", half_a_checkpoint),
    "between a checkpoint's file and its words": lambda n: at(n, checkpoint, "write_text_atomic", die),
    "between words and their checkpoint": lambda n: at(2 * n, os, "replace", die),
    "before a file is removed": lambda n: at(n, Path, "unlink", die),
    "inside a row of the log": lambda n: at(n, RunLog, "write", half_a_row),
    "two signals": lambda n: at(n, loop, "train_step", two_signals),
    "warned": lambda n: at(n, loop, "train_step", lambda *args: os.kill(os.getpid(), signal.SIGUSR1)),
    "signal to the group": lambda n: at(n, loop, "train_step", signal_to_the_group),
}
for job in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        os.setsid()
        torch.set_num_threads(job["threads"])
        if job["is_waiting"]:
            checkpoint.Writer.write = written_at_once
        if job["place"] is not None:
            PLACES[job["place"]](job["count"])
        config, console = from_dict(job["config"]), Console(file=io.StringIO())
        loop.run_training(config, Path(job["run"]), resume=job["resume"], device=torch.device("cpu"), console=console)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''

# Lives of a run: where each of its processes dies, and at which pass of the place; the last one is resumed to the end.
LIVES = {
    "dies in a step": [("before a step", 4), ("between weights and teacher", 4), ("between teacher and centre", 5)],
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
HOW = {
    "two signals": -signal.SIGTERM,
    "signal to the group": 1,
    "warned": 1,
}  # exit status; every other place is one of SIGKILL
SOURCES = {"shapes": list(LIVES)[:5], "shards": ["dies in a step", "dies, then is told to stop"]}
CASES = [(source, life) for source, lives in SOURCES.items() for life in lives]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
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
def configs(tiny, shards):
    """Distillation of globals and locals in fp32 on generated scenes; bf16 on shards, of which one picture is damaged."""
    rhythm = {"steps": STEPS, "checkpoint_every": 2, "log_every": 3}
    return {
        "shapes": tiny(precision="fp32", distillation={"pairs": "local+global"}, **rhythm),
        "shards": tiny(precision="bf16", data={"source": shards}, **rhythm),
    }


@pytest.fixture(scope="module")
def runs(configs, tmp_path_factory):
    """{(source, life): folder of the run}, life None for the run that nothing interrupts; {the same: exit statuses}; stderr."""
    root, jobs, owners = tmp_path_factory.mktemp("runs"), [], []
    for source, config in configs.items():
        for life in [None, *SOURCES[source]]:
            for number, (place, count) in enumerate([*LIVES.get(life, ()), (None, 0)]):
                workers = 1 if place == "signal to the group" else 0  # how many read the data is no part of the result
                used = replace(config, data=replace(config.data, num_workers=workers))
                job = {"config": to_dict(used), "run": str(root / source / str(life)), "resume": number > 0}
                job["is_waiting"] = life != "dies saving"  # there the main thread trains on while the writer dies
                jobs.append(job | {"place": place, "count": count, "threads": torch.get_num_threads()})
                owners.append((source, life))
    answer = subprocess.run(
        [sys.executable, "-c", SERVER],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(loop.__file__).parents[1])},
        timeout=240,
    )
    assert answer.returncode == 0, answer.stderr
    statuses = {}
    for owner, status in zip(owners, answer.stdout.split(), strict=True):
        statuses.setdefault(owner, []).append(int(status))
    return {owner: root / owner[0] / str(owner[1]) for owner in statuses}, statuses, answer.stderr


@pytest.mark.parametrize(("source", "life"), CASES)
def test_a_killed_run_ends_as_the_uninterrupted_one(runs, source, life):
    folders, statuses, errors = runs
    assert statuses[source, life] == [*(HOW.get(place, -signal.SIGKILL) for place, _ in LIVES[life]), 0], errors
    same_run(folders[source, life], folders[source, None])


@pytest.mark.parametrize("source", SOURCES)
def test_another_process_and_this_one_agree(runs, configs, tmp_path, source):
    """The uninterrupted run again, here."""
    run_training(configs[source], tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO()))
    same_run(tmp_path, runs[0][source, None])


def test_a_stopped_process_says_so(runs):
    """Nothing but the one answer: no worker died on the way."""
    said = [line.partition(";")[0] for line in runs[2].splitlines() if line.startswith("silc_bench.errors.RunError")]
    assert [words.rpartition("stopped by ")[2] for words in said] == [
        "SIGUSR1 after step 3",
        "SIGUSR1 after step 5",
        "SIGTERM after step 5",
    ]
    assert runs[2].count("Traceback") == 3


def test_no_half_file_is_left(runs):
    for folder in runs[0].values():
        assert {p.suffix for p in (folder / "checkpoints").iterdir()} == {".json", ".pt"}


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(runs, configs, tmp_path, monkeypatch):
    """The run goes on from the one before, says so, and ends as if nothing had happened."""
    interrupted(configs["shards"], tmp_path, signal.SIGTERM, 5, monkeypatch)
    newest = checkpoint.find(tmp_path)
    whole = bytearray(newest.read_bytes())
    whole[len(whole) // 2] ^= 1
    newest.write_bytes(whole)
    console = Console(file=io.StringIO(), width=200)
    run_training(configs["shards"], tmp_path, resume=True, device=CPU, console=console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "sha256" in line]
    assert line.startswith(f"checkpoint {newest}: damaged")
    assert line.endswith(f"going on from {tmp_path / 'checkpoints' / 'step_00000004.pt'}")
    same_run(tmp_path, runs[0]["shards", None])


def test_minutes_are_a_rhythm_of_their_own_and_change_nothing_else(runs, configs, tmp_path, monkeypatch):
    """With a clock that advances a minute a step: every third one."""
    clock, saved, step, save = [0.0], [], loop.train_step, checkpoint.save

    def in_a_minute(state, batch):
        clock[0] += 60
        return step(state, batch)

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loop, "train_step", in_a_minute)
    monkeypatch.setattr(checkpoint, "save", lambda run, payload, score: saved.append(payload["step"]) or save(run, payload))
    config = replace(configs["shapes"], checkpoint_every=1000, checkpoint_minutes=3.0)
    run_training(config, tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO()))
    assert saved == [3, 6, 9]
    ends = [checkpoint.load(checkpoint.find(run)) for run in (tmp_path, runs[0]["shapes", None])]
    assert [name for name in ends[0] if name != "config" and not equal(ends[0][name], ends[1][name])] == []
    assert rows(tmp_path) == rows(runs[0]["shapes", None])


def test_another_rhythm_of_checkpoints_is_no_other_run(configs, runs, tmp_path, monkeypatch):
    interrupted(configs["shapes"], tmp_path, signal.SIGTERM, 4, monkeypatch)
    changed = replace(configs["shapes"], checkpoint_every=5)
    run_training(changed, tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO()))
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step_00000005.pt", "step_00000009.pt"]
    assert rows(tmp_path) == rows(runs[0]["shapes", None])


@pytest.mark.parametrize(("changes", "allowed"), [({"checkpointing": "blocks"}, 0.0), ({"micro_batch": 3}, 1e-4)], ids=str)
def test_what_a_step_keeps_in_memory_may_change(configs, runs, tmp_path, monkeypatch, changes, allowed):
    """Blocks computed anew end to the bit; parts of a batch at a time add in another order. Both are really in use."""
    interrupted(configs["shapes"], tmp_path, signal.SIGTERM, 4, monkeypatch)
    states, real = [], loop._loop
    monkeypatch.setattr(loop, "_loop", lambda state, *rest: states.append(state) or real(state, *rest))
    changed = replace(configs["shapes"], **changes)
    run_training(changed, tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO()))
    (state,) = states
    assert state.student.vision.blocks.is_checkpointed == ("checkpointing" in changes)
    assert isinstance(state.forward, MicroBatches) == ("micro_batch" in changes)
    ours, theirs = (checkpoint.load(checkpoint.find(run))["student"] for run in (tmp_path, runs[0]["shapes", None]))
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=allowed, rtol=0), name


def test_killed_before_the_first_checkpoint_it_starts_anew(configs, tmp_path, monkeypatch):
    """There is nothing to resume; the same command without --resume goes through, and its log is whole."""
    config = configs["shapes"]

    def stop(state, batch):
        if state.step == 1:
            raise KeyboardInterrupt
        return real(state, batch)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO()))
    monkeypatch.setattr(loop, "train_step", real)
    assert checkpoint.all_in(tmp_path) == []
    with pytest.raises(UserError, match="leave --resume out to start anew"):
        run_training(config, tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO()))
    run_training(config, tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO()))
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9]


# --- signals -------------------------------------------------------------------------------------------------------------


def interrupted(config, run, kind, step, monkeypatch):
    """Start ``config``, send this process ``kind`` inside optimiser step ``step``; what was printed and what was raised."""
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
    ("source", "kind", "step"), [("shapes", signal.SIGTERM, 5), ("shards", signal.SIGINT, 4), ("shards", signal.SIGUSR1, 3)]
)
def test_a_signal_is_answered_with_a_checkpoint(runs, configs, tmp_path, monkeypatch, source, kind, step):
    """The step that is under way is finished, saved, and the run continues from exactly there."""
    handlers = [signal.getsignal(s) for s in loop.STOPPING]
    printed, message = interrupted(configs[source], tmp_path, kind, step, monkeypatch)
    newest = tmp_path / "checkpoints" / f"step_{step:08d}.pt"
    assert message == f"stopped by {kind.name} after step {step}; {newest} is saved, continue with --resume"
    assert checkpoint.load(checkpoint.find(tmp_path))["step"] == step
    assert [signal.getsignal(s) for s in loop.STOPPING] == handlers
    assert ("left out:" in printed) == (source == "shards"), "what was left out is said of a stopped run too"
    run_training(configs[source], tmp_path, resume=True, device=CPU, console=Console(file=io.StringIO()))
    same_run(tmp_path, runs[0][source, None])


@pytest.mark.parametrize("objective", ["contrastive", "contrastive+views"])
def test_the_other_objectives_resume_as_well(tiny, tmp_path, monkeypatch, objective):
    """Without a head, centre or targets; softmax instead of sigmoid."""
    config = tiny(objective, steps=5, contrastive={"loss": "softmax"})
    interrupted(config, tmp_path / "a", signal.SIGTERM, 2, monkeypatch)
    paths = [
        run_training(config, tmp_path / name, resume=name == "a", device=CPU, console=Console(file=io.StringIO()))
        for name in ("a", "b")
    ]
    assert equal(*map(checkpoint.load, paths))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_signal_at_the_last_step_changes_nothing(configs, runs, tmp_path, monkeypatch):
    real = loop.train_step

    def signalled(state, batch):
        if state.step + 1 == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(state, batch)

    monkeypatch.setattr(loop, "train_step", signalled)
    run_training(configs["shapes"], tmp_path, resume=False, device=CPU, console=Console(file=io.StringIO()))
    same_run(tmp_path, runs[0]["shapes", None])


def test_another_place_of_the_data_is_another_configuration(configs, runs):
    config = configs["shapes"]
    moved = replace(config, data=replace(config.data, source="elsewhere/*.tar"))
    with pytest.raises(UserError, match=r"data.source 'shapes' -> 'elsewhere/\*.tar'"):
        run_training(moved, runs[0]["shapes", None], resume=True, device=CPU, console=Console(file=io.StringIO()))
