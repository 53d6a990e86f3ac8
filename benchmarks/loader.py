"""CPU seconds an image of the loader against Pillow's decode and resize, and the joining thread.

Flow: a folder of JPEGs -> a shard of them, once as they are and once enlarged -> in turn: Pillow
decodes and resizes all of them (``Image.open(...).convert("RGB").thumbnail(...)``, from memory);
the loader makes batches of the same ones, in this process and with workers, whose CPU seconds
count too -> ratios. Then batches of a source that costs nothing: what remains is the process that
joins what workers have read, with all images whole and with one in a hundred damaged.

    OMP_NUM_THREADS=1 python benchmarks/loader.py --images DIR
"""

import argparse
import io
import itertools
import multiprocessing
import shlex
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from silc_bench.datasets.files.shards import Damage
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import PassedOverError, UnreadableError
from silc_bench.trainer.data.stream import PLACES, Batch, Source, open_source

GOAL, GOAL_JOINED = 1.3, 3_000
QUALITY = 90  # of the enlarged JPEGs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--canvas", type=int, default=512, help="longer side that is asked for")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--enlarge", type=float, default=4.0, help="of the second shard's images")
    parser.add_argument("--large", type=int, default=24, help="images that are enlarged")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    print(f"$ OMP_NUM_THREADS={torch.get_num_threads()} python {shlex.join(sys.argv)}")
    turbo = features.version_feature("libjpeg_turbo")
    print(f"Pillow {Image.__version__}, libjpeg-turbo {turbo}, torch {torch.__version__}")
    files = [path.read_bytes() for path in sorted(options.images.glob("*.jp*g"))]
    files = files[: len(files) // 4 * 4]  # an epoch is four batches
    large = [enlarged(data, options.enlarge) for data in files[: options.large]]
    with tempfile.TemporaryDirectory() as folder:
        for name, images in (("as they are", files), ("enlarged", large)):
            shard = Path(folder) / f"{name}.tar"
            write_shard(shard, images)
            compare(name, images, str(shard), options)
    joined(options, damage=0)
    joined(options, damage=100)


def compare(name: str, images: list[bytes], shard: str, options: argparse.Namespace) -> None:
    """CPU seconds an image of each side, in turn: one epoch each, so all of them once."""
    canvas = options.canvas
    batch_size = max(1, len(images) // 4)

    def pillow() -> float:
        start = time.process_time()
        for data in images:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            image.thumbnail((canvas, canvas))
        return time.process_time() - start

    def loader(decode_size: int, workers: int) -> float:
        config = DataConfig(source=shard, decode_size=decode_size, num_workers=workers)
        with closing(open_source(config, canvas).batches(batch_size, 0)) as batches:
            return of_batches(batches, 4)

    sides: dict[str, Callable[[], float]] = {
        "Pillow": pillow,
        "the loader": partial(loader, canvas, 0),
        f"the loader, {options.workers} workers": partial(loader, canvas, options.workers),
        "the loader, decode_size=0": partial(loader, 0, 0),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side, work in sides.items():
            seconds[side].append(work() / len(images))

    median_size = statistics.median(max(Image.open(io.BytesIO(data)).size) for data in images)
    print(f"{len(images)} images {name} (longer side {median_size:g} px), canvas {canvas} px:")
    for side, found in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(found, seconds["Pillow"], strict=True)]
        goal = "" if side == "Pillow" else f", RATIO {spread(ratios)} (goal: at most {GOAL})"
        print(f"  {side:<28} {spread([1000 * each for each in found])} CPU ms an image{goal}")


def of_batches(batches: Iterator[Batch], count: int) -> float:
    """CPU seconds of this process and its workers for ``count`` batches, once all places are used.

    Whatever is handed over, the loader goes on to the same number of batches ahead.
    """
    for _ in range(PLACES + 1):
        next(batches)
    start = time.process_time() + of_workers()
    for _ in range(count):
        next(batches)
    return time.process_time() + of_workers() - start


def of_workers() -> float:
    """CPU seconds of the processes that read, which still live: Linux's own count, by thread."""
    tasks = (f"/proc/{child.pid}/task" for child in multiprocessing.active_children())
    files = (path for folder in tasks for path in Path(folder).glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in files) / 1e9


def joined(options: argparse.Namespace, damage: int, batches: int = 40) -> None:
    """Images a second of CPU of the process that joins, where reading costs nothing."""
    config = DataConfig(decode_size=options.canvas, num_workers=options.workers)
    source = Source(Ready(options.canvas, damage), config, Damage())
    rates = []
    with closing(source.batches(options.batch_size, 0)) as stream:
        for _ in range(PLACES + 1):
            next(stream)
        for _ in range(options.repeats):
            start = time.process_time()
            for _ in range(batches):
                next(stream)
            rates.append(batches * options.batch_size / (time.process_time() - start))
    words = f"one in {damage} damaged" if damage else "all whole"
    print(
        f"joining thread, {options.workers} workers, batches of {options.batch_size}, {words}:"
        f" {spread(rates)} images/s of its CPU (goal: at least {GOAL_JOINED:,})"
    )


class Ready:
    """One image for all entries, of 3 to 4."""

    num_nodes = 1
    num_samples = None

    def __init__(self, side: int, damage: int) -> None:
        self.pixels = np.full((side * 3 // 4, side, 3), 7, np.uint8)
        self.damage = damage

    def describe(self) -> str:
        return "one image"

    def fingerprint(self) -> str:
        return ""

    def text(self, position: int) -> str:
        if self.damage and position % self.damage == 0:
            raise UnreadableError("damaged", str(position))
        return "an image"

    def image(self, position: int, side: int) -> np.ndarray:
        return self.pixels

    def captions_of_data(self, count: int) -> itertools.repeat:
        return itertools.repeat("an image", count)

    def passed_over(self) -> list[PassedOverError]:
        return []


def enlarged(data: bytes, times: float) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    large = image.resize((round(image.width * times), round(image.height * times)))
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_shard(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(images):
            for ending, content in (("jpg", data), ("txt", b"an image")):
                header = tarfile.TarInfo(f"{number:06}.{ending}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def spread(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.4g} / {middle:.4g} / {high:.4g}"


if __name__ == "__main__":
    main()
