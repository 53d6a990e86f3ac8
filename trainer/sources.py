"""What ``data.source`` means: one word a source, or a mixture of them.

shapes                                  generated scenes, endless
DIR, DIR/*.tar, DIR/{000..009}.tar      webdataset shards; several patterns with spaces between are one source
https://HOST/{000..099}.tar, s3://...   the same behind a URL, and gs://, hf:// (silc_bench.datasets.remote)
LIST.jsonl, .csv, .tsv                  a list of pictures and captions
DIR                                     without shards: a list in it, or pictures with NAME.txt beside NAME.jpg
3 * A | 1 * B                           both, three quarters of the stream from A; without weights: as large as they are
"""

from __future__ import annotations

import re
from pathlib import Path

from silc_bench.datasets.captions_file import ENDINGS
from silc_bench.datasets.shards import Damage
from silc_bench.errors import UserError
from trainer.listed_pairs import ListedReader
from trainer.mixture import MixedReader
from trainer.readers import Reader, ShapesReader
from trainer.sections import DataConfig
from trainer.shard_pairs import ShardsReader


def open_reader(config: DataConfig, damage: Damage) -> Reader:
    """The reader that ``config.source`` names; what is damaged already in its index is added to ``damage``.

    Raises:
        UserError: nothing there, not one pair in it, or weights that mean nothing.
        RunError: a remote source that does not answer.
    """
    parts = [_weighted(part.strip(), config.source) for part in config.source.split("|")]
    readers = [_open(word, config, damage) for _, word in parts]
    if len(readers) == 1:
        return readers[0]
    weights = [weight for weight, _ in parts]
    if any(weight is None for weight in weights):
        if any(weights):
            raise UserError(f"data {config.source!r}: give each source a weight, or none of them")
        endless = [word for (_, word), reader in zip(parts, readers, strict=True) if reader.num_samples is None]
        if endless:
            raise UserError(
                f"data {config.source!r}: {endless[0]} never ends, so its share is yours to say; give each a weight"
            )
        weights = [reader.num_samples for reader in readers]
    return MixedReader(readers, [float(weight or 0) for weight in weights], config.seed)


def _weighted(part: str, source: str) -> tuple[float | None, str]:
    found = re.fullmatch(r"([0-9.]+)\s*\*\s+(\S.*)", part)
    if not found:
        if not part:
            raise UserError(f"data {source!r}: a source is empty; write 'WEIGHT * SOURCE | WEIGHT * SOURCE'")
        return None, part
    try:
        weight = float(found[1])
    except ValueError:
        weight = 0.0
    if weight <= 0:
        raise UserError(f"data {source!r}: a weight is a number above 0, not {found[1]}")
    return weight, found[2]


def _open(word: str, config: DataConfig, damage: Damage) -> Reader:
    if word == "shapes":
        return ShapesReader(config)
    path = Path(word).expanduser()
    if path.suffix.lower() in ENDINGS or (path.is_dir() and not any(path.glob("*.tar"))):
        return ListedReader.open(path, config, damage)
    return ShardsReader.open(word, config, damage)
