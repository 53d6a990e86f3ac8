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

ReadAhead does the reading in the background: in a thread, or in processes of its own, the workers
of a DataLoader, which end with the trainer. Flow: ``with ReadAhead(reader, S, b, num_workers) as
ahead`` -> ``ahead.ask(positions)``, which begins at once -> ``Asked.rows()``, which waits for the
Rows. What an earlier answer holds already is taken from there and not read again.

Images are written where they stay (``Canvases``): a worker, or the thread, decodes each into its
row of the batch, in memory that the workers share and a GPU reads page-locked. The answer of a
worker is texts and sizes. Only what takes the place of damaged entries is sent and copied, and all
that workers read who are no forks, and so do not share memory.

Shapes: B pairs a batch, of which a process has b; n entries; S pixels a side of the square canvas
that each image lies on.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import signal
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import DataError, RunError, UserError, first_line
from silc_bench.system.limits import num_cores
from silc_bench.system.processes import (
    begun,
    concatenated,
    is_of_dead_reader,
    node,
    num_local_ranks,
)
from silc_bench.system.terminal import warn
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
# another; with many, many answers would be sent.
PIECES = 4

# Batches that have a place: those that are being made, the one that is handed over, the one that
# the trainer still holds then, and one more that a GPU may still be reading.
PLACES = BATCHES_AHEAD + 3

# Pages are taken as they are written to: nothing is set aside for places that stay unused. Python
# has no name for Linux's flag before 3.13.
UNRESERVED: dict[str, int] = {}
if sys.platform == "linux":
    UNRESERVED["flags"] = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE

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


def open_source(config: DataConfig, side: int = 0) -> Source:
    """The stream that ``config.source`` names.

    Args:
        side: pixels a side of a canvas, where ``config.decode_size`` is 0 and so follows the views
            (``Config.canvas``).

    Raises UserError and RunError as ``open_reader`` does.
    """
    for name, value, lowest in (
        ("decode_size", config.decode_size or side, 1),
        ("num_workers", config.num_workers, -1),
        ("seed", config.seed, 0),
    ):
        if value < lowest:
            fix = f"give {lowest} or more"
            raise UserError(f"{value} is too small", about=f"data.{name}", fix=fix)

    damage = Damage()
    return Source(open_reader(config, damage, node()), config, damage, side)


def num_readers(config: DataConfig) -> int:
    """How many processes read for this one; 0: a thread of its own does.

    Where ``num_workers`` is -1, as many as there are cores, of those that the ranks of this machine
    share; and none where that is one, because a process would only take turns with the trainer.
    """
    if config.num_workers >= 0:
        return config.num_workers
    cores = num_cores() // num_local_ranks()
    return cores if cores > 1 else 0


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

    def __init__(self, reader: Reader, config: DataConfig, damage: Damage, side: int = 0) -> None:
        """``side``: as in ``open_source``."""
        self.damage = damage
        self.changed = Damage()
        self.num_samples = reader.num_samples  # of an epoch; None: never repeats
        self.num_nodes = reader.num_nodes  # that read each its own part
        self._reader = reader
        self._num_readers = num_readers(config)
        self._side = config.decode_size or side
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

        with ReadAhead(self._reader, self._side, share, self._num_readers) as ahead:
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
    """Entries that were asked for, a row each; that of one that cannot be read holds anything."""

    positions: Sequence[int]
    images: Tensor  # uint8 [n, 3, S, S]: each image top-left on a black canvas
    sizes: Tensor  # int64 [n, 2]: height and width of the images
    texts: list[str]
    failures: Failures
    notes: Failures  # of rows that could be read, but not all of them


@dataclass(frozen=True)
class Piece:
    """Entries that one worker reads at a time."""

    positions: Sequence[int]
    place: int | None  # which of the Canvases gets the images; None: they are sent
    first: int = 0  # row of the place


