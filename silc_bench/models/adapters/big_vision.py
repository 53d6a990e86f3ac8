"""Checkpoints of big_vision: ``big_vision:FILE.npz`` of SigLIP, SigLIP 2 or SILC.

The three share one layout.

Flow: ``load(path, arch)`` -> ``read_params`` -> flat names below `img/`, `txt/`, `t`, `b`, one
entry a block -> ``shape_of`` reads the architecture from the shapes -> ``build`` makes the two
towers of transformers' SigLIP, which compute the same, and fills every weight -> the tokenizer file
beside the npz (``sentencepieces``) -> a model.

The shapes say everything: patch, grid, widths, depths, heads, vocabulary, length. ``--arch B/16``
checks them; ``So400m/14@384`` also says the size of the images where patches leave a rest. Without
a tokenizer file it is an image model, and tasks with text are refused, naming the file to bring.

Images are squashed to the square of training and set to [-1, 1]. big_vision evaluates with
TensorFlow's `resize`: bilinear, not antialiased. Here it is Pillow's bicubic, which transformers,
open_clip and timm use for the same weights, so that a checkpoint scores alike whichever way it is
loaded; the pixels are not big_vision's own.

The layout (big_vision: models/vit.py, models/proj/image_text/two_towers.py, text_transformer.py):

- flax stores a dense kernel as [in, out], attention as [W, heads, W / heads] and its output as
  [heads, W / heads, W], a convolution as [p, p, 3, W];
- blocks are `encoderblock_0` .. or, trained with `scan`, one `encoderblock` whose arrays are
  stacked along depth;
- names may begin with `params/`, beside which the state of the optimiser may lie;
- LayerNorm's epsilon is 1e-6, GELU flax's tanh approximation.

Shapes: B images or texts, D embedding, W width (= D), L tokens, H x W pixels, h x w patches,
p pixels a side of a patch.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.adapters.huggingface.towers import MapTower
from silc_bench.models.adapters.library import library
from silc_bench.models.adapters.loaded import DenseLoadedModel
from silc_bench.models.adapters.sentencepieces import FILES, PieceTokenizer, find_tokenizer
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.weights.read import load_into, read_weights

# a torch module; its parts are those of transformers' SigLIP, which its base class does not declare
Network = Any


@dataclass(frozen=True)
class TowerShape:
    """The numbers that make a transformer."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


@dataclass(frozen=True)
class Shape:
    """What the arrays say of the architecture."""

    image: TowerShape
    text: TowerShape | None  # None: the file holds an image tower alone
    patch_size: int
    grid: int  # patches a side
    # pixels a side; up to a patch more than patch_size * grid, which the model does not see
    image_size: int
    vocab_size: int
    context_length: int


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

# (patch, grid) -> pixels a side of releases whose images are no multiple of their patches:
# SigLIP So400m/14
RESOLUTIONS = {(14, 27): 384}

OURS = "give a SigLIP or SILC checkpoint of big_vision; NaFlex loads as hf:google/siglip2-..."
NOTHING = torch.empty(0)
EPS = 1e-6
ACTIVATION = "gelu_pytorch_tanh"

ATTENTION = "MultiHeadDotProductAttention_0"
PACKED = ("query", "key", "value")  # of the pooling head, in this order one matrix in torch

