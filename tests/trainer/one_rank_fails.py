"""What torchrun starts: a small run, a rank of which dies or stops before a step, once.

torchrun --nproc-per-node 2 --max-restarts 1 one_rank_fails.py RUN dies RANK STEP
"""

import io
import os
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "data")]

from conftest import tiny_config  # noqa: E402
from lives import at, die, uncounted  # noqa: E402

from silc_bench.system.processes import joined  # noqa: E402
from silc_bench.system.terminal import answering  # noqa: E402
from silc_bench.trainer import loop  # noqa: E402
from silc_bench.trainer.monitor import health  # noqa: E402

FAILURES = {"dies": die, "stops": lambda *_: os.kill(os.getpid(), signal.SIGSTOP)}


@answering
def main(run, failure, rank, step):
    torch.set_num_threads(1)
    loop.TOKENIZER_CAPTIONS, health.flops_per_image = 50, uncounted
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (rank, "0"):
        at(int(step), loop, "train_step", FAILURES[failure])
    cpu = torch.device("cpu")
    config = tiny_config(steps=12, log_every=1)
    with joined(cpu, timeout_minutes=0.1):
        loop.run_training(
            config, Path(run), resume="auto", device=cpu, console=Console(file=io.StringIO())
        )


main(*sys.argv[1:])
