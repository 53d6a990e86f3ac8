"""What is encoded, how often, in which order and precision."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given import Means, Noise, extractor
from refusals import refused

from silc_bench.errors import DataError, RunError
from silc_bench.evaluation import dense_features, features
from silc_bench.evaluation.dense_features import processes_for
from silc_bench.evaluation.features import choose_device, choose_precision


def images(count, seed=0):
    return Noise([(8, 8)] * count, seed)


DATA = images(10)
EXPECTED = np.stack([Means().preprocess(DATA.image(i)).mean(dim=(1, 2)).numpy() for i in range(10)])


@pytest.mark.timing
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 100},
        {"num_workers": 2},
        {"progress": True},
        {"feature_point": "mean_patch"},
    ],
    ids=str,
)
def test_features_stand_in_the_datasets_order(settings):
    features = extractor(Means(), **settings)({"test": DATA}).image("test")
    assert features.dtype == np.float32
    scale = 2 if "feature_point" in settings else 1
    np.testing.assert_allclose(features, scale * EXPECTED, atol=1e-6)


class OneDamaged(Noise):
    """The third image cannot be read, or kills who reads it."""

    kills = False

    def image(self, index):
        if index == 2 and self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 2:
            raise DataError("the image is damaged", about="a.tar:2", fix="fetch it again")
        return super().image(index)


def ask_pooled(features):
    features.image("test")


def ask_dense(features):
    list(features.grids("test", None, "tokens"))


@pytest.mark.timing
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("ask", [ask_pooled, ask_dense])
def test_a_damaged_image_is_one_sentence_whoever_reads(ask, num_workers):
    data = OneDamaged([(8, 8)] * 6)
    features = extractor(Means(), num_workers=num_workers)({"test": data})
    with refused("a.tar:2", DataError) as caught:
        ask(features)
    assert str(caught.value) == "a.tar:2: the image is damaged; fetch it again"


@pytest.mark.timing
@pytest.mark.parametrize("ask", [ask_pooled, ask_dense])
def test_a_killed_worker_is_one_sentence(ask):
    data = OneDamaged([(8, 8)] * 6)
    data.kills = True
    with refused("--workers", RunError, is_kept=False):
        ask(extractor(Means(), num_workers=1)({"test": data}))


def test_nothing_is_encoded_before_it_is_asked_for_and_then_once():
    model = Means()
    extract = extractor(model)
    first = extract({"test": DATA})
    second = extract({"train": images(10), "test": images(6), "other": images(6, seed=1)})
    assert model.images == 0
    first.image("test")
    second.image("train")
    assert model.images == 10, "equal content under another role is the same encoding"
    assert (second.image("test") != second.image("other")).all(), "equal names, other content"
    assert model.images == 22


def test_texts_are_encoded_once_and_returned_in_the_order_asked():
    model = Means()
    features = extractor(model, batch_size=2)({})
    assert features.text(["ccc", "a", "ccc", "bb"])[:, 0].tolist() == [3, 1, 3, 2]
    assert features.text(["bb", "dddd"])[:, 0].tolist() == [2, 4]
    assert model.texts == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_the_one_of_the_forward_pass(precision):
    model = Means()
    features = extractor(model, precision=precision)({"test": DATA}).image("test")
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert features.dtype == np.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_stop_the_run(value):
    class Diverged(Means):
        def encode_image(self, images, point="pooled"):
            features = super().encode_image(images)
            features[2, 1] = value if self.images > 4 else 0  # the seventh image
            return features

        def encode_text(self, tokens):
            return torch.where(tokens[:, :1] == 3, value, 1.0).expand(-1, 3)

    features = extractor(Diverged())({"test": DATA})
    for ask, what in (
        (lambda: features.image("test"), "image 6 of noise/test"),
        (lambda: features.text(["a", "ccc"]), "'ccc'"),
    ):
        with refused("means", kind=RunError) as caught:
            ask()
        assert what in caught.value.problem


def test_devices_and_precisions(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == choose_device(cpu) == cpu
    assert choose_precision("auto", cpu) == "fp32"
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    assert choose_precision("bf16", cpu) == "bf16"


def test_compiled_features_are_the_same(monkeypatch):
    """Of the plumbing: what a compiler does to the last bits of a real tower is its own affair."""
    real, seen = torch.compile, []

    def compile_eagerly(encode):
        seen.append(encode)
        return real(encode, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain, compiled = (extractor(Means(), is_compiled=flag)({"test": DATA}) for flag in (0, 1))
    assert np.array_equal(plain.image("test"), compiled.image("test"))
    dense = [list(features.grids("test", None, "twice")) for features in (plain, compiled)]
    assert all(np.array_equal(a.grid, b.grid) for a, b in zip(*dense, strict=True))
    assert len(seen) == 2, "pooled and dense, of the compiled one"


def test_what_cannot_be_compiled_is_said(monkeypatch):
    def refusing(encode):
        def refuse(images):
            reason = RuntimeError("no working C++ compiler")
            raise torch._dynamo.exc.BackendCompilerFailed(refusing, reason, None)

        return refuse

    monkeypatch.setattr(torch, "compile", refusing)
    with refused("means", is_kept=False) as caught:
        extractor(Means(), is_compiled=True)({"test": DATA}).image("test")
    assert "no working C++ compiler" in caught.value.problem


MB = 2**20


@pytest.mark.parametrize(
    ("num_images", "drawn", "machine", "expected"),
    [
        (10_000, False, {}, 4),
        (600, False, {}, 2),  # one for each 256
        (255, False, {}, 0),
        (10_000, True, {}, 0),  # what is drawn is drawn once, by this process
        (10_000, False, {"cores": 1}, 0),
        (10_000, False, {"ranks": 2}, 2),
        (10_000, False, {"shared": 64 * MB}, 2),  # a container's
        (10_000, False, {"shared": MB}, 0),
        (10_000, False, {"method": "spawn"}, 0),
    ],
)
def test_as_many_processes_decode_as_pay_off_here(
    monkeypatch, num_images, drawn, machine, expected
):
    here = {"cores": 4, "ranks": 1, "shared": 1000 * MB, "method": "fork", **machine}
    monkeypatch.setattr(dense_features, "num_cores", lambda: here["cores"])
    monkeypatch.setattr(dense_features, "num_local_ranks", lambda: here["ranks"])
    monkeypatch.setattr(dense_features, "shared_memory", lambda: here["shared"])
    context = SimpleNamespace(get_start_method=lambda: here["method"])
    monkeypatch.setattr(dense_features.multiprocessing, "get_context", lambda: context)
    data = SimpleNamespace(is_drawn=drawn)
    assert processes_for(data, num_images, 10 * MB) == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, 5), (0, 0), (7, 7)])
@pytest.mark.parametrize("ask", [ask_pooled, ask_dense])
def test_what_the_user_says_counts(monkeypatch, ask, asked, expected):
    counts = []

    def prepared(images, indices, *, num_workers, **_):
        counts.append(num_workers)
        return as_it_is(images, indices, num_workers=0, **_)

    as_it_is = dense_features.prepared
    for module in (features, dense_features):
        monkeypatch.setattr(module, "processes_for", lambda *_: 5)
        monkeypatch.setattr(module, "prepared", prepared)
    ask(extractor(Means(), num_workers=asked)({"test": DATA}))
    assert counts == [expected]
