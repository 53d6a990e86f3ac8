"""A command in its own process: it counts what it encodes, and meets the test or is killed.

It meets the test at agreed places, and is killed at one.
"""

import os
import signal
import sys

import silc_bench.evaluation.features
import silc_bench.results.outcomes
from silc_bench.cli.app import main
from silc_bench.trainer.checkpoints.model import NativeImageModel


def run(words, counted, killed_at=None, meeting=None):
    """``silc-bench`` with ``words``; the size of each batch is a line of the file ``counted``.

    ``killed_at``: by SIGKILL, before the first batch after so many images. ``meeting``: a
    connection by which the command says that it has come to its first image, and again to its
    record, and waits each time until the test answers.
    """
    encode, save = NativeImageModel.encode_image, silc_bench.results.outcomes.save
    count = 0

    def meet():
        if meeting is not None:
            meeting.send("here")
            meeting.recv()

    def encoded(self, images, point="pooled"):
        nonlocal count
        if count == 0:
            meet()
        if killed_at is not None and count >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += len(images)
        with open(counted, "a") as file:
            file.write(f"{len(images)}\n")
        return encode(self, images, point)

    def saved(*what):
        meet()
        return save(*what)

    silc_bench.evaluation.features.PART_ROWS = 1
    NativeImageModel.encode_image, silc_bench.results.outcomes.save = encoded, saved
    sys.argv = ["silc-bench", *words]
    main()
