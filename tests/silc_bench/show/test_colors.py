"""Images of dense features: colours that mean the same each time and can be told apart."""

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from silc_bench.datasets.dataset import IGNORE
from silc_bench.show.colors import (
    HEAT,
    INK,
    LABELLED,
    PALETTE,
    PAPER,
    class_colors,
    heat_colors,
    numbered,
    pca_colors,
)


def make_features(seed):
    """[5, 4, 3, 16] with components of well separated sizes."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(5, 4, 3, 16)) * 0.8 ** np.arange(16) + rng.normal(size=16)
    return features.astype(np.float32)


def colors_of(features):
    return np.stack(pca_colors(features)).astype(int)


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


def test_pca_colors_do_not_depend_on_how_the_cells_are_cut_into_grids():
    features = make_features(0)
    grids = [features[0], features[1:3].reshape(8, 3, 16), features[3:].reshape(2, 12, 16)]
    cut = pca_colors(grids)
    assert [colors.shape for colors in cut] == [(4, 3, 3), (8, 3, 3), (2, 12, 3)]
    cells = np.concatenate([colors.reshape(-1, 3) for colors in cut])
    np.testing.assert_array_equal(cells, colors_of(features).reshape(-1, 3))


def test_features_that_are_all_equal_have_one_color():
    colors = colors_of(np.ones((2, 3, 3, 8), np.float32))
    assert (colors == colors[0, 0, 0]).all()


# ---- classes ----


@pytest.mark.parametrize("truth", [0, IGNORE, "another"])
def test_a_prediction_is_flat_whatever_the_truth(truth):
    """Nothing of the truth but its contour: a tint would draw it into any prediction."""
    classes = np.arange(len(PALETTE))[None].repeat(3, axis=0)
    true = np.full_like(classes, 0 if truth == "another" else truth)
    if truth == "another":
        true[1:, 5:] = 1
    colors = class_colors(classes, true)
    is_contour = (colors == INK).all(axis=-1)
    assert is_contour.sum() == (0 if truth != "another" else len(PALETTE) - 5 + 1)
    flat = np.broadcast_to(np.array(PALETTE), colors.shape)
    np.testing.assert_array_equal(colors[~is_contour], flat[~is_contour])
    assert (class_colors(np.full((1, 2), IGNORE), np.zeros((1, 2))) == 255).all()


# ---- the palette ----


def test_the_colors_can_be_told_apart():
    assert pdist([*PALETTE, INK, PAPER]).min() > 30


def test_heat_goes_from_the_least_to_the_largest():
    colors = heat_colors(np.array([[-3.0, 0.0, 6.0]]))
    assert [tuple(color) for color in colors[0]] == [HEAT[0], HEAT[3], HEAT[9]]
    assert (heat_colors(np.full((2, 2), 7.0)) == HEAT[0]).all()
    grey = Image.fromarray(np.array([HEAT], np.uint8)).convert("L")
    assert (np.diff(np.asarray(grey, int)) > 0).all(), "brighter is more"


# ---- numbers on regions ----


@pytest.mark.parametrize(("width", "is_numbered"), [(25, True), (10, False)])
def test_regions_with_room_are_numbered(width, is_numbered):
    classes = np.repeat([[4, 11]], 40, axis=0).repeat([width, 60 - width], axis=1)
    colors = numbered(classes)
    for column, label in ((1, 4), (58, 11)):
        np.testing.assert_array_equal(colors[:, column], np.broadcast_to(PALETTE[label], (40, 3)))
    assert (colors[[0, 39], width] == INK).all(), "the border between them"

    # a number's letters are bright; these two classes are darker
    is_written = (colors.min(axis=-1) > 200).any(axis=0)
    assert is_written[:width].any() == is_numbered
    assert is_written[width + 1 :].any()
    assert LABELLED * classes.size < 10 * 40
