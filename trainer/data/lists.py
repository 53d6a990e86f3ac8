"""Pairs whose images are files: a list of captions (.jsonl, .csv, .tsv), or a folder with texts.

In a folder, ``NAME.txt`` or ``NAME.json`` beside ``NAME.jpg`` holds the captions. The columns of a
list are those of ``silc_bench.datasets.layouts``; an image may have several rows, or several
captions in one.

Flow: ``ListedReader.open(path, config, damage)`` reads all captions and looks which images there
are -> ``text(p)`` and ``picture(p)``, which reads the image's file. Training from files in random
order is for thousands of images; ``silc-bench data pack`` writes shards of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.datasets import layouts
from silc_bench.datasets.files.folders import FILE_EXTENSIONS
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
    """An image in a file of its own."""

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
    """Entries are epochs of all images, each epoch in an order of its own."""

    pairs: list[Listed]
    where: Path
    config: DataConfig
    filters: Filters
    left_out: Counter[str]

    @classmethod
    def open(cls, path: Path, config: DataConfig, damage: Damage) -> ListedReader:
        """A list of captions, or a folder. Raises UserError where there is no pair in it."""
        filters = conditions.parse(config.filters)

        left_out = Counter[str]()
        kept = []
        for pair in read_pairs(path, damage):
            reason = _reason(pair, filters)
            if reason is None:
                kept.append(pair)
            else:
                left_out[reason] += 1

        if not kept:
            raise UserError(
                f"{path} holds no pair of a picture and a caption: {damage.summary()}"
                f"{_by_reason(left_out)}"
            )
        return cls(kept, path, config, filters, left_out)

    @property
    def num_samples(self) -> int:
        return len(self.pairs)

    def describe(self) -> str:
        return f"{self.num_samples:,} pairs of {self.where}{_by_reason(self.left_out)}"

    def text(self, position: int) -> str:
        epoch, index = self._find(position)
        captions = self.filters.captions(self.pairs[index].captions)
        return choose_caption(captions, self.config.seed, epoch, index)

    def image(self, position: int) -> np.ndarray:
        _, index = self._find(position)
        pair = self.pairs[index]
        return decoded(pair.read(), self.config.decode_size, str(pair.path))

    def _find(self, position: int) -> tuple[int, int]:
        """(epoch, number of the pair) of an entry."""
        epoch, place = divmod(position, self.num_samples)
        return epoch, int(_order(self.config.seed, epoch, self.num_samples)[place])


# The last two orders, because a range of positions may lie across two epochs.
_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    key = (seed, epoch, num_samples)
    if key not in _ORDERS:
        for old in list(_ORDERS)[:-1]:
            del _ORDERS[old]
        _ORDERS[key] = shuffled(seed, epoch, num_samples)
    return _ORDERS[key]


def read_pairs(path: Path, damage: Damage) -> list[Listed]:
    """All images that have a caption, in the order of the list or by name.

    The others are added to ``damage``.

    Raises:
        UserError: no such place, a list that cannot be read, or a folder of images without a single
        caption.
    """
    if path.is_dir():
        lists = sorted(file for file in path.iterdir() if file.suffix.lower() in layouts.ENDINGS)
        if len(lists) > 1:
            raise UserError(
                f"{path} holds {len(lists)} lists of captions, such as {lists[0].name}; name one of"
                " them"
            )
        return _from_list(lists[0], damage) if lists else _from_folder(path, damage)

    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; expected a list of captions or a folder of pictures"
        )
    return _from_list(path, damage)


def _from_list(path: Path, damage: Damage) -> list[Listed]:
    not_columns = (*layouts.IMAGE_COLUMNS, *layouts.CAPTION_COLUMNS)
    pairs: dict[Path, Listed] = {}
    for number, name, all_captions, row in layouts.rows(path, layouts.read_text(path)):
        image = layouts.locate(path, name)
        captions = tuple(caption for caption in all_captions if caption)

        if not image.is_file():
            damage.add("missing picture", f"{path}:{number}: {name}")
        elif not captions:
            damage.add("empty text", f"{path}:{number}: {name}")
        elif image in pairs:
            # A further row of an image adds captions; the other columns stay those of the first.
            first = pairs[image]
            pairs[image] = Listed(image, first.captions + captions, first.columns)
        else:
            columns = {column: value for column, value in row.items() if column not in not_columns}
            pairs[image] = Listed(image, captions, columns)
    return list(pairs.values())


def _from_folder(path: Path, damage: Damage) -> list[Listed]:
    # By name, so that the order does not depend on how the disk lists the folder.
    images = sorted(
        file for file in path.rglob("*") if file.suffix.lower().lstrip(".") in FILE_EXTENSIONS
    )

    pairs = []
    for image in images:
        text_file = image.with_suffix(".txt")
        json_file = image.with_suffix(".json")
        has_text = text_file.is_file()
        has_json = json_file.is_file()
        if not has_text and not has_json:
            damage.add("picture without a text", str(image))
            continue

        try:
            columns = columns_of(json_file.read_bytes(), str(json_file)) if has_json else None
            text = text_file.read_bytes() if has_text else None
            captions = captions_of(text, columns, str(text_file))
        except UnreadableError as error:
            damage.add(error.cause, error.where)
            continue
        pairs.append(Listed(image, tuple(captions), columns or {}))

    if images and not pairs:
        raise UserError(
            f"{path} holds {len(images):,} pictures and no caption of any: write NAME.txt beside"
            " NAME.jpg, a caption a line, or a captions.jsonl in the folder:"
            ' {"file": "NAME.jpg", "caption": "..."}'
        )
    if not images:
        raise UserError(
            f"{path} holds neither pictures, nor shards (*.tar), nor a list of captions"
        )
    return pairs


def _reason(pair: Listed, filters: Filters) -> str | None:
    """Why the filters leave a pair out; None: they do not."""
    columns = pair.columns
    if filters.needs_size:
        try:
            columns = with_sizes(columns, pair.read(), str(pair.path))
        except UnreadableError:
            return None  # what cannot be read is no matter of filters; it is counted when it is met
    return filters.reason(pair.captions, columns)


def _by_reason(left_out: Counter[str]) -> str:
    if not left_out:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    return f" (filters left out {left_out.total():,}: {reasons})"
