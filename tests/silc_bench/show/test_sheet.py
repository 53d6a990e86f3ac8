"""A sheet: every panel in its place, text that fits, files that are whole."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from silc_bench.show.colors import HEAT, PALETTE, PAPER
from silc_bench.show.sheet import (
    CELL,
    GAP,
    GROUP_GAP,
    LINE,
    MARGIN,
    Panel,
    figure,
    panel_size,
    width_of,
    wrapped,
)

LEGEND = LINE + GAP  # height of its lines


def panels(*colors, side=64, title=""):
    return [Panel(np.full((side, side, 3), color, np.uint8), title) for color in colors]


@pytest.fixture
def draw(tmp_path):
    """``draw(groups, rows, ...)`` -> pixels of the sheet."""

    def draw_sheet(groups, rows, legend=(), **options):
        path = tmp_path / "images" / "sheet.png"
        size = figure(groups, rows, legend, path, **options)
        assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", size)
            return np.asarray(image)

    return draw_sheet


def has(pixels, color):
    return (pixels == color).all(axis=-1).any()


# ---- the sheet ----


def test_every_panel_is_in_its_place(draw):
    """Titles stand right above their images."""
    rows = [
        [*panels((250, 0, 0), (0, 250, 0), title="one"), *panels((1, 1, 1), title="words " * 9)],
        [*panels((0, 0, 250), side=6), None, *panels((9, 9, 9), side=300)],
    ]
    pixels = draw([("", 1), ("of a model", 2)], rows, ["ring", "star"])
    # the groups' headings, then the first row's titles of one line and of two
    heads = MARGIN + 2 * LEGEND + LINE
    width = 3 * CELL + GAP + GROUP_GAP
    height = heads + 2 * (CELL + 2 * GAP) + LEGEND + MARGIN
    assert pixels.shape == (height, 2 * MARGIN + width, 3)
    for column, left in enumerate((0, CELL + GROUP_GAP, 2 * CELL + GROUP_GAP + GAP)):
        strip = pixels[:, MARGIN + left : MARGIN + left + CELL]
        for row, line in enumerate(rows):
            panel, top = line[column], heads + row * (CELL + 2 * GAP)
            color = PAPER if panel is None else panel.pixels[0, 0]
            assert (strip[top : top + CELL] == color).all()
        is_written = (strip[:heads] < 255).any(axis=(1, 2))
        assert is_written[-LEGEND:].any()
        assert is_written[-LEGEND - LINE : -LEGEND].any() == (column == 2)
    legend = pixels[-MARGIN - LEGEND :]
    assert [has(legend, color) for color in PALETTE[:3]] == [True, True, False]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((1, 1), (CELL, CELL)),
        ((10, 20), (CELL // 2, CELL)),
        ((4000, 3000), (CELL, 144)),
        ((5, 20_000), (1, CELL)),
    ],
)
def test_panels_keep_the_shape_of_their_image(draw, sides, expected):
    assert panel_size(*sides) == expected
    pixels = draw([("", 1)], [[Panel(np.full((*sides, 3), 7, np.uint8))]])
    assert (pixels == 7).all(axis=-1).sum() == expected[0] * expected[1]


def test_small_images_keep_their_edges_and_large_ones_are_smoothed(draw):
    sides = (6, 4 * CELL)
    boards = [255 * (np.indices((side, side)).sum(0) % 2) for side in sides]
    row = [Panel(np.stack([board.astype(np.uint8)] * 3, -1)) for board in boards]
    pixels = draw([("", 2)], [row])[MARGIN : MARGIN + CELL]
    assert set(np.unique(pixels[:, MARGIN : MARGIN + CELL])) == {0, 255}
    smooth = pixels[5:-5, -MARGIN - CELL + 5 : -MARGIN - 5].astype(int)
    assert abs(smooth - 127).max() < 20


def test_the_legend_goes_on_in_the_next_line_and_explains_heat(draw):
    names = [f"class {index}" for index in range(len(PALETTE))]
    sheet = [("", 2)], [panels((1, 1, 1), (2, 2, 2))]
    few, many, hot = (
        draw(*sheet, names[:2]),
        draw(*sheet, names),
        draw(*sheet, names, has_heat=True),
    )
    assert [len(many) - len(few), len(hot) - len(many)] == [15 * LEGEND, LEGEND]
    assert all(has(hot, color) for color in (*PALETTE, HEAT[0], HEAT[-1]))


def test_text_stays_inside(draw):
    word = "W" * 500
    panel = Panel(np.zeros((4, 4, 3), np.uint8), word, word, PALETTE[0])
    pixels = draw([(word, 1)], [[panel]], [word], note=f"{word} " * 40)
    assert pixels.shape[1] == 2 * MARGIN + CELL
    assert pixels.shape[0] < 700
    for edge in (pixels[:, :MARGIN], pixels[:, -MARGIN + 1 :], pixels[-MARGIN + 4 :]):
        assert (edge == 255).all()


# ---- letters ----


TEXT = "one two three four five six seven eight nine ten"


def test_wrapped_lines_fit_and_hold_every_word():
    lines = wrapped(TEXT, 90, 10)
    assert " ".join(lines) == TEXT
    assert all(width_of(line) <= 90 for line in lines)
    longest = max(map(len, lines)) + 1
    assert all(len(f"{line} {after.split()[0]}") >= longest for line, after in pairwise(lines))


@pytest.mark.parametrize("text", [TEXT, "7 " + "a" * 100_000, "x" * 40])
@pytest.mark.parametrize("count", [1, 2])
def test_what_does_not_fit_is_cut(text, count):
    lines = wrapped(text, 90, count)
    assert len(lines) == count
    assert lines[0].startswith(text[:5])
    assert lines[-1].endswith("...")
    assert all(width_of(line) <= 90 for line in lines)
