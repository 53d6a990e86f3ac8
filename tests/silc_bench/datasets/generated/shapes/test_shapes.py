"""Generated scenes: determinism, disjoint splits, true captions, images as another hand draws."""

import hashlib
import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from refusals import refused

from silc_bench.datasets.dataset import ImageDataset, spread
from silc_bench.datasets.generated.shapes.captions import captions
from silc_bench.datasets.generated.shapes.dataset import Shapes, ShapesColours
from silc_bench.datasets.generated.shapes.drawing import render
from silc_bench.datasets.generated.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    PAINT,
    PAIRS,
    SHAPES,
    SPLITS,
    TONES,
    UNSEEN,
    Background,
    Item,
    Scene,
    label,
    scene,
)

samples = st.builds(
    scene, st.integers(0, 2**63 - 1), st.sampled_from(SPLITS), st.integers(0, 2**63 - 1)
)
PAIR = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")


def pair(item):
    return f"{item.color} {item.shape}"


def pairs_in(text):
    return {" ".join(names) for names in PAIR.findall(text)}


# ---- scenes ----


def test_scenes_and_captions_are_pinned():
    """A changed scene or caption changes every number on shapes: raise VERSION and this hash."""
    drawn = itertools.starmap(scene, itertools.product((0, 7), SPLITS, (0, 1, 10**12)))
    text = repr([(one, captions(one)) for one in drawn])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "045deff16efc459f"


def test_splits_and_seeds_share_no_scene():
    scenes = itertools.starmap(scene, itertools.product((0, 1), SPLITS, range(1500)))
    layouts = [drawn.objects for drawn in scenes]
    assert len(set(layouts)) == len(layouts)


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_occur_only_as_main_object_of_unseen(split):
    scenes = [scene(0, split, i) for i in range(2000)]
    expected = set(UNSEEN) if split == "unseen" else set(PAIRS) - set(UNSEEN)
    assert {pair(one.objects[0]) for one in scenes} == expected
    assert {pair(item) for one in scenes for item in one.objects[1:]}.isdisjoint(UNSEEN)
    mentioned = pairs_in(" ".join(text for one in scenes for text in captions(one)))
    assert mentioned.isdisjoint(UNSEEN) == (split != "unseen")


def test_everything_in_the_vocabulary_occurs_about_equally_often():
    scenes = [scene(5, "train", i) for i in range(4000)]
    mains = [one.objects[0] for one in scenes]
    grounds = [one.background for one in scenes]
    for parts, field, names in (
        (mains, "color", COLORS),
        (mains, "shape", SHAPES),
        (mains, "place", ("top", "middle", "bottom")),
        (grounds, "texture", BACKGROUNDS),
        (grounds, "tone", TONES),
    ):
        counts = Counter(getattr(part, field) for part in parts)
        assert counts.keys() == set(names)
        sigma = math.sqrt(len(scenes) / len(names))
        np.testing.assert_allclose([*counts.values()], len(scenes) / len(names), atol=5 * sigma)
    counts = np.bincount([len(one.objects) for one in scenes], minlength=5)[1:] / len(scenes)
    # a little more: where there is no room, one object less
    np.testing.assert_allclose(counts[:2], (0.6, 0.2), atol=0.04)
    assert counts.min() > 0.02


@settings(max_examples=150)
@given(samples)
def test_objects_are_in_the_image_apart_and_told_apart(one):
    main, *others = one.objects
    assert PAIRS[label(one)] == pair(main)
    for names in ({item.color for item in one.objects}, {item.shape for item in one.objects}):
        assert len(names) == len(one.objects) <= 4
    bands = {"top": (0, 0.42), "middle": (0.44, 0.56), "bottom": (0.58, 1)}
    for item in one.objects:
        assert item.radius <= min(item.cx, item.cy, 1 - item.cx, 1 - item.cy)
        assert bands[item.place][0] < item.cy < bands[item.place][1]
    assert all(item.radius < 0.8 * main.radius for item in others)
    for a, b in itertools.combinations(one.objects, 2):
        assert math.dist((a.cx, a.cy), (b.cx, b.cy)) > a.radius + b.radius


# ---- captions ----


