"""A part of a run in its own process, which dies or is told to stop at one of ``PLACES``."""

import ctypes
import io
import json
import os
import signal
import threading
from pathlib import Path

import torch
from dying import die
from rich.console import Console

from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import stop
from silc_bench.trainer.monitor import health
from silc_bench.trainer.monitor.log import RunLog
from silc_bench.trainer.silc.teacher import Teacher


def at(number, owner, name, act):
    """Before call ``number`` of this process (from 1) of owner.name, ``act`` on its arguments."""
    real, calls = getattr(owner, name), [0]

    def replaced(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
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


def two_signals_while_torch_computes(*args):
    """As inside a long call of torch: no handler in Python comes to its turn."""
    stop.GRACE = 0.0
    open_while_we_live, ours = os.pipe()
    within_one_call(f"kill -TERM {os.getpid()}; kill -USR1 {os.getpid()}; cat", open_while_we_live)
    os.close(ours)


def within_one_call(commands, pipe):
    """Commands of a shell, the last of which reads ``pipe``; what that ends with.

    They are sent and waited for in C, so that Python runs nothing meanwhile.
    """
    os.set_inheritable(pipe, True)
    return ctypes.CDLL(None).system(f"{commands} < /dev/fd/{pipe} > /dev/null".encode())


def signalled_again():
    """Two signals to a rank that never comes to the end of its step."""
    stop.TOGETHER = 0.0
    rank = stop.Stop(Console(quiet=True))
    rank._is_alone = False
    with rank.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        threading.Event().wait()


def warned(*args):
    os.kill(os.getpid(), signal.SIGUSR1)


def signal_to_the_group(*args):
    """As a scheduler does, from outside: the process that reads the data is told to stop too."""
    group, sender = os.getpgrp(), os.fork()
    if sender == 0:
        os.setsid()
        os.killpg(group, signal.SIGTERM)
        os._exit(0)
    os.waitpid(sender, 0)


def written_at_once(writer, payload, score=None):
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
    "between a checkpoint's file and its words": lambda n: at(
        n, checkpoint, "write_text_atomic", die
    ),
    "between words and their checkpoint": lambda n: at(2 * n, os, "replace", die),
    "before a file is removed": lambda n: at(n, Path, "unlink", die),
    "inside a row of the log": lambda n: at(n, RunLog, "write", half_a_row),
    "two signals": lambda n: at(n, loop, "train_step", two_signals),
    "two signals while torch computes": lambda n: at(
        n, loop, "train_step", two_signals_while_torch_computes
    ),
    "warned": lambda n: at(n, loop, "train_step", warned),
    "signal to the group": lambda n: at(n, loop, "train_step", signal_to_the_group),
}


def uncounted(config, **how):
    return 1


def live(config, run, resume, place, count, is_waiting):
    """``run_training``, until pass ``count`` of ``place`` or to the end.

    ``is_waiting``: each step for its checkpoint.
    """
    loop.TOKENIZER_CAPTIONS, health.flops_per_image = 50, uncounted
    if is_waiting:
        checkpoint.Writer.write = written_at_once
    if place is not None:
        PLACES[place](count)
    loop.run_training(
        config, run, resume=resume, device=torch.device("cpu"), console=Console(file=io.StringIO())
    )
