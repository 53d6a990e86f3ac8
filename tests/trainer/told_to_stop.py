"""``silc-bench train`` as a page says it, but tiny and on a CPU; before step 3 its launcher is told
to stop, once: what a scheduler would do that takes the machine away.

    told_to_stop.py ONCE LAUNCHER OPTIONS ...   # ONCE: a file that says that it has happened

LAUNCHER: "submitit" is the process that started torchrun; a number is a process, too.
"""

import os
import shlex
import signal
import sys
import threading
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from commands import SETS  # noqa: E402
from lives import at, uncounted  # noqa: E402

from silc_bench.cli.app import main  # noqa: E402
from silc_bench.trainer import loop  # noqa: E402
from silc_bench.trainer.checkpoints.stop import Stop  # noqa: E402
from silc_bench.trainer.monitor import health  # noqa: E402

STEPS = 6
SMALL = f"--preset shapes_tiny --data '' --samples {8 * STEPS} --device cpu {SETS}"


def tell(once, launcher):
    """The step waits for the signal, which comes back by way of torchrun."""
    told = threading.Event()
    at(1, Stop, "_answer", lambda *_: told.set())
    once.touch()
    if launcher == "submitit":
        os.kill(parent_of(os.getppid()), signal.SIGUSR2)
    else:
        os.kill(int(launcher), signal.SIGUSR1)
    assert told.wait(120), "the signal did not come back"


def parent_of(process):
    stat = Path(f"/proc/{process}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


if __name__ == "__main__":
    once, launcher, *options = sys.argv[1:]
    torch.set_num_threads(1)
    loop.TOKENIZER_CAPTIONS, health.flops_per_image = 50, uncounted
    if os.environ["RANK"] == "0" and not Path(once).exists():
        at(3, loop, "train_step", lambda *_: tell(Path(once), launcher))
    sys.argv = ["silc-bench", *options, *shlex.split(SMALL)]
    main()
