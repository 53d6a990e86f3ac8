"""Pictures of dense features: colours that mean the same each time, and a sheet of the expected size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from silc_bench import pictures
from silc_bench.datasets import IGNORE
from silc_bench.pictures import CELL, FADED, GAP, HEADER, LEGEND, MARGIN, PALETTE, class_colors, figure, pca_colors


def make_features(seed):
    """[5, 4, 3, 16] with components of well separated sizes."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(5, 4, 3, 16)) * 0.8 ** np.arange(16) + rng.normal(size=16)).astype(np.float32)


# ---- principal components ----


@pytest.mark.parametrize("seed", range(6))
def test_pca_colors_are_the_stretched_components_of_sklearn(seed):
    """Of each component the largest loading is positive: an eigenvector is as good as its negative, and LAPACK picks either."""
    features = make_features(seed)
    colors = pca_colors(features)
    assert (colors.shape, colors.dtype) == ((5, 4, 3, 3), np.uint8)
    flat = features.reshape(-1, 16).astype(float)
    for channel, loadings in enumerate(PCA(3, svd_solver="full").fit(flat).components_):
        part = (flat - flat.mean(axis=0)) @ loadings * np.sign(loadings[abs(loadings).argmax()])
        low, high = np.percentile(part, (2, 98))
        expected = 255 * np.clip((part - low) / (high - low), 0, 1)
        np.testing.assert_allclose(colors[..., channel].ravel(), expected, atol=0.51)


def test_pca_colors_do_not_depend_on_order_scale_or_offset():
    features = make_features(0)
    colors = pca_colors(features)
    np.testing.assert_array_equal(pca_colors(features), colors)
    np.testing.assert_allclose(pca_colors(features[::-1])[::-1].astype(int), colors, atol=1)
    np.testing.assert_allclose(pca_colors(7 * features + 3).astype(int), colors, atol=1)


def test_noise_does_not_turn_a_component_round():
    features = make_features(0)
    noise = np.random.default_rng(1).normal(size=features.shape) * 1e-4
    np.testing.assert_allclose(pca_colors(features + noise).astype(int), pca_colors(features), atol=2)


def test_features_that_are_all_equal_have_one_color():
    assert len(np.unique(pca_colors(np.ones((2, 3, 3, 8), np.float32)).reshape(-1, 3), axis=0)) == 1


# ---- classes ----


def test_class_colors():
    mask = np.array([[0, 7], [IGNORE, 3]])
    colors = class_colors(mask, mask != IGNORE)
    assert colors.dtype == np.uint8
    assert [tuple(colors[0, 0]), tuple(colors[0, 1]), tuple(colors[1, 1])] == [PALETTE[0], PALETTE[7], PALETTE[3]]
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
    with pytest.raises(ValueError, match="8 colours cannot tell more classes apart"):
        class_colors(np.array([[len(PALETTE)]]), np.array([[True]]))


# ---- the sheet ----


def cells(*colors, side=64):
    return [np.full((side, side, 3), color, np.uint8) for color in colors]


def test_figure_places_every_cell_under_its_header(tmp_path):
    path = tmp_path / "pictures" / "sheet.png"
    rows = [cells((250, 0, 0), (0, 250, 0)), cells((0, 0, 250), (9, 9, 9), side=6), cells((1, 2, 3), (4, 5, 6), side=300)]
    figure(["one", "two\nlines"], rows, ["ring", "star"], path)
    sheet = Image.open(path)
    assert sheet.format == "PNG"
    assert sheet.size == (2 * MARGIN + 2 * CELL + GAP, 2 * MARGIN + HEADER + 3 * (CELL + GAP) + LEGEND)
    pixels = np.asarray(sheet)
    for row, line in enumerate(rows):
        for column, cell in enumerate(line):
            left, top = MARGIN + column * (CELL + GAP), MARGIN + HEADER + row * (CELL + GAP)
            assert (pixels[top : top + CELL, left : left + CELL] == cell[0, 0]).all()
    assert (pixels[: MARGIN + HEADER] != 255).any(), "headers are written"
    legend = pixels[-MARGIN - LEGEND :].reshape(-1, 3)
    assert all((legend == color).all(axis=1).any() for color in PALETTE[:2])
    assert not (legend == PALETTE[2]).all(axis=1).any(), "no colour without a name"
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_masks_keep_their_edges_and_patches_are_smooth(tmp_path):
    mask, patches = ((255 * (np.indices((side, side)).sum(0) % 2)).astype(np.uint8) for side in (64, 6))
    figure(["mask", "patches"], [[np.stack([mask] * 3, -1), np.stack([patches] * 3, -1)]], [], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))[MARGIN + HEADER :][:CELL]
    assert set(np.unique(pixels[:, MARGIN : MARGIN + CELL])) == {0, 255}
    assert len(np.unique(pixels[:, -MARGIN - CELL : -MARGIN])) > 50


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def fail(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.png"
    figure(["x"], [cells((1, 2, 3))], ["ring"], path)
    before = path.read_bytes()
    monkeypatch.setattr(pictures.Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        figure(["y"], [cells((9, 9, 9))], ["ring"], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_equal_figures_are_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        figure(["x"], [cells((1, 2, 3))], ["ring"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_row_with_a_cell_missing_is_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="a cell for each header"):
        figure(["x", "y"], [cells((1, 2, 3))], [], tmp_path / "a.png")
