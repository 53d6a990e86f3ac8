"""A command in its own process, which meets the test at agreed places."""

import sys

import silc_bench.evaluation.features
import silc_bench.results.outcomes
from silc_bench.cli.app import main
from silc_bench.trainer.checkpoints.model import NativeImageModel


def run(words, meeting):
    """``silc-bench`` with ``words``.

    By the connection ``meeting`` the command says that it has come to its first image, and again
    to its record, and waits each time until the test answers.
    """
    encode, save = NativeImageModel.encode_image, silc_bench.results.outcomes.save
    places = ["the first image", "the record"]

    def meet(place):
        if place in places:
            places.remove(place)
            meeting.send(place)
            meeting.recv()

    def encoded(*args, **how):
        meet("the first image")
        return encode(*args, **how)

    def saved(*what):
        meet("the record")
        return save(*what)

    silc_bench.evaluation.features.PART_ROWS = 1
    NativeImageModel.encode_image, silc_bench.results.outcomes.save = encoded, saved
    sys.argv = ["silc-bench", *words]
    main()
