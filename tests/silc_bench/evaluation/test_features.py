"""What is encoded, how often, in which order and precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from given import extractor
from PIL import Image
from refusals import refused

from silc_bench.errors import RunError
from silc_bench.evaluation.features import choose_device, choose_precision
from silc_bench.models.preprocessing import ImagePipeline


class Images:
    """N images of one grey each; ``base`` moves the greys and with them the fingerprint."""

    name, split, class_names, labels, captions, mask_names = "greys", "test", (), None, None, ()

    def __init__(self, num_samples, base=0):
        self.greys = [(base + 7 * i) % 256 for i in range(num_samples)]
        self.fingerprint = f"{hash(tuple(self.greys)) & (2**64 - 1):016x}"

    def __len__(self):
        return len(self.greys)

    def image(self, index):
        return Image.new("RGB", (4, 4), (self.greys[index],) * 3)


class Grey:
    """Embeds an image as (grey, -grey) and a text as (length, 1).

    Counts, and records the dtype it computed in.
    """

    name, revision, embed_dim, image_size, patch_size = "grey", "0" * 16, 2, 4, 2
    pipeline = ImagePipeline(4, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # the greys themselves

    def __init__(self):
        self.feature_points = {"pooled": 2, "mean_patch": 3}
        self.image_protocol, self.text_protocol = {"resize": "none"}, {"cleaning": "none"}
        self.images = self.texts = 0
        self.matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]], requires_grad=True)
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


def test_the_feature_point_decides_what_is_encoded():
    data = Images(3, base=200)
    features = extractor(Grey(), feature_point="mean_patch")({"test": data}).image("test")
    assert features.tolist() == [[grey] * 3 for grey in data.greys]


@pytest.mark.timing
@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 1}, {"batch_size": 100}, {"num_workers": 2}, {"progress": True}]
)
def test_features_stand_in_the_datasets_order(settings):
    data = Images(10, base=200)
    features = extractor(Grey(), **settings)({"test": data}).image("test")
    assert features.dtype == np.float32
    assert features.tolist() == [[grey, -grey] for grey in data.greys]


def test_nothing_is_encoded_before_it_is_asked_for_and_then_once():
    model = Grey()
    extract = extractor(model)
    first = extract({"test": Images(10)})
    second = extract({"train": Images(10), "test": Images(6), "other": Images(6, base=1)})
    assert model.images == 0
    first.image("test")
    second.image("train")
    assert model.images == 10, "equal content under another role is the same encoding"
    assert (second.image("test") != second.image("other")).all(), "equal names, other content"
    assert model.images == 22


def test_texts_are_encoded_once_and_returned_in_the_order_asked():
    model = Grey()
    features = extractor(model, batch_size=2)({})
    assert features.text(["ccc", "a", "ccc", "bb"]).tolist() == [[3, 1], [1, 1], [3, 1], [2, 1]]
    assert features.text(["bb", "dddd"]).tolist() == [[2, 1], [4, 1]]
    assert model.texts == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_the_one_of_the_forward_pass(precision):
    model = Grey()
    features = extractor(model, precision=precision)({"test": Images(3)}).image("test")
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert features.dtype == np.float32


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
    for ask, what in (
        (lambda: features.image("test"), "image 6 of greys/test"),
        (lambda: list(features.grids("test", None, "tokens")), "image 6 of greys/test"),
        (lambda: features.text(["a", "ccc"]), "'ccc'"),
    ):
        with refused("grey", kind=RunError) as caught:
            ask()
        assert what in caught.value.problem


def test_devices_and_precisions(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == choose_device(cpu) == cpu
    assert choose_precision("auto", cpu) == "fp32"
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    assert choose_precision("bf16", cpu) == "bf16"
    for refuse in (
        lambda: choose_device("cude"),
        lambda: choose_device("cuda"),
        lambda: choose_precision("int8", cpu),
    ):
        with refused("--"):
            refuse()


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
    dense = [list(features.grids("test", None, "maskclip")) for features in (plain, compiled)]
    assert all(np.array_equal(a.grid, b.grid) for a, b in zip(*dense, strict=True))
    assert len(seen) == 2, "pooled and dense, of the compiled one"


def test_what_cannot_be_compiled_is_said(monkeypatch):
    def refusing(encode):
        def refuse(images):
            reason = RuntimeError("no working C++ compiler")
            raise torch._dynamo.exc.BackendCompilerFailed(refusing, reason, None)

        return refuse

    monkeypatch.setattr(torch, "compile", refusing)
    with refused("grey", is_kept=False) as caught:
        extractor(Grey(), is_compiled=True)({"test": Images(10, base=200)}).image("test")
    assert "no working C++ compiler" in caught.value.problem
