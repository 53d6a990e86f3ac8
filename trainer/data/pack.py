"""Own images with captions -> webdataset shards, and a look at any source before training on it.

Flow: ``pack(source, out)`` reads what ``silc_bench.trainer.data.lists`` reads, checks that every
image decodes, and writes shards whose images are byte for byte the files'. ``look(config)`` opens
any source as training does and measures a part of it.

    silc-bench data pack photos photos-shards
    silc-bench data stats "photos-shards/*.tar"

``pack(..., test="10%")`` holds images out, decided by what they show alone. An image has a code of
64 bits (``code_of``): the same for equal pixels, however they are stored, and nearly the same for
an image that was made smaller or compressed again. A hash of the code is a number from 0 to 1, and
below the share the image is for testing. So equal images are on one side, and packing again, with
more images too, never moves one to the other side. An image for testing that is near one for
training, but with another code, is left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

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


@dataclass
class Packed:
    """What was written, by the beginning of the shards' names: "", or "train-" and "test-"."""

    pairs: dict[str, int]
    shards: dict[str, int]
    damage: Damage
    share: float = 0.0  # below which an image is for testing
    num_near: int = 0  # left out, because they are near an image for training
    first_near: str = ""


def pack(
    source: Path, out: Path, per_shard: int = 10_000, *, test: str = "", progress: bool = False
) -> Packed:
    """Write the shards of ``source`` into a new folder.

    A sample is its image as it is, ``.txt`` with a caption a line, and ``.json`` with the captions
    and the other columns. The order is a fixed shuffle by file name, so that each shard is a
    mixture.

    Args:
        test: "10%" of the images, or about so many: held out in shards of their own.
        progress: shows a bar.

    Raises:
        UserError: nothing to pack, or to hold out; ``out`` is in use; a share that is none.
    """
    if out.exists() and any(out.iterdir()):
        fix = "choose another folder for the shards"
        raise UserError("the folder is not empty", about=out, fix=fix)

    damage = Damage()
    pairs = read_pairs(source, damage)

    # Sorted by a hash of the name, the order looks random and is the same on every machine.
    pairs.sort(key=lambda pair: hashlib.sha256(os.fsencode(pair.path.name)).digest())

    packed = Packed({}, {}, damage)
    sides = {"": pairs}
    if test:
        packed.share = share_of(test, len(pairs))
        sides = _sides(pairs, packed, progress)

    num_pairs = sum(map(len, sides.values()))
    with atomic_folder(out) as folder, progress_bar(progress, "image", num_pairs) as advance:
        for begin, members in sides.items():
            packed.pairs[begin] = packed.shards[begin] = 0
            samples = iter(_checked(members, damage, advance))
            while part := list(islice(samples, per_shard)):
                path = folder / f"{begin}{packed.shards[begin]:05}.tar"
                _write_shard(path, part, packed.pairs[begin])
                packed.pairs[begin] += len(part)
                packed.shards[begin] += 1

        # Raised in the folder's context, so that no empty folder is left behind.
        if not any(packed.pairs.values()):
            raise no_pair(source, damage, Counter())
        for begin, count in packed.pairs.items():
            if not count:
                side = "training" if begin == TRAIN else "testing"
                raise UserError(
                    f"of {num_pairs:,} images none is left for {side}",
                    about=f"--test {test}",
                    fix="choose another share, or pack more images",
                )
    return packed


# ---- what is held out ----

TRAIN, TEST = "train-", "test-"  # begin the names of shards
# Bits of 64 in which the codes of two images that are nearly equal differ, at most. Of 166
# photographs, halved or compressed to JPEG of quality 60 they differ in 4 at most, made 97 x 71 px
# in 7; two photographs differ in 12 and more.
NEAR = 7


def share_of(test: str, num_images: int) -> float:
    """From 0 to 1, both excluded, of "10%" or of a number of images.

    A number becomes a share of few digits, which can be typed when there are more images.
    """
    try:
        if test.strip().endswith("%"):
            share = float(test.strip()[:-1]) / 100
        else:
            share = float(f"{100 * int(test) / num_images:.3g}") / 100
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share < 1:
        raise UserError(
            f"is no part of {num_images:,} images",
            about=f"--test {test}",
            fix="write a share, as in 10%, or a number of images",
        )
    return share


def code_of(image: Image.Image) -> int:
    """64 bits: where an image of 9 x 8 grey pixels is brighter on the right than beside it."""
    small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _sides(pairs: list[Listed], packed: Packed, progress: bool) -> dict[str, list[Listed]]:
    """Pairs for training and for testing; what is left out is counted in ``packed``.

    An image that cannot be read is in neither, and its cause is counted.
    """
    coded: list[tuple[int, Listed]] = []
    with progress_bar(progress, "image", len(pairs)) as advance:
        for pair in pairs:
            advance(1)
            try:
                with one_sample(str(pair.path)):
                    coded.append((code_of(images.decode_image(pair.read(), is_upright=True)), pair))
            except UnreadableError as error:
                packed.damage.add(error.cause, error.where)

    sides: dict[str, list[Listed]] = {TRAIN: [], TEST: []}
    for_training = {code for code, _ in coded if _number(code) >= packed.share}
    find_near = _near(for_training)
    for code, pair in coded:
        if code in for_training:
            sides[TRAIN].append(pair)
        elif find_near(code):
            packed.num_near += 1
            packed.first_near = packed.first_near or str(pair.path)
        else:
            sides[TEST].append(pair)
    return sides


def _number(code: int) -> float:
    """From 0 to 1, without any order of the codes."""
    digest = hashlib.sha256(code.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _near(codes: Collection[int]) -> Callable[[int], bool]:
    """Whether one of ``codes`` differs in NEAR bits at most."""
    known = np.array(sorted(codes), np.uint64)
    ones = np.array([byte.bit_count() for byte in range(256)], np.uint8)

    @cache
    def is_near(code: int) -> bool:
        different = (known ^ np.uint64(code)).view(np.uint8)
        return bool((ones[different].reshape(-1, 8).sum(axis=1) <= NEAR).any())

    return is_near


# ---- shards ----


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
                image = reader.image(position, config.decode_size or images.MAX_SIDE)
            except UnreadableError as error:
                damage.add(error.cause, error.where)
                reader.passed_over()
                continue
            for skipped in reader.passed_over():
                counts = changed if isinstance(skipped, ChangedError) else damage
                counts.add(skipped.cause, skipped.where)

            width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
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
