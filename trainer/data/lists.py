"""Pairs whose pictures are files: a list of captions (``.jsonl``, ``.csv``, ``.tsv``), or a folder
with ``.txt`` beside them.

The columns of a list are those of `silc_bench.datasets.layouts`; a picture may have several rows,
or several captions in one. Training from files in random order is for thousands of pictures;
``silc-bench data pack`` writes shards of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.datasets import layouts
from silc_bench.datasets.files.folders import PICTURE_EXTENSIONS
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import UserError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import samples as conditions
from silc_bench.trainer.data.samples import (
    Filters,
    UnreadableError,
    captions_of,
    choose_caption,
    columns_of,
    decoded,
    shuffled,
    with_sizes,
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A picture in a file of its own."""

    path: Path
    captions: tuple[str, ...]
    columns: dict[str, Any]  # the rest of its row, or its JSON

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise UnreadableError("missing picture", str(self.path)) from error


@dataclass(frozen=True)
class ListedReader:
    """Entries are epochs of all pictures, each epoch in an order of its own."""

    pairs: list[Listed]
    where: Path
    config: DataConfig
    filters: Filters
    left_out: Counter[str]

    @classmethod
    def open(cls, path: Path, config: DataConfig, damage: Damage) -> ListedReader:
        """A list of captions, or a folder. Raises UserError where there is no pair in it."""
        filters, left_out = conditions.parse(config.filters), Counter[str]()
        kept = []
        for pair in read_pairs(path, damage):
            reason = _reason(pair, filters)
            if reason is None:
                kept.append(pair)
            else:
                left_out[reason] += 1
        if not kept:
            raise UserError(
                f"{path} holds no pair of a picture and a caption: {damage.summary()}{_by_reason(left_out)}"
            )
        return cls(kept, path, config, filters, left_out)

    @property
    def num_samples(self) -> int:
        return len(self.pairs)

    def describe(self) -> str:
        return f"{self.num_samples:,} pairs of {self.where}{_by_reason(self.left_out)}"

    def text(self, position: int) -> str:
        epoch, index = self._find(position)
        return choose_caption(
            self.filters.captions(self.pairs[index].captions), self.config.seed, epoch, index
        )

    def picture(self, position: int) -> np.ndarray:
        pair = self.pairs[self._find(position)[1]]
        return decoded(pair.read(), self.config.decode_size, str(pair.path))

    def _find(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_samples)
        return epoch, int(_order(self.config.seed, epoch, self.num_samples)[place])


_ORDERS: dict[
    tuple[int, int, int], np.ndarray
] = {}  # the last two: a range of positions may lie across two epochs


def _order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    key = (seed, epoch, num_samples)
    if key not in _ORDERS:
        for old in list(_ORDERS)[:-1]:
            del _ORDERS[old]
        _ORDERS[key] = shuffled(seed, epoch, num_samples)
    return _ORDERS[key]


def read_pairs(path: Path, damage: Damage) -> list[Listed]:
    """All pictures that have a caption, in the order of the list or by name; the others are added
    to ``damage``.

    Raises:
        UserError: no such place, a list that cannot be read, or a folder of pictures without a
        single caption.
    """
    if path.is_dir():
        lists = sorted(file for file in path.iterdir() if file.suffix.lower() in layouts.ENDINGS)
        if len(lists) > 1:
            raise UserError(
                f"{path} holds {len(lists)} lists of captions, such as {lists[0].name}; name one of them"
            )
        return _from_list(lists[0], damage) if lists else _from_folder(path, damage)
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; expected a list of captions or a folder of pictures"
        )
    return _from_list(path, damage)


def _from_list(path: Path, damage: Damage) -> list[Listed]:
    pairs: dict[Path, Listed] = {}
    for number, name, captions, row in layouts.rows(path, layouts.read_text(path)):
        picture = layouts.locate(path, name)
        own = tuple(caption for caption in captions if caption)
        if not picture.is_file():
            damage.add("missing picture", f"{path}:{number}: {name}")
        elif not own:
            damage.add("empty text", f"{path}:{number}: {name}")
        elif picture in pairs:
            known = pairs[picture]
            pairs[picture] = Listed(picture, known.captions + own, known.columns)
        else:
            texts = (*layouts.PICTURE_COLUMNS, *layouts.CAPTION_COLUMNS)
            pairs[picture] = Listed(
                picture, own, {name: value for name, value in row.items() if name not in texts}
            )
    return list(pairs.values())


def _from_folder(path: Path, damage: Damage) -> list[Listed]:
    pictures = sorted(
        file for file in path.rglob("*") if file.suffix.lower().lstrip(".") in PICTURE_EXTENSIONS
    )
    pairs = []
    for picture in pictures:
        text, columns = (picture.with_suffix(suffix) for suffix in (".txt", ".json"))
        if not text.is_file() and not columns.is_file():
            damage.add("picture without a text", str(picture))
            continue
        try:
            found = columns_of(columns.read_bytes(), str(columns)) if columns.is_file() else None
            captions = captions_of(text.read_bytes() if text.is_file() else None, found, str(text))
        except UnreadableError as error:
            damage.add(error.cause, error.where)
            continue
        pairs.append(Listed(picture, tuple(captions), found or {}))
    if pictures and not pairs:
        raise UserError(
            f"{path} holds {len(pictures):,} pictures and no caption of any: write NAME.txt beside NAME.jpg, a caption a line,"
            ' or a captions.jsonl in the folder: {"file": "NAME.jpg", "caption": "..."}'
        )
    if not pictures:
        raise UserError(
            f"{path} holds neither pictures, nor shards (*.tar), nor a list of captions"
        )
    return pairs


def _reason(pair: Listed, filters: Filters) -> str | None:
    columns = pair.columns
    if filters.needs_size:
        try:
            columns = with_sizes(columns, pair.read(), str(pair.path))
        except UnreadableError:
            return None  # counted when it is met
    return filters.reason(pair.captions, columns)


def _by_reason(left_out: Counter[str]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    return f" (filters left out {left_out.total():,}: {reasons})" if left_out else ""
