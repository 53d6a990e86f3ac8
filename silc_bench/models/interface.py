"""What an evaluation asks of a checkpoint.

Protocols, and no base class: an adapter is any object that has these attributes. A model that reads
text is an ``ImageTextModel``, one that places its features on the image a ``DenseModel``; a model
may be both.

Four attributes may be left out: ``libraries`` and ``lacking`` of an ``ExplainedModel``,
``training`` of a model that was trained here, and ``token_lengths`` of a ``CountingModel``. So they
are read by ``libraries_of(model)``, ``lacking_of(model)``, ``training_of(model)`` and
``cut_texts(model, texts)`` alone, never from the model itself.

Shapes: B images or texts, H x W pixels, L tokens, D embedding, h x w patches, W width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

# Ways to read features from the patches of a tower (silc_bench.models.patch_features).
METHODS = {
    "tokens": "patch tokens as they leave the tower; "
    "tokens:N, those of the last N blocks side by side",
    "plain": "patch tokens through the final norm and projection, as the class token goes",
    "maskclip": "each patch alone: the value path of the last attention before the embedding",
    "sclip": "patches attend to like queries and like keys",
    "naclip": "patches attend to like keys nearby",
    "clearclip": "patches attend to like queries; what attention adds, alone",
}

# Methods whose features lie in the space shared with text.
JOINT = tuple(method for method in METHODS if method != "tokens")


@dataclass(frozen=True)
class Training:
    """How a model came to be that was trained here: what its name, a folder's, need not say."""

    preset: str
    objective: str  # "silc", "contrastive" ...
    branch: str  # "student", "teacher" or "average" of its weights
    data: str  # what --data was
    seed: int
    step: int  # optimiser updates done
    recipe: str = "0" * 16  # of the configuration but its seed: seeds of a method share it


@runtime_checkable
class ImageModel(Protocol):
    """What every evaluation asks of a checkpoint; embeddings are fp32 and not normalised."""

    name: str  # row of the leaderboard: "own:student" of the run runs/own
    revision: str  # hash of the weights, 16 hex digits (models/weights/revision.py)
    embed_dim: int  # D
    image_size: int  # pixels a side that preprocess makes
    num_params: int

    # Of FEATURE_POINTS, those that exist here, with their widths; "pooled" always.
    feature_points: dict[str, int]

    # What preprocess does: an ImagePipeline, or, where images keep their shape, another object with
    # the same as_dict.
    pipeline: Any
    image_protocol: dict[str, Any]  # the same as JSON, as records carry it

    def preprocess(self, image: Image.Image) -> Tensor:
        """One image -> [3, H, W] fp32."""
        ...

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """[B, 3, H, W] -> [B, feature_points[point]]."""
        ...

    def to(self, device: torch.device) -> ImageModel:
        """The same model on another device."""
        ...


@runtime_checkable
class ImageTextModel(ImageModel, Protocol):
    """A model that also reads text."""

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
    """A model that also places its features on the image."""

    patch_size: int  # pixels a side

    # Of the methods in models/patch_features.py, what this checkpoint can do; "tokens" always.
    dense_methods: tuple[str, ...]

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D]} fp32, in one pass for all methods.

        The width is W instead of D where the method gives tokens.

        Raises:
            UserError: a method that this checkpoint cannot do, or a size that does not divide into
                patches.
        """
        ...


@runtime_checkable
class ExplainedModel(ImageModel, Protocol):
    """A model that also says what it runs on, and why it cannot do something.

    All adapters here do. A model of another package that does not is measured all the same: the
    versions of its libraries are then in no key of stored features, and what it cannot do is
    refused without a reason.
    """

    # Distributions that run the model, such as "timm": their versions belong to the key under which
    # features are stored.
    libraries: tuple[str, ...]

    # Why something is not possible, as a clause that ends a sentence. The names are "text",
    # "dense" and the methods of models/patch_features.py.
    lacking: Mapping[str, str]


@runtime_checkable
class CountingModel(ImageTextModel, Protocol):
    """A model that also says how long a text is. All adapters here do where they read text."""

    def token_lengths(self, texts: list[str]) -> list[int]:
        """Of each text, the tokens that ``tokenize`` would need for all of it.

        After cleaning, with the tokens that begin and end a text, without padding. A text of more
        than ``text_protocol["length"]`` is cut.
        """
        ...


def cut_texts(model: object, texts: Sequence[str]) -> list[int] | None:
    """The places of the texts whose end the model does not read, in their order.

    None where nobody can tell: the model is no ``CountingModel``, or its protocol names no length.
    """
    length = getattr(model, "text_protocol", {}).get("length")
    if length is None or not hasattr(model, "token_lengths"):
        return None
    lengths = model.token_lengths(list(texts))
    return [place for place, needed in enumerate(lengths) if needed > length]


def libraries_of(model: object) -> tuple[str, ...]:
    """``libraries`` of an ``ExplainedModel``; () of any other model."""
    return tuple(getattr(model, "libraries", ()))


def training_of(model: object) -> Training | None:
    """``training`` of a model that was trained here; None of any other model."""
    return getattr(model, "training", None)


def lacking_of(model: object) -> Mapping[str, str]:
    """``lacking`` of an ``ExplainedModel``; {} of any other model."""
    return getattr(model, "lacking", {})
