"""What the tests of every adapter share: images, noise, a comparison, and the command line."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from commands import call
from PIL import Image

from silc_bench.models.interface import cut_texts

SIZES = [(211, 97), (40, 333), (64, 64), (7, 5), (33, 31)]


def image_of(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [image_of(*size) for size in SIZES]


def pixels_of(preprocess, images=IMAGES):
    return torch.stack([preprocess(image) for image in images])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(left, right, tolerance=1e-5):
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance)


WORDS = ["7", "3", "9", "1", "5", "8", "2", "6"]  # no tokenizer here has a token of two of them


def check_cut_texts(model):
    """``cut_texts`` names the texts of whose end the tokens know nothing, and no others.

    One word more is seen in the tokens as long as there is a place left, and then never again.
    """
    length = model.text_protocol["length"]
    texts = [" ".join((WORDS * length)[:count]) for count in range(1, length + 5)]
    lengths = model.token_lengths(texts)
    rows = model.tokenize(texts)
    assert rows.shape[1] == length
    assert lengths == sorted(set(lengths)), "each word needs a place"
    assert lengths[0] < length < lengths[-1], "texts on both sides"
    for before, after, needed in zip(rows, rows[1:], lengths, strict=False):
        assert bool((before != after).any()) == (needed < length), needed
    assert cut_texts(model, texts) == [i for i, needed in enumerate(lengths) if needed > length]
    assert cut_texts(model, []) == []


def tokens_of_patches(model, images):
    return model.encode_dense(images, ["tokens"])["tokens"]


def encode_image(model, images):
    return model.encode_image(images)


def measure(spec, tasks, results, limit=20):
    """`silc-bench eval` of a model on the CPU."""
    options = f"--limit {limit} --device cpu --results {results}"
    return call(f"eval --ckpt '{spec}' --tasks '{tasks}' {options}")


def without_network(monkeypatch, cache):
    """The hub's cache lies in a folder of the test, and nothing is fetched."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache))


def cached_repository(cache, name):
    """The folder of a repository's files in the layout of the hub's cache."""
    commit = "0123456789abcdef" * 2 + "01234567"
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    return repository / "snapshots" / commit
