"""Picture-text pairs for training: whatever ``silc_bench.trainer.data.sources`` opens, as one
endless stream with an exact position.

Flow: ``open_source(config.data)`` -> Source -> ``source.batches(batch_size, start=position)`` ->
Batch, whose ``position`` goes into the checkpoint: starting there continues with the very next
pair, whatever had been read ahead by how many workers.

Entry p of the stream is a pure function of (seed, p): scene p of ``shapes``, or sample p mod n of
the p div n-th shuffle of the n samples of a source. A batch is the next B entries that can be read.
One that cannot is left out, counted in ``source.damage`` when its batch is handed over, and
``position`` advances by one more than the batch size for it.

Several processes read one stream, each its own part of every batch. Which part that is depends on
what the others could not read, so they tell each other: one number a batch, and where it is not
zero the entries that failed. Each of these moves the rows after it up by one, and those ranks read
one entry more, for this batch and for each that was begun by then. So W ranks read at most B +
BATCHES_AHEAD * d * W entries for a batch with d failures, and B for one without.

Shapes: B pairs a batch, of which a process has b; S = decode_size pixels a side of a canvas.

Entries of a stream by position, read ahead: by a thread, or by processes of their own.

Flow: ``with ReadAhead(reader, decode_size, num_workers) as ahead`` -> ``ahead.ask(positions)``,
which begins at once -> ``Asked.rows()``, which waits for the Rows. What an earlier answer holds
already is taken from there and not read again.

Workers are those of a DataLoader, which brings their tensors back in shared memory and ends them
with the trainer. It asks its sampler for more as soon as it has handed something over, so where
nothing is asked of us, they are asked for nothing.

Shapes: n entries, S = decode_size pixels a side of a canvas.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import RunError, UserError
from silc_bench.system.processes import concatenated, num_cores
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import Reader, UnreadableError
from silc_bench.trainer.data.sources import open_reader

BATCHES_AHEAD = 2  # made in the background while the trainer computes


@dataclass(frozen=True)
class Batch:
    images: Tensor  # uint8 [b, 3, S, S]: each picture top-left on a black canvas
    sizes: Tensor  # int64 [b, 2]: height and width of the pictures
    texts: list[str]
    position: int  # where the stream goes on after this batch


def open_source(config: DataConfig) -> Source:
    """The stream that ``config.source`` names. Raises UserError and RunError as ``open_reader``
    does.
    """
    for name, lowest in (("decode_size", 1), ("num_workers", 0), ("seed", 0)):
        if getattr(config, name) < lowest:
            raise UserError(
                f"data.{name}={getattr(config, name)} is too small; it starts at {lowest}"
            )
    damage = Damage()
    return Source(open_reader(config, damage), config, damage)


class Source:
    """An endless stream of pairs. ``damage`` counts what was left out of the batches handed over so
    far, by all processes.
    """

    def __init__(self, reader: Reader, config: DataConfig, damage: Damage) -> None:
        self.damage = damage
        self.num_samples = reader.num_samples  # of an epoch; None: never repeats
        self._reader = reader
        self._config = config
        self._left_out: set[str] = set()  # a pair is counted once, however many epochs meet it

    def describe(self) -> str:
        return self._reader.describe()

    def captions(self, count: int) -> list[str]:
        """The texts of the first ``count`` entries (at most an epoch), to train a tokenizer on."""
        texts = []
        for position in range(count if self.num_samples is None else min(count, self.num_samples)):
            try:
                texts.append(self._reader.text(position))
            except UnreadableError:
                continue  # counted when a batch meets it
        return texts

    def batches(
        self,
        batch_size: int,
        start: int,
        rank: int = 0,
        num_ranks: int = 1,
        tell: Callable[[Failures], Failures] = concatenated,
    ) -> Generator[Batch, None, None]:
        """Endless batches of exactly ``batch_size`` pairs from position ``start``; closing the
        generator ends its workers.

        Of ``num_ranks`` processes each gets its own part of the same batches, in the order of the
        ranks. All of them have to take the same number of batches: each batch asks ``tell``, which
        makes of every rank's list the list of all.

        Raises:
            UserError: nothing at all can be read, or a shard disappeared.
            RunError: a remote shard could not be fetched, or a worker was killed.
        """
        assert start >= 0
        assert batch_size > 0
        assert batch_size % num_ranks == 0
        share = batch_size // num_ranks

        def own(first: int) -> range:
            """Positions that this process has of a batch that begins at ``first``, where none of
            its entries is left out.
            """
            return range(first + rank * share, first + (rank + 1) * share)

        with ReadAhead(self._reader, self._config.decode_size, self._config.num_workers) as ahead:
            coming = deque(
                ahead.ask(own(start + number * batch_size)) for number in range(BATCHES_AHEAD)
            )
            while True:
                asked = coming.popleft()
                rows, failures, num_new, num_failing = asked.rows(), Failures(), batch_size, 0
                while found := tell(rows.failures):
                    num_failing = (
                        num_failing + num_new if len(found) == num_new else 0
                    )  # in a row, up to the newest
                    self._stop_if_all(num_failing, found)
                    failures, num_new = failures + found, len(found)
                    asked = ahead.ask(
                        _members(start, batch_size, failures)[rank * share : (rank + 1) * share],
                        asked,
                    )
                    rows = asked.rows()
                start += batch_size + len(failures)
                if failures:
                    coming = deque(
                        ahead.ask(own(start + number * batch_size), old)
                        for number, old in enumerate(coming)
                    )
                coming.append(ahead.ask(own(start + len(coming) * batch_size)))
                self._count(failures)
                yield Batch(rows.images, rows.sizes, rows.texts, start)

    def _stop_if_all(self, num_failing: int, found: Failures) -> None:
        if (
            self.num_samples is not None and num_failing >= 2 * self.num_samples
        ):  # so many hold a whole epoch
            _, last = max(found, key=_position_of)
            raise UserError(
                f"none of {self.num_samples:,} pairs can be read; the last: {last.cause} in {last.where}"
            )

    def _count(self, failures: Failures) -> None:
        for _, error in sorted(failures, key=_position_of):
            if error.where not in self._left_out:
                self._left_out.add(error.where)
                self.damage.add(error.cause, error.where)


def _members(start: int, count: int, failures: Failures) -> list[int]:
    """The first ``count`` positions from ``start`` that are not known to fail."""
    failed = {position for position, _ in failures}
    return [
        position for position in range(start, start + count + len(failed)) if position not in failed
    ]


def _position_of(failure: tuple[int, UnreadableError]) -> int:
    return failure[0]


PIECES = 4  # of what is asked for, a worker: none waits long for another, and few tensors are sent
# Tensors of workers come by a socket in a folder of multiprocessing's in TMPDIR. The system allows
# 107 letters, 32 are
# multiprocessing's; with more a worker dies of it where torch does not see it, and the run would
# wait for ever.
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
    """``num_workers`` processes, or with none a thread. Use as a context manager: leaving it ends
    them.
    """

    def __init__(self, reader: Reader, decode_size: int, num_workers: int) -> None:
        self._loader, self._num_workers = _Loader(reader, decode_size), num_workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._queue: deque[Sequence[int]] = deque()  # pieces asked for that no worker has yet
        self._answers = _in_workers(self._loader, self._queue, num_workers) if num_workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        # the last reference, so worker processes end now and not when an error's traceback is
        # collected
        self._answers = None

    def ask(self, positions: Sequence[int], known: Asked | None = None) -> Asked:
        """Begin to read, after what was asked for before; rows that ``known`` has are copied from
        it.
        """
        there = set(known.positions) if known else set()
        missing = [position for position in positions if position not in there]
        size = max(1, math.ceil(len(missing) / (PIECES * self._num_workers or 1)))
        pieces = [missing[first : first + size] for first in range(0, len(missing), size)]
        if self._answers is not None:
            self._queue.extend(pieces)
        return Asked(positions, self._thread.submit(self._join, positions, pieces, known))

    def _join(self, positions: Sequence[int], pieces: list[list[int]], known: Asked | None) -> Rows:
        """In the thread, in the order of asking, which is the order of the workers' answers."""
        answers = [
            self._loader[piece] if self._answers is None else self._next() for piece in pieces
        ]
        for answer in answers:  # all were taken, so that the next one who joins finds his own
            if isinstance(answer, UserError | RunError):
                raise answer
        parts = [answer for answer in answers if isinstance(answer, Rows)]
        rows = _rows_of(positions, parts if known is None else [known.rows(), *parts])
        # Page-locked, a batch goes to the GPU while it works; locking takes long, so it is done
        # here and not before a step.
        return (
            replace(rows, images=rows.images.pin_memory()) if torch.cuda.is_initialized() else rows
        )

    def _next(self) -> Rows | UserError | RunError:
        assert self._answers is not None
        try:
            return next(answer for answer in self._answers if answer is not None)
        except (
            RuntimeError,
            EOFError,
            ConnectionError,
        ) as error:  # the last two where it is not seen to be dead yet
            is_sent = str(error).startswith(
                "Caught "
            )  # by a worker that lives, of a mistake of ours
            if is_sent or (
                isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error)
            ):
                raise
            words = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(
                "a process that reads data was killed, most often for want of memory; lower data.num_workers or"
                f" data.decode_size, and continue with --resume ({words})"
            ) from error