# big_vision's names -> transformers', part by part and in this order
NAMES = {
    "img/embedding/": "vision_model.embeddings.patch_embedding/",
    "img/pos_embedding": "vision_model.embeddings.position_embedding/kernel",
    "img/Transformer/encoder_norm": "vision_model.post_layernorm",
    "img/Transformer/": "vision_model.encoder/",
    "img/MAPHead_0/LayerNorm_0": "vision_model.head/layernorm",
    "img/MAPHead_0": "vision_model.head",
    f"head/{ATTENTION}/": "head/attention/",
    "txt/Embed_0/embedding": "text_model.embeddings.token_embedding/kernel",
    "txt/pos_embedding": "text_model.embeddings.position_embedding/kernel",
    "txt/Encoder_0/encoder_norm": "text_model.final_layer_norm",
    "txt/Encoder_0/": "text_model.encoder/",
    "txt/head": "text_model.head",
    "encoderblock_": "layers/",
    "LayerNorm_0": "layer_norm1",
    "LayerNorm_1": "layer_norm2",
    "MlpBlock_0/Dense_0": "mlp/fc1",
    "MlpBlock_0/Dense_1": "mlp/fc2",
    f"{ATTENTION}/query": "self_attn/q_proj",
    f"{ATTENTION}/key": "self_attn/k_proj",
    f"{ATTENTION}/value": "self_attn/v_proj",
    f"{ATTENTION}/out": "self_attn/out_proj",
    "attention/out": "attention/out_proj",
    "/kernel": "/weight",
    "/scale": "/weight",
    "/": ".",
}


class BigVisionModel(DenseLoadedModel):
    """A DenseModel: the image side of a checkpoint.

    The text tower, if there is one, counts for revision and size.
    """

    libraries = ("transformers", "tokenizers")  # its towers, and the tokenizer of a tokenizer.json

    def __init__(self, name: str, shape: Shape, network: Network, lacking: dict[str, str]):
        self.parts = {"vision": network.vision_model}
        if shape.text is not None:
            self.parts["text"] = network.text_model

        settings = {
            "activation": ACTIVATION,
            "epsilon": EPS,
            "pooling": "map",
            "shape": asdict(shape),
        }
        tower = MapTower(network)
        tower.lacking |= lacking
        pipeline = ImagePipeline(shape.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
        super().__init__(name, None, tower, pipeline, self.parts, settings)

    def to(self, device: torch.device) -> Self:
        for part in self.parts.values():
            part.to(device)
        return self


class BigVisionTextModel(BigVisionModel):
    """An ImageTextModel: image, text, and the tokenizer that lay beside them."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        network: Network,
        tokenizer: PieceTokenizer,
        logit_scale: float,
        logit_bias: float,
    ):
        super().__init__(name, shape, network, lacking={})
        self.tokenizer = tokenizer
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.text_protocol = {
            "cleaning": tokenizer.cleaning,
            "length": tokenizer.length,
            "padding": tokenizer.padding,
            "tokenizer": tokenizer.digest,
        }

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def token_lengths(self, texts: list[str]) -> list[int]:
        return self.tokenizer.lengths(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]: the last position, which always holds the end or padding token."""
        return self.parts["text"](input_ids=tokens).pooler_output.float()


def load(file: str, arch: str | None = None) -> BigVisionModel:
    """A file -> a model on the CPU.

    Args:
        file: the npz file.
        arch: what the file is expected to be ("B/16", "So400m/14@384"), or None.

    Raises:
        UserError: no such file, damaged, of another layout, or not what ``arch`` says; a tokenizer
            file that does not fit.
    """
    library("transformers", "big_vision")
    path = Path(file)
    if not path.is_file():
        raise UserError("no such file", about=f"big_vision:{path}", fix="check the path")

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

    # t is the logarithm of the scale; only checkpoints of the sigmoid loss have a bias
    scale = _number("exp(t)", params.get("t", NOTHING).exp(), path)
    bias = _number("b", params.get("b", torch.zeros(1)), path)
    return BigVisionTextModel(name, shape, network, tokenizer, scale, bias)


def read_params(path: Path) -> dict[str, Tensor]:
    """Array by name, fp32, blocks one by one; what does not belong to the two towers is left out.

    Raises:
        UserError: there is no image tower.
    """
    arrays = read_weights(path)
    if any(name.startswith("params/") for name in arrays):
        arrays = {
            name.removeprefix("params/"): array
            for name, array in arrays.items()
            if name.startswith("params/")
        }

    arrays = {
        name: array.float() for name, array in arrays.items() if re.match(r"(img|txt)/|[tb]$", name)
    }
    if not any(name.startswith("img/") for name in arrays):
        raise UserError("it holds no img/ arrays", about=path, fix=OURS)

    # blocks that were stacked along depth become arrays of their own
    params = {}
    for name, array in arrays.items():
        if "/encoderblock/" not in name:
            params[name] = array
            continue

        # a damaged array without axes gives no block: shape_of names what is missing
        rows = array if array.dim() else ()
        for i, row in enumerate(rows):
            params[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = row
    return params


def shape_of(params: dict[str, Tensor], path: Path) -> Shape:
    """The architecture, from the shapes alone.

    Raises:
        UserError: an array that tells it is missing or has another number of axes, as in NaFlex and
            in plain classifiers.
    """
    patch, _, channels, width = _axes(params, path, "img/embedding/kernel", 4)
    positions = _axes(params, path, "img/pos_embedding", 3)[1]
    grid = math.isqrt(positions)
    if channels != 3 or grid**2 != positions:
        problem = f"its {positions} positions of {channels} channels are no square colour image"
        raise UserError(problem, about=path, fix=OURS)

    image = _tower(params, path, "img/Transformer", width)
    size = RESOLUTIONS.get((patch, grid), patch * grid)
    if not any(name.startswith("txt/") for name in params):
        return Shape(image, None, patch, grid, size, 0, 0)

    vocab, text_width = _axes(params, path, "txt/Embed_0/embedding", 2)
    length = _axes(params, path, "txt/pos_embedding", 3)[1]
    text = _tower(params, path, "txt/Encoder_0", text_width)
    return Shape(image, text, patch, grid, size, vocab, length)


def build(params: dict[str, Tensor], shape: Shape, path: Path) -> Network:
    """transformers' SiglipModel with these weights, in eval mode.

    Without a text tower in the file that part stays empty.

    Raises:
        UserError: arrays are missing, too many or of another shape.
    """
    from transformers import SiglipConfig, SiglipModel

    sizes = {"image_size": shape.image_size, "patch_size": shape.patch_size}
    vision = {**_config(shape.image), **sizes}
    text: dict[str, Any] = {}
    if shape.text is not None:
        sizes = {"vocab_size": shape.vocab_size, "max_position_embeddings": shape.context_length}
        text = {**_config(shape.text), **sizes, "projection_size": shape.image.width}
    with torch.device("meta"):  # every weight comes from the file, so none is drawn
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))

    state = {
        _target(name): _to_torch(name, array)
        for name, array in params.items()
        if name not in ("t", "b")
    }
    _pack_pooling(state)
    towers = {"vision_model": model.vision_model}
    if shape.text is not None:
        towers["text_model"] = model.text_model
    load_into(nn.ModuleDict(towers), state, f"{path} as SigLIP")

    # the positions' numbers are a buffer: no weight, so in no file, and without values on meta
    for tower in towers.values():
        numbers = tower.embeddings.position_ids
        tower.embeddings.position_ids = torch.arange(numbers.shape[-1]).expand(1, -1)
    return model.eval().requires_grad_(False)


