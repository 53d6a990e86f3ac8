"""What ``silc-bench show`` draws: classes in place, harmless names, a sentence for each mistake."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.windows import DenseImage, View
from silc_bench.reports import leaderboard
from silc_bench.show import look as show
from silc_bench.show.colors import HEAT, INK, PALETTE, STRENGTH
from silc_bench.show.look import read_images
from silc_bench.show.sheet import CELL, GAP, GROUP_GAP, MARGIN

pytestmark = pytest.mark.broad

SIZE, PATCH = 32, 8
COLORS = ("red", "green", "blue")


class Eyes:
    """Its patch features are the mean colours of the patches; it reads the names of colours."""

    revision, embed_dim, image_size, patch_size, num_params = "0123456789abcdef", 3, SIZE, PATCH, 0
    dense_methods = ("tokens", "plain", "maskclip")
    pipeline = ImagePipeline(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self, name="eyes:student"):
        self.name, self.asked, self.texts, self.lacking = name, [], [], {}
        self.text_protocol = {"cleaning": "none"}

    def to(self, device):
        return self

    def preprocess(self, image):
        return self.pipeline(image)

    def encode_dense(self, images, methods):
        self.asked.append((len(images), tuple(methods)))
        means = torch.nn.functional.avg_pool2d(images, PATCH).permute(0, 2, 3, 1)
        return {
            method: torch.cat([means, 2 * means], -1) if method == "tokens" else means
            for method in methods
        }

    def tokenize(self, texts):
        self.texts += texts
        return torch.tensor([[float(color in text) for color in COLORS] for text in texts])

    def encode_text(self, tokens):
        return tokens + 1e-3


class Blind(Eyes):
    """Reads nothing."""

    dense_methods = ("tokens",)
    encode_text = tokenize = None

    def __init__(self):
        super().__init__("blind")
        self.lacking["text"] = "it holds an image encoder only"


class Pooled(Eyes):
    """Knows no places."""

    encode_dense = None

    def __init__(self):
        super().__init__("pooled")
        self.lacking["dense"] = "its last features are one vector"


MODELS = {"eyes": Eyes, "other": lambda: Eyes("other:teacher"), "blind": Blind, "pooled": Pooled}


@pytest.fixture
def drawn(monkeypatch):
    """Every text that is drawn, in order."""
    texts, text = [], ImageDraw.ImageDraw.text

    def recorded(self, place, words, *args, **kwargs):
        texts.append(words)
        return text(self, place, words, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded)
    return texts


@pytest.fixture
def flag(tmp_path):
    """Left half red, right half green, twice as wide as high."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :64, 0] = pixels[:, 64:, 1] = 200
    path = tmp_path / "flag.png"
    Image.fromarray(pixels).save(path)
    return path