class _Loader(Dataset):
    """``loader[positions]`` reads them. An error that ends the run is returned: a worker would bury
    it in a traceback.
    """

    def __init__(self, reader: Reader, decode_size: int) -> None:
        self._reader, self._decode_size = reader, decode_size

    def __getitem__(self, positions: Sequence[int]) -> Rows | UserError | RunError | None:
        try:
            return self._read(positions) if positions else None
        except (UserError, RunError) as error:
            return error

    def _read(self, positions: Sequence[int]) -> Rows:
        images = np.zeros((len(positions), 3, self._decode_size, self._decode_size), np.uint8)
        sizes, texts, failures = (
            np.zeros((len(positions), 2), np.int64),
            [""] * len(positions),
            Failures(),
        )
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
    images, sizes = (
        torch.cat([part.images for part in parts]),
        torch.cat([part.sizes for part in parts]),
    )
    texts, failures = (
        [text for part in parts for text in part.texts],
        dict(pair for part in parts for pair in part.failures),
    )
    if there != list(positions):
        row_of = {position: row for row, position in enumerate(there)}
        order = [row_of[position] for position in positions]
        images, sizes, texts = images[order], sizes[order], [texts[row] for row in order]
    return Rows(
        positions, images, sizes, texts, [(p, failures[p]) for p in positions if p in failures]
    )