@dataclass(frozen=True)
class Answer:
    """What a piece is; nothing of it is a tensor, which would be sent by way of a socket."""

    positions: Sequence[int]
    images: np.ndarray | None  # uint8 [n, 3, S, S], where they are sent
    sizes: np.ndarray  # int64 [n, 2]
    texts: list[str]
    failures: Failures
    notes: Failures


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

    def __init__(self, reader: Reader, side: int, num_rows: int, num_workers: int) -> None:
        """``side``: pixels of a canvas; ``num_rows``: entries that are asked for at a time."""
        self._canvases = Canvases(num_rows, side)
        self._is_shared = not num_workers or multiprocessing.get_start_method() == "fork"
        self._loader = _Loader(reader, side, self._canvases.memory if self._is_shared else None)
        self._num_workers = num_workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._queue: deque[Piece] = deque()  # pieces asked for that no worker has yet
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

        Rows that ``known`` has are taken from it. They are moved, so it is of no use any more; its
        positions have to be as many, and each at most as far on as the new one of its row.
        """
        known_positions = set(known.positions) if known else set()
        missing = [position for position in positions if position not in known_positions]
        place = images = None
        if known is None and self._is_shared:
            place, images = self._canvases.take()

        size = max(1, math.ceil(len(missing) / (PIECES * self._num_workers or 1)))
        pieces = [
            Piece(missing[first : first + size], place, first)
            for first in range(0, len(missing), size)
        ]
        if self._answers is not None:
            self._queue.extend(pieces)
        if known is not None:
            return Asked(positions, self._thread.submit(self._replace, positions, pieces, known))
        return Asked(positions, self._thread.submit(self._join, positions, pieces, place, images))

    def _join(
        self,
        positions: Sequence[int],
        pieces: list[Piece],
        place: int | None,
        images: np.ndarray | None,
    ) -> Rows:
        """The rows of ``positions``: those of the place, or where there is none those sent."""
        read = self._read(pieces)
        if images is None:
            images = np.concatenate([answer.images for answer in read if answer.images is not None])
        return Rows(
            positions,
            self._canvases.tensor(images, place),
            torch.from_numpy(np.concatenate([answer.sizes for answer in read])),
            [text for answer in read for text in answer.texts],
            [failure for answer in read for failure in answer.failures],
            [note for answer in read for note in answer.notes],
        )

    def _replace(self, positions: Sequence[int], pieces: list[Piece], known: Asked) -> Rows:
        read = self._read(pieces)  # whatever became of the others, these are answered next
        return _moved(known.rows(), positions, read)

    def _read(self, pieces: list[Piece]) -> list[Answer]:
        """It runs in the thread, in the order of asking, which is the order of the answers."""
        answers = [
            self._loader[piece] if self._answers is None else self._next() for piece in pieces
        ]

        # All answers are taken before one is raised: the next call has to find its own.
        for answer in answers:
            if isinstance(answer, UserError | RunError):
                raise answer
        return [answer for answer in answers if isinstance(answer, Answer)]

    def _next(self) -> Answer | UserError | RunError:
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


def _moved(known: Rows, positions: Sequence[int], read: list[Answer]) -> Rows:
    """The rows of ``positions``: those of ``known``, moved within its memory, and what was read."""
    assert len(known.positions) == len(positions)
    images, sizes, texts = known.images, known.sizes, known.texts
    row_of = {position: row for row, position in enumerate(known.positions)}

    # Both ascend and entries only leave, so a row moves to a lower one, whose own has moved before.
    for row, position in enumerate(positions):
        old = row_of.get(position, row)
        assert row <= old
        if row < old:
            images[row], sizes[row], texts[row] = images[old], sizes[old], texts[old]

    row_of = {position: row for row, position in enumerate(positions)}
    for answer in read:
        assert answer.images is not None, "what takes the place of others is sent"
        for number, position in enumerate(answer.positions):
            row = row_of[position]
            images[row] = torch.from_numpy(answer.images[number])
            sizes[row] = torch.from_numpy(answer.sizes[number])
            texts[row] = answer.texts[number]

    parts: list[Rows | Answer] = [known, *read]
    error_at = dict(failure for part in parts for failure in part.failures)
    failures = [(position, error_at[position]) for position in positions if position in error_at]
    notes = [note for part in parts for note in part.notes if note[0] in row_of]
    return Rows(positions, images, sizes, texts, failures, notes)


class _Loader(Dataset):
    """``loader[piece]`` reads it.

    An error that ends the run is returned and not raised: a worker would bury it in a traceback.
    """

    def __init__(self, reader: Reader, side: int, canvases: np.ndarray | None) -> None:
        self._reader = reader
        self._side = side
        self._canvases = canvases  # uint8 [PLACES, b, 3, S, S]; None: they are not shared

    def __getitem__(self, piece: Piece | None) -> Answer | UserError | RunError | None:
        try:
            return None if piece is None else self._read(piece)
        except (UserError, RunError) as error:
            return error

    def _read(self, piece: Piece) -> Answer:
        count = len(piece.positions)
        is_sent = piece.place is None
        if piece.place is None:
            rows = np.empty((count, 3, self._side, self._side), np.uint8)
        else:
            assert self._canvases is not None
            rows = self._canvases[piece.place, piece.first : piece.first + count]
        sizes = np.zeros((count, 2), np.int64)
        texts = [""] * count
        failures = Failures()
        notes = Failures()

        for row, position in enumerate(piece.positions):
            try:
                text = self._reader.text(position)
                image = self._reader.image(position, self._side)
            except UnreadableError as error:
                failures.append((position, error))
                self._reader.passed_over()  # of an entry that is left out as a whole
                continue
            notes += ((position, skipped) for skipped in self._reader.passed_over())
            sizes[row] = put(image, rows[row])
            texts[row] = text

        images = rows if is_sent else None
        return Answer(piece.positions, images, sizes, texts, failures, notes)


def put(image: Image.Image | np.ndarray, row: np.ndarray) -> tuple[int, int]:
    """Write an image top-left into ``row`` uint8 [3, S, S], black around it.

    Returns its height and width. ``image`` is RGB, or uint8 [h, w, 3].
    """
    if isinstance(image, np.ndarray):
        height, width, _ = image.shape
        row[:, :height, :width] = image.transpose(2, 0, 1)
    else:
        # Pillow takes a channel out of its pixels faster than NumPy turns an array of all three.
        width, height = image.size
        for plane, channel in zip(row, "RGB", strict=True):
            pixels = np.frombuffer(image.tobytes("raw", channel), np.uint8)
            plane[:height, :width] = pixels.reshape(height, width)
    row[:, height:] = 0
    row[:, :height, width:] = 0
    return height, width


# ---- where batches lie ----


class Canvases:
    """Memory of PLACES batches, which forks of this process share and which is used again.

    ``take`` gives a place. It is free again once nobody holds what was made of it, however many
    views of it there were; on a GPU, once the GPU has also done what it was asked for by then. The
    first free place is taken, because memory that was never written to costs nothing, and its first
    use more than a copy.

    Nothing of it has a name (an anonymous mapping): a killed run leaves nothing behind, and it does
    not count for ``/dev/shm``, of which a container may have 64 MB.
    """

    def __init__(self, num_rows: int, side: int) -> None:
        shape = (num_rows, 3, side, side)
        size = math.prod(shape)

        # Pages are locked for a GPU as a whole, so no two places share one.
        step = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            memory = mmap.mmap(-1, PLACES * step, **UNRESERVED)
        except OSError as error:
            gigabytes = PLACES * step / 1e9
            raise RunError(
                f"the system gives no memory for {PLACES} batches of {num_rows:,} images of"
                f" {side} px, {gigabytes:.3g} GB ({error.strerror})",
                about="batch_size",
                fix="lower it, or data.decode_size, or take more processes",
            ) from error
        self._all = np.frombuffer(memory, np.uint8)
        rows = self._all.reshape(PLACES, step)[:, :size]
        self.memory = rows.reshape(PLACES, *shape)  # uint8 [PLACES, b, 3, S, S]
        assert np.may_share_memory(self.memory, self._all)
        self._is_free = [True] * PLACES
        self._marks: list[torch.cuda.Event | None] = [None] * PLACES  # of what a GPU reads yet
        self._locked: set[int] = set()
        self._can_lock = True

    def take(self) -> tuple[int, np.ndarray] | tuple[None, None]:
        """(Its number, uint8 [b, 3, S, S]) of a free place; (None, None) where there is none.

        In the thread that computes, whose GPU it is: another thread may have another one.
        """
        for place, mark in enumerate(self._marks):
            if self._is_free[place] and (mark is None or mark.query()):
                stream = None
                if torch.cuda.is_initialized():
                    stream = torch.cuda.current_stream()
                    self._lock(place)
                self._is_free[place] = False
                images = self.memory[place]  # an array of its own, which every view of it holds
                weakref.finalize(images, self._give_back, place, stream).atexit = False
                return place, images
        return None, None

    def _give_back(self, place: int, stream: torch.cuda.Stream | None) -> None:
        if stream is not None:  # which may still have to copy it to the GPU
            self._marks[place] = stream.record_event()
        self._is_free[place] = True

    def _lock(self, place: int) -> None:
        """Page-lock a place, once: from such memory a batch goes to the GPU while that computes."""
        if place in self._locked or not self._can_lock:
            return
        images = self.memory[place]
        cuda = torch.cuda.cudart()
        error = cuda.cudaHostRegister(images.ctypes.data, images.nbytes, 0)
        if error == cuda.cudaError.success:
            self._locked.add(place)
            weakref.finalize(self._all, cuda.cudaHostUnregister, images.ctypes.data).atexit = False
        else:
            self._can_lock = False
            warn(
                "CUDA does not lock the memory of batches where it lies"
                f" ({cuda.cudaGetErrorString(error)}): each batch is copied once more"
            )

    def tensor(self, images: np.ndarray, place: int | None) -> Tensor:
        """``images`` of a place, or of none, as a tensor; page-locked where a GPU is in use."""
        tensor = torch.from_numpy(images)
        if place in self._locked or not torch.cuda.is_initialized():
            return tensor
        return tensor.pin_memory()


# ---- workers ----


def _in_workers(
    loader: _Loader, queue: deque[Piece], num_workers: int
) -> Iterator[Answer | UserError | RunError | None]:
    """Answers in the order of the queue, and None where it was empty.

    They come from processes that end with the iterator.
    """
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


def _pieces(queue: deque[Piece]) -> Iterator[Piece | None]:
    """What to read next, for ever.

    A DataLoader asks for more as soon as it has handed something over. Where nothing is asked of
    us, it gets no piece, which a worker answers with None at once.
    """
    while True:
        yield queue.popleft() if queue else None


def _leave_the_group(worker: int) -> None:
    """Start a process group of the worker's own.

    Ctrl-C and a scheduler's SIGTERM reach the trainer's whole group; the trainer answers them, and
    still needs its batches. Some schedulers warn each process of a job by itself.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)  # it is the trainer's, which would take our signals for its own
    for kind in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(kind, signal.SIG_IGN)
