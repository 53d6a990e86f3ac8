"""What ``silc-bench show`` draws: classes in place, harmless names, a sentence for each mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from refusals import refused
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.cli.show import show as command
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.windows import DenseImage, View
from silc_bench.show import look as show
from silc_bench.show.asked import choose_rule, read_images
from silc_bench.show.colors import HEAT, INK, PALETTE
from silc_bench.show.sheet import CELL, GAP, GROUP_GAP, MARGIN

pytestmark = pytest.mark.broad

SIZE, PATCH = 32, 8
COLORS = ("red", "green", "blue")


class Eyes:
    """Its patch features are the mean colours of the patches; it reads the names of colours."""

    revision, embed_dim, image_size, patch_size, num_params = "0123456789abcdef", 3, SIZE, PATCH, 0
    dense_methods = ("tokens", "plain", "maskclip")
    pipeline = ImagePipeline(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self, name="eyes:student", **fields):
        self.name, self.asked, self.texts, self.lacking = name, [], [], {}
        self.text_protocol = {"cleaning": "none"}
        self.__dict__ |= fields

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


NO_TEXT = {"dense_methods": ("tokens",), "encode_text": None, "tokenize": None}
MODELS = {
    "eyes": Eyes,
    "other": lambda: Eyes("other:teacher"),
    "blind": lambda: Eyes("blind", lacking={"text": "it holds an image encoder only"}, **NO_TEXT),
    "outside": lambda: Eyes("outside", dense_methods=("tokens", "tokens:4")),
    "pooled": lambda: Eyes("pooled", lacking={"dense": "one vector"}, encode_dense=None),
}


@pytest.fixture(autouse=True)
def _models(monkeypatch):
    monkeypatch.setattr("silc_bench.models.load.check_spec", lambda spec, arch: None)
    monkeypatch.setattr("silc_bench.models.load.load_model", lambda spec, arch: MODELS[spec]())
    monkeypatch.setattr("silc_bench.cli.show.shared", lambda ctx, name: None)
    monkeypatch.setattr("silc_bench.cli.show._measured", lambda spec, results: None)


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


@pytest.fixture
def run(tmp_path, flag):
    """``run("eyes")`` draws the flag into x.png of that folder; what it prints."""

    def run_command(*args, images=(flag,), out=tmp_path / "x.png"):
        words = ["show", *args, *images, "--out", out]
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        assert not result.stderr
        return result.stdout

    return run_command


def panel(tmp_path, column, groups):
    """[CELL // 2, CELL, 3] of the flag's panel in that column of x.png.

    ``groups``: columns of each group before and with it.
    """
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    left = MARGIN + column * (CELL + GAP) + (len(groups) - 1) * (GROUP_GAP - GAP)
    strip = pixels[:, MARGIN : MARGIN + CELL]  # the image itself says where the row begins
    is_red = (strip[..., 0] == 200) & (strip[..., 1] == 0)
    top = int(is_red.any(axis=1).argmax())
    return pixels[top : top + CELL // 2, left : left + CELL]


# ---- what is drawn ----


def test_each_class_is_where_the_image_has_it(run, tmp_path):
    assert str(tmp_path / "x.png") in run("eyes", "--classes", "red,green,blue")
    corners = panel(tmp_path, 0, [1])[4, [4, -4]]
    np.testing.assert_array_equal(corners, [[200, 0, 0], [0, 200, 0]])

    seen = panel(tmp_path, 1, [1, 5])
    for part, label in ((seen[:, : CELL // 2 - 3], 0), (seen[:, CELL // 2 + 3 :], 1)):
        is_plain = (part == PALETTE[label]).all(axis=-1)
        assert is_plain.mean() > 0.97, "all but the number on it"
    border = seen[4, CELL // 2 - 3 : CELL // 2 + 3]
    assert (border == INK).all(axis=-1).sum() == 1

    # a map is bright where its class is
    red, green = (panel(tmp_path, column, [1, 5]) for column in (3, 4))
    assert tuple(red[9, 9]) == tuple(green[9, -9]) == HEAT[-1]
    assert tuple(red[9, -9]) == tuple(green[9, 9]) == HEAT[0]


def test_names_titles_ranges_and_the_way_it_was_made_are_written(run, drawn):
    run("eyes", "--classes", " red ,grass green,blue")
    once = ("flag.png", "eyes:student @01234567", "zero-shot classes", "patch PCA")
    twice = ("1 red", "2 grass green", "3 blue")  # over the map, and in the legend
    assert [drawn.count(words) for words in (*once, *twice)] == [1] * 4 + [2] * 3
    assert {"1", "2", "3"} & set(drawn) == {"1", "2"}, "in their regions; there is no blue"
    assert any(words.endswith(" to 1.000") for words in drawn)
    note = " ".join(drawn)
    assert 'protocol native, method maskclip, prompt "a photo of a {c}."' in note
    assert "shorter side 32 px, windows of 32 every 16" in note


def test_a_protocol_brings_its_windows_prompts_and_method(flag):
    model = Eyes(dense_methods=("tokens", "sclip"))
    rule = choose_rule("sclip", None)
    look = show.look(model, read_images([flag]), ["red", "green"], rule=rule)
    assert (look.view.size, look.view.window, look.view.stride) == (336, 224, 112)
    assert {methods for _, methods in model.asked} == {("sclip", "tokens")}
    assert len(set(model.texts)) == 2 * 80
    assert (look.cosines[0].argmax(axis=-1)[:, [9, -9]] == [0, 1]).all()
    assert choose_rule("tcl", "naclip").method == "naclip"


def test_one_forward_pass_serves_classes_and_components_of_all_images(flag):
    model = Eyes()
    show.look(model, read_images([flag, flag]), ["red", "green"])
    assert model.asked == [(6, ("maskclip", "tokens"))], "two images, three windows each"


def test_checkpoints_stand_side_by_side(run, tmp_path, drawn):
    run("--ckpt", "eyes", "--ckpt", "other", "--classes", "red,green")
    assert drawn.count("eyes:student @01234567") == drawn.count("other:teacher @01234567") == 1
    eyes, other = panel(tmp_path, 1, [1, 2]), panel(tmp_path, 3, [1, 2, 2])
    np.testing.assert_array_equal(eyes, other)
    assert (eyes != 255).any()


@pytest.mark.parametrize(
    ("model", "reason"),
    [("blind", "it holds an image encoder only"), ("outside", "space shared with text")],
)
def test_a_model_whose_patches_meet_no_text_shows_its_components_and_says_so(
    run, tmp_path, drawn, model, reason
):
    assert reason in run(model)
    assert "patch PCA" in drawn
    assert "zero-shot classes" not in drawn
    parts = panel(tmp_path, 1, [1, 1])
    assert tuple(parts[9, 9]) != tuple(parts[9, -9])
    run("--ckpt", "eyes", "--ckpt", model, "--classes", "red,green")
    assert drawn.count("zero-shot classes") == 1


def up_sampled(layout, cells, height, width):
    rows, cols = layout.rows(height).toarray(), layout.cols(width).toarray()
    return np.einsum("hi,ijc,wj->hwc", rows, cells.astype(float), cols)


def make_image(rng, height, width):
    layout = View(16, 16, 8).layout(height, width, 8)
    return DenseImage(0, rng.normal(size=(*layout.grid, 5)).astype(np.float32), layout)


def test_cosines_at_pixels_are_those_of_the_cells_up_sampled():
    rng = np.random.default_rng(0)
    image, classes = make_image(rng, 16, 24), rng.normal(size=(4, 5))
    (cosines,) = show.cosine_maps([image], classes, [(7, 11)])
    cells = image.grid / np.linalg.norm(image.grid, axis=-1, keepdims=True) @ classes.T
    np.testing.assert_allclose(cosines, up_sampled(image.layout, cells, 7, 11), atol=1e-6)


def test_components_are_of_all_images_and_each_has_its_own_size():
    rng = np.random.default_rng(0)
    images, sizes = [make_image(rng, 16, 24), make_image(rng, 16, 16)], [(5, 9), (6, 4)]
    colors = show.pca_colors([image.grid for image in images])
    maps = show.component_maps(images, sizes)
    for image, color, drawn, size in zip(images, colors, maps, sizes, strict=True):
        np.testing.assert_array_equal(drawn, np.rint(up_sampled(image.layout, color, *size)))


# ---- images of any shape, names of any kind ----


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 500)])
def test_images_of_any_shape(run, tmp_path, size):
    Image.new("RGB", size, (200, 0, 0)).save(tmp_path / "a.png")
    run("eyes", "--classes", "red,green", images=[tmp_path / "a.png"])
    assert Image.open(tmp_path / "x.png").width == 2 * MARGIN + 5 * CELL + 3 * GAP + GROUP_GAP


def test_names_that_the_font_lacks_are_replaced_and_said(run, drawn):
    names = ["café", "猫 red", "\u202egreen", "line\nbreak", "<b>&amp;"]
    *said, _ = run("eyes", "--classes", ",".join(names)).splitlines()
    for line, name, shown in zip(said, names, ("cafe", "? red", "green"), strict=False):
        assert f"{name!r}, is drawn as {shown!r}" in line
    assert len(said) == 3
    assert all(words.isascii() and words.isprintable() for words in drawn)
    for words in ("1 cafe", "2 ? red", "3 green", "4 line break", "5 <b>&amp;"):
        assert drawn.count(words) == 2


def test_the_image_shows_pixels_as_they_are_read(tmp_path):
    """A palette becomes RGB before it is reduced: no colour between two of its numbers."""
    image = Image.new("P", (500, 250), 1)
    image.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    image.save(tmp_path / "a.png")
    (panel,) = read_images([tmp_path / "a.png"]).panels
    np.testing.assert_array_equal(panel, np.full((CELL // 2, CELL, 3), (250, 0, 0)))


def test_an_image_goes_onto_the_page_with_its_caption(run, tmp_path):
    said = run("eyes", "--classes", "red,<b>", "--results", tmp_path, out="two_flags.png")
    path = tmp_path / "pictures" / "two_flags.png"
    with Image.open(path) as image:
        assert f"{path}, {image.width} x {image.height} pixels" in said
    caption = path.with_suffix(".txt").read_text()
    assert caption.startswith("flag.png, as seen by eyes:student @01234567 ")
    assert caption.endswith(" Classes: red, <b>.\n")


# ---- mistakes ----

MISTAKES = {
    "an empty name": ("--classes", {"classes": "red,,blue"}),
    "no name": ("--classes", {"classes": ""}),
    "a name twice": ("--classes", {"classes": "red, red"}),
    "a control character": ("--classes", {"classes": "red\x1b[31m"}),
    "too many classes": ("--classes", {"classes": ",".join(map(str, range(len(PALETTE) + 1)))}),
    "no classes": ("eyes:student", {"classes": None}),
    "no images": ("IMAGE", {"images": []}),
    "no such image": ("no.jpg", {"images": ["no.jpg"]}),
    "a folder": ("folder.png", {"images": ["folder.png"]}),
    "text": ("words.jpg", {"images": ["words.jpg"]}),
    "half an image": ("half.png", {"images": ["half.png"]}),
    "a strip": ("line.png", {"images": ["line.png"]}),
    "no PNG": ("--out", {"out": "x.jpg"}),
    "over an image": ("--out", {"out": "flag.png"}),
    "over a folder": ("--out", {"out": "folder.png"}),
    "folders with results": ("--out", {"out": "a/x.png", "results": Path("results")}),
    "protocol": ("--protocol", {"protocol": "scilp"}),
    "method": ("--dense-method", {"dense_method": "maskclop"}),
    "method without text": ("--dense-method", {"dense_method": "tokens"}),
    "method of other models": ("eyes:student", {"dense_method": "sclip"}),
    "below an image": ("flag.png", {"out": "flag.png/x.png"}),
    "no places": ("pooled", {"model": "pooled"}),
}


def call(images=("flag.png",), model="eyes", classes="red", out="x.png", **options):
    """The command, whose errors are caught and printed elsewhere."""
    command.__wrapped__(None, [model, *images], classes=classes, out=Path(out), **options)


@pytest.fixture
def here(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("words.jpg").write_text("no image")
    Path("half.png").write_bytes(flag.read_bytes()[:150])
    Image.new("RGB", (20_000, 1)).save("line.png")


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("here")
def test_mistakes(mistake):
    about, options = MISTAKES[mistake]
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    with refused(about=about, is_kept=mistake not in ("text", "half an image")):
        call(**options)
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
