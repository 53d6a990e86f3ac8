"""Signals that end a run: the first after its step, the second at once, and only the step is lost.

Flow: ``with Stop(console).listening() as stop`` -> ``with stop.leavable(): ...`` around what may be
left at any place -> LeftError out of it, where a second signal came.

A step may compute for minutes inside one call of torch, and Python's handlers wait for the end of
that call. So a thread hears of each signal too, by way of ``signal.set_wakeup_fd``. It answers the
first one, and saves what is before a long step, so that a second one finds it on the disk. Where
the second finds the main thread in such a call, this thread ends the process. The weights stand
still meanwhile: they move in an update alone, which takes little time and is never left
(``begin_update``).

A run of several processes leaves no step, as the others would wait for this one: a second signal
ends the process. But schedulers may send one signal twice, to torchrun, which passes it on, and to
this process itself. What comes within ``TOGETHER`` of the first is taken for the same.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from rich.console import Console

from silc_bench.errors import RunError
from silc_bench.system.processes import num_ranks
from silc_bench.system.terminal import notes, say

# Ctrl-C, what schedulers send before they take a machine away (submitit: SIGUSR2), and the end of a
# terminal.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)

END = b"\0"  # no signal has this number
LONG = 5.0  # seconds that a step still takes, from which on what is before it is saved at once
GRACE = 0.5  # seconds in which the main thread answers a second signal, where it can
GATE = 0.1  # seconds after which a thread that waits for the weights asks whether the run has ended
TOGETHER = 5.0  # seconds in which torchrun has passed on what every process was sent


class LeftError(BaseException):
    """A second signal came. Of no kind that anything within a step would catch."""


class Stop:
    """What a run has received, and how it answers."""

    def __init__(self, console: Console) -> None:
        # Signals in their order: those that the main thread has come to, and all of them.
        self.received: list[int] = []
        self.heard: list[int] = []
        self.keep: Callable[[], None] | None = None  # begins to save what is before this step
        # Saves what a second signal leaves, closes the log, and gives what there is to say.
        self.save: Callable[[], RunError] | None = None
        self.gate = threading.RLock()  # whoever holds it may move the weights, or save them
        self._console = console
        self._process = os.getpid()
        self._is_alone = num_ranks() == 1  # else the other ranks would wait for this one
        self._is_leavable = False
        self._is_updating = False
        self._has_ended = threading.Event()
        self._began = time.monotonic()  # of the step
        self._seconds = 0.0  # that the last step took; 0 if there was none

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Within it the signals are this object's."""
        handlers = {kind: signal.getsignal(kind) for kind in STOPPING}
        # nohup has asked that the end of the terminal is no reason to stop.
        if handlers[signal.SIGHUP] is signal.SIG_IGN:
            del handlers[signal.SIGHUP]

        def restore() -> None:
            for kind, handler in handlers.items():
                signal.signal(kind, handler)

        def note(kind: int, frame: object) -> None:
            # A process that reads the data has inherited this.
            if os.getpid() != self._process:
                return
            self.received.append(kind)
            if len(self.received) == 2 and self._is_alone:
                restore()  # the next one acts as it would without us
                if self._is_leavable:
                    self._is_leavable = False
                    raise LeftError

        heard, told = os.pipe()
        os.set_blocking(told, False)
        listener = threading.Thread(target=self._listen, args=(heard, set(handlers)), daemon=True)
        listener.start()
        for kind in handlers:
            signal.signal(kind, note)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        try:
            yield self
        finally:
            self._has_ended.set()
            signal.set_wakeup_fd(before)
            restore()
            os.write(told, END)  # closing it is not enough: other processes may have it too
            listener.join()
            os.close(told)
            os.close(heard)

    @contextmanager
    def leavable(self) -> Iterator[None]:
        """Around what changes nothing of the state but in an update: a second signal leaves it."""
        self._is_leavable = self._is_alone
        try:
            if self._is_alone and len(self.received) > 1:
                raise LeftError  # it came where nothing may be left
            yield
        finally:
            if self._is_updating:
                self._is_updating = False
                self.gate.release()
            with self.gate:  # whoever saves has to end before the state changes
                self._is_leavable = False

    def begin_step(self) -> None:
        self._began = time.monotonic()

    def begin_update(self) -> None:
        """The weights move from here to the end of the ``leavable`` around it."""
        # torch calls a hook twice where the optimiser's step is wrapped twice; the end comes once.
        if self._is_updating:
            return
        self._is_leavable = False
        self.gate.acquire()
        self._is_updating = True

    def end_step(self) -> None:
        self._seconds = time.monotonic() - self._began

    # ---- the thread ----

    def _listen(self, heard: int, kinds: set[int]) -> None:
        first = 0.0
        while END not in (numbers := os.read(heard, 64)):
            for number in numbers:
                if number not in kinds:  # of another handler in Python
                    continue
                self.heard.append(number)
                if len(self.heard) == 1:
                    left = self._seconds - (time.monotonic() - self._began)
                    say(self._answer(left), self._console)
                    if left >= LONG:
                        self._keep_before()

                    # What came while this thread waited, for the terminal or for the end of an
                    # update, is read from here on only, however soon after the first it came.
                    first = time.monotonic()
                elif not self._is_alone:
                    if time.monotonic() - first >= TOGETHER:
                        os._exit(128 + number)
                elif len(self.heard) == 2:
                    say("stopping now", self._console)
                    self._leave()

    def _keep_before(self) -> None:
        # The checkpoint after the step says what is wrong.
        with self._weights() as stand_still, suppress(RunError):
            if stand_still and self._is_leavable and self.keep is not None:
                self.keep()

    @contextmanager
    def _weights(self) -> Iterator[bool]:
        """Whether they stand still within it. They do not where the run has ended before.

        An exception of a third signal may keep the gate, and the end of the run waits for us.
        """
        while not (stand_still := self.gate.acquire(timeout=GATE)) and not self._has_ended.is_set():
            pass
        try:
            yield stand_still
        finally:
            if stand_still:
                self.gate.release()

    def _answer(self, left: float) -> str:
        about = f", about {left:.0f} s" if left >= 1 else ""
        again = "; again to stop now" if self._is_alone else ""
        return f"stopping after this step{about}{again}"

    def _leave(self) -> None:
        """End the process from here, where the main thread does not come to it."""
        if self._has_ended.wait(GRACE):
            return
        with self._weights() as stand_still:
            # Otherwise the main thread is at it, or at what may not be left.
            if not (stand_still and self._is_leavable) or self.save is None:
                return
            try:
                sentence = f"error: {self.save()}"
            except Exception as error:
                sentence = f"error: nothing could be saved ({error})"
            say(sentence, notes, "bold red")
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(1)