@settings(max_examples=300)
@given(samples)
def test_captions_differ_and_are_true(one):
    texts = captions(one)
    main, *others = one.objects
    assert len(set(texts)) == 5
    assert all(pair(main) in text for text in texts)
    present = {pair(item) for item in one.objects}
    for text in texts:
        assert pairs_in(text) <= present
        named = re.findall("|".join(SHAPES), text)
        assert named[0] == main.shape
        assert not re.search(r"\b(left|right)\b|\ba [aeiou](?!ne\b)|\ban [^aeiou]|  |^ | $", text)
    textured, pairs, placed, sized, counted = texts
    assert f"{main.texture} {pair(main)} on a {one.background.texture} background" in textured
    assert pairs_in(pairs) == present
    assert placed.endswith(f"{'in' if main.place == 'middle' else 'at'} the {main.place}")
    assert f"{main.size} {pair(main)}" in sized
    number = ("one", "one", "two", "three")[len(others)]
    rest = f"smaller thing{'s' * (len(others) > 1)}" if others else pair(main)
    assert counted.endswith(f"{number} {rest}")


def test_the_prompts_of_zero_shot_occur_among_the_captions():
    seen = {text for i in range(3000) for text in captions(scene(0, "train", i))}
    prompts = {f"a photo of a {name}" for name in set(PAIRS) - set(UNSEEN)}
    assert len(prompts & seen) > 0.9 * len(prompts)


# ---- images ----


def item_of(shape, color="white", texture="plain", cx=0.47, cy=0.52, radius=0.31):
    return Item(color, shape, "huge", texture, "middle", cx, cy, radius, 12.0, 1.0)


def scene_of(*items, texture="plain"):
    return Scene(items, Background(texture, "slate", 0.0, 30.0, 0.2, 5), 0)


def disc(u, v, radius):
    angles = np.linspace(0, 2 * math.pi, 300)
    return np.stack([u + radius * np.cos(angles), v + radius * np.sin(angles)], -1)


def box(u, v):
    return [(-u, -v), (u, -v), (u, v), (-u, v)]


def star():
    angles, radii = np.arange(10) * math.pi / 5, np.tile([1.0, 0.5], 5)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], -1)


LOBES = [disc(side, 0.083 - 0.4, 0.8 / math.sqrt(2)) for side in (-0.4, 0.4)]
# polygons that are filled, then those that are cut out
POLYGONS = {
    "circle": ([disc(0, 0, 0.88)], []),
    "ring": ([disc(0, 0, 0.93)], [disc(0, 0, 0.45)]),
    "crescent": ([disc(0, 0, 0.95)], [disc(0.45, 0, 0.65)]),
    "heart": ([[(-0.8, 0.083), (0, 0.883), (0.8, 0.083), (0, -0.717)], *LOBES], []),
    "star": ([star()], []),
    "cross": ([box(0.95, 0.3), box(0.3, 0.95)], []),
    "triangle": ([[(0, -1), (0.9, 0.62), (-0.9, 0.62)]], []),
    "square": ([box(0.76, 0.76)], []),
}


def outline_by_hand(item, size, factor=24):
    """Coverage [size, size] from polygons that Pillow fills at ``factor`` times the size."""
    cos, sin = math.cos(math.radians(item.angle)), math.sin(math.radians(item.angle))
    canvas = Image.new("L", (size * factor, size * factor))
    for polygons, value in zip(POLYGONS[item.shape], (255, 0), strict=True):
        for polygon in polygons:
            turned = np.array(polygon) @ np.array([[cos, sin], [-sin, cos]])
            corners = ((item.cx, item.cy) + item.radius * turned) * size * factor - 0.5
            ImageDraw.Draw(canvas).polygon([*map(tuple, corners)], fill=value)
    return np.asarray(canvas, np.float64).reshape(size, factor, size, factor).mean((1, 3)) / 255


@pytest.mark.parametrize("radius", [0.11, 0.31])
@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_equal_supersampled_polygons(shape, radius):
    item = item_of(shape, radius=radius)
    image, mask = render(scene_of(item), 96)
    cover = outline_by_hand(item, 96)
    expected = cover[..., None] * PAINT["white"][0] + (1 - cover[..., None]) * TONES["slate"]
    error = np.abs(image - expected)
    edge = (cover > 0) & (cover < 1)
    assert error[~edge].max() < 0.25 * (248 - 104)  # a distance rounds sharp corners a little
    assert error[edge].mean() < 0.04 * (248 - 104)
    inside = cover >= 0.5
    assert (inside != (mask > 0)).sum() <= 0.05 * edge.sum()
    assert set(np.unique(mask)) == {0, SHAPES.index(shape) + 1}


@pytest.mark.parametrize(
    ("texture", "second"), [("striped", 0.5), ("checkered", 0.5), ("dotted", math.pi * 0.3**2)]
)
def test_textures_show_the_second_colour_in_their_share(texture, second):
    image, mask = render(scene_of(item_of("square", "red", texture, 0.5, 0.5, 0.4)), 512)
    first, other = (np.array(paint) for paint in PAINT["red"])
    share = (first - image[mask > 0].mean(0)) / (first - other)
    np.testing.assert_allclose(share, second, atol=0.05)


