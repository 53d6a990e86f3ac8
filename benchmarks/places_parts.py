"""What a part of an image of ``places`` tells: its kind, its place; with things apart from places.

A linear probe (ridge) reads raw crops of the main thing, of 10 pixels at 64: its body, its top, or
both; and a crop of the ground in the lower left corner. "pixels" are the crop's values; "textures"
are the size of its Fourier coefficients too, which stay the same when a texture is moved, as a
linear probe cannot undo that. The last line reads the true kind of the main thing. Each line says
how often the kind of the thing and the place of the scene are told right, at ``cooccurrence`` 0 and
0.9. The dial does what it says if parts tell kinds at both, and places at 0.9 alone.

Run:  python benchmarks/places_parts.py [--images 4000]
"""

import argparse
import sys

import numpy as np

from silc_bench.datasets.generated.places.drawing import render
from silc_bench.datasets.generated.places.scenes import (
    KIND_NAMES,
    KINDS,
    PLACE_NAMES,
    Item,
    World,
    scene,
)
from silc_bench.probes.closed_form import moments, ridge

SIDE = 64
CROP = 10  # pixels a side: no larger square lies in every body and in every top
PENALTY = 100.0
RATES = (0.0, 0.9)
GROUND = "a crop of the ground"
PARTS = ("a crop of the body", "a crop of the top", "both", GROUND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="of train; half as many of test")
    options = parser.parse_args()
    print(f"python {' '.join(sys.argv)}\n")
    cells: dict[str, list[float]] = {}
    for rate in RATES:
        world = World(cooccurrence=rate)
        train = read(world, "train", options.images)
        test = read(world, "test", options.images // 2)
        for name in train[0]:
            told = [accuracy(name, train, test, label) for label in (0, 1)]
            cells.setdefault(name, []).extend(told)

    print("| what is seen | kind, 0 | place, 0 | kind, 0.9 | place, 0.9 |")
    print("|---|---|---|---|---|")
    chance = [100 / len(KIND_NAMES), 100 / len(PLACE_NAMES)] * 2
    for name, values in ({"chance": chance} | cells).items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")


def read(world: World, split: str, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({what is seen: features [N, D]}, labels [2, N]: kinds and places)."""
    crops: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    labels = []
    for index in range(count):
        one = scene(world, 0, split, index)
        main = one.items[0]
        labels.append((KIND_NAMES.index(main.kind), PLACE_NAMES.index(one.place)))
        image = render(one, SIDE)[0]
        body, top = (crop(image, *middle) for middle in middles(main))
        ground = crop(image, CROP / 2 / SIDE, 1 - CROP / 2 / SIDE)
        for name, seen in zip(PARTS, ([body], [top], [body, top], [ground]), strict=True):
            crops[name].append(np.stack(seen))

    by_label = np.array(labels).T
    features = {}
    for name, seen in crops.items():
        pixels = np.stack(seen).astype(np.float64)  # [N, crops, 10, 10, 3]
        sizes = np.abs(np.fft.rfft2(pixels - pixels.mean(axis=(2, 3), keepdims=True), axes=(2, 3)))
        flat = pixels.reshape(count, -1)
        features[f"{name}, pixels"] = flat
        features[f"{name}, textures"] = np.hstack([flat, sizes.reshape(count, -1)])
    features["the kind of the main thing"] = np.eye(len(KIND_NAMES))[by_label[0]]
    return features, by_label


def middles(item: Item) -> list[tuple[float, float]]:
    """(x, y) in image sides of the middle of a thing's body and of its top."""
    kind = KINDS[item.kind]
    top = (0.45, -0.35) if kind.is_leaning else (0.0, -0.5)
    down = {"block": 0.35, "column": 0.2, "oval": 0.3}[kind.outline]
    places = []
    for u, v in ((0.0, down), top):
        # drawing reads u after it leaned and flipped: this is the way back
        u = (-u if item.is_flipped else u) - item.slope * v
        places.append((item.cx + item.radius * u, item.cy + item.radius * v))
    return places


def crop(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """[CROP, CROP, 3] around a place, moved into the image where it would reach out."""
    left, upper = (min(max(round(middle * SIDE - CROP / 2), 0), SIDE - CROP) for middle in (x, y))
    return image[upper : upper + CROP, left : left + CROP]


def accuracy(
    name: str,
    train: tuple[dict[str, np.ndarray], np.ndarray],
    test: tuple[dict[str, np.ndarray], np.ndarray],
    label: int,
) -> float:
    """Percent of test images whose label is told right."""
    mean, deviation = moments(train[0][name])
    known, asked = ((part[0][name] - mean) / deviation for part in (train, test))
    num_classes = (len(KIND_NAMES), len(PLACE_NAMES))[label]
    answer = ridge(known, train[1][label], num_classes, PENALTY)(asked).argmax(axis=1)
    return 100 * float((answer == test[1][label]).mean())


if __name__ == "__main__":
    main()
