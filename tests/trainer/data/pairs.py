"""What tests of training data share: pairs that are known by their image, shards and streams."""

import io
import itertools
import json
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
from PIL import Image

from silc_bench.errors import UserError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.shard_index import Table
from silc_bench.trainer.data.stream import open_source

OPTIONS = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}


def encoded(index, size=(12, 9), kind="PNG"):
    """An image that is recognised by its first pixel: its number in red and green."""
    file = io.BytesIO()
    image = Image.new("RGB", size, (index % 256, index // 256, 77))
    image.save(file, kind, **OPTIONS.get(kind, {}))
    return file.getvalue()


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def whole(*indices):
    """The members of pairs."""
    members = []
    for index in indices:
        members.append((f"{index:04}.png", encoded(index)))
        members.append((f"{index:04}.txt", f"number {index}".encode()))
    return members


def numbered(folder, *sizes):
    """Shards 000.tar, 001.tar, ... of so many pairs each, numbered through: {name: bytes}."""
    start, files = 0, {}
    for number, size in enumerate(sizes):
        path = folder / f"{number:03}.tar"
        write_shard(path, whole(*range(start, start + size)))
        start += size
        files[path.name] = path.read_bytes()
    return files


def table_of(sizes):
    """The table of shards of so many pairs each, which lie nowhere."""
    starts = [0, *itertools.accumulate(sizes)]
    names = ("damage", "first", "left_out")
    notes = {"starts": starts, "sums": [], "digest": "", **{name: {} for name in names}}
    return Table(np.zeros((starts[-1], 6), np.uint32), notes)


def shard(path, samples):
    """A tar with the samples {extension: bytes, text or what becomes JSON}."""
    members = []
    for key, sample in enumerate(samples):
        for extension, value in sample.items():
            text = value if isinstance(value, str | bytes) else json.dumps(value)
            data = text if isinstance(text, bytes) else text.encode()
            members.append((f"{key:05}.{extension}", data))
    write_shard(path, members)
    return str(path)


def source(pattern, **fields):
    fields = {"source": str(pattern), "decode_size": 16, "num_workers": 0} | fields
    return open_source(DataConfig(**fields))


def take(stream, batch_size, start, count):
    with closing(stream.batches(batch_size, start)) as batches:
        return list(itertools.islice(batches, count))


def texts_of(pattern, count, start=0, **fields):
    """Texts of ``count`` entries."""
    return [batch.texts[0] for batch in take(source(pattern, **fields), 1, start, count)]


def numbers(batches):
    """What each pair is, checked to be the same in image and text."""
    numbers = []
    for batch in batches:
        for image, text in zip(batch.images, batch.texts, strict=True):
            number = int(image[0, 0, 0]) + 256 * int(image[1, 0, 0])
            assert text == f"number {number}"
            numbers.append(number)
    return numbers


def as_ranks(count, work):
    """``work(rank, tell)`` of each rank, or its error, in threads instead of processes.

    ``tell`` does what silc_bench.system.processes.concatenated does.
    """
    boxes, barrier = [[]] * count, threading.Barrier(count, timeout=60)

    def run(rank):
        def tell(values):
            boxes[rank] = values
            barrier.wait()
            of_all = [value for box in boxes for value in box]
            barrier.wait()
            return of_all

        try:
            return work(rank, tell)
        except UserError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
