"""Zero-shot and retrieval of a real model with random weights, as clip_benchmark measures it."""

from __future__ import annotations

import importlib.util
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given import GivenData, GivenFeatures

from silc_bench.evaluation.prompts import Prompts
from silc_bench.tasks.classification.zeroshot import ZeroShot
from silc_bench.tasks.retrieval import Retrieval

CLASSES = [
    f"{colour} {thing}"
    for colour in ("red", "green", "blue")
    for thing in ("cat", "dog", "cow", "hen")
]
TEMPLATES = ("a photo of a {c}.", "the {c}", "many {c} together")


@pytest.fixture(scope="module")
def peer():
    """Its two evaluations.

    It imports ``requests`` for downloads, and calls float() on arrays, which numpy 2.4 refuses.
    """
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("requests") is None:
            patch.setitem(sys.modules, "requests", types.ModuleType("requests"))
        from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

        patch.setattr(
            zeroshot_classification,
            "float",
            lambda value: float(np.asarray(value).item()),
            raising=False,
        )
        yield SimpleNamespace(
            zeroshot=zeroshot_classification.evaluate, retrieval=zeroshot_retrieval.evaluate
        )


@pytest.fixture(scope="module")
def tiny():
    """An open_clip model of two layers a tower, and its tokenizer."""
    import open_clip

    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    return open_clip.CLIP(32, vision, text).eval(), open_clip.SimpleTokenizer()


class Loader(list):
    """Batches, with the classes that it looks for behind them."""

    dataset = SimpleNamespace(classes=CLASSES)


@torch.no_grad()
def features_of(tiny, images, **fields):
    model, tokenizer = tiny
    embeddings = model.encode_image(images).numpy()
    data = GivenData(class_names=tuple(CLASSES), **fields)

    class Features(GivenFeatures):
        @torch.no_grad()
        def text(self, texts):
            return model.encode_text(tokenizer(list(texts))).numpy()

    return Features(data={"test": data}, images={"test": embeddings})


PER_CLASS = {
    name: tuple(f"{name} number {k}" for k in range(1 + c % 4)) for c, name in enumerate(CLASSES)
}


@pytest.mark.parametrize(
    ("prompts", "theirs"),
    [
        (Prompts("three", TEMPLATES), list(TEMPLATES)),
        (Prompts("own", per_class=PER_CLASS), {name: list(own) for name, own in PER_CLASS.items()}),
    ],
    ids=["templates", "per class"],
)
def test_zeroshot_equals_its_evaluation(peer, tiny, prompts, theirs):
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(240, 3, 32, 32, generator=rng)
    labels = torch.randint(0, len(CLASSES) - 1, (240,), generator=rng)  # a class without an image
    loader = Loader((images[i : i + 50], labels[i : i + 50]) for i in range(0, 240, 50))
    expected = peer.zeroshot(tiny[0], loader, tiny[1], CLASSES, theirs, "cpu", amp=False)
    task = ZeroShot(name="given/zeroshot", sources={}, prompts=prompts)
    scores = task.score(features_of(tiny, images, labels=labels.numpy())).metrics
    assert scores == pytest.approx({name: expected[name] for name in scores}, abs=1e-12)
    assert 0 < scores["acc1"] < scores["acc5"] < 1


def test_retrieval_equals_its_evaluation(peer, tiny):
    images = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    captions = [tuple(f"image {i} seen from side {k}" for k in range(1 + i % 5)) for i in range(60)]
    loader = [(images[i : i + 25], captions[i : i + 25]) for i in range(0, 60, 25)]
    theirs = peer.retrieval(tiny[0], loader, tiny[1], "cpu", amp=False, recall_k_list=[1, 5, 10])
    task = Retrieval(name="given/retrieval", sources={})
    metrics = task.score(features_of(tiny, images, captions=captions)).metrics
    ours = {name: value for name, value in metrics.items() if "recall" in name}
    assert ours == pytest.approx(theirs, abs=1e-6)  # it averages in fp32
    assert ours["image_retrieval_recall@10"] > 0
