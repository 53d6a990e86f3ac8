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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.adapters.huggingface.towers import MapTower
from silc_bench.models.adapters.sentencepieces import FILES, PieceTokenizer, find_tokenizer
from silc_bench.models.patch_features import check_methods, dense
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.weights.read import load_into, read_weights
from silc_bench.models.weights.revision import revision_of

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

EPS = 1e-6
ACTIVATION = "gelu_pytorch_tanh"

ATTENTION = "MultiHeadDotProductAttention_0"
PACKED = ("query", "key", "value")  # of the pooling head, in this order one matrix in torch

# the parts of a block: transformers' name -> big_vision's
BLOCK = {
    "layer_norm1": "LayerNorm_0",
    "layer_norm2": "LayerNorm_1",
    "mlp.fc1": "MlpBlock_0/Dense_0",
    "mlp.fc2": "MlpBlock_0/Dense_1",
    "self_attn.q_proj": f"{ATTENTION}/query",
    "self_attn.k_proj": f"{ATTENTION}/key",
    "self_attn.v_proj": f"{ATTENTION}/value",
    "self_attn.out_proj": f"{ATTENTION}/out",
}


class BigVisionModel:
    """A DenseModel: the image side of a checkpoint.

    The text tower, if there is one, counts for revision and size.
    """

    libraries = ("transformers", "tokenizers")  # its towers, and the tokenizer of a tokenizer.json

    def __init__(self, name: str, shape: Shape, network: Network, lacking: dict[str, str]):
        self.name = name
        self.parts = {"vision": network.vision_model}
        if shape.text is not None:
            self.parts["text"] = network.text_model
        self.num_params = sum(p.numel() for part in self.parts.values() for p in part.parameters())

        settings = {
            "activation": ACTIVATION,
            "epsilon": EPS,
            "pooling": "map",
            "shape": asdict(shape),
        }
        self.revision = revision_of(self.parts, settings)

        self.tower = MapTower(network)
        self.embed_dim = shape.image.width
        self.image_size = shape.image_size
        self.patch_size = shape.patch_size
        self.feature_points = self.tower.feature_points
        self.dense_methods = self.tower.dense_methods
        self.lacking = {**self.tower.lacking, **lacking}

        self.pipeline = ImagePipeline(self.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.image_protocol = self.pipeline.as_dict()

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        return self.tower.encode(images, point).float()

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D]}."""
        check_methods(self.name, methods, self.dense_methods, self.lacking)
        return dense(self.tower, images, methods)

    def to(self, device: torch.device) -> BigVisionModel:
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

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]: the last position, which always holds the end or padding token."""
        return self.parts["text"](input_ids=tokens).pooler_output.float()


def load(path: Path, arch: str | None) -> BigVisionModel:
    """A file -> a model on the CPU.

    Args:
        path: the npz file.
        arch: what the file is expected to be ("B/16", "So400m/14@384"), or None.

    Raises:
        UserError: no such file, damaged, of another layout, or not what ``arch`` says; a tokenizer
            file that does not fit.
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

    # t is the logarithm of the scale; only checkpoints of the sigmoid loss have a bias
    logit_bias = _number(params["b"], "b, the bias", path) if "b" in params else 0.0
    logit_scale = _number(params["t"].exp(), "exp(t), the scale", path)
    return BigVisionTextModel(name, shape, network, tokenizer, logit_scale, logit_bias)


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
        raise UserError(
            f"{path} holds no img/ arrays: it is not an image-text checkpoint of big_vision"
        )

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
        raise UserError(
            f"{path}: {positions} positions of {channels} channels are no square colour picture"
        )

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
        UserError: transformers is missing; arrays are missing, too many or of another shape.
    """
    try:
        from transformers import SiglipConfig, SiglipModel
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise UserError(
            "big_vision: checkpoints need the package transformers: "
            "pip install 'silc-bench[big_vision]'"
        ) from None

    sizes = {"image_size": shape.image_size, "patch_size": shape.patch_size}
    vision = {**_config(shape.image), **sizes}
    text: dict[str, Any] = {}
    if shape.text is not None:
        sizes = {"vocab_size": shape.vocab_size, "max_position_embeddings": shape.context_length}
        text = {**_config(shape.text), **sizes, "projection_size": shape.image.width}
    with torch.device("meta"):  # every weight comes from the file, so none is drawn
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))

    sources = _vision_names(shape.image)
    if shape.text is not None:
        sources = {**sources, **_text_names(shape.text)}
    _check_names(params, set(sources.values()), path)

    state = {target: _to_torch(source, params[source]) for target, source in sources.items()}
    state |= _vision_pooling(params)
    _fill(model.vision_model, "vision_model.", state, path)
    if shape.text is not None:
        _fill(model.text_model, "text_model.", state, path)
    return model.eval().requires_grad_(False)


