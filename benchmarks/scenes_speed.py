"""Images a second of the generated datasets ``shapes`` and ``places``, on one core.

An image is scene, five captions, image and mask.

Run:  python benchmarks/scenes_speed.py [--images 1000] [--repeats 5]
Prints its command, the machine, and min / median / max over the repeats at 64, 128 and 224 pixels.
The seconds are CPU seconds, so that other work on the machine counts little.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from silc_bench.datasets.generated.places import captions as places_captions
from silc_bench.datasets.generated.places import drawing as places_drawing
from silc_bench.datasets.generated.places import scenes as places
from silc_bench.datasets.generated.shapes import captions as shapes_captions
from silc_bench.datasets.generated.shapes import drawing as shapes_drawing
from silc_bench.datasets.generated.shapes import scenes as shapes

SIZES = (64, 128, 224)
WORLD = places.World()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="drawn in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"python {' '.join(sys.argv)}")
    print(machine())
    print(
        "set    pixels    min/s  median/s     max/s   scene + 5 captions + image + mask, one core"
    )
    for name, draw in (("shapes", draw_shapes), ("places", draw_places)):
        for size in SIZES:
            # warm up
            for index in range(50):
                draw(index, size)
            rates = []
            for repeat in range(options.repeats):
                began = time.process_time()
                for index in range(repeat * options.images, (repeat + 1) * options.images):
                    draw(index, size)
                rates.append(options.images / (time.process_time() - began))
            row = (min(rates), statistics.median(rates), max(rates))
            print(f"{name} {size:>6} " + " ".join(f"{rate:>9,.0f}" for rate in row))


def draw_shapes(index: int, size: int) -> None:
    one = shapes.scene(0, "train", index)
    shapes_captions.captions(one)
    shapes_drawing.render(one, size)


def draw_places(index: int, size: int) -> None:
    one = places.scene(WORLD, 0, "train", index)
    for number in range(places_captions.MAX_CAPTIONS):
        places_captions.caption(one, WORLD, number, is_noisy=True)
    places_drawing.render(one, size)


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
