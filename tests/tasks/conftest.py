"""Models whose scores are known beforehand: one that knows the answers, and one that knows nothing.

Both recognise an image by its pixels, as a real model would have to; none is told an index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from silc_bench.datasets.shapes import dataset, scenes
from silc_bench.models.preprocessing import ImagePipeline

SCENE, RENDERED = cache(scenes.scene), cache(dataset._rendered.__wrapped__)


@pytest.fixture(scope="module", autouse=True)
def _scenes_are_drawn_once() -> Iterator[None]:
    """Every family measures the same few scenes; to draw them again costs more than to score."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "scene", SCENE)
        patch.setattr(dataset, "_rendered", RENDERED)
        yield


class LookupModel:
    """A DenseModel that looks everything up.

    ``image`` and ``text`` give [D], ``dense`` gives [h, w, D].
    """

    name, revision = "lookup", "0" * 16
    num_params, logit_scale, logit_bias = 1, 1.0, 0.0
    dense_methods = ("tokens", "plain", "maskclip")

    def __init__(
        self,
        embed_dim: int,
        image: Callable[[bytes], np.ndarray] | None = None,
        text: Callable[[str], np.ndarray] | None = None,
        dense: Callable[[bytes, bool], np.ndarray] | None = None,
        patch_size: int = 8,
    ) -> None:
        self.embed_dim, self.image_size, self.patch_size = embed_dim, 64, patch_size
        self.feature_points = {"pooled": embed_dim}
        # windows arrive as the pixels they are
        self.pipeline = ImagePipeline(64, mean=(0.0,) * 3, std=(1 / 255,) * 3)
        self.image_protocol, self.text_protocol = {"resize": "none"}, {"cleaning": "none"}
        self._image, self._text, self._dense = image, text, dense
        self._seen: list[str] = []

    def preprocess(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    def tokenize(self, texts: list[str]) -> Tensor:
        self._seen += texts
        return torch.arange(len(self._seen) - len(texts), len(self._seen))[:, None]

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        return _stacked([self._image(pixels(image)) for image in images])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return _stacked([self._text(self._seen[row]) for row in tokens[:, 0].tolist()])

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        grids = {}
        for method in methods:
            is_joint = not method.startswith("tokens")
            grids[method] = _stacked([self._dense(pixels(image), is_joint) for image in images])
        return grids

    def to(self, device: torch.device) -> LookupModel:
        return self


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).float()


def pixels(image: Tensor) -> bytes:
    """The key of an image: its RGB bytes."""
    return image.permute(1, 2, 0).round().to(torch.uint8).numpy().tobytes()


def _noise(key: bytes, *shape: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture(scope="session")
def lookup_model() -> type[LookupModel]:
    return LookupModel


@pytest.fixture(scope="session")
def random_model() -> LookupModel:
    """Features that have nothing to do with the image or the text, but are the same each time."""
    return LookupModel(
        64,
        image=lambda key: _noise(key, 64),
        text=lambda text: _noise(text.encode(), 64),
        dense=lambda key, joint: _noise(key + bytes([joint]), 8, 8, 64),
    )
