"""Any checkpoint behind one protocol: preprocessing and tokenizer belong to the model; a wrong pairing cannot be written.

Flow: ``load_model("runs/a:teacher")`` -> an ImageTextModel -> ``features``. One small file a kind of checkpoint.

Shapes: B images or texts, L tokens, D embedding, H x W pixels, h x w patches.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from silc_bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor


@runtime_checkable
class ImageTextModel(Protocol):
    """What every evaluation asks of a checkpoint. Embeddings are fp32 and not normalised."""

    name: str  # row of the leaderboard: "shapes_tiny-silc:student"
    revision: str  # hash of the weights, 16 hex digits
    embed_dim: int  # D
    image_size: int  # pixels a side that preprocess makes
    num_params: int
    logit_scale: float  # multiplies the cosine similarity (already exponentiated)
    logit_bias: float
    image_protocol: dict[str, Any]  # resize, crop, interpolation, mean, std, size: all that preprocess does, as JSON
    text_protocol: dict[str, Any]  # cleaning, length: all that tokenize does, as JSON

    def preprocess(self, image: Image.Image) -> Tensor:
        """One picture -> [3, H, W] fp32."""
        ...

    def tokenize(self, texts: list[str]) -> Tensor:
        """Texts -> [B, L] int64."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        ...

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]."""
        ...

    def to(self, device: torch.device) -> ImageTextModel:
        """The same model on another device."""
        ...


@runtime_checkable
class DenseModel(ImageTextModel, Protocol):
    """A model that also places its features on the picture."""

    patch_size: int

    def encode_dense(self, images: Tensor, joint: bool) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, D]: in the space shared with text (``joint``) or as the patch tokens leave the tower."""
        ...


def load_model(spec: str) -> DenseModel:
    """``PATH`` or ``PATH:student|teacher`` of a run or checkpoint made by `silc-bench train` -> a model on the CPU.

    Raises:
        UserError: nothing there, not a checkpoint, or a branch that does not exist.
    """
    from silc_bench.models import native

    if not spec:
        raise UserError("an empty name is no checkpoint; name a run's folder, or a file in its checkpoints/")
    path, _, branch = spec.rpartition(":")
    if not os.path.exists(path) or os.path.exists(spec):  # the colon, if any, is part of the path
        path, branch = spec, "student"
    return native.load(Path(path), branch)
