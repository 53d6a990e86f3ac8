"""``places`` as a source of training: endless or so many pairs, with the dials of its word."""

import numpy as np
import pytest
from refusals import refused

from silc_bench.datasets.files.shards import Damage
from silc_bench.datasets.generated.places.scenes import World
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import places
from silc_bench.trainer.data.places import world_of
from silc_bench.trainer.data.sources import open_reader


def opened(word, **fields):
    return open_reader(DataConfig(**{"source": word, "decode_size": 16} | fields), Damage())


def pairs(reader, positions):
    return [(reader.text(p), reader.image(p, 16).tobytes()) for p in positions]


def test_a_word_sets_the_dials():
    assert world_of("places") == World()
    assert world_of("places:num_pairs=8,cooccurrence=0,named=1") == World(
        num_pairs=8, cooccurrence=0, named=1
    )


@pytest.mark.parametrize(
    ("word", "about"),
    [
        ("places:pairs=8", "places:pairs=8"),
        ("places:num_pairs=1", "num_pairs"),
        ("places:num_pairs=many", "num_pairs"),
        ("places:cooccurrence=1.5", "cooccurrence"),
        ("places:named", "named"),
    ],
)
def test_a_dial_that_means_nothing_is_refused(word, about):
    with refused(about):
        opened(word)


def test_filters_and_small_images_are_refused():
    with refused("data.filters"):
        opened("places", filters="width>=200")
    with refused("data.decode_size"):
        opened("places", decode_size=8)


def test_a_finite_set_repeats_the_same_pairs_in_another_order():
    reader = opened("places:num_pairs=12")
    assert reader.num_samples == 12
    first, second = pairs(reader, range(12)), pairs(reader, range(12, 24))
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 12


def test_a_set_that_is_kept_in_memory_gives_the_same_pairs(monkeypatch):
    kept = opened("places:num_pairs=6")
    seen = [pairs(kept, range(12)) for _ in range(2)]
    assert all(not kept.image(position, 16).flags.writeable for position in range(6))

    monkeypatch.setattr(places, "KEPT_BYTES", 6 * 3 * 16 * 16 - 1)
    drawn = opened("places:num_pairs=6")
    assert seen == [pairs(drawn, range(12))] * 2
    assert drawn.image(0, 16) is not drawn.image(0, 16)


def test_an_endless_set_does_not_repeat_and_other_seeds_give_other_pairs():
    reader = opened("places")
    assert reader.num_samples is None
    seen = pairs(reader, range(40))
    assert len({image for _, image in seen}) == 40
    assert not {image for _, image in seen} & {
        image for _, image in pairs(opened("places", seed=1), range(40))
    }
    assert np.frombuffer(seen[0][1], np.uint8).size == 16 * 16 * 3
