"""Scenes with structure: the same everywhere, and the dials do what they say."""

import hashlib
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from refusals import refused

from silc_bench.datasets.generated.places.captions import MAX_CAPTIONS, caption
from silc_bench.datasets.generated.places.dataset import Places, PlacesThings
from silc_bench.datasets.generated.places.drawing import LABELS, SMALLEST, VALUES, render
from silc_bench.datasets.generated.places.scenes import (
    GROUNDS,
    KIND_NAMES,
    KINDS,
    PLACES,
    SKIES,
    SPLITS,
    World,
    scene,
)

WORLD = World()
MANY = 400


def scenes(world=WORLD, split="train", count=MANY):
    return [scene(world, 0, split, index) for index in range(count)]


def names_in(text):
    """The words of the tables that a caption says; the longest first, as "clear sky"."""
    names = sorted([*KINDS, *PLACES, *GROUNDS, *SKIES], key=len, reverse=True)
    return {name for name in names if re.search(rf"\b{name}\b", text)}


def test_pixels_labels_and_captions_are_the_same_on_every_machine():
    """A change of these is a change of the data: raise VERSION."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for index in range(8):
            one = scene(WORLD, 3, split, index)
            for size in (32, 64):
                image, labels = render(one, size)
                digest.update(image.tobytes() + labels.tobytes())
            for number in range(MAX_CAPTIONS):
                digest.update(caption(one, WORLD, number, is_noisy=True).encode())
    assert digest.hexdigest()[:16] == "76ddc19f3e1e7bc7"


def test_each_texture_pair_names_one_kind_and_nothing_names_one_place():
    pairs = {(kind.body, kind.top) for kind in KINDS.values()}
    assert len(pairs) == len(KINDS)
    of_places = [(*place.palette, place.ground, place.sky) for place in PLACES.values()]
    for name in (*KINDS, *GROUNDS, *SKIES):
        assert sum(name in names for names in of_places) == 2, name
    assert len({(place.ground, place.sky) for place in PLACES.values()}) == len(PLACES)


def test_every_pixel_has_a_label_of_its_place_or_of_a_thing_in_it():
    for index, one in enumerate(scenes(count=60)):
        image, labels = render(one, 48)
        assert image.shape == (48, 48, 3)
        place = PLACES[one.place]
        allowed = {item.kind for item in one.items} | {place.ground, place.sky}
        assert set(np.unique(labels)) <= {VALUES[name] for name in allowed}, index
        assert (labels == VALUES[one.items[0].kind]).mean() > 0.05, "the main thing is large"


def test_the_main_thing_is_the_largest_and_whole():
    for one in scenes(count=100):
        main, *others = one.items
        assert all(main.radius > other.radius for other in others)
        alone = render(replace(one, items=(main,)), 48)[1] == VALUES[main.kind]
        assert (render(one, 48)[1] == VALUES[main.kind])[alone].all()


@pytest.mark.parametrize(("cooccurrence", "low", "high"), [(0.0, 0.2, 0.3), (0.9, 0.88, 0.97)])
def test_cooccurrence_is_the_share_of_things_that_belong_to_their_place(cooccurrence, low, high):
    world = World(cooccurrence=cooccurrence)
    things = [(one.place, item.kind) for one in scenes(world) for item in one.items]
    share = np.mean([kind in PLACES[place].palette for place, kind in things])
    assert low < share < high


def test_own_color_is_the_share_of_parts_in_the_colour_of_their_kind():
    for share, low, high in ((0.0, 0.08, 0.18), (1.0, 1.0, 1.0)):
        items = [item for one in scenes(World(own_color=share)) for item in one.items]
        own = np.mean([item.body.color == KINDS[item.kind].body_color for item in items])
        assert low <= own <= high


def test_captions_outside_training_are_right_and_partial():
    for index, one in enumerate(scenes(split="val")):
        place = PLACES[one.place]
        true = {one.place, place.ground, place.sky, *(item.kind for item in one.items)}
        for number in range(MAX_CAPTIONS):
            said = names_in(caption(one, WORLD, number, is_noisy=False))
            assert said <= true, index
            assert 1 <= len(said) <= 2


def test_noise_and_naming_are_shares_of_captions():
    said = {0.0: [], 0.5: []}
    for noise, wrong in said.items():
        world = World(caption_noise=noise, named=1.0)
        for one in scenes(world):
            kinds = names_in(caption(one, world, 0, is_noisy=True)) & set(KINDS)
            assert kinds, "each caption names a thing"
            wrong.append(not kinds <= {item.kind for item in one.items})
    assert not any(said[0.0])
    assert 0.35 < np.mean(said[0.5]) < 0.65

    silent = World(named=0.0)
    assert not any(names_in(caption(one, silent, 0, False)) & set(KINDS) for one in scenes(silent))


def test_splits_and_seeds_share_no_scene():
    keys = itertools.product((0, 1), SPLITS, range(50))
    seen = {scene(WORLD, *key) for key in keys}
    assert len(seen) == 2 * len(SPLITS) * 50


def test_the_two_sets_show_the_same_images():
    places, things = Places("val", 30), PlacesThings("val", 30)
    assert places.fingerprint != things.fingerprint
    for index in range(30):
        assert places.image(index).tobytes() == things.image(index).tobytes()
        labels, mask = places.mask(index), things.mask(index)
        assert ((labels < len(KIND_NAMES)) == (mask > 0)).all()
        assert (labels[mask > 0] + 1 == mask[mask > 0]).all()
        main = things.class_names[things.labels[index]]
        assert main in KINDS
        assert (labels == LABELS.index(main)).any()


def test_parts_and_limits_are_other_sets_with_the_same_samples():
    whole, few = Places("test", 30), Places("test", 30, limit=10)
    part = whole.part(range(0, 30, 3))
    assert len({whole.fingerprint, few.fingerprint, part.fingerprint}) == 3
    assert [few.image(i).tobytes() for i in range(10)] == [
        part.image(i).tobytes() for i in range(10)
    ]
    assert Places("test", 30, world=World(cooccurrence=0)).fingerprint != whole.fingerprint


def test_what_cannot_be_drawn_is_refused():
    with refused("places"):
        Places("unseen", 10)
    with refused("places"):
        Places("val", 0)
    with refused("places"):
        render(scene(WORLD, 0, "val", 0), SMALLEST - 1)
