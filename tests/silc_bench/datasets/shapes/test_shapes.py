"""Generated scenes: determinism, disjoint splits, true captions, pictures as another hand draws."""

import hashlib
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from silc_bench.datasets.dataset import ImageDataset, spread
from silc_bench.datasets.shapes.captions import captions
from silc_bench.datasets.shapes.dataset import Shapes
from silc_bench.datasets.shapes.drawing import render
from silc_bench.datasets.shapes.scenes import (
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
from silc_bench.errors import UserError

samples = st.builds(
    scene, st.integers(0, 2**63 - 1), st.sampled_from(SPLITS), st.integers(0, 2**63 - 1)
)
PAIR = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")


def pair(item: Item) -> str:
    return f"{item.color} {item.shape}"


# ---- scenes ----


def test_vocabulary_is_eight_by_eight_and_holds_out_each_colour_and_shape_once():
    assert len(COLORS) == len(SHAPES) == 8
    assert len(PAIRS) == len(set(PAIRS)) == 64
    assert PAIRS[0] == f"{COLORS[0]} {SHAPES[0]}"
    assert PAIRS[1] == f"{COLORS[0]} {SHAPES[1]}"
    assert sorted(name.split()[0] for name in UNSEEN) == sorted(COLORS)
    assert sorted(name.split()[1] for name in UNSEEN) == sorted(SHAPES)


def test_scenes_and_captions_are_pinned():
    """A changed scene or caption changes every number on shapes: raise VERSION and this hash."""
    drawn = [
        scene(seed, split, index) for seed in (0, 7) for split in SPLITS for index in (0, 1, 10**12)
    ]
    text = repr([(one, captions(one)) for one in drawn])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "045deff16efc459f"


def test_any_sample_can_be_made_alone_and_in_any_order():
    forward = [scene(3, "val", i) for i in range(50)]
    backward = [scene(3, "val", i) for i in reversed(range(50))][::-1]
    assert forward == backward
    assert forward[17] == scene(3, "val", 17)


def test_splits_and_seeds_share_no_scene():
    layouts = [
        scene(seed, split, i).objects for seed in (0, 1) for split in SPLITS for i in range(1500)
    ]
    assert len(set(layouts)) == len(layouts)


def test_splits_share_no_image():
    images = {render(scene(0, split, i), 32)[0].tobytes() for split in SPLITS for i in range(150)}
    assert len(images) == 150 * len(SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_occur_only_as_main_object_of_unseen(split):
    scenes = [scene(0, split, i) for i in range(2000)]
    expected = set(UNSEEN) if split == "unseen" else set(PAIRS) - set(UNSEEN)
    assert {pair(one.objects[0]) for one in scenes} == expected
    assert not {pair(item) for one in scenes for item in one.objects[1:]} & set(UNSEEN)
    mentioned = {
        " ".join(found) for one in scenes for text in captions(one) for found in PAIR.findall(text)
    }
    assert bool(mentioned & set(UNSEEN)) == (split == "unseen")


def test_everything_in_the_vocabulary_occurs_about_equally_often():
    scenes = [scene(5, "train", i) for i in range(4000)]
    for values, names in (
        ([one.objects[0].color for one in scenes], COLORS),
        ([one.objects[0].shape for one in scenes], SHAPES),
        ([one.background.texture for one in scenes], BACKGROUNDS),
        ([one.background.tone for one in scenes], tuple(TONES)),
        ([one.objects[0].place for one in scenes], ("top", "middle", "bottom")),
    ):
        share = np.array([values.count(name) for name in names]) / len(scenes)
        sigma = math.sqrt(1 / len(names) / len(scenes))
        np.testing.assert_allclose(share, 1 / len(names), atol=5 * sigma)
    counts = np.bincount([len(one.objects) for one in scenes], minlength=5)[1:] / len(scenes)
    # a little more: where there is no room, one object less
    np.testing.assert_allclose(counts[:2], (0.6, 0.2), atol=0.04)
    assert counts.min() > 0.02


@settings(max_examples=150, deadline=None)
@given(samples)
def test_objects_are_in_the_image_apart_and_told_apart(one):
    main, *others = one.objects
    assert 0 <= label(one) < 64
    assert PAIRS[label(one)] == pair(main)
    assert (
        len({item.color for item in one.objects})
        == len({item.shape for item in one.objects})
        == len(one.objects)
        <= 4
    )
    for item in one.objects:
        assert item.radius <= item.cx <= 1 - item.radius
        assert item.radius <= item.cy <= 1 - item.radius
        assert {"top": item.cy < 0.42, "middle": 0.44 < item.cy < 0.56, "bottom": item.cy > 0.58}[
            item.place
        ]
    for item in others:
        assert item.radius < 0.8 * main.radius
    for i, a in enumerate(one.objects):
        for b in one.objects[:i]:
            assert math.dist((a.cx, a.cy), (b.cx, b.cy)) > a.radius + b.radius


# ---- captions ----


@settings(max_examples=300, deadline=None)
@given(samples)
def test_captions_differ_and_are_true(one):
    texts = captions(one)
    main, *others = one.objects
    assert len(set(texts)) == 5
    assert all(pair(main) in text for text in texts)
    present = {pair(item) for item in one.objects}
    for text in texts:
        assert {" ".join(found) for found in PAIR.findall(text)} <= present
        named = re.findall("|".join(SHAPES), text)
        assert named[0] == main.shape
        assert not re.search(r"\b(left|right)\b|\ba [aeiou](?!ne\b)|\ban [^aeiou]|  |^ | $", text)
    textured, pairs, placed, sized, counted = texts
    assert f"{main.texture} {pair(main)} on a {one.background.texture} background" in textured
    assert {" ".join(found) for found in PAIR.findall(pairs)} == present
    assert placed.endswith(
        {"top": "at the top", "middle": "in the middle", "bottom": "at the bottom"}[main.place]
    )
    assert f"{main.size} {pair(main)}" in sized
    words = {
        0: f"one {pair(main)}",
        1: "and one smaller thing",
        2: "and two smaller things",
        3: "and three smaller things",
    }
    assert counted.endswith(words[len(others)])


def test_the_prompts_of_zero_shot_occur_among_the_captions():
    seen = {text for i in range(3000) for text in captions(scene(0, "train", i))}
    prompts = {f"a photo of a {name}" for name in set(PAIRS) - set(UNSEEN)}
    assert len(prompts & seen) > 0.9 * len(prompts)


# ---- images ----


def item_of(shape: str, **changes: object) -> Item:
    fields = {
        "color": "white",
        "shape": shape,
        "size": "huge",
        "texture": "plain",
        "place": "middle",
    }
    fields |= {"cx": 0.47, "cy": 0.52, "radius": 0.31, "angle": 12.0, "shade": 1.0}
    return Item(**(fields | changes))


def scene_of(*items: Item, texture: str = "plain") -> Scene:
    return Scene(items, Background(texture, "slate", 0.0, 30.0, 0.2, 5), 0)


def outline_by_hand(item: Item, size: int, factor: int = 24) -> np.ndarray:
    """Coverage [size, size] from polygons filled by Pillow at ``factor`` times the size.

    Then averaged.
    """
    turn = math.radians(item.angle)

    def draw(points, value):
        corners = [
            (
                (item.cx + item.radius * (u * math.cos(turn) - v * math.sin(turn))) * size * factor
                - 0.5,
                (item.cy + item.radius * (u * math.sin(turn) + v * math.cos(turn))) * size * factor
                - 0.5,
            )
            for u, v in points
        ]
        pen.polygon(corners, fill=value)

    def disc(u, v, radius):
        return [
            (u + radius * math.cos(a), v + radius * math.sin(a))
            for a in np.linspace(0, 2 * math.pi, 300)
        ]

    canvas = Image.new("L", (size * factor, size * factor))
    pen = ImageDraw.Draw(canvas)
    if item.shape == "circle":
        draw(disc(0, 0, 0.88), 255)
    elif item.shape == "ring":
        draw(disc(0, 0, 0.93), 255)
        draw(disc(0, 0, 0.45), 0)
    elif item.shape == "crescent":
        draw(disc(0, 0, 0.95), 255)
        draw(disc(0.45, 0, 0.65), 0)
    elif item.shape == "heart":
        draw([(-0.8, 0.083), (0, 0.883), (0.8, 0.083), (0, -0.717)], 255)
        for side in (-0.4, 0.4):
            draw(disc(side, 0.083 - 0.4, 0.8 / math.sqrt(2)), 255)
    elif item.shape == "star":
        radii = [(1.0, 0.5)[k % 2] for k in range(10)]
        draw(
            [
                (r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5))
                for k, r in enumerate(radii)
            ],
            255,
        )
    elif item.shape == "cross":
        draw([(-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)], 255)
        draw([(-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95)], 255)
    elif item.shape == "triangle":
        draw([(0, -1), (0.9, 0.62), (-0.9, 0.62)], 255)
    else:
        draw([(-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)], 255)
    return np.asarray(canvas, np.float64).reshape(size, factor, size, factor).mean((1, 3)) / 255


@pytest.mark.parametrize("radius", [0.11, 0.31])
@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_equal_supersampled_polygons(shape, radius):
    item = item_of(shape, radius=radius)
    picture, mask = render(scene_of(item), 96)
    cover = outline_by_hand(item, 96)
    expected = cover[..., None] * PAINT["white"][0] + (1 - cover[..., None]) * TONES["slate"]
    error = np.abs(picture - expected)
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
    picture, mask = render(
        scene_of(item_of("square", texture=texture, color="red", radius=0.4, cx=0.5, cy=0.5)), 512
    )
    first, other = (np.array(paint) for paint in PAINT["red"])
    share = (first - picture[mask > 0].mean(0)) / (first - other)
    np.testing.assert_allclose(share, second, atol=0.05)


@pytest.mark.parametrize("texture", BACKGROUNDS)
def test_backgrounds_stay_muted_around_their_tone(texture):
    picture, mask = render(scene_of(item_of("circle", radius=0.1), texture=texture), 128)
    ground = picture[mask == 0].astype(float)
    assert np.abs(ground.mean(0) - TONES["slate"]).max() < 12
    saturation = ground.max(1) - ground.min(1)
    assert np.percentile(saturation, 95) < 40
    assert ground.std() < 30


@settings(max_examples=60, deadline=None)
@given(samples)
def test_main_object_is_whole_and_has_the_largest_area(one):
    picture, mask = render(one, 64)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == mask.dtype == np.uint8
    areas = {item.shape: int((mask == SHAPES.index(item.shape) + 1).sum()) for item in one.objects}
    assert set(np.unique(mask)) == {0} | {SHAPES.index(shape) + 1 for shape in areas}
    main = one.objects[0]
    assert max(areas, key=areas.__getitem__) == main.shape
    alone = render(Scene((main,), one.background, one.phrasing), 64)[1]
    np.testing.assert_array_equal(
        alone == SHAPES.index(main.shape) + 1, mask == SHAPES.index(main.shape) + 1
    )


@settings(max_examples=20, deadline=None)
@given(samples)
def test_a_scene_looks_the_same_at_any_resolution(one):
    small, small_mask = render(one, 56)
    large, large_mask = render(one, 224)
    averaged = large.reshape(56, 4, 56, 4, 3).mean((1, 3))
    assert np.abs(small - averaged).mean() < 4
    blocks = large_mask.reshape(56, 4, 56, 4).transpose(0, 2, 1, 3).reshape(56, 56, 16)
    pure = (blocks == blocks[..., :1]).all(-1)
    np.testing.assert_array_equal(small_mask[pure], blocks[pure][:, 0])


def test_the_main_object_lies_on_top():
    main, other = item_of("star"), item_of("square", color="red", radius=0.2)
    covered = render(scene_of(main, other), 64)[1] == SHAPES.index("star") + 1
    np.testing.assert_array_equal(covered, render(scene_of(main), 64)[1] > 0)


def test_rendering_leaves_no_state_behind():
    one, two = scene(0, "train", 1), scene(0, "train", 2)
    first = render(one, 64)
    render(two, 64)[0][:] = 0
    again = render(one, 64)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


# ---- the dataset ----


def test_dataset_follows_the_contract():
    data = Shapes("val", 40, size=48)
    assert isinstance(data, ImageDataset)
    assert len(data) == 40 == len(data.captions) == len(data.labels)
    assert data.labels.dtype == np.int64
    assert data.class_names == PAIRS
    assert len(data.mask_names) == 9
    one = scene(0, "val", 7)
    assert data.captions[7] == captions(one)
    assert data.labels[7] == label(one)
    picture, mask = render(one, 48)
    assert data.image(7).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(data.image(7)), picture)
    np.testing.assert_array_equal(data.mask(7), mask)
    with pytest.raises(IndexError):
        data.image(40)


