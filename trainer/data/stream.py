"""Image-text pairs for training: one endless stream of batches with an exact position.

Flow: ``open_source(config.data)`` -> Source -> ``source.batches(batch_size, start=position)`` ->
Batch, whose ``position`` goes into the checkpoint. A run that starts there continues with the very
next pair, whatever had been read ahead by how many workers.

Entry p of the stream is a pure function of (seed, p): scene p of ``shapes``, or sample p mod n of
the p div n-th shuffle of the n samples of a source. A batch is the next B entries that can be read.
An entry that cannot be read is left out and counted in ``source.damage`` when its batch is handed
over, and ``position`` advances by one more than the batch size for it.

Several processes (ranks) read one stream, each its own part of every batch. Which part that is
depends on what the others could not read, so they tell each other: one number a batch, and where it
is not zero the entries that failed. Each of these moves the rows after it up by one, and the ranks
of those rows read one entry more, for this batch and for each that was begun by then. So W ranks
read at most B + BATCHES_AHEAD * d * W entries for a batch with d failures, and B for one without.

On N machines (nodes) shards belong to nodes, and node k has the entries p with p % N = k: a batch
is the next B / N of each node that can be read. Where one cannot, its own node goes one entry
further, and no other does. So a batch also says how many entries each node has gone (``nodes``),
and ``position`` is their sum.

ReadAhead does the reading in the background: in a thread, or in processes of its own. Flow:
``with ReadAhead(reader, decode_size, num_workers) as ahead`` -> ``ahead.ask(positions)``, which
begins at once -> ``Asked.rows()``, which waits for the Rows. What an earlier answer holds already
is taken from there and not read again. The processes are the workers of a DataLoader, which brings
their tensors back in shared memory and ends them with the trainer.

Shapes: B pairs a batch, of which a process has b; n entries; S = decode_size, pixels a side of the
square canvas that each image lies on.
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
from operator import itemgetter
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import DataError, RunError, UserError, first_line
from silc_bench.system.limits import num_cores
from silc_bench.system.processes import begun, concatenated, is_of_dead_reader, node
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import (
    ChangedError,
    PassedOverError,
    Reader,
    UnreadableError,
)
from silc_bench.trainer.data.sources import open_reader

# Batches that are made in the background while the trainer computes.
BATCHES_AHEAD = 2

# Parts that a request is cut into, for each worker. With few, one worker would wait long for
# another; with many, many tensors would be sent.
PIECES = 4

# Workers send tensors through a socket in a folder that multiprocessing makes in TMPDIR. The system
# allows 107 letters for a socket's path, and multiprocessing needs 32 of them. With a longer path a
# worker dies where torch does not see it, and the run would wait for ever.
LONGEST_TMPDIR = 107 - 32

# Position of an entry, and why it cannot be read; or, among notes, what it did without.
Failure: TypeAlias = tuple[int, UnreadableError]
Failures: TypeAlias = list[Failure]


@dataclass(frozen=True)
class Batch:
    images: Tensor  # uint8 [b, 3, S, S]: each image top-left on a black canvas
    sizes: Tensor  # int64 [b, 2]: height and width of the images
    texts: list[str]
    position: int  # where the stream goes on after this batch
    nodes: tuple[int, ...] = ()  # of several nodes: how many of its entries each has gone


def open_source(config: DataConfig) -> Source:
    """The stream that ``config.source`` names.

    Raises UserError and RunError as ``open_reader`` does.
    """
    for name, lowest in (("decode_size", 1), ("num_workers", 0), ("seed", 0)):
        value = getattr(config, name)
        if value < lowest:
            fix = f"give {lowest} or more"
            raise UserError(f"{value} is too small", about=f"data.{name}", fix=fix)

    damage = Damage()
    return Source(open_reader(config, damage, node()), config, damage)


def crowding(num_workers: int, num_ranks: int) -> str | None:
    """A sentence, where a machine's processes want more cores for decoding than they may use.

    None where the cores suffice.
    """
    cores = num_cores()
    num_processes = num_workers * num_ranks
    if num_processes <= cores:
        return None
    return (
        f"data.num_workers={num_workers} starts {num_processes} processes that decode, and this run"
        f" may use {cores} core{'' if cores == 1 else 's'}: more of them than cores decode no"
        " faster"
    )


class Source:
    """An endless stream of pairs.

    ``damage`` counts what was left out of the batches handed over so far, by all processes, and
    ``changed`` what was read in another form than it is stored.
    """

    def __init__(self, reader: Reader, config: DataConfig, damage: Damage) -> None:
        self.damage = damage
        self.changed = Damage()
        self.num_samples = reader.num_samples  # of an epoch; None: never repeats
        self._reader = reader
        self._config = config
        # Where and why: a loss is counted once, however many epochs meet it.
        self._counted: set[tuple[str, str]] = set()

    def describe(self) -> str:
        return self._reader.describe()

    def identity(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, to know other data when the run is resumed."""
        return {
            "pairs": self.num_samples,
            "fingerprint": self._reader.fingerprint(),
            "description": self.describe(),
        }

    def captions(self, count: int) -> list[str]:
        """About ``count`` captions that the data alone decides, to train a tokenizer on."""
        texts = list(self._reader.captions_of_data(count))
        self._reader.passed_over()  # counted when a batch meets them
        return texts

    def batches(
        self,
        batch_size: int,
        start: int,
        rank: int = 0,
        num_ranks: int = 1,
        tell: Callable[[Failures], Failures] = concatenated,
        nodes: Sequence[int] = (),
    ) -> Generator[Batch, None, None]:
        """Endless batches of exactly ``batch_size`` pairs from position ``start``.

        Of ``num_ranks`` processes each gets its own part of the same batches, in the order of the
        ranks. All of them have to take the same number of batches: each batch asks ``tell``, which
        makes of every rank's list the list of all. Closing the generator ends its workers.

        ``nodes``: what the batch before ``start`` says. Without it, or on another number of nodes,
        each node begins as if all had gone equally far.

        Raises:
            UserError: nothing at all can be read, or a shard disappeared.
            RunError: a remote shard could not be fetched, or a worker was killed.
        """
        assert start >= 0
        assert batch_size > 0
        assert batch_size % num_ranks == 0
        share = batch_size // num_ranks
        num_nodes = self._reader.num_nodes
        assert num_ranks % num_nodes == 0
        node, local_rank = divmod(rank, num_ranks // num_nodes)
        of_node = batch_size // num_nodes
        gone = list(nodes)
        if len(gone) != num_nodes or sum(gone) != start:
            gone = [(start - each + num_nodes - 1) // num_nodes for each in range(num_nodes)]

        def own(number: int, failures: Sequence[Failure] = ()) -> list[int]:
            """This process's positions of the batch after ``number`` others, without failures."""
            failed = {position for position, _ in failures if position % num_nodes == node}
            first = gone[node] + number * of_node
            entries = range(first, first + of_node + len(failed))
            candidates = (entry * num_nodes + node for entry in entries)
            members = [position for position in candidates if position not in failed]
            return members[local_rank * share : (local_rank + 1) * share]

        with ReadAhead(self._reader, self._config.decode_size, self._config.num_workers) as ahead:
            coming = deque(ahead.ask(own(number)) for number in range(BATCHES_AHEAD))

            while True:
                asked = coming.popleft()
                rows = asked.rows()
                failures = Failures()
                notes = Failures()  # what entries of the batch did without
                num_new = batch_size  # entries that were new in this round, on all ranks together
                # Of all rounds in a row, up to this one, in which every entry failed.
                num_failing = 0

                # All ranks see the same list, so they go round equally often and none waits alone.
                # A replacement may fail too; the batch is full when a round brings no failure.
                while new_failures := _divided(tell(rows.failures + rows.notes), notes):
                    have_all_failed = len(new_failures) == num_new
                    num_failing = num_failing + num_new if have_all_failed else 0
                    self._stop_if_all(num_failing, new_failures)

                    failures += new_failures
                    num_new = len(new_failures)
                    asked = ahead.ask(own(0, failures), asked)
                    rows = asked.rows()

                # The batches that were begun assumed that this one is whole. Where it was not, they
                # start later; most of their entries are there already and are not read again.
                for each in range(num_nodes):
                    gone[each] += of_node
                for position, _ in failures:
                    gone[position % num_nodes] += 1
                if failures:
                    coming = deque(ahead.ask(own(number), old) for number, old in enumerate(coming))
                coming.append(ahead.ask(own(len(coming))))

                self._count(failures + notes)
                reached = tuple(gone) if num_nodes > 1 else ()
                yield Batch(rows.images, rows.sizes, rows.texts, sum(gone), reached)

    def _stop_if_all(self, num_failing: int, failures: Failures) -> None:
        # A row of failures may begin anywhere in an epoch; so many hold a whole one for certain.
        if self.num_samples is None or num_failing < 2 * self.num_samples:
            return
        _, last = max(failures, key=itemgetter(0))
        problem = f"none of {self.num_samples:,} pairs can be read; the last: {last.cause}"
        raise DataError(problem, about=last.where, fix="look at it, and fetch or pack them anew")

    def _count(self, failures: Failures) -> None:
        # In the order of the stream, so that the first example named is the same at any number of
        # ranks.
        for _, error in sorted(failures, key=itemgetter(0)):
            if (error.where, error.cause) not in self._counted:
                self._counted.add((error.where, error.cause))
                counts = self.changed if isinstance(error, ChangedError) else self.damage
                counts.add(error.cause, error.where)


def _divided(told: Failures, notes: Failures) -> Failures:
    """Those of ``told`` that leave their entry out; the others are added to ``notes``."""
    notes += [each for each in told if isinstance(each[1], PassedOverError)]
    return [each for each in told if not isinstance(each[1], PassedOverError)]


# ---- reading ahead ----


@dataclass(frozen=True)
class Rows:
    """Entries that were asked for, a row each; the row of one that cannot be read is blank."""

    positions: Sequence[int]
    images: Tensor  # uint8 [n, 3, S, S]: each image top-left on a black canvas
    sizes: Tensor  # int64 [n, 2]: height and width of the images
    texts: list[str]
    failures: Failures
    notes: Failures  # of rows that could be read, but not all of them


@dataclass(frozen=True)
class Asked:
    positions: Sequence[int]
    future: Future[Rows]

    def rows(self) -> Rows:
        """Waits for them. Raises what the reader did; RunError where a worker was killed."""
        return self.future.result()


class ReadAhead:
    """``num_workers`` processes that read, or with none a thread.

    Use as a context manager: leaving it ends them.
    """

    def __init__(self, reader: Reader, decode_size: int, num_workers: int) -> None:
        self._loader = _Loader(reader, decode_size)
        self._num_workers = num_workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._queue: deque[Sequence[int]] = deque()  # pieces asked for that no worker has yet
        self._answers = _in_workers(self._loader, self._queue, num_workers) if num_workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

        # This is the last reference, so the worker processes end now, and not when an error's
        # traceback is collected.
        self._answers = None

    def ask(self, positions: Sequence[int], known: Asked | None = None) -> Asked:
        """Begin to read ``positions``, after what was asked for before.

        Rows that ``known`` has are copied from it.
        """
        known_positions = set(known.positions) if known else set()
        missing = [position for position in positions if position not in known_positions]

        size = max(1, math.ceil(len(missing) / (PIECES * self._num_workers or 1)))
        pieces = [missing[first : first + size] for first in range(0, len(missing), size)]
        if self._answers is not None:
            self._queue.extend(pieces)
        return Asked(positions, self._thread.submit(self._join, positions, pieces, known))

    def _join(self, positions: Sequence[int], pieces: list[list[int]], known: Asked | None) -> Rows:
        """The rows of ``positions``, from the pieces that were read and from what is known.

        It runs in the thread, in the order of asking, which is the order of the workers' answers.
        """
        answers = [
            self._loader[piece] if self._answers is None else self._next() for piece in pieces
        ]

        # All answers are taken before one is raised: the next call has to find its own.
        for answer in answers:
            if isinstance(answer, UserError | RunError):
                raise answer

        parts = [answer for answer in answers if isinstance(answer, Rows)]
        if known is not None:
            parts = [known.rows(), *parts]
        rows = _rows_of(positions, parts)

        # A page-locked batch goes to the GPU while the GPU works. Locking takes long, so it is done
        # here and not before a step.
        if torch.cuda.is_initialized():
            rows = replace(rows, images=rows.images.pin_memory())
        return rows

    def _next(self) -> Rows | UserError | RunError:
        assert self._answers is not None
        try:
            return next(answer for answer in self._answers if answer is not None)
        except (RuntimeError, EOFError, ConnectionError) as error:
            if not is_of_dead_reader(error):
                raise
            problem = (
                f"a process that reads data was killed ({first_line(error)}),"
                " mostly for want of memory"
            )
            fix = "lower it or data.decode_size, and continue with --resume"
            raise RunError(problem, about="data.num_workers", fix=fix) from error


class _Loader(Dataset):
    """``loader[positions]`` reads them.

    An error that ends the run is returned and not raised: a worker would bury it in a traceback.
    """

    def __init__(self, reader: Reader, decode_size: int) -> None:
        self._reader = reader
        self._decode_size = decode_size

    def __getitem__(self, positions: Sequence[int]) -> Rows | UserError | RunError | None:
        try:
            return self._read(positions) if positions else None
        except (UserError, RunError) as error:
            return error

    def _read(self, positions: Sequence[int]) -> Rows:
        count = len(positions)
        images = np.zeros((count, 3, self._decode_size, self._decode_size), np.uint8)
        sizes = np.zeros((count, 2), np.int64)
        texts = [""] * count
        failures = Failures()
        notes = Failures()

        for row, position in enumerate(positions):
            try:
                text = self._reader.text(position)
                image = self._reader.image(position)
            except UnreadableError as error:
                failures.append((position, error))
                self._reader.passed_over()  # of an entry that is left out as a whole
                continue
            notes += ((position, skipped) for skipped in self._reader.passed_over())

            height, width, _ = image.shape
            images[row, :, :height, :width] = image.transpose(2, 0, 1)
            sizes[row] = (height, width)
            texts[row] = text

        return Rows(
            positions, torch.from_numpy(images), torch.from_numpy(sizes), texts, failures, notes
        )


def _rows_of(positions: Sequence[int], parts: list[Rows]) -> Rows:
    """The rows of ``positions``, in their order; the parts may hold others too."""
    known_positions = [position for part in parts for position in part.positions]
    is_in_order = known_positions == list(positions)
    if len(parts) == 1 and is_in_order:
        return parts[0]  # the usual case copies nothing

    images = torch.cat([part.images for part in parts])
    sizes = torch.cat([part.sizes for part in parts])
    texts = [text for part in parts for text in part.texts]
    if not is_in_order:
        row_of = {position: row for row, position in enumerate(known_positions)}
        order = [row_of[position] for position in positions]
        images = images[order]
        sizes = sizes[order]
        texts = [texts[row] for row in order]

    error_at = dict(failure for part in parts for failure in part.failures)
    failures = [(position, error_at[position]) for position in positions if position in error_at]
    wanted = set(positions)
    notes = [note for part in parts for note in part.notes if note[0] in wanted]
    return Rows(positions, images, sizes, texts, failures, notes)


# ---- workers ----


def _in_workers(
    loader: _Loader, queue: deque[Sequence[int]], num_workers: int
) -> Iterator[Rows | UserError | RunError | None]:
    """Answers in the order of the queue, and None where it was empty.

    They come from processes that end with the iterator.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TMPDIR:
        problem = (
            f"processes that read data cannot send it by way of {folder}, whose name is longer"
            f" than {LONGEST_TMPDIR} letters"
        )
        fix = "set the variable TMPDIR to a shorter folder, as in TMPDIR=/tmp"
        raise UserError(problem, about="data.num_workers", fix=fix)

    with warnings.catch_warnings():
        # ``crowding`` says it in a sentence, once.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return begun(
            DataLoader(
                loader,
                batch_size=None,
                sampler=_pieces(queue),
                num_workers=num_workers,
                worker_init_fn=_leave_the_group,
                # Else it would draw a seed from the global generator, and the run would differ from
                # one without workers.
                generator=torch.Generator(),
            )
        )


def _pieces(queue: deque[Sequence[int]]) -> Iterator[Sequence[int]]:
    """What to read next, for ever.

    A DataLoader asks for more as soon as it has handed something over. Where nothing is asked of
    us, it gets an empty piece, which a worker answers with None at once.
    """
    while True:
        yield queue.popleft() if queue else ()


def _leave_the_group(worker: int) -> None:
    """Start a process group of the worker's own.

    Ctrl-C and a scheduler's SIGTERM reach the trainer's whole group; the trainer answers them, and
    still needs its batches. Some schedulers warn each process of a job by itself.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)  # it is the trainer's, which would take our signals for its own
    for kind in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(kind, signal.SIG_IGN)
