"""A generated sample is drawn once for all tasks and models of a process, in bounded memory."""

import numpy as np
import pytest

from silc_bench.datasets.generated import kept
from silc_bench.tasks.selection import select


def test_as_many_samples_are_kept_as_the_memory_holds(monkeypatch):
    size = 16
    monkeypatch.setattr(kept, "MEMORY", 2 * kept.BYTES_PER_PIXEL * size**2)
    drawn = []

    def draw(size, index):
        drawn.append(index)
        return np.full((size, size, 3), index, np.uint8), np.full((size, size), index, np.uint8)

    sample = kept.kept(draw)
    for index in (0, 1, 0, 2, 0, 1):
        image, mask = sample(size, index)
        assert image.shape == (size, size, 3)
        assert image.max() == mask.max() == index
    assert drawn == [0, 1, 2, 1]  # 1 had to go for 2


def test_a_size_beyond_the_memory_is_drawn_all_the_same(monkeypatch):
    monkeypatch.setattr(kept, "MEMORY", 1)
    assert kept.kept(lambda size, index: (size, index))(64, 3) == (64, 3)


@pytest.mark.parametrize("name", ["shapes", "shapes_colours", "places", "places_things"])
def test_families_share_their_data(name):
    """So that labels and captions are made once; tasks with other splits or counts have others."""
    loaded = {}
    for task in select([f"{name}/*"]):
        for data in task.load(None, None).values():
            assert loaded.setdefault(data.fingerprint, data) is data
    assert len(loaded) > 1
