"""Random numbers for one sample of a generated set, the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from silc_bench.errors import UserError, unknown_name
from silc_bench.later import np


class Draws:
    """Random numbers of one sample, from raw Philox words.

    numpy promises that these words never change, and promises nothing of its distributions. Two
    samples, splits or seeds never share a stream.
    """

    def __init__(self, name: str, splits: Sequence[str], seed: int, split: str, index: int) -> None:
        """``name`` of the dataset, for messages.

        Raises:
            UserError: an unknown split, or a seed or index outside 0..2**63 - 1.
        """
        if split not in splits:
            raise unknown_name("split", split, splits, about=name)
        if not (0 <= seed < 2**63 and 0 <= index < 2**63):
            problem = f"the seed {seed} or the index {index} is out of range"
            raise UserError(problem, about=name, fix="give numbers from 0 to 2**63 - 1")

        # the index in the highest word of the counter: streams of two samples never meet
        words = np.random.Philox(key=(seed, splits.index(split)), counter=(0, 0, 0, index))
        self._words = self._stream(words)

    @staticmethod
    def _stream(words: np.random.Philox) -> Iterator[int]:
        while True:
            yield from words.random_raw(64).tolist()

    def bits(self) -> int:
        """64 random bits."""
        return next(self._words)

    def below(self, n: int) -> int:
        """One of 0..n-1, by the high word of a product: no division, no rejected draws."""
        return next(self._words) * n >> 64

    def between(self, low: float, high: float) -> float:
        # 53 bits: as many as a float64 holds exactly
        return low + (high - low) * ((next(self._words) >> 11) * 2.0**-53)

    def choice(self, options: Sequence[str]) -> str:
        return options[self.below(len(options))]
