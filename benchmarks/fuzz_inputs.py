"""Mutated inputs, thousands of them: none may end in a traceback or end what is good beside it.

    python benchmarks/fuzz_inputs.py    # 10,000 samples, a minute or two of a core
    python benchmarks/fuzz_inputs.py --count 100000 --seed 7 --kinds tar,image

Each of KINDS has whole seeds, and a function that reads mutated ones as training does, or, of
lists, masks and their classes, evaluation. It says how many samples were read, how many were
counted as lost, and how many files were refused in a sentence. Everything has to be one of the
three: a sample that is neither read nor counted is an error, as is a traceback. Beside each mutated
sample of training lies a whole one, which has to be read.

Exit status 1 where something went wrong; the bytes that did it are then kept in a file.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, features

from silc_bench.datasets.masks import read_values
from silc_bench.datasets.own_data import parse, read_classes
from silc_bench.errors import ExplainedError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.stream import open_source
from silc_bench.trainer.silc.tokenizers import Tokenizer

SAMPLES_A_SHARD = 50
WITNESS = "the whole one"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")


class Kind(NamedTuple):
    seeds: Callable[[], list[bytes]]
    # Reads mutated contents in a folder of its own, and counts what became of them.
    read: Callable[[Sequence[bytes], Path], Counter[str]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, help="samples, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of them, with commas")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, of files that are damaged on purpose

    kinds = args.kinds.split(",")
    num_wrong = 0
    for number, kind in enumerate(kinds):
        count = (args.count * (number + 1)) // len(kinds) - (args.count * number) // len(kinds)
        counts, wrong = fuzz(kind, count, args.seed)
        num_wrong += len(wrong)
        parts = ", ".join(f"{times:,} {word}" for word, times in counts.most_common())
        print(f"{kind}: {count:,} mutated; {parts}", flush=True)
        for path, reason in wrong:
            print(f"WRONG: {path}\n{reason}")
    print(f"{args.count:,} samples, {num_wrong} wrong")
    sys.exit(1 if num_wrong else 0)


def fuzz(kind: str, count: int, seed: int) -> tuple[Counter[str], list[tuple[Path, str]]]:
    """(what became of ``count`` mutated samples, what went wrong: a file each and why)."""
    rng = random.Random(f"{kind} {seed}")
    mutated = mutations(KINDS[kind].seeds(), rng)
    counts: Counter[str] = Counter()
    wrong = []
    while count > 0:
        contents = list(islice(mutated, min(count, SAMPLES_A_SHARD)))
        count -= len(contents)
        try:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                counts += KINDS[kind].read(contents, Path(folder))
        except Exception:
            wrong += _culprits(kind, contents)
    return counts, wrong


def _culprits(kind: str, contents: Sequence[bytes]) -> Iterator[tuple[Path, str]]:
    """Of contents that together went wrong, those that do so alone, in files that stay."""
    for content in contents:
        try:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                KINDS[kind].read([content], Path(folder))
        except Exception:
            path = Path(tempfile.mkstemp(prefix=f"fuzz-{kind}-")[1])
            path.write_bytes(content)
            yield path, traceback.format_exc()


# ---- mutations ----

# What breaks parsers, in the place of some bytes.
TOKENS = (
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80",
    b"\\ud800", b"\\u0000", b"null", b"NaN", b"-Infinity", b"1e999", b"1" * 5_000, b"true", b"[]",
    b"{}", b'""', b'"', b"'", b"[" * 3_000, b'{"a":' * 3_000, b"\n", b"\r", b"\r\n", b"\t", b",",
    b"%s%n", b"../../", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\x80" * 8, b"\0" * 512, b"A" * 70_000,
)  # fmt: skip


def mutations(seeds: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    """Endless: seeds with one to four of bytes changed, cut, lost, repeated, added or joined."""
    while True:
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 4))):
            start = rng.randint(0, len(content))
            end = min(len(content), start + rng.choice((0, 1, 1, 2, 4, 16, 200)))
            part = bytes(content[start:end])
            choice = rng.randrange(6)
            if choice == 0:
                content[start:end] = bytes(rng.randrange(256) for _ in part)
            elif choice == 1:
                del content[start:]
            elif choice == 2:
                del content[start:end]
            elif choice == 3:
                content[start:start] = part * rng.randint(1, 20)
            elif choice == 4:
                content[start:end] = rng.choice(TOKENS)
            else:
                other = rng.choice(seeds)
                content[start:] = other[rng.randint(0, len(other)) :]
        yield bytes(content)


# ---- kinds ----


def _captions() -> list[bytes]:
    texts = [
        "a red circle",
        "two\nlines\nof it",
        "une tasse de café ☕",
        "猫と犬",
        "_ ! ?",
        "\ufeffx",
    ]
    encodings = ("utf-8", "utf-16", "latin-1", "utf-8-sig")
    return [text.encode(encoding, "replace") for text in texts for encoding in encodings]


def _jsons() -> list[bytes]:
    values = [
        {"caption": "a red circle", "width": 8, "score": 0.5},
        {"captions": ["one", "two"], "url": "http://x"},
        {"captions": [{"id": 3, "caption": "a cat"}, {"text": "b"}, None, 7]},
        {"caption": {"text": "x"}, "nested": {"a": [[], {}]}},
        {"text": "only", "caption": None},
    ]
    return [json.dumps(value).encode() for value in values]


def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    contents = []
    for mode, channels in (("RGB", 3), ("L", None), ("RGBA", 4), ("CMYK", 4), ("P", None)):
        shape = (14, 17) if channels is None else (14, 17, channels)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        image = Image.fromarray(pixels, None if channels else "L").convert("RGB").convert(mode)
        for kind in FORMATS:
            if kind == "AVIF" and not features.check("avif"):
                continue
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind)
            except (OSError, KeyError, ValueError):
                continue  # a format that has not this mode
            contents.append(buffer.getvalue())
    return contents


def _tars() -> list[bytes]:
    contents = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for name in ("{:03}", "folder/{:03}", "a.b.{:03}", "é" * 40 + "{:03}"):
            buffer = io.BytesIO()
            samples = [(name.format(n), _witness()) for n in range(3)]
            with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
                for key, members in samples:
                    for suffix, data in members.items():
                        header = tarfile.TarInfo(f"{key}.{suffix}")
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))
            contents.append(buffer.getvalue())
    return contents


def _lists() -> list[bytes]:
    rows = [
        {"file": "whole.png", "caption": "one"},
        {"file": "whole.png", "captions": ["two", "three"], "score": 1},
        {"file": "gone.png", "caption": "four"},
    ]
    return ["\n".join(map(json.dumps, rows[start:])).encode() for start in range(len(rows))]


def _rows() -> list[bytes]:
    return [
        b"other.png,one\nother.png,two\n",
        b'other.png,"a dog, running\nand barking"\ngone.png,"one ""x"" two"\n',
        b'other.png\tone\nother.png\t"two" words\ngone.png\tthree\n',
    ]


def _masks() -> list[bytes]:
    contents = []
    labels = np.random.default_rng(0).integers(0, 9, (13, 11), dtype=np.uint8)
    for kind in ("PNG", "TIFF", "BMP", "PPM", "GIF"):
        for pixels in (labels, labels.astype(np.uint16) * 900, labels > 4):
            buffer = io.BytesIO()
            try:
                Image.fromarray(pixels).save(buffer, kind)
            except OSError:
                continue  # a format that has not this mode
            contents.append(buffer.getvalue())
    return [*contents, b"P5 4 1 7\n\0\1\2\7", b"P2 4 1 300\n0 1 2 300\n"]


def _classes() -> list[bytes]:
    contents = [
        ["sky", "road"],
        {"names": {"0": "sky", "7": "road"}, "ignore": [3], "background": True},
        {"names": ["sky", "road"], "synonyms": {"road": ["street", "lane"]}},
    ]
    return [json.dumps(content).encode() for content in contents]


def _witness() -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (9, 99, 199)).save(buffer, "PNG")
    return {"png": buffer.getvalue(), "txt": WITNESS.encode()}


def as_member(suffix: str) -> Callable[[Sequence[bytes], Path], Counter[str]]:
    """A reader of contents that each are the member ``suffix`` of a sample of one shard."""

    def read(contents: Sequence[bytes], folder: Path) -> Counter[str]:
        path = folder / "a.tar"
        with tarfile.open(path, "w") as tar:
            for number, content in enumerate([*contents, _witness()["txt"]]):
                whole = _witness()
                if suffix == "json":
                    del whole["txt"]
                members = {**whole, suffix: content}
                if number == len(contents):
                    members = _witness()
                if suffix == "jpg":
                    del members["png"]
                    members.setdefault("jpg", _witness()["png"])
                for name, data in members.items():
                    header = tarfile.TarInfo(f"{number:05}.{name}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
        return _trained_on(str(path), len(contents) + 1)

    return read


def as_shard(contents: Sequence[bytes], folder: Path) -> Counter[str]:
    """Contents that are shards of their own, each beside a whole one."""
    counts: Counter[str] = Counter()
    as_member("txt")([], folder)
    (folder / "a.tar").rename(folder / "whole.tar")
    for content in contents:
        (folder / "b.tar").write_bytes(content)
        counts += _refused_or(lambda: _trained_on(str(folder), None))
    return counts


def as_list(contents: Sequence[bytes], folder: Path) -> Counter[str]:
    """Contents that are lists of captions, one at a time."""
    line = json.dumps({"file": "whole.png", "caption": WITNESS})
    return _lists_of("list.jsonl", f"{line}\n", contents, folder)


def as_table(contents: Sequence[bytes], folder: Path) -> Counter[str]:
    """Contents that are rows below those of a table, with commas and with tabs."""
    half = len(contents) // 2
    with_commas = f"file,caption\nwhole.png,{WITNESS}\n"
    counts = _lists_of("list.csv", with_commas, contents[:half], folder)
    return counts + _lists_of("list.tsv", with_commas.replace(",", "\t"), contents[half:], folder)


def _lists_of(name: str, head: str, contents: Sequence[bytes], folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for image in ("whole.png", "other.png"):
        (folder / image).write_bytes(_witness()["png"])
    path = folder / name
    for content in contents:
        path.write_bytes(head.encode() + content)
        counts += _refused_or(lambda: _trained_on(str(path), None))

        # an evaluation reads the same list, and refuses what training counts
        counts += _refused_or(lambda: Counter({"scored": len(_captions_to_score(path))}))
    return counts


def _captions_to_score(path: Path) -> Sequence[tuple[str, ...]]:
    captions = parse(f"captions:{path}").load("test").captions
    assert captions, "a list without captions is neither read nor refused"
    return captions


def as_mask(contents: Sequence[bytes], folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for content in contents:
        counts += _refused_or(lambda content=content: Counter({"read": _is_mask(content)}))
    return counts


def _is_mask(content: bytes) -> bool:
    values = read_values(content, "mask")
    assert values.ndim == 2, values.shape
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    return True


def as_classes(contents: Sequence[bytes], folder: Path) -> Counter[str]:
    """Contents that are the CLASSES.json of masks."""
    counts: Counter[str] = Counter()
    path = folder / "classes.json"
    for content in contents:
        path.write_bytes(content)
        counts += _refused_or(lambda: Counter({"read": bool(read_classes(path).rule.names)}))
    return counts


def _refused_or(read: Callable[[], Counter[str]]) -> Counter[str]:
    try:
        return read()
    except ExplainedError as error:
        if not error.about or not error.fix:
            raise
        return Counter({"file refused": 1})


TOKENIZER = Tokenizer.train([WITNESS], 300, 8)


def _trained_on(source: str, num_samples: int | None) -> Counter[str]:
    """An epoch as training reads it, tokens included: what was read and what was counted."""
    stream = open_source(DataConfig(source=source, decode_size=32, num_workers=0))
    num_early = stream.damage.total
    epoch = stream.num_samples
    assert epoch is not None
    if num_samples is not None:
        assert epoch + num_early == num_samples, "a sample is neither read nor counted"

    texts = []
    with closing(stream.batches(1, 0)) as batches:
        for batch in batches:
            # The entry of a batch is the last one before its end; the others before it failed.
            if batch.position <= epoch:
                texts += batch.texts
                assert TOKENIZER(batch.texts).shape == (1, 8)
            if batch.position >= epoch:
                break
    assert WITNESS in texts, "the whole sample was not read"

    counts = stream.damage.counts
    num_beside = sum(times for cause, times in counts.items() if "beside others" in cause)
    num_lost = stream.damage.total - num_beside - num_early
    assert len(texts) + num_lost == epoch, "a lost sample is not counted"
    return Counter({"read": len(texts), "counted as lost": num_early + num_lost})


KINDS = {
    "caption": Kind(_captions, as_member("txt")),
    "json": Kind(_jsons, as_member("json")),
    "image": Kind(_images, as_member("jpg")),
    "tar": Kind(_tars, as_shard),
    "list": Kind(_lists, as_list),
    "table": Kind(_rows, as_table),
    "mask": Kind(_masks, as_mask),
    "classes": Kind(_classes, as_classes),
}

if __name__ == "__main__":
    main()
