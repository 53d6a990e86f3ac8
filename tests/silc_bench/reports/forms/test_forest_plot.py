"""One plot in three kinds of file: to scale, with every name, equal bytes."""

import re
from xml.etree import ElementTree

import pytest
from hostile import HOSTILE_NAMES
from PIL import Image

from silc_bench.reports.forms import forest_plot
from silc_bench.reports.forms.forest_plot import IN_FONT, PLOT, TONES, Row, draw

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [Row(f"    {name}", number - 4.0, 1.5, "worse") for number, name in enumerate(HOSTILE_NAMES)]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_hostile_names_are_drawn_with_equal_bytes(tmp_path, kind):
    if kind == "pdf":
        pytest.importorskip("fpdf")
    paths = [tmp_path / f"{number}.{kind}" for number in (1, 2)]
    for path in paths:
        draw([Row(HOSTILE_NAMES[0]), *ROWS], HOSTILE_NAMES[-1], path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    if kind == "png":
        with Image.open(paths[0]) as image:
            assert image.width < 3 * PLOT, "long names are shortened"


def test_an_svg_holds_every_name_as_text(tmp_path):
    path = tmp_path / "plot.svg"
    draw(ROWS, "<title>&", path)
    tree = ElementTree.parse(path)
    texts = [element.text for element in tree.iter(f"{SVG}text")]
    assert texts[0] == "<title>&"
    assert {element.tag.removeprefix(SVG) for element in tree.iter()} == {
        "svg", "rect", "line", "circle", "text"
    }  # fmt: skip
    for name in HOSTILE_NAMES:
        begin = name[:3].partition("\u202e")[0].partition("\u200d")[0]
        assert any(begin in text for text in texts), begin


def test_an_svg_is_to_scale(tmp_path):
    path = tmp_path / "plot.svg"
    draw([Row("a", -10.0, 5.0, "better")], "title", path)
    tree = ElementTree.parse(path)
    color = f"rgb{TONES['better']}"
    (dot,) = (element for element in tree.iter(f"{SVG}circle") if element.get("fill") == color)
    (line,) = (element for element in tree.iter(f"{SVG}line") if element.get("stroke") == color)
    ink = f"rgb{forest_plot.INK}"
    (zero,) = (element for element in tree.iter(f"{SVG}line") if element.get("stroke") == ink)
    middle, left, right = float(dot.get("cx")), float(line.get("x1")), float(line.get("x2"))
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    assert float(zero.get("x1")) - middle == pytest.approx(2 * (middle - left), abs=0.4)


def test_a_pdf_has_one_page_of_vectors_and_its_font(tmp_path):
    pytest.importorskip("fpdf")
    path = tmp_path / "plot.pdf"
    draw(ROWS, "title", path)
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", content)) == 1
    assert b"/FontFile2" in content, "journals refuse a font that is not embedded"
    assert b"/Subtype /Image" not in content


def test_letters_that_the_font_lacks_are_spelled_out(tmp_path, monkeypatch):
    drawn = []

    class Pen(forest_plot._Png):
        def text(self, x, y, text, is_centred=False):
            drawn.append(text)

    monkeypatch.setitem(forest_plot.PENS, ".png", Pen)
    draw([Row("né 模", 1.0)], "title", tmp_path / "plot.png")
    assert "n<U+00E9> <U+6A21>" in drawn
    missing = bytes(forest_plot._font().getmask("\uffff"))
    assert all(bytes(forest_plot._font().getmask(letter)) != missing for letter in IN_FONT - {" "})
