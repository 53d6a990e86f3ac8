"""What the checks look at, computed once; what they answer with; what is printed before them.

A ``Subject`` holds a model and its answers to generated images and texts, which are made from
integers: the same on every machine, no file needed. ``cards`` are for preprocessing: the sizes and
modes at which loaders differ. ``scenes`` and ``TEXTS`` are 32 images and 32 texts, no two of which
are alike, for the embeddings; a model that reads a few tokens only is asked shorter ones.
``pixel_hash`` is taken over what a model makes of the cards.

The first image and the first text are timed, and of slow models fewer are looked at: all within
``IMAGE_SECONDS`` and ``TEXT_SECONDS``, and never less than ``FEWEST``, because fewer could not
differ in as many directions as the checks ask for.

``facts_of(subject)`` -> {name: value} as JSON: protocol, towers, numbers. Pooling and activation
are no part of the protocol of a model; they are read from the library's own modules.

Shapes: B = 32 images or texts, fewer where a model is slow, L tokens, D embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from silc_bench.models.interface import cut_texts, lacking_of, training_of

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "not applicable"
BATCH = 8
IMAGE_SECONDS, TEXT_SECONDS, FEWEST = 20.0, 10.0, 4
SAME = 1e-4  # of the norm; the sums of another batch size differ by about 1e-6 in fp32

NUM_SCENES = 32
COLORS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
SHAPES = ("circle", "square", "star", "tree")
TEXTS = [f"a photo of a {color} {shape}" for color in COLORS for shape in SHAPES]

# The same number of shorter ones: the first whose ends the model reads are taken, because texts
# that are cut may be alike to it.
SHORTER = [
    [f"{color} {shape}" for color in COLORS for shape in SHAPES],
    list("abcdefghijklmnopqrstuvwxyz012345"),
]

# Width, height, mode of each card: odd sizes, both orientations, crops that end on half a pixel,
# colours that are no RGB.
SIZES = {
    "landscape": (331, 221, "RGB"),
    "portrait": (97, 210, "RGB"),
    "thin": (301, 19, "RGB"),
    "grey": (64, 301, "L"),
    "palette": (130, 91, "P"),
    "transparent": (75, 75, "RGBA"),
    "one pixel": (1, 1, "RGB"),
}

# The libraries' layers -> the activation.
ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "GELUTanhActivation": "gelu_tanh",
    "SiLU": "silu",
    "ReLU": "relu",
}
OURS = "silc_bench.trainer.silc.towers"  # whose towers call GELU as a function
ATTENTION, MEAN, TOKEN = "attention over the patches", "mean of the patches", "class token"
PATCHES_ALONE = (ATTENTION, MEAN)  # poolings that have nothing but patches to pool


@dataclass(frozen=True)
class Finding:
    """What one check says."""

    verdict: str  # OK, FAILED or NOT_APPLICABLE
    says: str  # what was seen, or why there was nothing to check
    cause: str = ""  # of a failure, the likely one
    fix: str = ""
    check: str = ""  # "image alone and in a batch"; the report adds it


@dataclass
class Encoded:
    """Generated images or texts, and their embeddings by one tower."""

    encode: Callable[[Tensor], Tensor]
    make: Callable[[], Tensor]  # the input, pixels [32, ...] or tokens [32, L]
    limit: float  # seconds that the embeddings may take

    @cached_property
    def inputs(self) -> Tensor:
        """[32, ...]."""
        return self.make()

    @cached_property
    def first(self) -> tuple[Tensor, float]:
        """[D], the embedding of the first one alone, and the seconds it took."""
        first = self.inputs[:1]
        started = perf_counter()
        return self.encode(first)[0], perf_counter() - started

    @cached_property
    def rows(self) -> Tensor:
        """[B, D] embeddings, of as many as can be encoded within the limit."""
        count = max(FEWEST, int(self.limit / max(self.first[1], 1e-9)))
        return torch.cat([self.encode(part) for part in self.inputs[:count].split(BATCH)])


class Subject:
    """A model, and its answers to the generated images and texts.

    The model is an ``ImageModel`` as far as it is one: what it lacks is for the checks to find.
    """

    def __init__(self, model: Any):
        self.model = model
        self.reads = self._can("tokenize") and self._can("encode_text")
        self.is_dense = self._can("encode_dense")

    def _can(self, method: str) -> bool:
        return callable(getattr(self.model, method, None))

    def lacking(self, what: str, otherwise: str) -> str:
        """Why the model lacks "text" or "dense", where its adapter says so."""
        return lacking_of(self.model).get(what, otherwise)

    @cached_property
    def images(self) -> Encoded:
        """Of the scenes."""
        model = self.model

        def pixels() -> Tensor:
            return torch.stack([model.preprocess(scene) for scene in scenes()])

        return Encoded(model.encode_image, pixels, IMAGE_SECONDS)

    @cached_property
    def texts(self) -> Encoded:
        """Of ``phrases``."""
        phrases = self.phrases or TEXTS
        return Encoded(self.model.encode_text, lambda: self.model.tokenize(phrases), TEXT_SECONDS)

    @cached_property
    def phrases(self) -> list[str]:
        """32 different texts, none of which the model cuts; [] where it cuts letters."""
        return next((texts for texts in (TEXTS, *SHORTER) if not cut_texts(self.model, texts)), [])

    @cached_property
    def words(self) -> str:
        """The longest text that, with its words in capitals and with signs, is not cut; "" if none.

        Cleaning is seen by what it does to it.
        """
        for words in ("a photo of a cat", "a cat", "a"):
            if not cut_texts(self.model, list(untidy(words).values())):
                return words
        return ""

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The networks that an adapter holds, by the name of its attribute."""
        parts = dict(vars(self.model))
        for name, value in vars(self.model).items():
            # an adapter may hold its towers in one dict
            if isinstance(value, dict):
                parts |= {f"{name}.{key}": part for key, part in value.items()}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def layers(self) -> Iterator[nn.Module]:
        """All modules of all networks."""
        for network in self.modules.values():
            yield from network.modules()


