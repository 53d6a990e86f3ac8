"""What may be left at a second signal, and what waits for whom."""

from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from silc_bench.trainer.checkpoints.stop import Stop


def test_an_update_that_begins_twice_ends_once():
    """Whoever waits for the weights would wait for ever, and the run for its end with it."""
    stop = Stop(Console(quiet=True))
    with stop.leavable():
        stop.begin_update()
        stop.begin_update()
    with ThreadPoolExecutor(1) as other_thread:
        assert other_thread.submit(stop.gate.acquire, blocking=False).result()