def _number(what: str, array: Tensor, path: Path) -> float:
    """The one number of an array.

    Raises:
        UserError: it is missing, holds more, or is not finite (training diverged).
    """
    values = array.flatten().tolist()
    if len(values) != 1 or not math.isfinite(values[0]):
        problem = f"its {what} is {values[:3]}, not one finite number"
        raise UserError(problem, about=path, fix="take an earlier checkpoint of that run")
    return values[0]


def _bring_tokenizer(path: Path, shape: Shape) -> str:
    """Why texts are refused, and which file mends it."""
    source = "the sentencepiece model it was trained with"
    if shape.vocab_size == 256_000:  # SigLIP 2's
        source = "big_vision's gemma_tokenizer.model"
    return (
        f"the tokenizer is no part of {path.name}: put {source} ({shape.vocab_size:,} pieces) "
        f"into {path.absolute().parent} as one of {', '.join(FILES)}"
    )


def _checked(arch: str, shape: Shape, path: Path) -> Shape:
    """The shape, if it is what ``arch`` says, with the image size where ``arch`` names one.

    Raises:
        UserError: it is another one, or ``arch`` is not understood.
    """
    about = f"--arch {arch}"
    parts = re.fullmatch(r"([^/]*)/([0-9]+)(?:@([0-9]+))?", arch)
    if parts is None:
        fix = "write VARIANT/PATCH such as B/16, or B/16@256 with the pixels"
        raise UserError("this says no patch size", about=about, fix=fix)
    variant, patch, size = parts.groups()
    if variant not in VARIANTS:
        raise unknown_name("architecture of big_vision", variant, VARIANTS, about)

    # the pixels may leave a rest of less than one patch
    fits = size is None or int(size) // shape.patch_size == shape.grid
    if shape.image != VARIANTS[variant] or shape.patch_size != int(patch) or not fits:
        names = [name for name, tower in VARIANTS.items() if tower == shape.image]
        actual = f"{names[0] if names else shape.image}/{shape.patch_size}@{shape.image_size}"
        fix = f"leave it out: the file is {actual}"
        raise UserError(f"this is not what {path} holds", about=about, fix=fix)

    return replace(shape, image_size=int(size)) if size else shape


