"""Several sources in one stream, each with a share of it: ``"3 * A/*.tar | 1 * B.jsonl"``.

The stream is cut into blocks of BLOCK entries. In each block every source has its share, rounded once for all blocks, in an
order that is f(seed, block). So entry p is a pure function of (seed, p), and each source goes through epochs of its own, every
sample once in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from silc_bench.errors import UserError
from trainer.readers import MIXTURE, Reader, random_words

BLOCK = 1000  # entries: a share is met to 0.1 %


class MixedReader:
    def __init__(self, readers: Sequence[Reader], weights: Sequence[float], seed: int) -> None:
        """``weights``: shares of the stream, positive, of any sum. UserError for one too small to be met."""
        self._readers, self._seed = list(readers), seed
        self._counts = shares(weights)
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def num_samples(self) -> int | None:
        """Of all sources together, an epoch each."""
        counts = [reader.num_samples for reader in self._readers]
        return None if None in counts else sum(count for count in counts if count is not None)

    def describe(self) -> str:
        parts = zip(self._counts.tolist(), self._readers, strict=True)
        return " + ".join(f"{100 * count / BLOCK:g} % {reader.describe()}" for count, reader in parts)

    def text(self, position: int) -> str:
        reader, inner = self.find(position)
        return self._readers[reader].text(inner)

    def picture(self, position: int) -> np.ndarray:
        reader, inner = self.find(position)
        return self._readers[reader].picture(inner)

    def find(self, position: int) -> tuple[int, int]:
        """(which source, position in its own stream) of an entry."""
        block, place = divmod(position, BLOCK)
        if block not in self._blocks:
            for old in sorted(self._blocks)[:-1]:
                del self._blocks[old]
            words = random_words(self._seed, MIXTURE, block, BLOCK)
            which = np.repeat(np.arange(len(self._counts)), self._counts)[np.argsort(words, kind="stable")]
            # how many of the same source stand before each entry of the block
            before = np.empty(BLOCK, np.int64)
            for reader, count in enumerate(self._counts):
                before[which == reader] = np.arange(count)
            self._blocks[block] = (which, before)
        which, before = self._blocks[block]
        reader = int(which[place])
        return reader, block * int(self._counts[reader]) + int(before[place])


def shares(weights: Sequence[float]) -> np.ndarray:
    """int64: entries of each source in a block, by largest remainders. They sum to BLOCK."""
    exact = BLOCK * np.array(weights, np.float64) / sum(weights)
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]] += 1
    if (counts == 0).any():
        smallest = min(weights) / sum(weights)
        raise UserError(f"a source has {100 * smallest:.3g} % of the stream; the least that can be met is {100 / BLOCK:g} %")
    return counts