def _number(array: Tensor, what: str, path: Path) -> float:
    """The one number of an array.

    Raises:
        UserError: it holds more, or is not finite (training diverged).
    """
    if array.numel() != 1:
        fault = f"has the shape {list(array.shape)}"
    elif not array.isfinite().all():
        fault = f"is {array.item()}"
    else:
        return array.item()
    raise UserError(f"{path}: {what} {fault}; it must be one finite number")


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
    variant, _, patch_and_size = arch.partition("/")
    patch, at, size = patch_and_size.partition("@")
    if variant not in VARIANTS:
        raise unknown_name("architecture of big_vision", variant, VARIANTS)
    if not patch.isdecimal() or (at and not size.isdecimal()):
        raise UserError(
            f"--arch {arch!r} does not say the patch size; "
            f"write {variant}/16, or {variant}/16@256 with the pixels"
        )

    # the pixels may leave a rest of less than one patch
    fits = not at or int(size) // shape.patch_size == shape.grid
    if shape.image != VARIANTS[variant] or shape.patch_size != int(patch) or not fits:
        known_names = [name for name, tower in VARIANTS.items() if tower == shape.image]
        actual = known_names[0] if known_names else str(shape.image)
        raise UserError(f"{path} is not {arch} but {actual}/{shape.patch_size}@{shape.image_size}")

    return replace(shape, image_size=int(size)) if at else shape


def _fill(tower: Network, prefix: str, state: dict[str, Tensor], path: Path) -> None:
    """Puts the weights that begin with ``prefix`` into a tower built on the meta device."""
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    load_into(tower, weights, f"{path} as the {prefix[:-1]} of SigLIP")

    # the positions' numbers are a buffer: no weight, so in no file, and without values on meta
    for module in tower.modules():
        if isinstance(getattr(module, "position_ids", None), Tensor):
            module.position_ids = torch.arange(module.position_ids.shape[-1]).expand(1, -1)


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
    if name not in params:
        raise UserError(f"{path} is no SigLIP or SILC checkpoint of big_vision: it has no {name}")

    axes = tuple(params[name].shape)
    if len(axes) != count or 0 in axes:
        # NaFlex embeds flat patches, so its kernel has two axes
        hint = ""
        if name.startswith("img/"):
            hint = "; NaFlex checkpoints load as hf:google/siglip2-base-patch16-naflex"
        raise UserError(
            f"{path}: {name} has the shape {axes}, where SigLIP and SILC have {count} axes{hint}"
        )
    return axes


def _tower(params: dict[str, Tensor], path: Path, prefix: str, width: int) -> TowerShape:
    """The numbers of the tower whose blocks lie below ``prefix``."""
    first = f"{prefix}/encoderblock_0"
    heads = _axes(params, path, f"{first}/{ATTENTION}/query/kernel", 3)[1]
    mlp_dim = _axes(params, path, f"{first}/MlpBlock_0/Dense_0/kernel", 2)[1]
    if width % heads:
        raise UserError(f"{path}: {heads} heads do not divide the width {width} of {prefix}")

    # a block that is missing between others is named when names are checked
    matches = [re.match(rf"{prefix}/encoderblock_(\d+)/", name) for name in params]
    last = max(int(match[1]) for match in matches if match)
    return TowerShape(width, last + 1, mlp_dim, heads)


