"""Checkpoints of big_vision: ``big_vision:FILE.npz`` of SigLIP, SigLIP 2 or SILC, which share one layout.

Flow: ``load(path, arch)`` -> arrays to towers (``big_vision_layout``) -> the tokenizer file beside the npz
(``sentencepieces``) -> a model. The shapes say everything: patch, grid, widths, depths, heads, vocabulary, length;
``--arch B/16`` checks them, ``So400m/14@384`` also says the size of the pictures where patches leave a rest. Without a
tokenizer file it is an image model, and tasks with text are refused, naming the file to bring.

Pictures are squashed to the square of training and set to [-1, 1]. big_vision evaluates with TensorFlow's `resize`: bilinear,
not antialiased. Here it is Pillow's bicubic, which transformers, open_clip and timm use for the same weights, so that a
checkpoint scores alike whichever way it is loaded; the pixels are not big_vision's own.

Shapes: B pictures or texts, D embedding, W width (= D), L tokens, h x w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.big_vision_layout import ACTIVATION, EPS, Network, Shape, TowerShape, build, read_params, shape_of
from silc_bench.models.hf_towers import MapTower
from silc_bench.models.images import ImagePipeline
from silc_bench.models.revision import revision_of
from silc_bench.models.sentencepieces import FILES, PieceTokenizer, find_tokenizer
from silc_bench.models.towers import check_methods, dense

VARIANTS = {  # big_vision, models/vit.py: width, depth, MLP, heads
    "Ti": TowerShape(192, 12, 768, 3),
    "S": TowerShape(384, 12, 1536, 6),
    "M": TowerShape(512, 12, 2048, 8),
    "B": TowerShape(768, 12, 3072, 12),
    "L": TowerShape(1024, 24, 4096, 16),
    "So400m": TowerShape(1152, 27, 4304, 16),
    "H": TowerShape(1280, 32, 5120, 16),
    "g": TowerShape(1408, 40, 6144, 16),
    "g-opt": TowerShape(1536, 40, 6144, 16),
    "G": TowerShape(1664, 48, 8192, 16),
    "e": TowerShape(1792, 56, 15360, 16),
}


class BigVisionModel:
    """A DenseModel: the image side of a checkpoint. The text tower, if any, counts for revision and size."""

    libraries = ("transformers", "tokenizers")  # its towers, and the tokenizer of a tokenizer.json

    def __init__(self, name: str, shape: Shape, network: Network, lacking: dict[str, str]):
        self.parts = {"vision": network.vision_model} | ({} if shape.text is None else {"text": network.text_model})
        settings = {"activation": ACTIVATION, "epsilon": EPS, "pooling": "map", "shape": asdict(shape)}
        self.name = name
        self.tower = MapTower(network)
        self.embed_dim = shape.image.width
        self.image_size = shape.image_size
        self.patch_size = shape.patch_size
        self.num_params = sum(p.numel() for part in self.parts.values() for p in part.parameters())
        self.revision = revision_of(self.parts, settings)
        self.feature_points = self.tower.feature_points
        self.dense_methods, self.lacking = self.tower.dense_methods, {**self.tower.lacking, **lacking}
        self.pipeline = ImagePipeline(self.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.image_protocol = self.pipeline.as_dict()

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        return self.tower.encode(images, point).float()

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        check_methods(self.name, methods, self.dense_methods, self.lacking)
        return dense(self.tower, images, methods)

    def to(self, device: torch.device) -> BigVisionModel:
        for part in self.parts.values():
            part.to(device)
        return self


class BigVisionTextModel(BigVisionModel):
    """An ImageTextModel: image, text, and the tokenizer that lay beside them."""

    def __init__(
        self, name: str, shape: Shape, network: Network, tokenizer: PieceTokenizer, logit_scale: float, logit_bias: float
    ):
        super().__init__(name, shape, network, lacking={})
        self.tokenizer = tokenizer
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.text_protocol = {
            "cleaning": tokenizer.cleaning,
            "length": tokenizer.length,
            "padding": tokenizer.padding,
            "tokenizer": tokenizer.digest,
        }

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]: the last position, which always holds the end or padding token."""
        return self.parts["text"](input_ids=tokens).pooler_output.float()


def load(path: Path, arch: str | None) -> BigVisionModel:
    """A file -> a model on the CPU; ``arch``: None, or what the file is expected to be: "B/16", "So400m/14@384".

    Raises:
        UserError: no such file, damaged, of another layout, or not what ``arch`` says; a tokenizer file that does not fit.
    """
    if not path.is_file():
        raise UserError(f"big_vision:{path}: no such file; write big_vision:FILE.npz")
    params = read_params(path)
    shape = shape_of(params, path)
    if arch is not None:
        shape = _checked(arch, shape, path)
    network = build(params, shape, path)
    name = f"big_vision:{path.stem}"
    if shape.text is None:
        return BigVisionModel(name, shape, network, {"text": f"{path} holds no text tower"})
    tokenizer = find_tokenizer(path.parent, shape.vocab_size, shape.context_length)
    if tokenizer is None:
        return BigVisionModel(name, shape, network, {"text": _bring_tokenizer(path, shape)})
    logit_bias = _number(params["b"], "b, the bias", path) if "b" in params else 0.0
    logit_scale = _number(params["t"].exp(), "exp(t), the scale", path)
    return BigVisionTextModel(name, shape, network, tokenizer, logit_scale, logit_bias)


def _number(array: Tensor, what: str, path: Path) -> float:
    if array.numel() != 1 or not array.isfinite().all():
        found = f"has the shape {list(array.shape)}" if array.numel() != 1 else f"is {array.item()}"
        raise UserError(f"{path}: {what} {found}; it must be one finite number")
    return array.item()


def _bring_tokenizer(path: Path, shape: Shape) -> str:
    source = (
        "big_vision's gemma_tokenizer.model" if shape.vocab_size == 256_000 else "the sentencepiece model it was trained with"
    )
    return (
        f"the tokenizer is no part of {path.name}: put {source} ({shape.vocab_size:,} pieces) into {path.absolute().parent}"
        f" as one of {', '.join(FILES)}"
    )


def _checked(arch: str, shape: Shape, path: Path) -> Shape:
    """The shape, if it is what ``arch`` says, with the picture size where ``arch`` names one that fits the grid."""
    variant, _, patch_and_size = arch.partition("/")
    patch, at, size = patch_and_size.partition("@")
    if variant not in VARIANTS:
        raise unknown_name("architecture of big_vision", variant, VARIANTS)
    if not patch.isdecimal() or (at and not size.isdecimal()):
        raise UserError(f"--arch {arch!r} does not say the patch size; write {variant}/16, or {variant}/16@256 with the pixels")
    fits = not at or int(size) // shape.patch_size == shape.grid
    if shape.image != VARIANTS[variant] or shape.patch_size != int(patch) or not fits:
        found = next((name for name, tower in VARIANTS.items() if tower == shape.image), str(shape.image))
        raise UserError(f"{path} is not {arch} but {found}/{shape.patch_size}@{shape.image_size}")
    return replace(shape, image_size=int(size)) if at else shape
