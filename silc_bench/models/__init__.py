"""Any checkpoint behind one protocol: preprocessing and tokenizer belong to the model; a wrong pairing cannot be written.

Flow: ``load_model("open_clip:ViT-B-32/openai")`` -> a model -> ``features``. One small file a kind of checkpoint (``KINDS``).

Shapes: B images or texts, L tokens, D embedding, W width of the tower, H x W pixels, h x w patches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from silc_bench.errors import UserError, unknown_name

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

FEATURE_POINTS = {
    "pooled": "the embedding that the model itself gives: where it meets text, if it does",
    "pre_projection": "the pooled feature before the linear map into the space shared with text",
    "mean_patch": "the mean over patches of the tokens that leave the tower",
}
KINDS = {
    "open_clip": "ARCH/TAG, ARCH/PATH or ARCH/random",
    "hf": "NAME or FOLDER",
    "timm": "NAME, NAME/PATH or NAME/random",
    "big_vision": "FILE.npz",
}


@runtime_checkable
class ImageModel(Protocol):
    """What every evaluation asks of a checkpoint. Embeddings are fp32 and not normalised.

    Where a library runs the model, ``libraries`` names its distributions: their versions are part of what the store goes by.
    """

    name: str  # row of the leaderboard: "shapes_tiny-silc:student"
    revision: str  # hash of the weights, 16 hex digits (models/revision.py)
    embed_dim: int  # D
    image_size: int  # pixels a side that preprocess makes
    num_params: int
    feature_points: dict[str, int]  # of FEATURE_POINTS, those that exist here, with their widths; "pooled" always
    pipeline: Any  # what preprocess does: an ImagePipeline, or, where pictures keep their shape, something with its as_dict
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
    dense_methods: tuple[str, ...]  # of those in models/towers.py, what this checkpoint can do; "tokens" always

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D]} fp32, W instead of D where the method gives tokens; one pass for all methods.

        Raises:
            UserError: a method that this checkpoint cannot do, a size that does not divide into patches.
        """
        ...


def load_model(spec: str, arch: str | None = None) -> ImageModel:
    """A checkpoint -> a model on the CPU, ready to be measured.

    Args:
        spec: ``KIND:...`` for the libraries in ``KINDS``, or a path: a run made by `silc-bench train` (also with ``:student``,
            ``:teacher`` or ``:average``), or a file of weights.
        arch: what a file of weights alone does not say: ``open_clip:NAME``, ``hf:NAME``, ``silc:PRESET``.

    Raises:
        UserError: nothing there, not a checkpoint, an architecture or branch that does not exist or does not fit.
    """
    if not spec:
        raise UserError("an empty name is no checkpoint; name a run's folder, a file, or " + _kinds())
    kind, colon, rest = spec.partition(":")
    if colon and kind in KINDS:
        if not rest:
            raise UserError(f"{spec!r} names no checkpoint; write {kind}:{KINDS[kind]}")
        if arch is not None and kind != "big_vision":
            raise UserError(f"--arch says what a file of weights alone does not; {spec!r} names its architecture itself")
        return _load_kind(kind, rest, arch)
    path, branch = find_path(spec)
    return _load_path(path, branch, arch)


def find_path(spec: str) -> tuple[Path, str | None]:
    """A checkpoint that is there, and the branch asked for: "RUN:teacher" -> (RUN, "teacher"), "RUN" -> (RUN, None).

    Raises:
        UserError: nothing there.
    """
    path, _, named = spec.rpartition(":")
    branch: str | None = named
    if not os.path.exists(path) or os.path.exists(spec):  # the colon, if any, is part of the path
        path, branch = spec, None
    if not os.path.exists(path):
        _refuse_missing(spec)
    return Path(path), branch


def _load_kind(kind: str, rest: str, arch: str | None) -> ImageModel:
    if kind == "open_clip":
        from silc_bench.models import open_clip

        return open_clip.load(rest)
    if kind == "hf":
        from silc_bench.models import hf

        return hf.load(rest)
    if kind == "timm":
        from silc_bench.models import timm

        return timm.load(rest)
    from silc_bench.models import big_vision

    return big_vision.load(Path(rest), arch)


def _load_path(path: Path, branch: str | None, arch: str | None) -> ImageModel:
    from silc_bench.models import native

    if arch is None and native.is_ours(path):
        return native.load(path, branch)
    if branch is not None:
        raise UserError(f"{path}:{branch}: only checkpoints made by `silc-bench train` have branches, and this is none")
    from silc_bench.models import raw

    return raw.load_raw(path, arch)


def _refuse_missing(spec: str) -> None:
    kind, _, rest = spec.partition(":")
    if kind and rest and "/" not in kind and "." not in kind:  # "openclip:ViT-B-32" is a misspelt kind, not a path
        raise unknown_name("kind of checkpoint", kind, KINDS)
    raise UserError(f"checkpoint {spec}: no such file or folder; checkpoints of other libraries are written {_kinds()}")


def _kinds() -> str:
    return ", ".join(f"{kind}:{form.split(',')[0]}" for kind, form in KINDS.items())
