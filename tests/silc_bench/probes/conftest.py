"""Features and cells with labels, that tests of probes share."""

import numpy as np
import pytest

from silc_bench.models.windows import View

OVERLAP = View(12, 8, 4)


@pytest.fixture(scope="session")
def clustered():
    """Features of very different scales around a centre a class."""

    def make(rng, num_samples, dim, num_classes, spread=1.0):
        labels = rng.integers(0, num_classes, size=num_samples)
        labels[:num_classes] = np.arange(num_classes)
        centers = rng.normal(size=(num_classes, dim))
        features = centers[labels] + spread * rng.normal(size=(num_samples, dim))
        mixing = rng.normal(size=(dim, dim)) * np.logspace(0, -2, dim)
        return (features @ mixing + 3).astype(np.float32), labels

    return make


@pytest.fixture(scope="session")
def cell_images():
    """Images as (grid, layout, mask): masks of odd sizes, of which much is not scored."""

    def make(count=4, view=OVERLAP, scale=1.0, shift=0.0, classes=(0, 1, 2, 255), seed=0):
        rng = np.random.default_rng(seed)
        images = []
        for number in range(count):
            sides = ((12, 15), (9, 7), (13, 12), (6, 20))[number % 4]
            layout = view.layout(*view.resized_sides(*sides), 4)
            grid = rng.normal(size=(*layout.grid, 5)) * scale + shift
            mask = rng.choice(classes, size=sides).astype(np.uint8)
            images.append((grid.astype(np.float32), layout, mask))
        return images

    return make
