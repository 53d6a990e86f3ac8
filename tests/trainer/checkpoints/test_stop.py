"""What may be left at a second signal, and what waits for whom."""

import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from rich.console import Console

from silc_bench.trainer.checkpoints import stop as subject
from silc_bench.trainer.checkpoints.stop import END, TOGETHER, Stop


def test_an_update_that_begins_twice_ends_once():
    """Whoever waits for the weights would wait for ever, and the run for its end with it."""
    stop = Stop(Console(quiet=True))
    with stop.leavable():
        stop.begin_update()
        stop.begin_update()
    with ThreadPoolExecutor(1) as other_thread:
        assert other_thread.submit(stop.gate.acquire, blocking=False).result()


@pytest.mark.parametrize("waiting", [Stop._leave, Stop._keep_before])
def test_nobody_waits_for_the_weights_of_a_run_that_has_ended(waiting):
    """Where its end gave them back to nobody: it would wait in turn for whoever waits for them."""
    stop, said = Stop(Console(quiet=True)), []
    stop.gate = SimpleNamespace(acquire=lambda timeout: False)
    stop._has_ended = SimpleNamespace(wait=lambda seconds: False, is_set=lambda: True)
    stop._is_leavable = True
    stop.keep = stop.save = lambda: said.append("saved")
    waiting(stop)
    assert not said


@pytest.mark.parametrize(("later", "codes"), [(0, []), (TOGETHER, [128 + signal.SIGTERM])])
def test_what_is_sent_twice_is_one_signal_however_long_the_answer_takes(monkeypatch, later, codes):
    """The answer takes long, or the second signal comes later."""
    clock, ended, (heard, told) = [0.0], [], os.pipe()
    monkeypatch.setattr(subject, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(subject.os, "_exit", ended.append)
    real = os.read

    def read(pipe, size):
        if stop.heard:
            clock[0] += later
        return real(pipe, 1)

    class Slow(io.StringIO):
        def write(self, text):
            clock[0] += 2 * TOGETHER
            return super().write(text)

    stop = Stop(Console(file=Slow()))
    stop._is_alone = False
    os.write(told, bytes([signal.SIGTERM, signal.SIGTERM]) + END)
    monkeypatch.setattr(subject.os, "read", read)
    try:
        stop._listen(heard, {signal.SIGTERM})
    finally:
        monkeypatch.undo()
        os.close(heard)
        os.close(told)
    assert ended == codes
