"""What ``data.source`` means: one word a source, or a mixture of them.

    shapes                                  generated scenes, endless
    places:num_pairs=1024,cooccurrence=0.9  generated scenes with structure, endless or so many
    DIR, DIR/*.tar, DIR/{000..009}.tar      webdataset shards; several patterns with spaces between
                                            them are one source
    https://HOST/{000..099}.tar, s3://...   the same behind a URL, and gs://, hf://
                                            (silc_bench.datasets.files.remote)
    LIST.jsonl, .json, .csv, .tsv           a list of images and captions
    DIR                                     without shards: a list in it, or images with NAME.txt
                                            beside NAME.jpg
    3 * A | 1 * B                           both, three quarters of the stream from A; without
                                            weights each source has a share as large as it is

A mixture (``"3 * A/*.tar | 1 * B.jsonl"``) is cut into blocks of BLOCK entries. In each block every
source has its share, rounded once for all blocks, in an order that is f(seed, block). So entry p is
a pure function of (seed, p), and each source goes through epochs of its own, every sample once in
each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from silc_bench.datasets.files import remote, shards
from silc_bench.datasets.files.shards import Damage
from silc_bench.datasets.layouts import LIST_ENDINGS
from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import lists, places
from silc_bench.trainer.data.lists import ListedReader
from silc_bench.trainer.data.samples import (
    MIXTURE,
    LastTwo,
    PassedOverError,
    Reader,
    ShapesReader,
    digits_of,
    random_words,
)
from silc_bench.trainer.data.shards import ShardsReader

if TYPE_CHECKING:
    from PIL import Image

BLOCK = 1000  # entries: a share is met to 0.1 %


def open_reader(config: DataConfig, damage: Damage, node: tuple[int, int] = (0, 1)) -> Reader:
    """The reader that ``config.source`` names.

    What is damaged already in its index is added to ``damage``. ``node``: which of how many
    machines this is, which share shards between them.

    Raises:
        UserError: nothing there, not one pair in it, or weights that mean nothing.
        RunError: a remote source that does not answer.
    """
    parts = [_weighted(part.strip(), config.source) for part in config.source.split("|")]
    readers = [_open(name, config, damage, node) for _, name in parts]
    if len(readers) == 1:
        return readers[0]

    weights = [weight for weight, _ in parts]
    if any(weight is None for weight in weights):
        if any(weights):
            fix = "give each source a weight, or none of them"
            raise UserError("some sources have no weight", about=config.source, fix=fix)

        # Without weights each source counts as many as it has, which an endless one cannot say.
        for (_, name), reader in zip(parts, readers, strict=True):
            if reader.num_samples is None:
                problem = f"{name} never ends, so nothing says how large its share is"
                raise UserError(problem, about=config.source, fix="give each source a weight")
        weights = [reader.num_samples for reader in readers]
    return MixedReader(readers, [float(weight or 0) for weight in weights], config.seed)


def check_there(source: str) -> None:
    """Refuse what ``open_reader`` refuses because nothing is there; no library is loaded for it.

    Remote shards are not asked for.

    Raises:
        UserError: as ``open_reader``.
    """
    for part in source.split("|"):
        _, name = _weighted(part.strip(), source)
        path = Path(name).expanduser()
        if _is_generated(name):
            continue
        if _is_listed(path):
            lists.check_there(path)
        elif not any(remote.is_remote(word) for word in name.split()):
            shards.expand(name)


def _weighted(part: str, source: str) -> tuple[float | None, str]:
    """(weight, name) of a part of ``source``; weight None where it gives none."""
    match = re.fullmatch(r"([0-9.]+)\s*\*\s+(\S.*)", part)
    if not match:
        if not part:
            fix = "write 'WEIGHT * SOURCE | WEIGHT * SOURCE'"
            raise UserError("a source is empty", about=repr(source), fix=fix)
        return None, part

    try:
        weight = float(match[1])
    except ValueError:  # such as "1.2.3", which the pattern lets through
        weight = 0.0
    if weight <= 0:
        problem = f"{match[1]} is no weight"
        raise UserError(problem, about=source, fix="write a number above 0")
    return weight, match[2]


def _open(source: str, config: DataConfig, damage: Damage, node: tuple[int, int]) -> Reader:
    if source == "shapes":
        return ShapesReader(config)
    if _is_generated(source):
        return places.PlacesReader(source, config)

    path = Path(source).expanduser()
    if _is_listed(path):
        return ListedReader.open(path, config, damage)
    return ShardsReader.open(source, config, damage, node)


def _is_generated(source: str) -> bool:
    return source in ("shapes", places.NAME) or source.startswith(f"{places.NAME}:")


def _is_listed(path: Path) -> bool:
    is_list = path.suffix.lower() in LIST_ENDINGS
    return is_list or (path.is_dir() and not any(path.glob("*.tar")))


class MixedReader:
    """Several sources in one stream, each with a share of it."""

    def __init__(self, readers: Sequence[Reader], weights: Sequence[float], seed: int) -> None:
        """``weights``: shares of the stream, positive, of any sum.

        UserError for one too small to be met.
        """
        self._readers = list(readers)
        self._seed = seed
        self._counts = shares(weights)
        self.num_nodes = max(reader.num_nodes for reader in readers)
        self._blocks = LastTwo(self._block)

    @property
    def num_samples(self) -> int | None:
        """Of all sources together, an epoch each."""
        counts = [reader.num_samples for reader in self._readers]
        return None if None in counts else sum(count for count in counts if count is not None)

    def describe(self) -> str:
        parts = zip(self._counts.tolist(), self._readers, strict=True)
        return " + ".join(
            f"{100 * count / BLOCK:g} % {reader.describe()}" for count, reader in parts
        )

    def fingerprint(self) -> str:
        counts = [str(self._counts.tolist()).encode()]
        return digits_of(counts + [reader.fingerprint().encode() for reader in self._readers])

    def text(self, position: int) -> str:
        reader, inner = self.find(position)
        return self._readers[reader].text(inner)

    def image(self, position: int, side: int) -> Image.Image | np.ndarray:
        reader, inner = self.find(position)
        return self._readers[reader].image(inner, side)

    def captions_of_data(self, count: int) -> Iterator[str]:
        """Of each source as many as its share; the tokenizer does not mind their order."""
        for share, reader in zip(self._counts.tolist(), self._readers, strict=True):
            yield from reader.captions_of_data(math.ceil(count * share / BLOCK))

    def passed_over(self) -> list[PassedOverError]:
        return [skipped for reader in self._readers for skipped in reader.passed_over()]

    def find(self, position: int) -> tuple[int, int]:
        """(which source, position in its own stream) of an entry."""
        # Each node mixes its own entries, which so are those of the same node in each source.
        number, node = divmod(position, self.num_nodes)
        block, place = divmod(number, BLOCK)
        which, before = self._blocks[block]
        reader = int(which[place])
        inner = block * int(self._counts[reader]) + int(before[place])
        return reader, inner * self.num_nodes + node

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [BLOCK] twice: the source of each entry; entries of the same source before it."""
        words = random_words(self._seed, MIXTURE, block, BLOCK)
        in_turn = np.repeat(np.arange(len(self._counts)), self._counts)
        which = in_turn[np.argsort(words, kind="stable")]

        before = np.empty(BLOCK, np.int64)
        for reader, count in enumerate(self._counts):
            before[which == reader] = np.arange(count)
        return which, before


def shares(weights: Sequence[float]) -> np.ndarray:
    """int64: entries of each source in a block, by largest remainders. They sum to BLOCK."""
    exact = BLOCK * np.array(weights, np.float64) / sum(weights)
    counts = np.floor(exact).astype(np.int64)
    num_left = BLOCK - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:num_left]] += 1

    if (counts == 0).any():
        smallest = min(weights) / sum(weights)
        problem = f"a source has {100 * smallest:.3g} % of the stream"
        fix = f"give it at least {100 / BLOCK:g} %, or leave it out"
        raise UserError(problem, about="data.source", fix=fix)
    return counts
