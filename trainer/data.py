"""Picture-text pairs for training: whatever ``trainer.sources`` opens, as one endless stream with an exact position.

Flow: ``open_source(config.data)`` -> Source -> ``source.batches(batch_size, start=position)`` -> Batch, whose ``position``
goes into the checkpoint: starting there continues with the very next pair, whatever had been read ahead by how many workers.

Entry p of the stream is a pure function of (seed, p): scene p of ``shapes``, or sample p mod n of the p div n-th shuffle of
the n samples of a source. An entry that cannot be read is left out, counted in ``source.damage`` when its batch is handed
over, and the batch is filled with the entries after it, so that ``position`` may advance by more than the batch size.

Shapes: B pairs a batch, S = decode_size pixels a side of a canvas.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from silc_bench.datasets.shards import Damage
from silc_bench.errors import RunError, UserError
from trainer.readers import Reader, UnreadableError
from trainer.sections import DataConfig
from trainer.sources import open_reader

BATCHES_AHEAD = 2  # made in the background while the trainer computes
T = TypeVar("T")
Pair: TypeAlias = tuple[Tensor, tuple[int, int], str]  # canvas [3, S, S], height and width, text


@dataclass(frozen=True)
class Batch:
    images: Tensor  # uint8 [B, 3, S, S]: each picture top-left on a black canvas
    sizes: Tensor  # int64 [B, 2]: height and width of the pictures
    texts: list[str]
    position: int  # where the stream goes on after this batch


def open_source(config: DataConfig) -> Source:
    """The stream that ``config.source`` names. Raises UserError and RunError as ``open_reader`` does."""
    for name, lowest in (("decode_size", 1), ("num_workers", 0), ("seed", 0)):
        if getattr(config, name) < lowest:
            raise UserError(f"data.{name}={getattr(config, name)} is too small; it starts at {lowest}")
    damage = Damage()
    return Source(open_reader(config, damage), config, damage)


class Source:
    """An endless stream of pairs. ``damage`` counts what was left out of the batches handed over so far."""

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

    def batches(self, batch_size: int, start: int, rank: int = 0, num_ranks: int = 1) -> Generator[Batch, None, None]:
        """Endless batches of exactly ``batch_size`` pairs from position ``start``; closing the generator ends its workers.

        Of ``num_ranks`` processes each gets its own part of the same batches, in the order of the ranks.

        Raises:
            UserError: nothing at all can be read, or a shard disappeared.
            RunError: a remote shard could not be fetched.
        """
        assert batch_size > 0
        assert start >= 0
        ranges = (range(first, first + batch_size) for first in itertools.count(start, batch_size))
        with closing(_read_ahead(_fill(_entries(self._load(ranges)), batch_size, self.num_samples))) as filled:
            for batch, left_out in filled:
                for error in left_out:
                    if error.where not in self._left_out:
                        self._left_out.add(error.where)
                        self.damage.add(error.cause, error.where)
                yield _part(batch, rank, num_ranks)

    def _load(self, ranges: Iterator[range]) -> Iterator[_Chunk | UserError | RunError]:
        loader = _Loader(self._reader, self._config.decode_size)
        if self._config.num_workers == 0:
            return map(loader.__getitem__, ranges)
        return _load_in_workers(loader, ranges, self._config.num_workers)


def _part(batch: Batch, rank: int, num_ranks: int) -> Batch:
    share = len(batch.texts) // num_ranks
    rows = slice(rank * share, (rank + 1) * share)
    return Batch(batch.images[rows], batch.sizes[rows], batch.texts[rows], batch.position)


# ---- from entries to batches ----


@dataclass(frozen=True)
class _Chunk:
    """A range of positions, read: the n pairs that could be, and what became of each position."""

    images: Tensor  # uint8 [n, 3, S, S]
    sizes: list[tuple[int, int]]
    texts: list[str]
    outcomes: list[tuple[int, UnreadableError | None]]  # position; why it was left out, if it was


class _Loader(Dataset):
    """``loader[range]`` reads the range. An error that ends the run is returned: a worker would bury it in a traceback."""

    def __init__(self, reader: Reader, decode_size: int) -> None:
        self._reader, self._decode_size = reader, decode_size

    def __getitem__(self, positions: range) -> _Chunk | UserError | RunError:
        try:
            return self._read(positions)
        except (UserError, RunError) as error:
            return error

    def _read(self, positions: range) -> _Chunk:
        images = np.zeros((len(positions), 3, self._decode_size, self._decode_size), np.uint8)
        chunk = _Chunk(torch.from_numpy(images), [], [], [])
        for position in positions:
            try:
                text, picture = self._reader.text(position), self._reader.picture(position)
            except UnreadableError as error:
                chunk.outcomes.append((position, error))
                continue
            height, width, _ = picture.shape
            images[len(chunk.texts), :, :height, :width] = picture.transpose(2, 0, 1)
            chunk.sizes.append((height, width))
            chunk.texts.append(text)
            chunk.outcomes.append((position, None))
        return chunk


def _load_in_workers(loader: _Loader, ranges: Iterator[range], num_workers: int) -> Iterator[_Chunk | UserError | RunError]:
    """The same chunks in the same order, read by ``num_workers`` processes that end with the iterator."""
    return iter(
        DataLoader(
            loader,
            batch_size=None,
            sampler=ranges,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_the_group,
            generator=torch.Generator(),  # else it would draw a seed from the global one: not the run without workers
        )
    )


def _unchanged(chunk: T) -> T:
    return chunk


def _leave_the_group(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer answers them, and still needs its batches."""
    os.setsid()


def _entries(chunks: Iterator[_Chunk | UserError | RunError]) -> Generator[tuple[int, Pair | UnreadableError], None, None]:
    """Each position with its pair, or why it has none."""
    try:
        for chunk in chunks:
            if isinstance(chunk, UserError | RunError):
                raise chunk
            pairs = zip(chunk.images, chunk.sizes, chunk.texts, strict=False)  # the rows after the last pair are blank
            for position, error in chunk.outcomes:
                yield position, error or next(pairs)
    finally:
        del chunks  # the last reference, so worker processes end now and not when an error's traceback is collected


def _fill(
    entries: Generator[tuple[int, Pair | UnreadableError], None, None], batch_size: int, num_samples: int | None
) -> Generator[tuple[Batch, list[UnreadableError]], None, None]:
    """Batches of exactly ``batch_size`` pairs, each with the entries left out on its way."""
    pairs: list[Pair] = []
    left_out: list[UnreadableError] = []
    num_failing = 0  # without a success between
    with closing(entries):
        for position, entry in entries:
            if isinstance(entry, UnreadableError):
                left_out.append(entry)
                num_failing += 1
                if num_failing == num_samples:
                    raise UserError(f"none of {num_samples:,} pairs can be read; the last: {entry.cause} in {entry.where}")
                continue
            num_failing = 0
            pairs.append(entry)
            if len(pairs) == batch_size:
                images, sizes, texts = zip(*pairs, strict=True)
                yield Batch(torch.stack(images), torch.tensor(sizes), list(texts), position + 1), left_out
                pairs, left_out = [], []


def _read_ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items, made by a thread while the caller is busy with the ones before."""
    with ThreadPoolExecutor(1, thread_name_prefix="data") as thread, closing(items):
        coming = deque(thread.submit(next, items) for _ in range(BATCHES_AHEAD))
        try:
            while True:
                item = coming.popleft().result()
                coming.append(thread.submit(next, items))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