def test_fingerprint_depends_on_everything_that_is_scored():
    made = [
        Shapes("val", 40),
        Shapes("test", 40),
        Shapes("val", 41),
        Shapes("val", 40, size=32),
        Shapes("val", 40, seed=1),
        Shapes("val", 40, limit=10),
    ]
    assert len({data.fingerprint for data in made}) == len(made)
    assert (
        Shapes("val", 40).fingerprint
        == made[0].fingerprint
        == Shapes("val", 40, limit=100).fingerprint
    )


def test_limit_spreads_over_the_whole_set():
    data, part = Shapes("val", 40), Shapes("val", 40, limit=4)
    assert [part.captions[i] for i in range(4)] == [data.captions[i] for i in (0, 10, 20, 30)]
    assert np.array_equal(np.asarray(part.image(3)), np.asarray(data.image(30)))


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
    "wrong",
    [
        lambda: scene(0, "trian", 0),
        lambda: scene(-1, "train", 0),
        lambda: scene(0, "train", -1),
        lambda: scene(2**63, "train", 0),
        lambda: Shapes("valid", 10),
        lambda: Shapes("val", 0),
        lambda: Shapes("val", 10, limit=0),
    ],
)
def test_bad_input_is_refused_with_a_sentence(wrong):
    with pytest.raises(UserError, match=r"train|val|shapes|limit"):
        wrong()


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        render(scene(0, "train", 0), 8)
