"""Modules in memory: what they can do is what their checkpoints can, and what they lack is said."""

import copy

import hf_folders
import pytest
import torch
from given import Noise
from refusals import refused
from torch import nn
from torch.testing import assert_close
from torchvision import transforms as tv

from silc_bench.models.adapters.in_memory import GivenPreprocess, pipeline_of, wrap
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model
from silc_bench.models.preprocessing import ImagePipeline

pytestmark = pytest.mark.broad

SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
HALF = tv.Normalize((0.5,) * 3, (0.5,) * 3)
STEPS = [tv.Resize(16), tv.CenterCrop(16), tv.ToTensor(), HALF]


class Module(nn.Module):
    """Embeds an image as what a matrix makes of its mean colours, a text as its length."""

    def __init__(self):
        super().__init__()
        self.color = nn.Linear(3, 5)
        self.words = nn.Embedding(100, 5)
        self.drop = nn.Dropout(0.5)

    def encode_image(self, images):
        return self.drop(self.color(images.mean(dim=(2, 3))))

    def encode_text(self, tokens):
        return self.drop(self.words(tokens).mean(dim=1))


def lengths(texts):
    return torch.tensor([[len(text) % 100, text.count("e") % 100] for text in texts])


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Module()


@pytest.fixture(scope="module")
def open_clip():
    """(the library, a model of random weights, its preprocess, its tokenizer)."""
    library = pytest.importorskip("open_clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(library.factory._MODEL_CONFIGS, "in-memory", SMALL)
        torch.manual_seed(0)
        model, _, preprocess = library.create_model_and_transforms("in-memory")
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
        yield library, model, preprocess, library.get_tokenizer("in-memory")


def images():
    noise = Noise([(50, 41), (33, 64)])
    return [noise.image(index) for index in range(2)]


# ---- modules of libraries ----


def test_a_model_of_open_clip_is_what_its_file_is(open_clip, tmp_path):
    _, module, preprocess, tokenizer = open_clip
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    loaded = load_model(f"open_clip:in-memory/{tmp_path}/weights.pt")
    wrapped = wrap(module, preprocess, tokenizer, name="mine")
    assert isinstance(wrapped, DenseModel)
    assert isinstance(wrapped, ImageTextModel)
    assert (wrapped.name, wrapped.lacking) == ("mine", loaded.lacking)
    assert wrapped.pipeline == loaded.pipeline, "the very same pixels"
    assert wrapped.text_protocol == loaded.text_protocol
    assert wrapped.feature_points == loaded.feature_points
    assert wrapped.dense_methods == loaded.dense_methods
    pixels = torch.stack([loaded.preprocess(image) for image in images()])
    tokens = loaded.tokenize(["a cat", "two dogs"])
    with torch.inference_mode():
        assert_close(wrapped.encode_image(pixels), loaded.encode_image(pixels))
        assert_close(wrapped.encode_text(tokens), loaded.encode_text(tokens))
        ours, theirs = (model.encode_dense(pixels, ["naclip"]) for model in (wrapped, loaded))
    assert_close(ours["naclip"], theirs["naclip"])


@pytest.mark.parametrize("kind", ["clip", "siglip", "naflex"])
def test_a_model_of_transformers_is_what_its_folder_is(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = hf_folders.write(kind, tmp_path / "own")
    loaded = load_model(f"hf:{folder}")
    kinds = {"clip": "CLIPModel", "siglip": "SiglipModel", "naflex": "Siglip2Model"}
    module = getattr(transformers, kinds[kind]).from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wrapped = wrap(module, processor, tokenizer, name=loaded.name)
    assert wrapped.revision == loaded.revision, "the same weights"
    assert wrapped.image_protocol == loaded.image_protocol
    assert wrapped.text_protocol == loaded.text_protocol
    assert isinstance(wrapped, DenseModel) == isinstance(loaded, DenseModel)
    with refused(about="wrap"):
        wrap(module, processor)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_model_of_timm_is_what_its_file_is(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=0)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    loaded = load_model(f"timm:{name}/{tmp_path}/weights.pt")
    config = timm.data.resolve_model_data_config(module)
    wrapped = wrap(module, timm.data.create_transform(**config, is_training=False), name="own")
    assert wrapped.revision == loaded.revision, "the same weights"
    assert (wrapped.feature_points, wrapped.lacking) == (loaded.feature_points, loaded.lacking)
    assert wrapped.dense_methods == loaded.dense_methods
    pixels = torch.stack([loaded.preprocess(image) for image in images()])
    assert torch.equal(wrapped.preprocess(images()[0]), loaded.preprocess(images()[0]))
    with torch.inference_mode():
        assert_close(wrapped.encode_image(pixels), loaded.encode_image(pixels))
    with refused(about="wrap", is_kept=False):
        wrap(module, lambda image: wrapped.preprocess(image.rotate(9)))


@pytest.mark.parametrize("given", ["no tokenizer", "other steps"])
def test_what_a_model_of_open_clip_lacks_is_said(open_clip, capsys, given):
    _, module, preprocess, tokenizer = open_clip
    if given == "no tokenizer":
        wrapped = wrap(module, preprocess, name="mine")
        lacks, rest = "text", (True, False)
    else:
        wrapped = wrap(module, lambda image: preprocess(image.rotate(9)), tokenizer, name="mine")
        lacks, rest = "dense", (False, True)
    assert (isinstance(wrapped, DenseModel), isinstance(wrapped, ImageTextModel)) == rest
    said = {"text": "mine gives no text: ", "dense": "mine gives no patch features: "}[lacks]
    assert capsys.readouterr().err == f"{said}{wrapped.lacking[lacks]}\n"


# ---- any module ----


def test_any_module_is_measured_by_its_own_functions(module, capsys):
    wrapped = wrap(module, tv.Compose(STEPS), lengths, name="own\nname")
    assert isinstance(wrapped, ImageTextModel)
    assert not isinstance(wrapped, DenseModel)
    assert wrapped.name == "own%0Aname"
    assert (wrapped.embed_dim, wrapped.image_size, wrapped.num_params) == (5, 16, 520)
    assert wrapped.text_protocol["length"] == 2
    assert "patch features" in capsys.readouterr().err
    assert repr(wrapped).endswith("in memory: 520 parameters, 16 px, images, text>")


def test_it_is_measured_in_evaluation_mode_and_goes_on_as_it_was(module):
    module.color.eval()  # frozen on purpose
    before = [part.training for part in module.modules()]
    wrapped = wrap(module, tv.Compose(STEPS), lengths)
    pixels = torch.rand(4, 3, 16, 16)
    assert torch.equal(wrapped.encode_image(pixels), wrapped.encode_image(pixels)), "no dropout"
    assert [part.training for part in module.modules()] == before
    assert all(weight.requires_grad for weight in module.parameters())


def test_its_revision_is_that_of_its_weights_at_each_moment(module):
    wrapped, twin = (wrap(one, tv.Compose(STEPS)) for one in (module, copy.deepcopy(module)))
    first = wrapped.revision
    assert first == twin.revision
    module.color.bias.data += 1
    assert wrapped.refreshed().revision != first
    module.color.bias.data -= 1
    assert nn.DataParallel(module).module is module
    assert wrap(nn.DataParallel(module), tv.Compose(STEPS)).revision == wrapped.refreshed().revision


class NoText(Module):
    encode_text = None


class NoImage(Module):
    encode_image = None


class OneVector(Module):
    def encode_image(self, images):
        return super().encode_image(images)[0]


class Broken(Module):
    def encode_image(self, images):
        raise KeyError("pixel_values")


class Endless(Module):
    def encode_image(self, images):
        return super().encode_image(images) / 0


class TwoSpaces(Module):
    def encode_text(self, tokens):
        return super().encode_text(tokens)[:, :3]


@pytest.mark.parametrize(
    ("model", "preprocess", "tokenizer"),
    [
        (NoImage, tv.Compose(STEPS), None),
        (OneVector, tv.Compose(STEPS), None),
        (Broken, tv.Compose(STEPS), None),
        (Endless, tv.Compose(STEPS), None),
        (TwoSpaces, tv.Compose(STEPS), lengths),
        (lambda: Module().half(), tv.Compose(STEPS), None),
        (lambda: "runs/own", tv.Compose(STEPS), None),
        (Module, None, None),
        (Module, tv.ToTensor(), None),  # each image in its own shape
        (Module, tv.Compose([tv.Resize((8, 16)), tv.ToTensor()]), None),
        (Module, lambda image: image, None),
        (Module, lambda image: image.no_such_method(), None),
        (Module, tv.Compose(STEPS), lambda texts: [[1], [1, 2], [3]]),
        (Module, tv.Compose(STEPS), lambda texts: torch.ones(1, 2)),
        (Module, tv.Compose(STEPS), lambda texts: {"input_ids": [[1]] * len(texts)}),
    ],
)
def test_what_cannot_be_used_is_refused(model, preprocess, tokenizer):
    with refused(about="wrap", is_kept=False):
        wrap(model(), preprocess, tokenizer)


def test_a_module_without_text_says_so():
    assert "NoText has no encode_text" in wrap(NoText(), tv.Compose(STEPS), lengths).lacking["text"]


# ---- preprocess ----


@pytest.mark.parametrize(
    ("steps", "is_chain"),
    [
        (STEPS, True),
        (
            [tv.Resize(18, tv.InterpolationMode.BICUBIC), tv.CenterCrop(16), tv.ToTensor(), HALF],
            True,
        ),
        ([tv.Resize((16, 16)), tv.ToTensor(), HALF], True),
        ([tv.Resize((20, 20)), tv.CenterCrop(16), tv.ToTensor(), HALF], True),
        ([tv.ToTensor(), tv.Resize(16, antialias=True), tv.CenterCrop(16), HALF], False),
        ([*STEPS[:3], lambda image: image.flip(2), HALF], False),
        (STEPS[:3], False),
    ],
)
def test_a_chain_is_taken_for_one_only_where_its_pixels_are_the_same(steps, is_chain):
    given = tv.Compose(steps)
    pipeline = pipeline_of(given, "wrap")
    assert isinstance(pipeline, ImagePipeline) == is_chain
    for image in images():
        assert torch.equal(pipeline(image), given(image))
    assert pipeline.size == 16


def test_what_is_told_of_another_preprocess(capsys):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    steps = [*STEPS[:3], lambda image: image.flip(2), tv.Normalize(mean, std)]
    told = GivenPreprocess(tv.Compose(steps), "wrap").as_dict()
    assert told == told | {"size": 16, "mean": mean, "std": std}
    other = [*steps[:4], tv.Normalize(std, mean)]
    assert GivenPreprocess(tv.Compose(other), "wrap").pixels != told["pixels"]
    assert capsys.readouterr().err == ""
    pipeline_of(tv.Compose(STEPS[:3]), "wrap 'mine'")
    assert "subtracts no mean, and its pixels run from 0 to 1;" in capsys.readouterr().err