def call(*args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.models.load.load_model", lambda spec, arch=None: MODELS[spec]())
        return CliRunner().invoke(cli.app, ["show", *map(str, args)])


def succeed(*args):
    result = call(*args)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result.stdout


def refused(*args):
    """The one sentence."""
    result = call(*args)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


def find(sheet, panel_height, column, groups):
    """[panel_height, CELL, 3] of the first row's panel in that column.

    ``groups``: columns of each group before and with it.
    """
    pixels = np.asarray(Image.open(sheet))
    left = MARGIN + column * (CELL + GAP) + (len(groups) - 1) * (GROUP_GAP - GAP)
    strip = pixels[:, MARGIN : MARGIN + CELL]  # the image itself says where the row begins
    top = int(
        np.flatnonzero((strip[..., 0] == 200).any(axis=1) & (strip[..., 1] == 0).any(axis=1))[0]
    )
    return pixels[top : top + panel_height, left : left + CELL]


# ---- what is drawn ----


def test_each_class_is_where_the_image_has_it(flag, tmp_path):
    out = tmp_path / "x.png"
    assert succeed("eyes", flag, "--classes", "red,green,blue", "--out", out).startswith(
        f"wrote {out}, "
    )
    height = CELL // 2
    np.testing.assert_array_equal(find(out, height, 0, [1])[4, [4, -4]], [[200, 0, 0], [0, 200, 0]])
    seen = find(out, height, 1, [1, 5])
    for part, color, channel in (
        (seen[:, : CELL // 2 - 3], PALETTE[0], 0),
        (seen[:, CELL // 2 + 3 :], PALETTE[1], 1),
    ):
        picture = Image.new("RGB", (1, 1), tuple(200 * (place == channel) for place in range(3)))
        grey = np.asarray(picture.convert("L"))[0, 0]
        expected = np.rint(STRENGTH * np.array(color) + (1 - STRENGTH) * grey)
        is_plain = (part == expected).all(axis=-1)
        assert is_plain.mean() > 0.97, "all but the number on it"
    border = seen[4, CELL // 2 - 3 : CELL // 2 + 3]
    assert (border == INK).all(axis=-1).sum() == 1


def test_a_map_is_bright_where_its_class_is(flag, tmp_path):
    out = tmp_path / "x.png"
    succeed("eyes", flag, "--classes", "red,green,blue", "--out", out)
    red, green = (find(out, CELL // 2, column, [1, 5]) for column in (3, 4))
    assert tuple(red[9, 9]) == tuple(green[9, -9]) == HEAT[-1]
    assert tuple(red[9, -9]) == tuple(green[9, 9]) == HEAT[0]


def test_names_titles_ranges_and_the_way_it_was_made_are_written(flag, tmp_path, drawn):
    succeed("eyes", flag, "--classes", " red ,grass green,blue", "--out", tmp_path / "x.png")
    for words in ("flag.png", "eyes:student @01234567", "zero-shot classes", "patch PCA"):
        assert drawn.count(words) == 1
    for words in ("1 red", "2 grass green", "3 blue"):
        assert drawn.count(words) == 2, "over the map, and in the legend"
    assert {"1", "2"} <= set(drawn), "the numbers stand in their regions"
    assert "3" not in drawn, "which blue has none of"
    assert any(words.endswith(" to 1.000") for words in drawn)
    note = " ".join(drawn[-4:])
    assert 'protocol native, method maskclip, prompt "a photo of a {c}."' in note
    assert "shorter side 32 px, windows of 32 every 16" in note


def test_a_protocol_brings_its_windows_prompts_and_method(flag, tmp_path):
    model, shown = Eyes(), read_images([flag])
    model.dense_methods = (*model.dense_methods, "sclip")
    look = show.look(model, shown, ["red", "green"], rule=show.choose_rule("sclip", None))
    assert (look.view.size, look.view.window, look.view.stride) == (336, 224, 112)
    assert {methods for _, methods in model.asked} == {("sclip", "tokens")}
    assert len(model.texts) == 2 * 80
    assert (look.cosines[0].argmax(axis=-1)[:, [9, -9]] == [0, 1]).all()
    assert show.choose_rule("tcl", "naclip").method == "naclip"
    words = refused(
        "eyes", flag, "--classes", "red", "--protocol", "scilp", "--out", tmp_path / "x.png"
    )
    assert words.startswith("unknown protocol 'scilp'; did you mean sclip")


def test_one_forward_pass_serves_classes_and_components_of_all_images(flag):
    model = Eyes()
    shown = read_images([flag, flag])
    show.look(model, shown, ["red", "green"])
    assert model.asked == [(6, ("maskclip", "tokens"))], (
        "two pictures of 32 x 64 in three windows each"
    )
    assert sorted(model.texts) == ["a photo of a green.", "a photo of a red."]


def test_checkpoints_stand_side_by_side(flag, tmp_path, drawn):
    out = tmp_path / "x.png"
    succeed("--ckpt", "eyes", "--ckpt", "other", flag, "--classes", "red,green", "--out", out)
    assert drawn.count("eyes:student @01234567") == drawn.count("other:teacher @01234567") == 1
    one, other = find(out, CELL // 2, 1, [1, 2]), find(out, CELL // 2, 3, [1, 2, 2])
    np.testing.assert_array_equal(one, other)
    assert (one != 255).any()


def test_a_model_that_reads_nothing_shows_its_components_and_says_so(flag, tmp_path, drawn):
    out = tmp_path / "x.png"
    said = succeed("blind", flag, "--out", out)
    assert (
        said.splitlines()[0]
        == "blind: patch PCA only, for its patches meet no text (it holds an image encoder only)"
    )
    assert "patch PCA" in drawn
    assert "zero-shot classes" not in drawn
    parts = find(out, CELL // 2, 1, [1, 1])
    assert tuple(parts[9, 9]) != tuple(parts[9, -9])
    succeed("--ckpt", "eyes", "--ckpt", "blind", flag, "--classes", "red,green", "--out", out)
    assert drawn.count("zero-shot classes") == 1


def test_cosines_at_pixels_are_those_of_the_cells_up_sampled():
    rng = np.random.default_rng(0)
    layout = View(16, 16, 8).layout(16, 24, 8)
    grid, classes = rng.normal(size=(*layout.grid, 5)).astype(np.float32), rng.normal(size=(4, 5))
    (found,) = show.cosine_maps([DenseImage(0, grid, layout)], classes, [(7, 11)])
    cosines = np.einsum("ijd,cd->ijc", grid / np.linalg.norm(grid, axis=-1, keepdims=True), classes)
    expected = np.einsum(
        "hi,ijc,wj->hwc", layout.rows(7).toarray(), cosines, layout.cols(11).toarray()
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_components_are_of_all_images_and_each_has_its_own_size():
    rng = np.random.default_rng(0)
    sizes, pictures = [(5, 9), (6, 4)], []
    for height, width in ((16, 24), (16, 16)):
        layout = View(16, 16, 8).layout(height, width, 8)
        pictures.append(
            DenseImage(0, rng.normal(size=(*layout.grid, 6)).astype(np.float32), layout)
        )
    both = show.component_maps(pictures, sizes)
    assert [colors.shape for colors in both] == [(5, 9, 3), (6, 4, 3)]
    (alone,) = show.component_maps(pictures[:1], sizes[:1])
    assert (alone != both[0]).any()
    layout, colors = pictures[1].layout, show.pca_colors([picture.grid for picture in pictures])[1]
    expected = np.einsum(
        "hi,ijc,wj->hwc", layout.rows(6).toarray(), colors.astype(float), layout.cols(4).toarray()
    )
    np.testing.assert_array_equal(both[1], np.rint(expected))


# ---- images of any shape, names of any kind ----


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 500)])
def test_images_of_any_shape(tmp_path, size):
    Image.new("RGB", size, (200, 0, 0)).save(tmp_path / "a.png")
    succeed("eyes", tmp_path / "a.png", "--classes", "red,green", "--out", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").width == 2 * MARGIN + 5 * CELL + 3 * GAP + GROUP_GAP


def test_an_image_too_thin_for_its_windows_is_named(tmp_path):
    Image.new("RGB", (20_000, 1)).save(tmp_path / "line.png")
    words = refused("eyes", tmp_path / "line.png", "--classes", "red", "--out", tmp_path / "x.png")
    assert words == (
        "line.png, 20,000 x 1 pixels, becomes 39,999 windows of 32, more than 4,096: "
        "too long and thin; cut it, or leave it out"
    )


def test_names_that_the_font_lacks_are_replaced_and_said(flag, tmp_path, drawn):
    names = ["café", "кот", "猫 red", "\u202egreen", "line\nbreak", "<b>&amp;", "a" * 300]
    said = succeed("eyes", flag, "--classes", ",".join(names), "--out", tmp_path / "x.png")
    assert said.splitlines()[:-1] == [
        "class 1, 'café', is drawn as 'cafe': Pillow's own font has no other letters",
        "class 2, 'кот', is drawn as '???': Pillow's own font has no other letters",
        "class 3, '猫 red', is drawn as '? red': Pillow's own font has no other letters",
        "class 4, '\\u202egreen', is drawn as 'green': Pillow's own font has no other letters",
    ]
    assert all(words.isascii() and words.isprintable() for words in drawn)
    for words in ("1 cafe", "2 ???", "3 ? red", "4 green", "5 line break", "6 <b>&amp;"):
        assert drawn.count(words) == 2
    cut = [words for words in drawn if words.startswith("7 aaa")]
    assert len(cut) == 2
    assert cut[1].endswith("...")
    assert Image.open(tmp_path / "x.png").width < 2000


# ---- on the leaderboard's page ----


def test_an_image_goes_into_the_page_with_its_caption_escaped(flag, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(Path(__file__).parents[3] / "results" / "reported", results / "reported")
    said = succeed(
        "eyes",
        flag,
        "--classes",
        "red,<script>alert(1)</script>",
        "--out",
        "two_flags.png",
        "--results",
        results,
    )
    assert said.splitlines()[0] == (
        f"wrote {results}/pictures/two_flags.png, {_size(results / 'pictures' / 'two_flags.png')}"
    )
    page = leaderboard.to_html(leaderboard.build(results))
    assert page.count("data:image/png;base64,") == 1
    assert "<b>two flags</b>flag.png, as seen by eyes:student @01234567" in page
    assert "Classes: red, &lt;script&gt;alert(1)&lt;/script&gt;." in page
    assert "<script>" not in page


def _size(path):
    with Image.open(path) as image:
        return f"{image.width} x {image.height} pixels"


# ---- mistakes ----


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (
            "red,,blue",
            (
                "--classes 'red,,blue' holds an empty name; write them with one comma between, "
                "as in cat,grass"
            ),
        ),
        (
            "",
            "--classes '' holds an empty name; write them with one comma between, as in cat,grass",
        ),
        ("red, red", "--classes names 'red' 2 times; once is enough"),
        (
            "red\x1b[31m",
            "the class name 'red\\x1b[31m' holds a control character; write it without",
        ),
        (
            ",".join(map(str, range(len(PALETTE) + 1))),
            "33 classes are more than the 32 colours that can be told apart; name fewer",
        ),
        (
            None,
            (
                "eyes:student reads text, and no classes are named; add them, "
                'as in --classes "cat,grass"'
            ),
        ),
    ],
)
def test_classes_that_cannot_be(flag, tmp_path, classes, words):
    named = [] if classes is None else ["--classes", classes]
    assert refused("eyes", flag, *named, "--out", tmp_path / "x.png") == words
    assert not (tmp_path / "x.png").exists()


def test_as_many_classes_as_colors(flag, tmp_path):
    succeed(
        "eyes",
        flag,
        "--classes",
        ",".join(map(str, range(len(PALETTE)))),
        "--out",
        tmp_path / "x.png",
    )
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert all((pixels == color).all(axis=-1).any() for color in PALETTE)


def test_images_that_cannot_be_shown(flag, tmp_path):
    out = ("--classes", "red", "--out", tmp_path / "x.png")
    assert refused("eyes", *out) == (
        "no pictures to show; name them after the checkpoint: silc-bench show CKPT cat.jpg dog.jpg"
    )
    assert refused("eyes", tmp_path / "no.jpg", *out) == f"picture {tmp_path}/no.jpg: no such file"
    assert (
        refused("eyes", tmp_path, *out)
        == f"{tmp_path} is a folder, not a picture; name the pictures in it, as in {tmp_path}/*.jpg"
    )
    (tmp_path / "words.jpg").write_text("no picture")
    assert refused("eyes", tmp_path / "words.jpg", *out).startswith(
        f"{tmp_path}/words.jpg is not a picture that can be read: corrupt image"
    )
    (tmp_path / "half.png").write_bytes(flag.read_bytes()[:150])
    assert "half.png is not a picture that can be read" in refused(
        "eyes", tmp_path / "half.png", *out
    )


def test_places_where_it_cannot_be_written(flag, tmp_path):
    many = ("eyes", flag, "--classes", "red")
    assert refused(*many, "--out", tmp_path / "x.jpg") == (
        f"--out {tmp_path}/x.jpg: the picture is a PNG; let its name end in .png"
    )
    before = flag.read_bytes()
    assert (
        refused(*many, "--out", flag)
        == f"--out {flag} is one of the pictures to show; choose another name"
    )
    assert flag.read_bytes() == before
    assert "is not a folder" in refused(*many, "--out", flag / "x.png")
    (tmp_path / "folder.png").mkdir()
    assert refused(*many, "--out", tmp_path / "folder.png") == (
        f"--out {tmp_path}/folder.png is a folder; add the name of the picture"
    )
    assert refused(*many, "--out", "a/x.png", "--results", tmp_path) == (
        f"with --results the picture goes into {tmp_path}/pictures; "
        "give --out a name without folders"
    )


def test_models_and_methods_that_cannot_be(flag, tmp_path):
    out = (flag, "--classes", "red", "--out", tmp_path / "x.png")
    assert (
        refused("pooled", *out)
        == "pooled has no dense features to show (its last features are one vector)"
    )
    assert refused("eyes", *out, "--dense-method", "maskclop").startswith(
        "unknown dense method 'maskclop'; did you mean maskclip "
    )
    assert refused("eyes", *out, "--dense-method", "tokens").startswith(
        "unknown dense method 'tokens'; "
    )
    assert refused("eyes", *out, "--dense-method", "sclip") == (
        "eyes:student cannot give dense features by 'sclip'; it can do tokens, plain, maskclip"
    )


def test_a_model_whose_patches_meet_no_text_shows_its_components():
    model = SimpleNamespace(encode_text=len, dense_methods=("tokens", "tokens:4"))
    assert (
        show._why_without_classes(model)
        == "none of its dense features are in the space shared with text"
    )
    assert show._why_without_classes(Eyes()) == ""


def test_the_image_shows_pixels_as_they_are_read(tmp_path):
    """A palette becomes RGB before it is reduced, as for the model.

    So there is no colour between two of its numbers.
    """
    image = Image.new("P", (500, 250), 1)
    image.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    image.save(tmp_path / "a.png")
    shown = read_images([tmp_path / "a.png"])
    assert shown.sizes == ((250, 500),)
    np.testing.assert_array_equal(shown.panels[0], np.full((CELL // 2, CELL, 3), (250, 0, 0)))
