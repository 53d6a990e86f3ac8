"""What is encoded, how often, in which order and precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from silc_bench.errors import RunError, UserError
from silc_bench.evaluation.features import Extractor, choose_device, choose_precision
from silc_bench.models.preprocessing import ImagePipeline


class Images:
    """N pictures of one grey each; ``base`` moves the greys and with them the fingerprint."""

    name, split, class_names, labels, captions, mask_names = "greys", "test", (), None, None, ()

    def __init__(self, num_samples, base=0):
        self.greys = [(base + 7 * i) % 256 for i in range(num_samples)]
        self.fingerprint = f"{hash(tuple(self.greys)) & (2**64 - 1):016x}"

    def __len__(self):
        return len(self.greys)

    def image(self, index):
        return Image.new("RGB", (4, 4), (self.greys[index],) * 3)

    def mask(self, index):
        raise NotImplementedError


class Grey:
    """Embeds a picture as (grey, -grey) and a text as (length, 1).

    Counts, and records the dtype it computed in.
    """

    name, revision, embed_dim, image_size, patch_size = "grey", "0" * 16, 2, 4, 2
    pipeline = ImagePipeline(4, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # the greys themselves

    def __init__(self):
        self.feature_points = {"pooled": 2, "mean_patch": 3}
        self.image_protocol, self.text_protocol = {"resize": "none"}, {"cleaning": "none"}
        self.images = self.texts = 0
        self.matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
        self.dtype = None

    def preprocess(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    def tokenize(self, texts):
        return torch.tensor([[len(text)] for text in texts])

    def encode_image(self, images, point="pooled"):
        self.images += len(images)
        if point == "mean_patch":
            return images.mean(dim=(2, 3))
        features = images.mean(dim=(2, 3)) @ self.matrix.T
        self.dtype = features.dtype
        return features

    def encode_text(self, tokens):
        self.texts += len(tokens)
        return torch.stack([tokens[:, 0], torch.ones(len(tokens))], dim=1).float()

    def encode_dense(self, images, methods):
        self.images += len(images)
        patches = images[:, :2, ::2, ::2].permute(0, 2, 3, 1)
        return {method: patches * (1 if method == "tokens" else 2) for method in methods}

    def to(self, device):
        return self


def extractor(model, **options):
    defaults = {
        "device": torch.device("cpu"),
        "precision": "fp32",
        "batch_size": 4,
        "num_workers": 0,
        "progress": False,
    }
    return Extractor(model, **{**defaults, **options})


def test_the_feature_point_decides_what_is_encoded():
    data = Images(3, base=200)
    features = extractor(Grey(), feature_point="mean_patch")({"test": data}).image("test")
    expected = [np.array(data.image(i), np.float32).mean(axis=(0, 1)) for i in range(3)]
    np.testing.assert_allclose(features, expected, rtol=1e-6)


@pytest.mark.timing
@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 1}, {"batch_size": 100}, {"num_workers": 2}, {"progress": True}]
)
def test_features_stand_in_the_datasets_order(options):
    data = Images(10, base=200)
    features = extractor(Grey(), **options)({"test": data}).image("test")
    assert features.dtype == np.float32
    assert features.tolist() == [[grey, -grey] for grey in data.greys]


def test_nothing_is_encoded_before_it_is_asked_for_and_then_once():
    model = Grey()
    extract = extractor(model)
    first, second = (
        extract({"test": Images(10)}),
        extract({"train": Images(10), "test": Images(6)}),
    )
    assert model.images == 0
    first.image("test")
    second.image("train")
    assert model.images == 10, (
        "equal content under another role, in another object, is the same encoding"
    )
    second.image("test")
    assert model.images == 16


def test_equal_names_with_other_content_are_not_mixed_up():
    extract = extractor(Grey())
    first = extract({"test": Images(5)}).image("test")
    second = extract({"test": Images(5, base=1)}).image("test")
    assert (first != second).all()


def test_texts_are_encoded_once_and_returned_in_the_order_asked():
    model = Grey()
    features = extractor(model, batch_size=2)({})
    assert features.text(["ccc", "a", "ccc", "bb"]).tolist() == [[3, 1], [1, 1], [3, 1], [2, 1]]
    assert model.texts == 3
    assert features.text(["bb", "dddd"]).tolist() == [[2, 1], [4, 1]]
    assert model.texts == 4


def test_dense_features_come_in_batches_when_they_are_taken():
    model = Grey()
    pictures = extractor(model)({"test": Images(10)}).grids("test", None, "maskclip")
    assert model.images == 0
    first = next(pictures)
    assert model.images == 4
    assert first.grid.shape == (2, 2, 2)
    rest = np.stack([picture.grid for picture in (first, *pictures)])
    assert rest[:, 0, 0, 0].tolist() == [2 * grey for grey in Images(10).greys]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_the_one_of_the_forward_pass(precision, dtype):
    model = Grey()
    features = extractor(model, precision=precision)({"test": Images(3)}).image("test")
    assert model.dtype == dtype
    assert features.dtype == np.float32


def test_gradients_are_not_kept():
    model = Grey()
    model.matrix.requires_grad_()
    extractor(model)({"test": Images(3)}).image("test")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_stop_the_run(value):
    class Diverged(Grey):
        def encode_image(self, images, point="pooled"):
            features = super().encode_image(images)
            features[images.mean(dim=(1, 2, 3)).round() == 42, 1] = value  # the seventh image
            return features

        def encode_dense(self, images, methods):
            return dict.fromkeys(methods, self.encode_image(images)[:, None, None])

        def encode_text(self, tokens):
            return torch.where(tokens == 3, value, 1.0).expand(-1, 2)

    features = extractor(Diverged())({"test": Images(10)})
    with pytest.raises(
        RunError, match="grey gives image features that are not finite for picture 6 of greys/test"
    ):
        features.image("test")
    dense = (
        "grey gives tokens features that are not finite, or beyond fp16, "
        "for picture 6 of greys/test"
    )
    with pytest.raises(RunError, match=dense):
        list(features.grids("test", None, "tokens"))
    with pytest.raises(RunError, match="not finite: 'ccc'"):
        features.text(["a", "ccc"])


def test_devices_and_precisions():
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("auto", cpu) == "fp32"
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    assert choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(UserError, match="did you mean"):
        choose_device("cude")
    with pytest.raises(UserError, match="unknown precision"):
        choose_precision("int8", cpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there():
    with pytest.raises(UserError, match="finds no GPU here; use --device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_compiled_features_are_the_same(monkeypatch):
    """Of the plumbing: what a compiler does to the last bits of a real tower is its own affair."""
    real, seen = torch.compile, []

    def compile_eagerly(encode):
        seen.append(encode)
        return real(encode, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    data = {"test": Images(10, base=200)}
    plain, compiled = (extractor(Grey(), is_compiled=flag)(data) for flag in (False, True))
    assert np.array_equal(plain.image("test"), compiled.image("test"))
    dense = [
        np.stack([picture.grid for picture in one.grids("test", None, "maskclip")])
        for one in (plain, compiled)
    ]
    assert np.array_equal(*dense)
    assert len(seen) == 2, "pooled and dense, of the compiled one"


def test_what_cannot_be_compiled_is_said(monkeypatch):
    def refusing(encode):
        def refuse(images):
            raise torch._dynamo.exc.BackendCompilerFailed(
                refusing, RuntimeError("no working C++ compiler"), None
            )

        return refuse

    monkeypatch.setattr(torch, "compile", refusing)
    with pytest.raises(UserError, match=r"grey cannot be compiled here .*leave --compile out"):
        extractor(Grey(), is_compiled=True)({"test": Images(10, base=200)}).image("test")
