"""Picture-text pairs for training: whatever ``trainer.sources`` opens, as one endless stream with an exact position.

Flow: ``open_source(config.data)`` -> Source -> ``source.batches(batch_size, start=position)`` -> Batch, whose ``position``
goes into the checkpoint: starting there continues with the very next pair, whatever had been read ahead by how many workers.

Entry p of the stream is a pure function of (seed, p): scene p of ``shapes``, or sample p mod n of the p div n-th shuffle of
the n samples of a source. A batch is the next B entries that can be read. One that cannot is left out, counted in
``source.damage`` when its batch is handed over, and ``position`` advances by one more than the batch size for it.

Several processes read one stream, each its own part of every batch. Which part that is depends on what the others could not
read, so they tell each other: one number a batch, and where it is not zero the entries that failed. Each of these moves the
rows after it up by one, and those ranks read one entry more, for this batch and for each that was begun by then. So W ranks
read at most B + BATCHES_AHEAD * d * W entries for a batch with d failures, and B for one without.

Shapes: B pairs a batch, of which a process has b; S = decode_size pixels a side of a canvas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from silc_bench.datasets.shards import Damage
from silc_bench.errors import UserError
from silc_bench.ranks import concatenated
from trainer.read_ahead import Failures, ReadAhead
from trainer.readers import Reader, UnreadableError
from trainer.sections import DataConfig
from trainer.sources import open_reader

BATCHES_AHEAD = 2  # made in the background while the trainer computes


@dataclass(frozen=True)
class Batch:
    images: Tensor  # uint8 [b, 3, S, S]: each picture top-left on a black canvas
    sizes: Tensor  # int64 [b, 2]: height and width of the pictures
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
    """An endless stream of pairs. ``damage`` counts what was left out of the batches handed over so far, by all processes."""

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
        """Endless batches of exactly ``batch_size`` pairs from position ``start``; closing the generator ends its workers.

        Of ``num_ranks`` processes each gets its own part of the same batches, in the order of the ranks. All of them have to
        take the same number of batches: each batch asks ``tell``, which makes of every rank's list the list of all.

        Raises:
            UserError: nothing at all can be read, or a shard disappeared.
            RunError: a remote shard could not be fetched, or a worker was killed.
        """
        assert start >= 0
        assert batch_size > 0
        assert batch_size % num_ranks == 0
        share = batch_size // num_ranks

        def own(first: int) -> range:
            """Positions that this process has of a batch that begins at ``first``, where none of its entries is left out."""
            return range(first + rank * share, first + (rank + 1) * share)

        with ReadAhead(self._reader, self._config.decode_size, self._config.num_workers) as ahead:
            coming = deque(ahead.ask(own(start + number * batch_size)) for number in range(BATCHES_AHEAD))
            while True:
                asked = coming.popleft()
                rows, failures, num_new, num_failing = asked.rows(), Failures(), batch_size, 0
                while found := tell(rows.failures):
                    num_failing = num_failing + num_new if len(found) == num_new else 0  # in a row, up to the newest
                    self._stop_if_all(num_failing, found)
                    failures, num_new = failures + found, len(found)
                    asked = ahead.ask(_members(start, batch_size, failures)[rank * share : (rank + 1) * share], asked)
                    rows = asked.rows()
                start += batch_size + len(failures)
                if failures:
                    coming = deque(ahead.ask(own(start + number * batch_size), old) for number, old in enumerate(coming))
                coming.append(ahead.ask(own(start + len(coming) * batch_size)))
                self._count(failures)
                yield Batch(rows.images, rows.sizes, rows.texts, start)

    def _stop_if_all(self, num_failing: int, found: Failures) -> None:
        if self.num_samples is not None and num_failing >= 2 * self.num_samples:  # so many hold a whole epoch
            _, last = max(found, key=_position_of)
            raise UserError(f"none of {self.num_samples:,} pairs can be read; the last: {last.cause} in {last.where}")

    def _count(self, failures: Failures) -> None:
        for _, error in sorted(failures, key=_position_of):
            if error.where not in self._left_out:
                self._left_out.add(error.where)
                self.damage.add(error.cause, error.where)


def _members(start: int, count: int, failures: Failures) -> list[int]:
    """The first ``count`` positions from ``start`` that are not known to fail."""
    failed = {position for position, _ in failures}
    return [position for position in range(start, start + count + len(failed)) if position not in failed]


def _position_of(failure: tuple[int, UnreadableError]) -> int:
    return failure[0]