def untidy(words: str) -> dict[str, str]:
    """{what cleaning may take away: the words with it}."""
    first, *others = words.split()
    return {
        "upper case": words.upper(),
        "punctuation": " ".join([first + ",", *others]) + "!",
        "double spaces": f"  {first}   {' '.join(others)} ",
    }


def distance(left: Tensor, right: Tensor) -> float:
    """Largest difference between two embeddings, as a share of the norm; NaN counts as infinite."""
    share = (left - right).norm() / right.norm().clamp_min(1e-12)
    return share.item() if share.isfinite() else float("inf")


def cards() -> dict[str, Image.Image]:
    """Images by what is special about them."""
    return {name: _card(number, *size) for number, (name, size) in enumerate(SIZES.items())}


def scenes() -> list[Image.Image]:
    """NUM_SCENES images of 96 x 64 pixels: gradients, boxes, rings and noise in many colours."""
    return [Image.fromarray(_pattern(number, 96, 64)) for number in range(NUM_SCENES)]


def pixel_hash(preprocess: Callable[[Image.Image], Tensor]) -> str:
    """16 hex digits over the exact values that ``preprocess`` makes of each card.

    Pillow resizes in whole numbers; scaling and normalising are single operations in fp32, rounded
    alike everywhere.
    """
    digest = hashlib.sha256()
    for card in cards().values():
        pixels = preprocess(card).numpy()
        digest.update(str(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels + 0.0, dtype="<f4").tobytes())  # -0.0 becomes 0.0
    return digest.hexdigest()[:16]


def facts_of(subject: Subject, digest: str, pipeline: str) -> dict[str, Any]:
    """All that is printed before the checks, in that order."""
    model = subject.model

    facts = {
        "name": model.name,
        "revision": model.revision,
        "parameters": model.num_params,
        "image size": model.image_size,
        "patch size": getattr(model, "patch_size", "none: no dense features"),
        "pooling": pooling_of(subject),
        "activation": activation_of(subject),
        "feature points": dict(model.feature_points),
    }
    if (training := training_of(model)) is not None:
        facts["training"] = asdict(training)

    # Both sizes stand above already.
    for key, value in model.image_protocol.items():
        if key not in ("size", "patch_size"):
            facts[key.replace("_", " ")] = value
    facts["pixels"] = f"{digest}, {pipeline}"

    if subject.reads:
        protocol = model.text_protocol
        facts |= {
            "text cleaning": protocol.get("cleaning"),
            "text length": protocol.get("length"),
            "tokenizer": protocol.get("tokenizer"),
            "padding": protocol.get("padding", "not said"),
            "logit scale": model.logit_scale,
            "logit bias": model.logit_bias,
        }
    else:
        facts["text"] = subject.lacking("text", "no text tower")
    return facts