def _config(tower: TowerShape) -> dict[str, Any]:
    """A tower's configuration in the words of transformers."""
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "intermediate_size": tower.mlp_dim,
        "num_attention_heads": tower.num_heads,
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPS,
    }


def _axes(params: dict[str, Tensor], path: Path, name: str, count: int) -> tuple[int, ...]:
    """The shape of one array, which must have ``count`` axes."""
    axes = tuple(params[name].shape) if name in params else ()
    if len(axes) != count or 0 in axes:
        problem = f"its {name} has the shape {list(axes)} instead of {count} axes"
        raise UserError(problem, about=path, fix=OURS)
    return axes


def _tower(params: dict[str, Tensor], path: Path, prefix: str, width: int) -> TowerShape:
    """The numbers of the tower whose blocks lie below ``prefix``."""
    first = f"{prefix}/encoderblock_0"
    heads = _axes(params, path, f"{first}/{ATTENTION}/query/kernel", 3)[1]
    mlp_dim = _axes(params, path, f"{first}/MlpBlock_0/Dense_0/kernel", 2)[1]
    if width % heads:
        problem = f"{heads} heads do not divide the width {width} of {prefix}"
        raise UserError(problem, about=path, fix=OURS)

    # a block that is missing between others is named when names are checked
    matches = [re.match(rf"{prefix}/encoderblock_(\d+)/", name) for name in params]
    last = max(int(match[1]) for match in matches if match)
    return TowerShape(width, last + 1, mlp_dim, heads)


def _target(name: str) -> str:
    """transformers' name of an array of big_vision."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _pack_pooling(state: dict[str, Tensor]) -> None:
    """The attention of the pooling head becomes one matrix and one bias, as torch has them."""
    attention = "vision_model.head.attention"
    for kind in ("weight", "bias"):
        names = [f"{attention}.{part}.{kind}" for part in PACKED]

        # parts that are missing or do not fit each other stay: load_into refuses them by name
        shapes = {state[name].shape for name in names if name in state}
        if len(shapes) == 1 and state.keys() >= set(names):
            state[f"{attention}.in_proj_{kind}"] = torch.cat([state.pop(name) for name in names])


def _to_torch(name: str, array: Tensor) -> Tensor:
    """An array in torch's order of axes.

    One with other axes than the layout's is left as it is: ``load_into`` names it.
    """
    if name == "img/embedding/kernel":
        return array.permute(3, 2, 0, 1).contiguous()
    if name.endswith("pos_embedding"):
        return array[0]
    if name.endswith("/bias"):
        return array.reshape(-1)

    if name.endswith("kernel") and array.dim() in (2, 3):
        # of attention: the two axes of the heads become one
        if array.dim() == 3:
            array = array.flatten(0, 1) if name.endswith("out/kernel") else array.flatten(1)
        return array.T.contiguous()
    return array
