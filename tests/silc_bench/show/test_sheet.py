"""A sheet: every panel in its place, text that fits, files that are whole."""

from __future__ import annotations

import string
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from silc_bench.show import sheet
from silc_bench.show.colors import HEAT, PALETTE, PAPER
from silc_bench.show.sheet import (
    CELL,
    DRAWN,
    GAP,
    GROUP_GAP,
    LINE,
    MARGIN,
    STEP,
    Panel,
    drawable,
    figure,
    font,
    panel_size,
    width_of,
    wrapped,
)


def panels(*colors, side=64, titles=None):
    titles = titles or [""] * len(colors)
    return [
        Panel(np.full((side, side, 3), color, np.uint8), title)
        for color, title in zip(colors, titles, strict=True)
    ]


# ---- the sheet ----


def test_every_panel_is_in_its_place(tmp_path):
    path = tmp_path / "pictures" / "sheet.png"
    rows = [
        panels((250, 0, 0), (0, 250, 0), (1, 1, 1), titles=("one", "two", "three")),
        [*panels((0, 0, 250), side=6), None, *panels((9, 9, 9), side=300)],
    ]
    size = figure([("", 1), ("of a model", 2)], rows, ["ring", "star"], path)
    image = Image.open(path)
    assert image.format == "PNG"
    heads = MARGIN + 2 * (LINE + GAP)  # the groups' headings, then the first row's titles
    assert (
        image.size
        == size
        == (2 * MARGIN + 3 * CELL + GAP + GROUP_GAP, heads + 2 * (CELL + 2 * GAP) + STEP + MARGIN)
    )
    pixels = np.asarray(image)
    for row, line in enumerate(rows):
        for panel, left in zip(
            line, (0, CELL + GROUP_GAP, 2 * CELL + GROUP_GAP + GAP), strict=True
        ):
            top = heads + row * (CELL + 2 * GAP)
            place = pixels[top : top + CELL, MARGIN + left : MARGIN + left + CELL]
            assert (place == (PAPER if panel is None else panel.pixels[0, 0])).all()
    assert (pixels[:heads] != 255).any(), "headings and titles are written"
    legend = pixels[-MARGIN - STEP :].reshape(-1, 3)
    assert all((legend == color).all(axis=1).any() for color in PALETTE[:2])
    assert not (legend == PALETTE[2]).all(axis=1).any(), "no colour without a name"
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((1, 1), (CELL, CELL)),
        ((10, 20), (CELL // 2, CELL)),
        ((4000, 3000), (CELL, 144)),
        ((5, 20_000), (1, CELL)),
    ],
)
def test_panels_keep_the_shape_of_their_image(sides, expected, tmp_path):
    assert panel_size(*sides) == expected
    figure([("", 1)], [[Panel(np.full((*sides, 3), 7, np.uint8))]], [], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert (pixels == 7).all(axis=-1).sum() == expected[0] * expected[1]


def test_small_images_keep_their_edges_and_large_ones_are_smoothed(tmp_path):
    small, large = (
        (255 * (np.indices((side, side)).sum(0) % 2)).astype(np.uint8) for side in (6, 4 * CELL)
    )
    rows = [[Panel(np.stack([pixels] * 3, -1)) for pixels in (small, large)]]
    figure([("", 2)], rows, [], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))[MARGIN : MARGIN + CELL]
    assert set(np.unique(pixels[:, MARGIN : MARGIN + CELL])) == {0, 255}
    assert abs(pixels[5:-5, -MARGIN - CELL + 5 : -MARGIN - 5].astype(int) - 127).max() < 20


def test_the_legend_goes_on_in_the_next_line_and_explains_heat(tmp_path):
    names = [f"a class of some length {index}" for index in range(len(PALETTE))]
    few = figure([("", 2)], [panels((1, 1, 1), (2, 2, 2))], names[:2], tmp_path / "a.png")
    many = figure([("", 2)], [panels((1, 1, 1), (2, 2, 2))], names, tmp_path / "a.png")
    assert few[0] == many[0]
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert all((pixels == color).all(axis=-1).any() for color in PALETTE)
    hot = figure(
        [("", 2)], [panels((1, 1, 1), (2, 2, 2))], names, tmp_path / "a.png", has_heat=True
    )
    assert hot[1] == many[1] + STEP
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert all((pixels == color).all(axis=-1).any() for color in (HEAT[0], HEAT[-1]))


def test_text_stays_inside(tmp_path):
    word = "W" * 500
    panel = Panel(np.zeros((4, 4, 3), np.uint8), word, word, PALETTE[0])
    width, height = figure(
        [(word, 1)], [[panel]], [word], tmp_path / "a.png", note=" ".join([word] * 40)
    )
    assert width == 2 * MARGIN + CELL
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert (pixels[:, :MARGIN] == 255).all()
    assert (pixels[:, -MARGIN + 1 :] == 255).all()
    assert (pixels[-MARGIN + 4 :] == 255).all()
    assert height < 700


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def fail(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.png"
    figure([("x", 1)], [panels((1, 2, 3))], ["ring"], path)
    before = path.read_bytes()
    monkeypatch.setattr(sheet.Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        figure([("y", 1)], [panels((9, 9, 9))], ["ring"], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_equal_figures_are_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        figure([("x", 1)], [panels((1, 2, 3))], ["ring"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_row_with_a_panel_missing_is_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="a panel or a gap for each column"):
        figure([("x", 2)], [panels((1, 2, 3))], [], tmp_path / "a.png")


# ---- letters ----


def test_the_font_has_every_letter_that_counts_as_drawn():
    """What a font lacks it draws as one and the same box."""

    def shape(letter):
        mask = font().getmask(letter)
        return mask.size, bytes(mask)

    lacking = shape("\U0010fffd")
    assert all(shape(letter) != lacking for letter in DRAWN)
    assert set(string.printable) - set(string.whitespace) <= DRAWN
    assert all(shape(letter) == lacking for letter in "é–猫я"), (
        "else these could be drawn as they are"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("café crème", "cafe creme"),
        ("ﬁ ½", "fi ?"),
        ("猫 кот", "? ???"),
        (" a\tb\nc  d ", "a b c d"),
        ("\u202ea\u200db\x00", "ab"),
        ("<b>{c}%s</b>", "<b>{c}%s</b>"),
        ("", ""),
    ],
)
def test_drawable(text, expected):
    assert drawable(text) == expected


def test_wrapped_lines_fit_and_hold_every_word():
    text = "one two three four five six seven eight nine ten"
    lines = wrapped(text, 90, 10)
    assert len(lines) > 2
    assert " ".join(lines) == text
    assert all(width_of(line) <= 90 for line in lines)
    assert all(width_of(f"{line} {after.split()[0]}") > 90 for line, after in pairwise(lines)), (
        "no line breaks early"
    )


def test_what_does_not_fit_is_cut():
    lines = wrapped("one two three four five six seven eight nine ten", 90, 2)
    assert len(lines) == 2
    assert lines[1].endswith("...")
    assert all(width_of(line) <= 90 for line in lines)
    (line,) = wrapped("7 " + "a" * 100_000, 90, 1)
    assert line.startswith("7 aaa")
    assert line.endswith("...")
    assert width_of(line) <= 90
    assert wrapped("", 90, 2) == []
    assert "".join(wrapped("x" * 100, 90, 99)) == "x" * 100
    assert font().size < LINE