# ---- workers ----


def _in_workers(
    loader: _Loader, queue: deque[Sequence[int]], num_workers: int
) -> Iterator[Rows | UserError | RunError | None]:
    """Answers in the order of the queue, and None where it was empty, from processes that end with
    the iterator.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TMPDIR:
        raise UserError(
            f"data.num_workers={num_workers}: processes that read data cannot send it by way of {folder}, whose name is longer"
            f" than {LONGEST_TMPDIR} letters; set the variable TMPDIR to a shorter folder, as in TMPDIR=/tmp"
        )
    handler = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="This DataLoader will create"
        )  # ``crowding`` says it in a sentence, once
        answers = iter(
            DataLoader(
                loader,
                batch_size=None,
                sampler=_Sampler(queue),
                num_workers=num_workers,
                collate_fn=_unchanged,
                worker_init_fn=_leave_the_group,
                # else it would draw a seed from the global one: not the run without workers
                generator=torch.Generator(),
            )
        )
    if signal.getsignal(signal.SIGCHLD) is not handler:
        # torch's would raise the death of a worker out of whatever the main thread does then: a
        # step, or a checkpoint
        signal.signal(signal.SIGCHLD, handler)
    return answers


def crowding(num_workers: int, num_ranks: int) -> str | None:
    """In words, that the processes of one machine want more cores for decoding than they may use;
    else None.
    """
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
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer answers them, and
    still needs its batches.
    """
    os.setsid()
