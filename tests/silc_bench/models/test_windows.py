"""Sliding windows: every pixel is covered; the separable matrices are mmsegmentation's loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from images_and_runs import image_of
from PIL import Image
from refusals import refused

from silc_bench.models import windows
from silc_bench.models.windows import View, pixel_logits, predict

PATCH = 4


def upsampled(values, size):
    """[h, w, D] -> float64 [*size, D], by torch."""
    planes = torch.from_numpy(values).double().permute(2, 0, 1)[None]
    return F.interpolate(planes, size=size, mode="bilinear")[0].permute(1, 2, 0).numpy()


def loop(view, layout, grid, size):
    """Per window bilinear, summed, divided by the count, then bilinear to the mask."""
    total = np.zeros((layout.height, layout.width, grid.shape[-1]))
    count = np.zeros((layout.height, layout.width, 1))
    side = view.window // PATCH
    for i, top in enumerate(layout.tops):
        for j, left in enumerate(layout.lefts):
            place = slice(top, top + view.window), slice(left, left + view.window)
            cells = grid[i * side : (i + 1) * side, j * side : (j + 1) * side]
            total[place] += upsampled(cells, (view.window, view.window))
            count[place] += 1
    assert (count > 0).all(), "a pixel that no window covers"
    return upsampled(total / count, size)


def pixels_of(logits, grid, layout, height, width):
    num_classes = logits(torch.from_numpy(grid[0, :1])).shape[1]
    out = np.full((height, width, num_classes), np.nan, np.float32)
    for rows, cols, tile in pixel_logits(logits, grid, layout, height, width):
        out[rows, cols] = tile.numpy()
    return out


def view_of(cells, extra, stride):
    return View(cells * PATCH + extra, cells * PATCH, min(stride, cells * PATCH))


sides = st.integers(1, 40)
views = st.builds(view_of, st.integers(1, 5), st.integers(0, 13), st.integers(1, 20))


@settings(max_examples=30)
@given(views, st.tuples(sides, sides), st.tuples(sides, sides))
@example(View(12, 12, 4), (12, 12), (30, 17))  # one window, the plain path
def test_any_window_and_stride_equals_the_loop_and_covers_each_pixel(view, size, mask_size):
    resized = view.resized_sides(*size)
    assume(max(resized) <= 120)
    layout = view.layout(*resized, PATCH)
    grid = np.random.default_rng(0).normal(size=(*layout.grid, 3)).astype(np.float32)
    expected = loop(view, layout, grid, mask_size)
    pixels = pixels_of(lambda cells: cells, grid, layout, *mask_size)
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 31, 200, 333])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_bounded_memory_changes_no_prediction(num_classes, spread, monkeypatch):
    """Small tiles, logits made anew, classes left out that cannot win: as the argmax of all."""
    rng = np.random.default_rng(num_classes)
    layout = View(20, 16, 8).layout(20, 44, PATCH)
    grid = rng.normal(size=(*layout.grid, 6)).astype(np.float32)
    weight = torch.from_numpy(rng.normal(size=(6, num_classes)).astype(np.float32))
    bias = torch.from_numpy(spread * rng.normal(size=num_classes).astype(np.float32))
    asked = (lambda cells: cells @ weight + bias), grid, layout, 70, 90

    whole = pixels_of(*asked)
    np.testing.assert_array_equal(predict(*asked), whole.argmax(-1))
    monkeypatch.setattr(windows, "TILE_LOGITS", 64 * num_classes)
    monkeypatch.setattr(windows, "CELL_LOGITS", 1)
    np.testing.assert_allclose(pixels_of(*asked), whole, atol=1e-5)
    share = (predict(*asked) == whole.argmax(-1)).mean()
    assert share > 0.999, "round-off may decide a tie"


@pytest.mark.parametrize("num_classes", [3, 300])
def test_of_equal_classes_the_first_wins(num_classes):
    layout = View(8, 8, 8).layout(8, 8, PATCH)
    grid = np.ones((2, 2, num_classes), np.float32)
    assert (predict(lambda cells: cells, grid, layout, 9, 9) == 0).all()


def test_images_keep_their_aspect_and_their_pixels_at_the_right_size():
    view = View(16, 16, 8)
    image = image_of(40, 16)
    assert np.array_equal(view.resized(image, "bicubic"), np.asarray(image))
    for sides, width in (((1, 1), 16), ((20_000, 50), 6400)):
        assert view.resized(image_of(*sides), "bilinear").shape == (16, width, 3)


def test_what_no_view_can_show_is_refused():
    view = View(16, 16, 8)
    with refused(about="20,000 x 1 pixels"):
        view.resized(Image.new("RGB", (20_000, 1)), "bicubic")
    with refused(about="windows of 16 pixels"):
        view.layout(16, 16, 7)
