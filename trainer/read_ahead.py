"""Entries of a stream by position, read ahead: by a thread, or by processes of their own.

Flow: ``with ReadAhead(reader, decode_size, num_workers) as ahead`` -> ``ahead.ask(positions)``, which begins at once ->
``Asked.rows()``, which waits for the Rows. What an earlier answer holds already is taken from there and not read again.

Workers are those of a DataLoader, which brings their tensors back in shared memory and ends them with the trainer. It asks its
sampler for more as soon as it has handed something over, so where nothing is asked of us, they are asked for nothing.

Shapes: n entries, S = decode_size pixels a side of a canvas.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from silc_bench.errors import RunError, UserError
from silc_bench.ranks import num_cores
from trainer.readers import Reader, UnreadableError

PIECES = 4  # of what is asked for, a worker: none waits long for another, and few tensors are sent
# Tensors of workers come by a socket in a folder of multiprocessing's in TMPDIR. The system allows 107 letters, 32 are
# multiprocessing's; with more a worker dies of it where torch does not see it, and the run would wait for ever.
LONGEST_TMPDIR = 107 - 32
T = TypeVar("T")
Failures: TypeAlias = list[tuple[int, UnreadableError]]  # position, and why it cannot be read


@dataclass(frozen=True)
class Rows:
    """Entries that were asked for, a row each; the row of one that cannot be read is blank."""

    positions: Sequence[int]
    images: Tensor  # uint8 [n, 3, S, S]: each picture top-left on a black canvas
    sizes: Tensor  # int64 [n, 2]: height and width of the pictures
    texts: list[str]
    failures: Failures


@dataclass(frozen=True)
class Asked:
    positions: Sequence[int]
    future: Future[Rows]

    def rows(self) -> Rows:
        """Raises what the reader did; RunError where a worker was killed."""
        return self.future.result()


class ReadAhead:
    """``num_workers`` processes, or with none a thread. Use as a context manager: leaving it ends them."""

    def __init__(self, reader: Reader, decode_size: int, num_workers: int) -> None:
        self._loader, self._num_workers = _Loader(reader, decode_size), num_workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._queue: deque[Sequence[int]] = deque()  # pieces asked for that no worker has yet
        self._answers = _in_workers(self._loader, self._queue, num_workers) if num_workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._answers = None  # the last reference, so worker processes end now and not when an error's traceback is collected

    def ask(self, positions: Sequence[int], known: Asked | None = None) -> Asked:
        """Begin to read, after what was asked for before; rows that ``known`` has are copied from it."""
        there = set(known.positions) if known else set()
        missing = [position for position in positions if position not in there]
        size = max(1, math.ceil(len(missing) / (PIECES * self._num_workers or 1)))
        pieces = [missing[first : first + size] for first in range(0, len(missing), size)]
        if self._answers is not None:
            self._queue.extend(pieces)
        return Asked(positions, self._thread.submit(self._join, positions, pieces, known))

    def _join(self, positions: Sequence[int], pieces: list[list[int]], known: Asked | None) -> Rows:
        """In the thread, in the order of asking, which is the order of the workers' answers."""
        answers = [self._loader[piece] if self._answers is None else self._next() for piece in pieces]
        for answer in answers:  # all were taken, so that the next one who joins finds his own
            if isinstance(answer, UserError | RunError):
                raise answer
        parts = [answer for answer in answers if isinstance(answer, Rows)]
        rows = _rows_of(positions, parts if known is None else [known.rows(), *parts])
        # Page-locked, a batch goes to the GPU while it works; locking takes long, so it is done here and not before a step.
        return replace(rows, images=rows.images.pin_memory()) if torch.cuda.is_initialized() else rows

    def _next(self) -> Rows | UserError | RunError:
        assert self._answers is not None
        try:
            return next(answer for answer in self._answers if answer is not None)
        except (RuntimeError, EOFError, ConnectionError) as error:  # the last two where it is not seen to be dead yet
            is_sent = str(error).startswith("Caught ")  # by a worker that lives, of a mistake of ours
            if is_sent or (isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error)):
                raise
            words = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(
                "a process that reads data was killed, most often for want of memory; lower data.num_workers or"
                f" data.decode_size, and continue with --resume ({words})"
            ) from error