@pytest.mark.parametrize("texture", BACKGROUNDS)
def test_backgrounds_stay_muted_around_their_tone(texture):
    image, mask = render(scene_of(item_of("circle", radius=0.1), texture=texture), 128)
    ground = image[mask == 0].astype(float)
    assert np.abs(ground.mean(0) - TONES["slate"]).max() < 12
    assert np.percentile(np.ptp(ground, axis=1), 95) < 40
    assert ground.std() < 30


@settings(max_examples=60)
@given(samples)
def test_main_object_is_whole_and_has_the_largest_area(one):
    _, mask = render(one, 64)
    values = [SHAPES.index(item.shape) + 1 for item in one.objects]
    assert set(np.unique(mask)) == {0, *values}
    assert np.bincount(mask.ravel())[values].argmax() == 0
    alone = render(Scene(one.objects[:1], one.background, one.phrasing), 64)[1]
    np.testing.assert_array_equal(alone == values[0], mask == values[0])


@settings(max_examples=20)
@given(samples)
def test_a_scene_looks_the_same_at_any_resolution(one):
    small, small_mask = render(one, 56)
    large, large_mask = render(one, 224)
    averaged = large.reshape(56, 4, 56, 4, 3).mean((1, 3))
    assert np.abs(small - averaged).mean() < 4
    blocks = large_mask.reshape(56, 4, 56, 4).transpose(0, 2, 1, 3).reshape(56, 56, 16)
    pure = (blocks == blocks[..., :1]).all(-1)
    np.testing.assert_array_equal(small_mask[pure], blocks[pure][:, 0])


# ---- the dataset ----


def test_dataset_follows_the_contract():
    data = Shapes("val", 40, size=48)
    assert isinstance(data, ImageDataset)
    assert len(data) == 40 == len(data.captions) == len(data.labels)
    assert data.labels.dtype == np.int64
    one = scene(0, "val", 7)
    assert (data.captions[7], data.labels[7]) == (captions(one), label(one))
    image, mask = render(one, 48)
    data.mask(7)[:] = 0
    np.testing.assert_array_equal(np.asarray(data.image(7)), image)
    np.testing.assert_array_equal(data.mask(7), mask)
    with pytest.raises(IndexError):
        data.image(40)


def test_fingerprint_depends_on_everything_that_is_scored():
    changes = ({}, {"split": "test"}, {"num_samples": 41}, {"size": 32}, {"seed": 1}, {"limit": 10})
    made = [Shapes(**({"split": "val", "num_samples": 40} | change)) for change in changes]
    assert len({data.fingerprint for data in made}) == len(made)
    assert Shapes("val", 40, limit=100).fingerprint == made[0].fingerprint
    assert made[-1].captions == made[0].captions[::4]


def test_masks_by_colour_are_those_by_shape_in_other_words():
    shapes, colours = Shapes("unseen", 30), ShapesColours("unseen", 30)
    assert shapes.fingerprint != colours.fingerprint
    for index in range(30):
        assert shapes.image(index).tobytes() == colours.image(index).tobytes()
        assert colours.class_names[colours.labels[index]] == PAIRS[shapes.labels[index]].split()[0]
        by_shape, by_colour = shapes.mask(index), colours.mask(index)
        named = {
            (SHAPES.index(item.shape) + 1, COLORS.index(item.color) + 1)
            for item in scene(0, "unseen", index).objects
        }
        seen = set(zip(by_shape.ravel().tolist(), by_colour.ravel().tolist(), strict=True))
        assert seen <= named | {(0, 0)}
    assert isinstance(colours.part([3]), ShapesColours)


@given(st.integers(1, 500), st.integers(1, 600))
def test_spread_is_even_sorted_and_unique(n, limit):
    chosen = spread(n, limit)
    assert len(chosen) == min(n, limit)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] < n
    gaps = np.diff([*chosen, n])
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    "arguments", [(0, "trian", 0), (-1, "train", 0), (0, "train", -1), (2**63, "train", 0)]
)
def test_no_scene_of_these(arguments):
    with refused("shapes"):
        scene(*arguments)


@pytest.mark.parametrize(
    ("arguments", "about"),
    [(("valid", 10), "shapes"), (("val", 0), "shapes"), (("val", 10, 64, 0, 0), "limit")],
)
def test_no_dataset_of_these(arguments, about):
    with refused(about):
        Shapes(*arguments)


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        render(scene(0, "train", 0), 8)
