"""Sliding windows: every pixel is covered; the separable matrices are mmsegmentation's loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from silc_bench.errors import UserError
from silc_bench.models import windows
from silc_bench.models.windows import View, bilinear, pixel_logits, predict

PATCH = 4


def loop(view, layout, grid, height, width):
    """Per window bilinear, summed, divided by the count, then bilinear to the mask: float64.

    By torch.
    """
    channels = grid.shape[-1]
    total = torch.zeros(1, channels, layout.height, layout.width, dtype=torch.float64)
    count = torch.zeros(1, 1, layout.height, layout.width, dtype=torch.float64)
    n = view.window // PATCH
    for i, top in enumerate(layout.tops):
        for j, left in enumerate(layout.lefts):
            cells = (
                torch.from_numpy(grid[i * n : (i + 1) * n, j * n : (j + 1) * n])
                .double()
                .permute(2, 0, 1)[None]
            )
            up = F.interpolate(
                cells, size=(view.window, view.window), mode="bilinear", align_corners=False
            )
            total[..., top : top + view.window, left : left + view.window] += up
            count[..., top : top + view.window, left : left + view.window] += 1
    assert bool((count > 0).all()), "a pixel that no window covers"
    whole = F.interpolate(total / count, size=(height, width), mode="bilinear", align_corners=False)
    return whole[0].permute(1, 2, 0).numpy()


def pixels_of(logits, grid, layout, height, width):
    out = np.full(
        (height, width, logits(torch.from_numpy(grid[0, :1])).shape[1]), np.nan, np.float32
    )
    for rows, cols, tile in pixel_logits(logits, grid, layout, height, width):
        out[rows, cols] = tile.numpy()
    return out


views = st.builds(
    lambda cells, extra, stride: View(
        cells * PATCH + extra, cells * PATCH, min(stride, cells * PATCH)
    ),
    st.integers(1, 5),
    st.integers(0, 13),
    st.integers(1, 20),
)


@settings(max_examples=30, deadline=None)
@given(views, st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_any_window_and_stride_equals_the_loop_and_covers_each_pixel(
    view, height, width, mask_height, mask_width
):
    h, w = view.resized_sides(height, width)
    assume(max(h, w) <= 120)
    layout = view.layout(h, w, PATCH)
    grid = np.random.default_rng(0).normal(size=(*layout.grid, 3)).astype(np.float32)
    expected = loop(view, layout, grid, mask_height, mask_width)
    rows, cols = layout.rows(mask_height).toarray(), layout.cols(mask_width).toarray()
    np.testing.assert_allclose(np.einsum("yj,jkc,xk->yxc", rows, grid, cols), expected, atol=1e-6)
    np.testing.assert_allclose(
        pixels_of(lambda cells: cells, grid, layout, mask_height, mask_width), expected, atol=1e-5
    )
    for matrix in (rows, cols):
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(axis=1), 1)


@pytest.mark.parametrize(("size", "cells"), [(7, 3), (3, 7), (1, 5), (5, 1), (6, 6)])
def test_bilinear_is_torchs(size, cells):
    x = torch.randn(1, 1, cells, dtype=torch.float64)
    expected = F.interpolate(x, size=size, mode="linear", align_corners=False)[0, 0]
    np.testing.assert_allclose(
        bilinear(size, cells) @ x[0, 0].numpy(), expected.numpy(), atol=1e-12
    )


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 3), (16, 15)), ((5, 7), (13, 9)), ((1, 2), (4, 4)), ((6, 6), (4, 5))]
)
def test_both_axes_are_torchs_upsampling(grid, size):
    values = np.random.default_rng(9).normal(size=(*grid, 3))
    theirs = F.interpolate(
        torch.from_numpy(values).permute(2, 0, 1)[None],
        size=size,
        mode="bilinear",
        align_corners=False,
    )
    rows, cols = (bilinear(*sides).toarray() for sides in zip(size, grid, strict=True))
    ours = np.einsum("yj,jkc,xk->yxc", rows, values, cols)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), atol=1e-12)


def test_one_window_is_the_plain_path():
    view = View(12, 12, 4)
    layout = view.layout(12, 12, PATCH)
    grid = np.random.default_rng(1).normal(size=(3, 3, 2)).astype(np.float32)
    shown = F.interpolate(
        torch.from_numpy(grid).permute(2, 0, 1)[None], size=(12, 12), mode="bilinear"
    )
    # at the size that the tower saw, and resized from there to the mask
    for height, width in ((12, 12), (30, 17)):
        plain = F.interpolate(shown, size=(height, width), mode="bilinear")[0].permute(1, 2, 0)
        np.testing.assert_allclose(
            pixels_of(lambda cells: cells, grid, layout, height, width), plain.numpy(), atol=1e-6
        )


@pytest.mark.parametrize("num_classes", [2, 31, 200, 333])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_bounded_memory_changes_no_prediction(num_classes, spread, monkeypatch):
    """Small tiles, logits made anew, classes left out that cannot win: as the argmax of all."""
    rng = np.random.default_rng(num_classes)
    view = View(20, 16, 8)
    layout = view.layout(20, 44, PATCH)
    grid = rng.normal(size=(*layout.grid, 6)).astype(np.float32)
    weight = torch.from_numpy(rng.normal(size=(6, num_classes)).astype(np.float32))
    bias = torch.from_numpy(spread * rng.normal(size=num_classes).astype(np.float32))

    def logits(cells):
        return cells @ weight + bias

    whole = pixels_of(logits, grid, layout, 70, 90)
    np.testing.assert_array_equal(predict(logits, grid, layout, 70, 90), whole.argmax(-1))
    monkeypatch.setattr(windows, "TILE_LOGITS", 64 * num_classes)
    monkeypatch.setattr(windows, "CELL_LOGITS", 1)
    np.testing.assert_allclose(pixels_of(logits, grid, layout, 70, 90), whole, atol=1e-5)
    assert (predict(logits, grid, layout, 70, 90) == whole.argmax(-1)).mean() > 0.999, (
        "round-off may decide a tie"
    )


def test_of_equal_classes_the_first_wins():
    layout = View(8, 8, 8).layout(8, 8, PATCH)
    for num_classes in (3, 300):
        grid = np.ones((2, 2, num_classes), np.float32)
        assert (predict(lambda cells: cells, grid, layout, 9, 9) == 0).all()


def test_images_keep_their_aspect_and_their_pixels_at_the_right_size():
    view = View(16, 16, 8)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8))
    assert np.array_equal(view.resized(image, "bicubic"), np.asarray(image))
    assert view.resized(image.resize((5, 2)), "bilinear").shape == (16, 40, 3)
    assert view.resized(image.convert("L"), "nearest").shape == (16, 40, 3)
    assert view.resized(Image.new("RGB", (1, 1)), "bicubic").shape == (16, 16, 3)


def test_a_strip_is_refused_and_a_wide_image_is_not():
    view = View(16, 16, 8)
    with pytest.raises(
        UserError,
        match=r"picture of 20,000 x 1 pixels becomes .* windows of 16 pixels, more than 4,096",
    ):
        view.resized(Image.new("RGB", (20_000, 1)), "bicubic")
    assert view.resized(Image.new("RGB", (20_000, 50)), "bicubic").shape == (16, 6400, 3)


def test_a_window_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(UserError, match="windows of 16 pixels do not divide into patches of 7"):
        View(16, 16, 8).layout(16, 16, 7)


@pytest.mark.parametrize("sides", [(8, 16, 8), (16, 16, 0), (16, 8, 9)])
def test_views_that_leave_gaps_cannot_be_written(sides):
    with pytest.raises(ValueError, match="no such view"):
        View(*sides)
