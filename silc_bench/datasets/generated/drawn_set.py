"""What generated datasets share: samples of a split by number, parts of them, a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Self

from PIL import Image

from silc_bench.datasets.dataset import spread
from silc_bench.datasets.generated.kept import Drawn
from silc_bench.errors import UserError
from silc_bench.later import np


class DrawnSet:
    """Samples 0..num_samples-1 of a split as an ImageDataset.

    ``limit``: evenly spread ones of them. ``size``: pixels of a side. A class below sets
    ``fingerprint``, a hash of the arguments, as they decide every pixel. ``_drawn`` gives image and
    mask of a sample, and ``_unlimited`` the same set with all of its samples.
    """

    name: str
    is_drawn = True
    fingerprint: str

    def __init__(
        self, split: str, num_samples: int, size: int, seed: int, limit: int | None
    ) -> None:
        if num_samples < 1:
            problem = f"{num_samples} samples are none"
            raise UserError(problem, about=self.name, fix="ask for at least one")

        self.split = split
        self.num_samples = num_samples
        self.size = size
        self.seed = seed
        self._indices = spread(num_samples, limit)

    def _drawn(self, index: int) -> Drawn:
        raise NotImplementedError

    def _unlimited(self) -> Self:
        raise NotImplementedError

    def _arguments(self) -> list[Any]:
        return [self.seed, self.split, self.num_samples, len(self._indices), self.size]

    def __len__(self) -> int:
        return len(self._indices)

    def part(self, indices: Sequence[int]) -> Self:
        """These samples, in this order."""
        if list(indices) == list(range(len(self))):
            return self
        part = self._unlimited()
        part._indices = [self._indices[i] for i in indices]
        part.fingerprint = hash_of([self.fingerprint, part._indices])
        return part

    @property
    def is_whole(self) -> bool:
        """Whether no sample was left out for a limit."""
        return len(self._indices) == self.num_samples

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._drawn(index)[0])

    def mask(self, index: int) -> np.ndarray:
        # a copy, because the caller may write into it and the next one would read that
        return self._drawn(index)[1].copy()


def hash_of(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
