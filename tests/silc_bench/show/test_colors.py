"""Pictures of dense features: colours that mean the same each time and can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from silc_bench.datasets.dataset import IGNORE
from silc_bench.show.colors import (
    FADED,
    HEAT,
    INK,
    LABELLED,
    PALETTE,
    PAPER,
    STRENGTH,
    class_colors,
    heat_colors,
    overlay,
    pca_colors,
)


def make_features(seed):
    """[5, 4, 3, 16] with components of well separated sizes."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(5, 4, 3, 16)) * 0.8 ** np.arange(16) + rng.normal(size=16)).astype(
        np.float32
    )


# ---- principal components ----


@pytest.mark.parametrize("seed", range(6))
def test_pca_colors_are_the_stretched_components_of_sklearn(seed):
    """Of each component the largest loading is positive.

    An eigenvector is as good as its negative, and LAPACK picks either.
    """
    features = make_features(seed)
    colors = np.stack(pca_colors(features))
    assert (colors.shape, colors.dtype) == ((5, 4, 3, 3), np.uint8)
    flat = features.reshape(-1, 16).astype(float)
    for channel, loadings in enumerate(PCA(3, svd_solver="full").fit(flat).components_):
        part = (flat - flat.mean(axis=0)) @ loadings * np.sign(loadings[abs(loadings).argmax()])
        low, high = np.percentile(part, (2, 98))
        expected = 255 * np.clip((part - low) / (high - low), 0, 1)
        np.testing.assert_allclose(colors[..., channel].ravel(), expected, atol=0.51)


def test_pca_colors_do_not_depend_on_order_scale_or_offset():
    features = make_features(0)
    colors = np.stack(pca_colors(features))
    np.testing.assert_array_equal(pca_colors(features), colors)
    np.testing.assert_allclose(
        np.stack(pca_colors(features[::-1]))[::-1].astype(int), colors, atol=1
    )
    np.testing.assert_allclose(np.stack(pca_colors(7 * features + 3)).astype(int), colors, atol=1)


def test_pca_colors_do_not_depend_on_how_the_cells_are_cut_into_grids():
    features = make_features(0)
    whole = np.stack(pca_colors(features)).reshape(-1, 3)
    cut = pca_colors(
        [features[0], features[1:3].reshape(8, 3, 16), features[3:].reshape(2, 12, 16)]
    )
    assert [colors.shape for colors in cut] == [(4, 3, 3), (8, 3, 3), (2, 12, 3)]
    np.testing.assert_array_equal(np.concatenate([colors.reshape(-1, 3) for colors in cut]), whole)


def test_noise_does_not_turn_a_component_round():
    features = make_features(0)
    noise = np.random.default_rng(1).normal(size=features.shape) * 1e-4
    np.testing.assert_allclose(
        np.stack(pca_colors(features + noise)).astype(int), pca_colors(features), atol=2
    )


def test_features_that_are_all_equal_have_one_color():
    assert (
        len(np.unique(np.reshape(pca_colors(np.ones((2, 3, 3, 8), np.float32)), (-1, 3)), axis=0))
        == 1
    )


# ---- classes ----


def test_class_colors():
    mask = np.array([[0, 7], [IGNORE, 3]])
    colors = class_colors(mask, mask != IGNORE)
    assert colors.dtype == np.uint8
    assert [tuple(colors[0, 0]), tuple(colors[0, 1]), tuple(colors[1, 1])] == [
        PALETTE[0],
        PALETTE[7],
        PALETTE[3],
    ]
    assert tuple(colors[1, 0]) == (255, 255, 255), "ignored pixels are paper"


def test_what_is_not_scored_is_pale_and_its_class_still_readable():
    mask = np.arange(len(PALETTE))[None]
    pale = class_colors(mask, np.zeros_like(mask, bool))[0]
    expected = [[round(FADED * part + (1 - FADED) * 255) for part in color] for color in PALETTE]
    np.testing.assert_allclose(pale.astype(int), expected, atol=1)
    assert len({tuple(color) for color in pale}) == len(PALETTE)


def test_an_ignored_pixel_is_paper_even_where_it_is_scored():
    assert class_colors(np.array([[IGNORE]]), np.array([[True]])).tolist() == [[[255] * 3]]


def test_more_classes_than_colors_are_refused():
    assert class_colors(np.array([[len(PALETTE) - 1]]), np.array([[True]])).shape == (1, 1, 3)
    with pytest.raises(ValueError, match="32 colours cannot tell more classes apart"):
        class_colors(np.array([[len(PALETTE)]]), np.array([[True]]))


# ---- the palette ----


def lab(colors, as_seen=None):
    """sRGB of 8 bits [N, 3] -> CIELAB (D65), through a matrix on linear light."""
    values = np.asarray(colors, float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = linear if as_seen is None else np.clip(linear @ np.transpose(as_seen), 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x = linear @ np.transpose(to_xyz) / np.array([0.95047, 1, 1.08883])
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1
    )


def nearest(colors, as_seen=None):
    """Distance of the two colours that are nearest to each other."""
    points = lab(colors, as_seen)
    return np.linalg.norm(points[:, None] - points, axis=-1)[np.triu_indices(len(points), 1)].min()


# Machado et al., 2009, severity 1
PROTANOPE = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]
DEUTERANOPE = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]


def test_the_colors_can_be_told_apart():
    """The first eight are Okabe and Ito's.

    No later colour lies nearer to another than those do, up to 24 of them.
    """
    assert len(set(PALETTE)) == len(PALETTE) == 32
    okabe_ito = nearest(PALETTE[:8])
    assert 26 < okabe_ito == pytest.approx(nearest(PALETTE[:24]))
    assert nearest(PALETTE) > 24
    assert nearest([*PALETTE, INK]) > 20
    assert nearest([*PALETTE, PAPER]) > 20
    for as_seen in (PROTANOPE, DEUTERANOPE):
        assert nearest(PALETTE, as_seen) > 10


# ---- over a photograph ----


def test_an_overlay_mixes_class_and_grey_and_numbers_its_regions():
    image = np.full((40, 60, 3), 90, np.uint8)
    classes = np.repeat([[4, 11]], 40, axis=0).repeat([25, 35], axis=1)
    colors = overlay(image, classes)
    for column, label in ((1, 4), (58, 11)):
        expected = np.rint(STRENGTH * np.array(PALETTE[label]) + (1 - STRENGTH) * 90)
        np.testing.assert_array_equal(colors[:, column], np.broadcast_to(expected, (40, 3)))
    assert (colors[[0, 39], 25] == INK).all(), "the border between them"
    for left, right in ((0, 25), (26, 60)):
        assert is_written(colors[:, left:right]), "a number in each"


def is_written(colors):
    """Whether a number's bright letters are among them; classes over grey 90 are darker."""
    return (colors.min(axis=-1) > 200).any()


def test_a_region_without_room_has_no_number():
    image, classes = np.full((40, 60, 3), 90, np.uint8), np.zeros((40, 60), int)
    classes[:, :10] = 1
    colors = overlay(image, classes)
    assert LABELLED * classes.size < 10 * 40
    assert not is_written(colors[:, :10])
    assert is_written(colors[:, 10:])


def test_heat_goes_from_the_least_to_the_largest():
    colors = heat_colors(np.array([[-3.0, 0.0, 6.0]]))
    assert [tuple(color) for color in colors[0]] == [HEAT[0], HEAT[3], HEAT[9]]
    assert heat_colors(np.full((2, 2), 7.0)).tolist() == [[list(HEAT[0])] * 2] * 2
    assert (np.diff(lab(HEAT)[:, 0]) > 3).all(), "brighter is more"
