"""Runs killed with SIGKILL at random moments, each resumed to its end.

Every other one is killed inside the write of a checkpoint.

    python benchmarks/kills.py    # about a minute on an idle core; the line a kill, and a verdict

One process imports torch and forks a child for each life of a run, as tests/trainer/test_resume.py
does with planned places; here the moment is random: after the first log row at the earliest, and
for every other run as soon as a checkpoint's temporary file is seen, plus a random part of the time
that a write takes. Every end is compared bit for bit with the uninterrupted run: weights, teacher,
centre, moments, counters, log. Exit status 1 where one differs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # imported here once and not in every child
from rich.console import Console

from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.config.presets import configure

STEPS = 24
CLOCKS = ("images_per_second", "data_wait_share", "seconds_left", "mfu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # the first one imports what every child needs
    loop.TOKENIZER_CAPTIONS = 200
    rng = random.Random(args.seed)
    config = tiny_config()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        whole = Path(folder, "whole")
        started = time.monotonic()
        assert live(config, whole) == 0, "the uninterrupted run failed"
        seconds = time.monotonic() - started
        print(f"uninterrupted: {STEPS} steps, {seconds:.1f} s")
        num_equal = num_writing = 0
        for number in range(args.kills):
            run = Path(folder, f"killed-{number}")
            is_writing, left = kill_once(
                config, run, rng, wants_write=number % 2 == 1, seconds=seconds
            )
            if live(config, run) != 0:
                raise SystemExit(f"kill {number + 1}: the resumed run failed; it is in {run}")
            differs = differences(run, whole)
            num_equal, num_writing = num_equal + (not differs), num_writing + is_writing
            where = "inside a checkpoint's write" if is_writing else "outside of a write"
            print(
                (
                    f"kill {number + 1:2}: {where:27} left {left or 'nothing':18} resumed: "
                    f"{differs or 'bit-equal'}"
                ),
                flush=True,
            )
    print(
        f"{num_equal} of {args.kills} end bit-equal to the uninterrupted run; "
        f"{num_writing} died inside a write"
    )
    raise SystemExit(num_equal != args.kills)


def tiny_config() -> Config:
    """All that a run can carry on: masked patches, averaged weights, a teacher that begins late.

    It begins at a third of the run. Checkpoints every second step, large enough that a write takes
    a while.
    """
    tower = ("depth=1", "width=32", "num_heads=2", "mlp_dim=48")
    sets = [f"{side}.{field}" for side in ("vision", "text") for field in tower]
    sets += [
        "precision=fp32",
        "batch_size=4",
        f"samples={4 * STEPS}",
        "checkpoint_every=2",
        "log_every=4",
    ]
    sets += ["masked.weight=1", "average_momentum=0.9", "distillation.start_fraction=0.33"]
    sets += ["views.num_local=2", "distillation.num_prototypes=8192", "data.decode_size=48"]
    config = configure("shapes_tiny", "silc", sets=sets)
    return replace(config, preset="kills")


def live(config: Config, run: Path) -> int:
    """One life of a run, to its end: the child's exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(start(config, run), 0)[1])


def start(config: Config, run: Path) -> int:
    child = os.fork()
    if child == 0:
        console = Console(file=io.StringIO())
        is_begun = bool(checkpoint.all_in(run))
        loop.run_training(config, run, resume=is_begun, device=torch.device("cpu"), console=console)
        os._exit(0)
    return child


def kill_once(
    config: Config, run: Path, rng: random.Random, *, wants_write: bool, seconds: float
) -> tuple[bool, str]:
    """Start a run and kill it.

    Whether a write was under way, and the newest checkpoint that is left.
    """
    child = start(config, run)
    folder = run / "checkpoints"
    moment = time.monotonic() + rng.uniform(0.1, 0.9) * seconds
    while time.monotonic() < moment and not has_ended(child):
        time.sleep(0.001)
    while wants_write and not list(folder.glob(".step_*.tmp")) and not has_ended(child):
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.01) if wants_write else 0)
    os.kill(child, signal.SIGKILL)
    # it came to its end before: another try
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        shutil.rmtree(run)
        return kill_once(config, run, rng, wants_write=wants_write, seconds=seconds)
    kept = checkpoint.all_in(run)
    return bool(list(folder.glob(".step_*.tmp"))), kept[-1].name if kept else ""


def has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def differences(run: Path, whole: Path) -> str:
    ends = [checkpoint.load(checkpoint.find(path)) for path in (run, whole)]
    names = [name for name in ends[0] if not equal(ends[0][name], ends[1][name])]
    return ", ".join(names + (["log.jsonl"] if rows(run) != rows(whole) else []))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def rows(run: Path) -> list[dict[str, float]]:
    """The log without what a clock says."""
    parsed = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in parsed]


if __name__ == "__main__":
    main()
