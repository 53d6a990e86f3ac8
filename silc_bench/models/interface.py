"""What an evaluation asks of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

FEATURE_POINTS = {
    "pooled": "the embedding that the model itself gives: where it meets text, if it does",
    "pre_projection": "the pooled feature before the linear map into the space shared with text",
    "mean_patch": "the mean over patches of the tokens that leave the tower",
}


@runtime_checkable
class ImageModel(Protocol):
    """What every evaluation asks of a checkpoint. Embeddings are fp32 and not normalised.

    Where a library runs the model, ``libraries`` names its distributions: their versions are part
    of what the store goes by.
    """

    name: str  # row of the leaderboard: "shapes_tiny-silc:student"
    revision: str  # hash of the weights, 16 hex digits (models/weights/revision.py)
    embed_dim: int  # D
    image_size: int  # pixels a side that preprocess makes
    num_params: int
    feature_points: dict[
        str, int
    ]  # of FEATURE_POINTS, those that exist here, with their widths; "pooled" always
    # what preprocess does: an ImagePipeline, or, where pictures keep their shape, something with
    # its as_dict
    pipeline: Any
    image_protocol: dict[str, Any]  # the same as JSON

    def preprocess(self, image: Image.Image) -> Tensor:
        """One picture -> [3, H, W] fp32."""
        ...

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """[B, 3, H, W] -> [B, feature_points[point]]."""
        ...

    def to(self, device: torch.device) -> ImageModel:
        """The same model on another device."""
        ...


@runtime_checkable
class ImageTextModel(ImageModel, Protocol):
    """A model that also reads."""

    logit_scale: float  # multiplies the cosine similarity (already exponentiated)
    logit_bias: float
    text_protocol: dict[str, Any]  # cleaning, length: all that tokenize does, as JSON

    def tokenize(self, texts: list[str]) -> Tensor:
        """Texts -> [B, L] int64."""
        ...

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]."""
        ...


@runtime_checkable
class DenseModel(ImageModel, Protocol):
    """A model that also places its features on the picture."""

    patch_size: int
    dense_methods: tuple[
        str, ...
    ]  # of those in models/patch_features.py, what this checkpoint can do; "tokens" always

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D]} fp32, W instead of D where the method gives
        tokens; one pass for all methods.

        Raises:
            UserError: a method that this checkpoint cannot do, a size that does not divide into
            patches.
        """
        ...
