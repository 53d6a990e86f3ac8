"""Runs under torchrun, a random process of which is killed or stopped again and again.

    python benchmarks/restarts.py                # 30 kills and 3 stops; 2 processes
    python benchmarks/restarts.py --kills 5 --stops 1 --processes 3 --parallel fsdp

Each run is started by ``torchrun --max-restarts 5`` with what ``train --resume auto`` does. In each
of its first five starts a random process gets SIGKILL at a random moment of a random step, when a
checkpoint may be half written; torchrun starts all of them again. A stop is SIGSTOP in place of
SIGKILL: the process hangs, and all have to end within ``LIMIT``.

Every run has to come to its end, with the log and the bits of the run that nothing interrupts. Each
start has to go on right after the newest checkpoint that was there, so that no pair before it is
trained on twice; each step takes what it takes in the uninterrupted run; and no process may stay.
Exit status 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kills import STEPS, differences, tiny_config
from rich.console import Console

from silc_bench.system.processes import MEETING, joined
from silc_bench.system.terminal import answering
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint

RESTARTS = 5
TIMEOUT_MINUTES = 0.5
# Seconds from a stop to the next start: the timeout, the meeting of those who waited, and what
# torchrun gives a process that does not answer SIGTERM; then 20 to import torch on a busy machine.
LIMIT = 60 * TIMEOUT_MINUTES + MEETING + 30 + 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--parallel", default="ddp", choices=("ddp", "fsdp"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    how = (args.processes, args.parallel)
    with tempfile.TemporaryDirectory(prefix="restarts-") as folder:
        whole = Path(folder, "whole")
        seconds, ended = started(whole, [], *how)
        assert ended.returncode == 0, ended.stderr
        print(
            f"uninterrupted: {STEPS} steps, {args.processes} processes, {args.parallel}, "
            f"{seconds:.1f} s",
            flush=True,
        )

        num_bad = number = 0
        for name, count in (("SIGKILL", args.kills), ("SIGSTOP", args.stops)):
            while count > 0:
                plan = [strike(name, rng, args.processes) for _ in range(min(count, RESTARTS))]
                count -= len(plan)
                number += 1
                run = Path(folder, f"run-{number}")
                seconds, ended = started(run, plan, *how)
                faults = [*faults_of(run, whole, plan, ended), *orphans(run)]
                num_bad += bool(faults)
                struck, starts = times(run, "struck"), times(run, "starts")
                gaps = [after - at for at, after in zip(struck, starts[1:], strict=False)]
                print(
                    f"run {number:2}: {len(plan)} {name}, {seconds:5.1f} s, at most "
                    f"{max(gaps, default=0):4.1f} s to the next start: "
                    f"{'; '.join(faults) or 'as if nothing had been'}",
                    flush=True,
                )
    print(f"{number - num_bad} of {number} runs ended as the uninterrupted one")
    raise SystemExit(num_bad > 0)


def strike(name: str, rng: random.Random, num_processes: int) -> dict[str, Any]:
    """What befalls one start: a signal, to whom, at which step of this start, and how far in it."""
    return {
        "signal": name,
        "rank": rng.randrange(num_processes),
        "step": rng.randint(1, 4),  # five starts do not come to the end
        "delay": rng.uniform(0, 0.1),
    }


def started(
    run: Path, plan: list[dict[str, Any]], num_processes: int, parallel: str
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds, and how torchrun ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num_processes), "--max-restarts", str(RESTARTS)]
    command += [__file__, "--process", str(run), json.dumps(plan), parallel]
    begun = time.monotonic()
    ended = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return time.monotonic() - begun, ended


# ---- one process of a run ----


@answering
def process(run: Path, plan: list[dict[str, Any]], parallel: str) -> None:
    """Trains, writes down what it reads, and dies or hangs as planned for this start."""
    torch.set_num_threads(1)
    loop.TOKENIZER_CAPTIONS = 200
    rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if rank == 0:
        note_time(run, "starts")
    mine = plan[start] if start < len(plan) and plan[start]["rank"] == rank else None
    kept = checkpoint.all_in(run)
    begun = int(kept[-1].stem.removeprefix("step_")) if kept else 0
    real, num_steps = loop.train_step, 0

    def step(state: Any, batch: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        note(run, rank, {"start": start, "begun": begun, "step": state.step + 1, **read(batch)})
        if mine and num_steps == mine["step"]:
            threading.Timer(mine["delay"], befall, (run, mine["signal"])).start()
        return real(state, batch)

    loop.train_step = step
    cpu = torch.device("cpu")
    config = tiny_config()
    batch_size = 2 * int(os.environ["WORLD_SIZE"])
    config = replace(
        config,
        data=replace(config.data, num_workers=1),
        log_every=1,
        batch_size=batch_size,
        samples=batch_size * STEPS,
        parallel=parallel,
    )
    # A kill is noticed at once, and on a busy machine a slow start must not look like a hang.
    hangs = any(blow["signal"] == "SIGSTOP" for blow in plan)
    with joined(cpu, TIMEOUT_MINUTES if hangs else 30):
        loop.run_training(
            config, run, resume="auto", device=cpu, console=Console(file=io.StringIO())
        )


def befall(run: Path, name: str) -> None:
    note_time(run, "struck")
    os.kill(os.getpid(), signal.Signals[name])


def note_time(run: Path, what: str) -> None:
    with Path(f"{run}.{what}").open("a") as file:
        file.write(f"{time.time()}\n")


def read(batch: Any) -> dict[str, Any]:
    pixels = hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()
    return {"position": batch.position, "texts": batch.texts, "pixels": pixels}


def note(run: Path, rank: int, row: dict[str, Any]) -> None:
    with Path(f"{run}.read-{rank}").open("a") as file:
        file.write(json.dumps(row) + "\n")


# ---- what came of it ----


def faults_of(
    run: Path, whole: Path, plan: list[dict[str, Any]], ended: subprocess.CompletedProcess[str]
) -> list[str]:
    if ended.returncode:
        return [f"torchrun ended with {ended.returncode}: {ended.stderr[-2000:]}"]

    faults = []
    differing = differences(run, whole)
    if differing:
        faults.append(f"differs in {differing}")
    struck, starts = times(run, "struck"), times(run, "starts")
    if (len(struck), len(starts)) != (len(plan), len(plan) + 1):
        faults.append(f"{len(plan)} planned, {len(struck)} struck, {len(starts)} starts")
    for blow, at, next_start in zip(plan, struck, starts[1:], strict=False):
        if next_start - at > LIMIT:
            faults.append(f"{next_start - at:.0f} s from {blow['signal']} to the next start")
        hung = f"from rank {blow['rank']}, for which the others waited"
        if blow["signal"] == "SIGSTOP" and hung not in ended.stderr:
            faults.append(f"rank {blow['rank']}, which was stopped, is not named")

    for path in sorted(run.parent.glob(f"{run.name}.read-*")):
        rank = path.name.rpartition("-")[2]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        uninterrupted = Path(f"{whole}.read-{rank}").read_text().splitlines()
        expected = {row["step"]: contents(row) for row in map(json.loads, uninterrupted)}
        for start in sorted({row["start"] for row in rows}):
            of_start = [row for row in rows if row["start"] == start]
            steps = [row["step"] for row in of_start]
            first = of_start[0]["begun"] + 1
            if steps != [*range(first, first + len(steps))]:
                faults.append(f"rank {rank}, start {start}: steps {steps} after {first - 1}")
        if {row["step"] for row in rows} != set(expected):
            faults.append(f"rank {rank} did not read each step")
        if any(contents(row) != expected.get(row["step"]) for row in rows):
            faults.append(f"rank {rank} read other pairs")
    return faults


def times(run: Path, what: str) -> list[float]:
    return [float(line) for line in Path(f"{run}.{what}").read_text().splitlines()]


def contents(row: dict[str, Any]) -> list[Any]:
    return [row["position"], row["texts"], row["pixels"]]


def orphans(run: Path) -> list[str]:
    """Processes of the run that are left; one that reads data looks for its parent every 5 s."""
    end = time.monotonic() + 10
    while (left := living(run)) and time.monotonic() < end:
        time.sleep(0.2)
    return [f"process {number} is left" for number in left]


def living(run: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"--process" in words and os.fsencode(str(run)) in words:
            found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        process(Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4])
    else:
        main()
