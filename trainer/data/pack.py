"""Own images with captions -> webdataset shards, and a look at any source before training on it.

Flow: ``pack(source, out)`` reads what ``silc_bench.trainer.data.lists`` reads, checks that every
image decodes, and writes shards whose images are byte for byte the files'. ``look(config)`` opens
any source as training does and measures a part of it.

    silc-bench data pack photos photos-shards
    silc-bench data stats "photos-shards/*.tar"
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from silc_bench.datasets.files import images
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.system.files import atomic_folder
from silc_bench.system.terminal import progress_bar
from silc_bench.trainer.config.config import DataConfig, TextConfig
from silc_bench.trainer.data.lists import Listed, read_pairs
from silc_bench.trainer.data.samples import ChangedError, UnreadableError, no_pair, one_sample
from silc_bench.trainer.data.sources import open_reader
from silc_bench.trainer.data.texts import look_at
from silc_bench.trainer.silc.tokenizers import Tokenizer

# of the formats that are read; MPO is a phone's JPEG with a preview in it
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "AVIF": "avif"}
SUFFIXES |= {"BMP": "bmp", "PPM": "ppm", "TIFF": "tif"}
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
MEASURES = (
    "width",
    "height",
    "letters of a caption",
    "words of a caption",
    "tokens of a caption",
)


def pack(
    source: Path, out: Path, per_shard: int = 10_000, *, progress: bool = False
) -> tuple[int, int, Damage]:
    """(pairs, shards written, what was left out).

    A sample is its image as it is, ``.txt`` with a caption a line, and ``.json`` with the captions
    and the other columns. The order is a fixed shuffle by file name, so that each shard is a
    mixture. ``progress`` shows a bar.

    Raises:
        UserError: nothing to pack, or ``out`` is in use.
    """
    if out.exists() and any(out.iterdir()):
        fix = "choose another folder for the shards"
        raise UserError("the folder is not empty", about=out, fix=fix)

    damage = Damage()
    pairs = read_pairs(source, damage)

    # Sorted by a hash of the name, the order looks random and is the same on every machine.
    pairs.sort(key=lambda pair: hashlib.sha256(os.fsencode(pair.path.name)).digest())

    count = 0
    num_shards = 0
    with atomic_folder(out) as folder, progress_bar(progress, "image", len(pairs)) as advance:
        samples = iter(_checked(pairs, damage, advance))
        while part := list(islice(samples, per_shard)):
            _write_shard(folder / f"{num_shards:05}.tar", part, count)
            count += len(part)
            num_shards += 1

        # Raised in the folder's context, so that no empty folder is left behind.
        if not count:
            raise no_pair(source, damage, Counter())
    return count, num_shards, damage


def _write_shard(path: Path, samples: list[list[tuple[str, bytes]]], first_key: int) -> None:
    # USTAR is the plainest format, which every reader of shards knows.
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in enumerate(samples, start=first_key):
            for suffix, data in members:
                # A fresh header has no date and no owner: the same images give the same bytes.
                header = tarfile.TarInfo(f"{key:09}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def _checked(
    pairs: Iterable[Listed], damage: Damage, advance: Callable[[int], None]
) -> Iterable[list[tuple[str, bytes]]]:
    """The members (suffix, content) of each sample whose image decodes."""
    for pair in pairs:
        advance(1)
        try:
            with one_sample(str(pair.path)):
                members = _members_of(pair)
        except UnreadableError as error:
            damage.add(error.cause, error.where)
            continue
        yield members


def _members_of(pair: Listed) -> list[tuple[str, bytes]]:
    data = pair.read()
    suffix = SUFFIXES[images.open_image(data).format or ""]
    image = images.decode_image(data, is_upright=True)

    # In the .txt a line break would begin another caption.
    captions = [" ".join(caption.split()) for caption in pair.captions]
    columns = {
        **pair.columns,
        "captions": captions,
        "width": image.width,
        "height": image.height,
    }
    return [
        (suffix, data),
        ("txt", "\n".join(captions).encode()),
        ("json", json.dumps(columns, ensure_ascii=False).encode()),
    ]


def look(
    config: DataConfig, count: int, text: TextConfig, *, progress: bool = False
) -> dict[str, Any]:
    """What training would see in the first ``count`` entries of a source, as JSON.

    That is: sizes, captions, damage by cause. The tokens of a caption are those of a tokenizer that
    is trained on these captions for ``text``. ``progress`` shows a bar. Raises UserError and
    RunError as ``open_reader`` does.
    """
    damage = Damage()
    changed = Damage()
    reader = open_reader(config, damage)
    num_entries = count if reader.num_samples is None else min(count, reader.num_samples)

    measured = []
    captions = []
    with progress_bar(progress, "pair", num_entries) as advance:
        for position in range(num_entries):
            advance(1)
            try:
                caption = reader.text(position)
                image = reader.image(position)
            except UnreadableError as error:
                damage.add(error.cause, error.where)
                reader.passed_over()
                continue
            for skipped in reader.passed_over():
                counts = changed if isinstance(skipped, ChangedError) else damage
                counts.add(skipped.cause, skipped.where)

            height, width, _ = image.shape
            measured.append((width, height, len(caption), len(caption.split())))
            captions.append(caption)

    if not measured:
        raise no_pair(config.source, damage, Counter())

    # A run's tokenizer is trained on TOKENIZER_CAPTIONS; of fewer it makes as many tokens or fewer.
    tokenizer = Tokenizer.train(captions, text.vocab_size, text.context_length)
    lengths = tokenizer.lengths(captions)

    # [quantiles, MEASURES]; "nearest" gives values that some entry really has.
    table = np.column_stack([measured, lengths])
    quantiles = np.quantile(table, QUANTILES, axis=0, method="nearest")
    most_frequent, times = Counter(captions).most_common(1)[0]
    return {
        "source": reader.describe(),
        "pairs": reader.num_samples,
        "looked_at": num_entries,
        "quantiles": dict(zip(MEASURES, quantiles.T.tolist(), strict=True)),
        "most_frequent_caption": {"text": most_frequent, "times": times},
        "cut_off": look_at(captions, tokenizer, 1).cut_off(),
        "damage": damage.counts,
        "damage_first": damage.first,
        "changed": changed.counts,
        "changed_first": changed.first,
    }
