"""Between the host and a GPU without waiting: the host stays ahead of the GPU, which so always has something to do.

``send`` brings what the host made to the device; ``Answer`` brings a step's values back, to be read a step later;
``DataWait`` measures how long the device stood still for want of a batch. On a CPU each of them answers at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` of the host, on ``device``. A GPU takes it from page-locked memory: for other memory the host would wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Answer:
    """Values of a step, one number each, on their way to the host."""

    def __init__(self, step: int, values: dict[str, Tensor]) -> None:
        self.step = step
        numbers = torch.stack(list(values.values()))
        self._names, self._numbers = list(values), numbers.to("cpu", non_blocking=True)
        self._arrived = _mark() if numbers.is_cuda else None

    @property
    def is_here(self) -> bool:
        return self._arrived is None

    def wait(self) -> dict[str, float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._numbers.tolist(), strict=True))


class DataWait:
    """Of a GPU it is the time between its last work and the next batch, however long the host waited meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def next(self, batches: Iterator[T]) -> T:
        if self._is_cuda:
            before, batch = _mark(enable_timing=True), next(batches)
            self._marks.append((before, _mark(enable_timing=True)))
            return batch
        start = time.perf_counter()
        batch = next(batches)
        self._seconds += time.perf_counter() - start
        return batch

    def seconds(self) -> float:
        """Since it was last asked."""
        for before, after in self._marks:
            after.synchronize()
            self._seconds += before.elapsed_time(after) / 1000
        seconds, self._seconds, self._marks = self._seconds, 0.0, []
        return seconds


def _mark(enable_timing: bool = False) -> torch.cuda.Event:
    """What happens when the GPU has done all that it was asked for so far."""
    event = torch.cuda.Event(enable_timing=enable_timing)
    event.record()
    return event