def _vision_names(tower: TowerShape) -> dict[str, str]:
    """transformers' name -> big_vision's.

    The attention of the pooling head is left out, because transformers packs it
    (``_vision_pooling``).
    """
    return {
        "vision_model.embeddings.patch_embedding.weight": "img/embedding/kernel",
        "vision_model.embeddings.patch_embedding.bias": "img/embedding/bias",
        "vision_model.embeddings.position_embedding.weight": "img/pos_embedding",
        **_block_names("vision_model", "img/Transformer", tower.depth),
        **_pair("vision_model.post_layernorm", "img/Transformer/encoder_norm"),
        "vision_model.head.probe": "img/MAPHead_0/probe",
        **_pair("vision_model.head.layernorm", "img/MAPHead_0/LayerNorm_0"),
        **_pair("vision_model.head.mlp.fc1", "img/MAPHead_0/MlpBlock_0/Dense_0"),
        **_pair("vision_model.head.mlp.fc2", "img/MAPHead_0/MlpBlock_0/Dense_1"),
        **_pair("vision_model.head.attention.out_proj", f"img/MAPHead_0/{ATTENTION}/out"),
    }


def _text_names(tower: TowerShape) -> dict[str, str]:
    """transformers' name -> big_vision's."""
    return {
        "text_model.embeddings.token_embedding.weight": "txt/Embed_0/embedding",
        "text_model.embeddings.position_embedding.weight": "txt/pos_embedding",
        **_block_names("text_model", "txt/Encoder_0", tower.depth),
        **_pair("text_model.final_layer_norm", "txt/Encoder_0/encoder_norm"),
        **_pair("text_model.head", "txt/head"),
    }


def _block_names(ours: str, theirs: str, depth: int) -> dict[str, str]:
    names: dict[str, str] = {}
    for i in range(depth):
        layer = f"{ours}.encoder.layers.{i}"
        block = f"{theirs}/encoderblock_{i}"
        for target, source in BLOCK.items():
            names |= _pair(f"{layer}.{target}", f"{block}/{source}")
    return names


def _pair(target: str, source: str) -> dict[str, str]:
    """Weight and bias of one layer; flax calls a norm's weight its scale."""
    is_norm = source.split("/")[-1].startswith(("LayerNorm", "encoder_norm"))
    weight = "scale" if is_norm else "kernel"
    return {f"{target}.weight": f"{source}/{weight}", f"{target}.bias": f"{source}/bias"}


def _check_names(params: dict[str, Tensor], expected: set[str], path: Path) -> None:
    """Refuses a file in which an expected array is missing, or holds one that nothing reads."""
    has_text = any(name.startswith("txt/") for name in expected)
    attention = f"img/MAPHead_0/{ATTENTION}"
    expected = expected | {
        f"{attention}/{part}/{kind}" for part in PACKED for kind in ("kernel", "bias")
    }

    # the scale belongs to a pair of towers; the bias is there only where the loss has one
    if has_text:
        expected |= {"t"}
    missing = sorted(expected - params.keys())
    extra = sorted(params.keys() - expected - {"t", "b"})

    faults = []
    if missing:
        faults.append(f"lacks {_first_three(missing)}")
    if extra:
        faults.append(f"has also {_first_three(extra)}")
    if faults:
        raise UserError(
            f"{path} is no SigLIP or SILC checkpoint of big_vision: it {' and '.join(faults)}"
        )


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _vision_pooling(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The attention of the pooling head, packed into one matrix as torch has it."""
    attention = f"img/MAPHead_0/{ATTENTION}"

    def arrays(kind: str) -> list[Tensor]:
        names = [f"{attention}/{part}/{kind}" for part in PACKED]
        return [_to_torch(name, params[name]) for name in names]

    # kernels that do not fit each other are left unpacked: load_into refuses and names their shape
    kernels = arrays("kernel")
    fits = all(kernel.dim() == 2 and kernel.shape == kernels[0].shape for kernel in kernels)
    return {
        "vision_model.head.attention.in_proj_weight": torch.cat(kernels) if fits else kernels[-1],
        "vision_model.head.attention.in_proj_bias": torch.cat(arrays("bias")),
    }


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