def activation_of(subject: Subject) -> str:
    """Of all networks, with commas: "quick_gelu"; "relu, quick_gelu" where two towers differ."""
    kinds: dict[str, None] = {}  # a set that keeps its order
    for layer in subject.layers():
        kind = type(layer)

        # Our Mlp has the same attribute as torch's GELU, which it calls as a function.
        is_our_mlp = kind.__module__ == OURS and kind.__name__ == "Mlp"
        if kind is nn.GELU or is_our_mlp:
            kinds["gelu_tanh" if layer.approximate == "tanh" else "gelu"] = None
        elif kind.__name__ in ACTIVATIONS:
            kinds[ACTIVATIONS[kind.__name__]] = None
    return ", ".join(kinds) or "not told"


def pooling_of(subject: Subject) -> str:
    """How patches become one embedding.

    ATTENTION and MEAN are said only where nothing but patches is pooled.
    """
    layers = {
        f"{network}.{name}": layer
        for network, root in subject.modules.items()
        for name, layer in root.named_modules()
    }

    # A layer that does nothing but pool tells at once; only without one is the tower asked.
    for name, layer in layers.items():
        if name.endswith(".attnpool"):
            return "attention over the positions and their mean (ResNet)"
        if name.endswith("visual.head") and hasattr(layer, "pool"):
            return "attention over the positions and their mean (timm)"
        if isinstance(getattr(layer, "probe", None), torch.Tensor):
            return ATTENTION

    for name, layer in layers.items():
        if hasattr(layer, "forward_head") and hasattr(layer, "forward_features"):  # timm
            return _timm_pooling(layer)
        if name.endswith(".visual") and hasattr(layer, "pool_type"):  # open_clip
            if layer.attn_pool is not None:
                return "attention over class token and patches"
            return {"tok": TOKEN, "avg": MEAN}.get(layer.pool_type, layer.pool_type)
        if name.endswith(".visual_projection"):  # transformers' CLIP
            return TOKEN

    return "not told"


def _card(number: int, width: int, height: int, mode: str) -> Image.Image:
    # one kind of pattern after the other, each in other colours
    pixels = _pattern(4 * number + number % 4, width, height)
    if mode == "RGB":
        return Image.fromarray(pixels)
    if mode == "RGBA":
        alpha = (pixels[..., :1].astype(np.int64) * 7 + 40) % 256
        return Image.fromarray(np.concatenate([pixels, alpha.astype(np.uint8)], axis=2), "RGBA")

    flat = Image.fromarray(pixels[..., 0])
    if mode == "P":
        flat = Image.fromarray(pixels[..., 0] // 16, "P")
        flat.putpalette([(17 * index * step) % 256 for index in range(16) for step in (3, 5, 11)])
    return flat


def _pattern(number: int, width: int, height: int) -> np.ndarray:
    """[height, width, 3] uint8."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    cell = 5 + number // 4

    # gradient, boxes, rings, noise (a multiplicative hash of the place)
    planes = (
        x * (1 + number % 3) + y * (2 + number % 5),
        ((x // cell + y // cell) % 2) * 170 + x // 3,
        ((x - width // 2) ** 2 + (y - height // 3) ** 2) // cell,
        ((x * 7919 + y * 104729 + number * 1299709) * 2654435761 % 2**32) >> 24,
    )
    plane = planes[number % 4]
    colors = [plane * (1 + (number * step) % 3) + 37 * number * step for step in (1, 3, 7)]
    return (np.stack(colors, axis=2) % 256).astype(np.uint8)


def _timm_pooling(trunk: Any) -> str:
    # Of a network that ends in a map, global_pool is a layer and pool_type its kind.
    pool = getattr(trunk, "global_pool", "")
    how = str(getattr(pool, "pool_type", pool) or "")

    attention = getattr(trunk, "attn_pool", None)
    if attention is not None:
        has_prefix = getattr(trunk, "num_prefix_tokens", 0) != 0
        is_plain = not has_prefix and getattr(attention, "pos_embed", None) is None
        return ATTENTION if is_plain else "attention over prefix tokens and patches"

    if how == "token":
        return TOKEN
    if how == "avg" or hasattr(getattr(trunk, "head", None), "global_pool"):
        with_prefix = getattr(trunk, "pool_include_prefix", False)
        return "mean of prefix tokens and patches" if with_prefix else MEAN
    return how or "not told"
