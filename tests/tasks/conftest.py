"""Models whose scores are known beforehand: one that knows the answers, and one that knows nothing.

Both recognise an image by its pixels, as a real model would have to; none is told an index.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from given import Means

from silc_bench.models.preprocessing import ImagePipeline


class LookupModel(Means):
    """Looks everything up: ``image`` and ``text`` give [D], ``dense`` gives [h, w, D]."""

    image_size, dense_methods = 64, ("tokens", "plain", "maskclip")

    def __init__(self, embed_dim, image=None, text=None, dense=None, patch_size=8):
        super().__init__()
        self.embed_dim, self.patch_size = embed_dim, patch_size
        self.feature_points = {"pooled": embed_dim}
        # images and windows arrive as the pixels they are
        self.pipeline = ImagePipeline(64, mean=(0.0,) * 3, std=(1 / 255,) * 3)
        self.image_of, self.text_of, self.dense_of = image, text, dense
        self.seen = []

    def tokenize(self, texts):
        self.seen += texts
        return torch.arange(len(self.seen) - len(texts), len(self.seen))[:, None]

    def encode_image(self, images, point="pooled"):
        return stacked(self.image_of(pixels(image)) for image in images)

    def encode_text(self, tokens):
        return stacked(self.text_of(self.seen[row]) for row in tokens[:, 0].tolist())

    def encode_dense(self, images, methods):
        grids = {}
        for method in methods:
            is_joint = not method.startswith("tokens")
            grids[method] = stacked(self.dense_of(pixels(image), is_joint) for image in images)
        return grids


def stacked(arrays):
    return torch.from_numpy(np.stack(list(arrays))).float()


def pixels(image):
    """The key of an image: its RGB bytes."""
    return image.permute(1, 2, 0).round().to(torch.uint8).numpy().tobytes()


def noise(key, *shape):
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture(scope="session")
def lookup_model():
    return LookupModel


@pytest.fixture(scope="session")
def random_model():
    """Features that have nothing to do with the image or the text, but are the same each time."""
    return LookupModel(
        64,
        image=lambda key: noise(key, 64),
        text=lambda text: noise(text.encode(), 64),
        dense=lambda key, joint: noise(key + bytes([joint]), 8, 8, 64),
    )
