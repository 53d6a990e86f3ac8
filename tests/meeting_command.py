"""A command in its own process, which meets the test at agreed places, or is killed at one."""

import os
import signal
import sys

import silc_bench.evaluation.features
import silc_bench.results.outcomes
from silc_bench.cli.app import main
from silc_bench.trainer.checkpoints.model import NativeImageModel


def run(words, meeting=None, killed_at=None):
    """``silc-bench`` with ``words``.

    With ``killed_at`` it is killed by SIGKILL before the batch of that number. By the connection
    ``meeting`` the command says that it has come to its first image, and again to its record, and
    waits each time until the test answers.
    """
    encode, save = NativeImageModel.encode_image, silc_bench.results.outcomes.save
    places = ["the first image", "the record"] if meeting else []
    num_batches = 0

    def meet(place):
        if place in places:
            places.remove(place)
            meeting.send(place)
            meeting.recv()

    def encoded(*args, **how):
        nonlocal num_batches
        meet("the first image")
        if num_batches == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        num_batches += 1
        return encode(*args, **how)

    def saved(*what):
        meet("the record")
        return save(*what)

    silc_bench.evaluation.features.PART_ROWS = 1
    NativeImageModel.encode_image, silc_bench.results.outcomes.save = encoded, saved
    sys.argv = ["silc-bench", *words]
    main()
