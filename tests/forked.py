"""Real processes that import nothing: forked from one server that has imported what is needed.

``start(output, function, *args, **how)`` -> a process whose output goes to the file ``output``;
``ended(process)`` -> its exit code, -9 where it was killed. Functions and arguments are pickled, so
a function must be at the top of a module that a new process finds, and that imports little.
"""

import multiprocessing
import os

SECONDS = 240  # a process that has not ended by then hangs

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "silc_bench.trainer.loop",
        "silc_bench.trainer.checkpoints.sharded",
        "torch.distributed.fsdp",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "silc_bench.cli.app",
        "silc_bench.evaluation.evaluate",
        "silc_bench.tasks.classification.knn",
    ]
)


def start(output, function, *args, **how):
    # of its own processes, which else would come from a second server
    method = multiprocessing.get_start_method()
    process = context.Process(
        target=_run, args=(str(output), dict(os.environ), method, function, args, how)
    )
    process.start()
    return process


def ended(process):
    process.join(SECONDS)
    is_hanging = process.is_alive()
    process.kill()
    process.join()
    assert not is_hanging, "a process did not end"
    return process.exitcode


def _run(output, environment, method, function, args, how):
    """In a session of its own, as a terminal's command is, with the test's present environment."""
    import torch

    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(method, force=True)
    torch.set_num_threads(1)
    function(*args, **how)
