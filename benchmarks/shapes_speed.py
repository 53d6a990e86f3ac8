"""Images a second of the generated dataset ``shapes``, on one core.

An image is scene, five captions, image and mask.

Run:  python benchmarks/shapes_speed.py [--images 1000] [--repeats 5]
Prints its command, the machine, and min / median / max over the repeats at 64, 128 and 224 pixels.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from silc_bench.datasets.generated.shapes.captions import captions
from silc_bench.datasets.generated.shapes.drawing import render
from silc_bench.datasets.generated.shapes.scenes import scene

SIZES = (64, 128, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="drawn in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"python {' '.join(sys.argv)}")
    print(machine())
    print(
        f"{'pixels':>6} {'min/s':>8} {'median/s':>8} {'max/s':>8}   scene + 5 captions + image "
        "+ mask, one core"
    )
    for size in SIZES:
        draw(size, start=0, count=50)  # warm up
        rates = []
        for repeat in range(options.repeats):
            started = time.perf_counter()
            draw(size, start=repeat * options.images, count=options.images)
            rates.append(options.images / (time.perf_counter() - started))
        print(
            f"{size:>6} {min(rates):>8,.0f} {statistics.median(rates):>8,.0f} {max(rates):>8,.0f}"
        )


def draw(size: int, start: int, count: int) -> None:
    for index in range(start, start + count):
        one = scene(0, "train", index)
        captions(one)
        render(one, size)


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    models = Path("/proc/cpuinfo")
    if models.exists():
        names = [line for line in models.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    load = os.getloadavg()[0]
    return (
        f"{cpu}, {os.cpu_count()} cores, load {load:.1f}; python {platform.python_version()}, "
        f"numpy {np.__version__}"
    )


if __name__ == "__main__":
    main()