class _Loader(Dataset):
    """``loader[positions]`` reads them. An error that ends the run is returned: a worker would bury it in a traceback."""

    def __init__(self, reader: Reader, decode_size: int) -> None:
        self._reader, self._decode_size = reader, decode_size

    def __getitem__(self, positions: Sequence[int]) -> Rows | UserError | RunError | None:
        try:
            return self._read(positions) if positions else None
        except (UserError, RunError) as error:
            return error

    def _read(self, positions: Sequence[int]) -> Rows:
        images = np.zeros((len(positions), 3, self._decode_size, self._decode_size), np.uint8)
        sizes, texts, failures = np.zeros((len(positions), 2), np.int64), [""] * len(positions), Failures()
        for row, position in enumerate(positions):
            try:
                text, picture = self._reader.text(position), self._reader.picture(position)
            except UnreadableError as error:
                failures.append((position, error))
                continue
            height, width, _ = picture.shape
            images[row, :, :height, :width] = picture.transpose(2, 0, 1)
            sizes[row], texts[row] = (height, width), text
        return Rows(positions, torch.from_numpy(images), torch.from_numpy(sizes), texts, failures)


def _rows_of(positions: Sequence[int], parts: list[Rows]) -> Rows:
    """The rows of ``positions``, in their order; the parts may hold others too."""
    there = [position for part in parts for position in part.positions]
    if len(parts) == 1 and there == list(positions):
        return parts[0]
    images, sizes = torch.cat([part.images for part in parts]), torch.cat([part.sizes for part in parts])
    texts, failures = [text for part in parts for text in part.texts], dict(pair for part in parts for pair in part.failures)
    if there != list(positions):
        row_of = {position: row for row, position in enumerate(there)}
        order = [row_of[position] for position in positions]
        images, sizes, texts = images[order], sizes[order], [texts[row] for row in order]
    return Rows(positions, images, sizes, texts, [(p, failures[p]) for p in positions if p in failures])


# ---- workers ----


def _in_workers(loader: _Loader, queue: deque[Sequence[int]], num_workers: int) -> Iterator[Rows | UserError | RunError | None]:
    """Answers in the order of the queue, and None where it was empty, from processes that end with the iterator."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TMPDIR:
        raise UserError(
            f"data.num_workers={num_workers}: processes that read data cannot send it by way of {folder}, whose name is longer"
            f" than {LONGEST_TMPDIR} letters; set the variable TMPDIR to a shorter folder, as in TMPDIR=/tmp"
        )
    handler = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # ``crowding`` says it in a sentence, once
        answers = iter(
            DataLoader(
                loader,
                batch_size=None,
                sampler=_Sampler(queue),
                num_workers=num_workers,
                collate_fn=_unchanged,
                worker_init_fn=_leave_the_group,
                generator=torch.Generator(),  # else it would draw a seed from the global one: not the run without workers
            )
        )
    if signal.getsignal(signal.SIGCHLD) is not handler:
        # torch's would raise the death of a worker out of whatever the main thread does then: a step, or a checkpoint
        signal.signal(signal.SIGCHLD, handler)
    return answers


def crowding(num_workers: int, num_ranks: int) -> str | None:
    """In words, that the processes of one machine want more cores for decoding than they may use; else None."""
    cores = num_cores()
    if num_workers * num_ranks <= cores:
        return None
    return (
        f"data.num_workers={num_workers} starts {num_workers * num_ranks} processes that decode, and this run may use"
        f" {cores} core{'' if cores == 1 else 's'}: more of them than cores decode no faster"
    )


class _Sampler:
    """What to read next, for ever."""

    def __init__(self, queue: deque[Sequence[int]]) -> None:
        self._queue = queue

    def __iter__(self) -> Iterator[Sequence[int]]:
        while True:
            yield self._queue.popleft() if self._queue else ()


def _unchanged(rows: T) -> T:
    return rows


def _leave_the_group(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer answers them, and still needs its batches."""
    os.setsid()
