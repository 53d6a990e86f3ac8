"""SigLIP of transformers, in both directions: its towers as ours, and ours as a folder of its own.

Reading: ``of_hf`` and ``of_big_vision`` take a model that ``silc_bench.models.load.load_model``
gave and return ``Towers`` (sizes, weights by our names, tokenizer), or raise a sentence that says
why not. (We run big_vision's checkpoints in transformers' towers, so both are read here.) Weights
are renamed and regrouped, never changed. Whatever names or numbers are left over, or whatever the
towers here cannot be set to, refuses the model; ``silc_bench.trainer.checkpoints.init`` then
compares embeddings before a run begins.

Writing: ``write`` makes a folder that ``transformers.AutoModel``, ``AutoTokenizer`` and
``AutoImageProcessor`` load: a SiglipModel. Needs transformers 4.51 or newer to be read.

SigLIP's towers there and ours are the same computation: pre-norm blocks, GELU by its tanh or exact,
LayerNorm with epsilon 1e-6, MAP pooling, last token pooled, no mask. Ours keep q, k and v stacked;
a text tower of another width than the vision tower has its head's width in ``projection_size``.

Shapes: W width, D embedding, L tokens, N patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.trainer.checkpoints.exchange import (
    INSTEAD,
    OURS,
    Towers,
    Weights,
    check_nothing_left,
    check_sizes,
    end_of_text,
    is_norm,
    scalars,
    state,
    taken,
    write_json,
    write_tensors,
    write_tokenizer,
)
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, of_pieces, of_transformers

NAMES = {"clip": "a CLIP", "altclip": "an AltCLIP", "chinese_clip": "a Chinese-CLIP"}
DIFFERENCES = {
    "clip": (
        "a class token, a causal mask over its texts, another embedding than the width,"
        " QuickGELU in OpenAI's"
    ),
    "altclip": "a class token, and XLM-R reads its texts",
    "chinese_clip": "a class token, and BERT reads its texts",
}
BICUBIC = 3  # Pillow's number
# Layers of a block with a weight and a bias, which only have another name there.
PARTS = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


# ---- reading ----


def of_hf(model: Any) -> Towers:
    """A SigLIP of transformers. Raises UserError where it is another kind of model."""
    kind = model.network.config.model_type
    if kind == "siglip2":
        raise UserError(
            "it is a NaFlex SigLIP 2, which takes patches of pictures of any shape,"
            f" and {OURS}; {INSTEAD}"
        )
    if kind != "siglip":
        raise UserError(f"it is {NAMES[kind]} ({DIFFERENCES[kind]}), and {OURS}; {INSTEAD}")

    reader = model.reader
    network = model.network
    tokenizer = of_transformers(reader.tokenizer, reader.cleaning, reader.length, reader.vocab_size)
    return _of_siglip(network.vision_model, network.text_model, network, tokenizer)


def of_big_vision(model: Any) -> Towers:
    """A SigLIP of big_vision, which runs in transformers' towers. UserError as ``of_hf``."""
    reader = model.tokenizer
    text = model.parts["text"]
    tokenizer = of_pieces(
        reader.file.read_bytes(),
        eos=reader.eos,
        padding=reader.padding,
        cleaning=reader.cleaning,
        length=reader.length,
        vocab_size=text.config.vocab_size,
    )

    # Two numbers in the place of the network, which has them as parameters in transformers.
    numbers = nn.Module()
    numbers.logit_scale = nn.Parameter(torch.tensor(model.logit_scale).log())
    numbers.logit_bias = nn.Parameter(torch.tensor(model.logit_bias))
    return _of_siglip(model.parts["vision"], text, numbers, tokenizer)


def _of_siglip(vision: Any, text: Any, numbers: Any, tokenizer: AnyTokenizer) -> Towers:
    """From the two towers of transformers' SigLIP."""
    sizes = {"vision": _sizes(vision.config), "text": _sizes(text.config)}
    modules = [*vision.modules(), *text.modules()]
    epsilons = [module.eps for module in modules if is_norm(module)]
    check_sizes(sizes, text.head.out_features, epsilons)

    depths = {side: sizes[side]["depth"] for side in sizes}
    weights = _our_weights(vision, text, numbers, depths)

    # Told by the positions, one a patch: they are what the tower was trained with.
    patch_size = int(vision.config.patch_size)
    grid = round(weights["vision.positions"].shape[1] ** 0.5)
    vision_fields = {**sizes["vision"], "patch_size": patch_size, "image_size": patch_size * grid}
    text_fields = {
        **sizes["text"],
        "vocab_size": text.config.vocab_size,
        "context_length": text.config.max_position_embeddings,
    }
    return Towers(vision_fields, text_fields, weights, tokenizer)


def _our_weights(vision: Any, text: Any, numbers: Any, depths: dict[str, int]) -> Weights:
    """Both towers by the names of Student. Raises UserError: a weight has no place there."""
    # Every weight is taken out of this table when it finds its place.
    left = {f"vision.{name}": value for name, value in state(vision)}
    left |= {f"text.{name}": value for name, value in state(text)}

    weights = {
        **taken(left, "vision.embeddings.patch_embedding", "vision.patch"),
        "vision.positions": left.pop("vision.embeddings.position_embedding.weight")[None],
        **taken(left, "vision.post_layernorm", "vision.norm"),
        "vision.pool.probe": left.pop("vision.head.probe"),
        **taken(left, "vision.head.attention.out_proj", "vision.pool.out"),
        **taken(left, "vision.head.layernorm", "vision.pool.norm"),
        **taken(left, "vision.head.mlp.fc1", "vision.pool.mlp.fc1"),
        **taken(left, "vision.head.mlp.fc2", "vision.pool.mlp.fc2"),
        "text.embedding.weight": left.pop("text.embeddings.token_embedding.weight"),
        "text.positions": left.pop("text.embeddings.position_embedding.weight")[None],
        **taken(left, "text.final_layer_norm", "text.norm"),
        **taken(left, "text.head", "text.head"),
        **scalars(numbers),
    }

    # torch's MultiheadAttention stacks q, k, v [3W, W]; our pooling has q [W, W], kv [2W, W].
    width = vision.config.hidden_size
    for part in ("weight", "bias"):
        packed = left.pop(f"vision.head.attention.in_proj_{part}")
        weights[f"vision.pool.q.{part}"] = packed[:width]
        weights[f"vision.pool.kv.{part}"] = packed[width:]

    for side, depth in depths.items():
        for index in range(depth):
            theirs = f"{side}.encoder.layers.{index}"
            ours = f"{side}.blocks.{index}"
            for our_part, their_part in PARTS.items():
                weights |= taken(left, f"{theirs}.{their_part}", f"{ours}.{our_part}")
            weights |= taken(left, f"{theirs}.self_attn.out_proj", f"{ours}.attention.out")

            # In the blocks it is the other way round: three layers there, one here.
            for part in ("weight", "bias"):
                names = [f"{theirs}.self_attn.{projection}_proj.{part}" for projection in "qkv"]
                stacked = torch.cat([left.pop(name) for name in names])
                weights[f"{ours}.attention.qkv.{part}"] = stacked

    check_nothing_left(left)
    return weights


def _sizes(config: Any) -> dict[str, Any]:
    """Fields that both towers of ours have."""
    # Another activation keeps its name, and check_sizes refuses it by that.
    gelu = {"gelu_pytorch_tanh": "tanh", "gelu": "exact"}.get(config.hidden_act, config.hidden_act)
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_dim": config.intermediate_size,
        "gelu": gelu,
    }


# ---- writing ----


def write(model: NativeModel, folder: Path, final: Path) -> None:
    """config.json, weights, tokenizer and image processor into ``folder``.

    It may be moved from ``final`` to anywhere.
    """
    write_json(folder / "config.json", _config(model))
    write_json(folder / "preprocessor_config.json", _preprocessor(model))
    write_tokenizer(model, folder)
    write_tensors(
        folder / "model.safetensors", weights(model), {"format": "pt", "name": model.name}
    )


def weights(model: NativeModel) -> dict[str, Tensor]:
    """The weights by SiglipModel's names."""
    vision = model.vision
    text = model.text
    return {
        **_linear("vision_model.embeddings.patch_embedding", vision.patch),
        "vision_model.embeddings.position_embedding.weight": vision.positions[0],
        **_blocks("vision_model", vision.blocks),
        **_linear("vision_model.post_layernorm", vision.norm),
        **_pooling("vision_model.head", vision.pool),
        "text_model.embeddings.token_embedding.weight": text.embedding.weight,
        "text_model.embeddings.position_embedding.weight": text.positions[0],
        **_blocks("text_model", text.blocks),
        **_linear("text_model.final_layer_norm", text.norm),
        **_linear("text_model.head", text.head),
        "logit_scale": torch.tensor([model.log_scale]),
        "logit_bias": torch.tensor([model.logit_bias]),  # 0 after training with the softmax loss
    }


def _linear(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The weight and bias of a linear layer, a convolution or a norm."""
    return {f"{name}.{part}": value for part, value in module.state_dict().items()}


def _blocks(tower: str, blocks: nn.ModuleList) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for index, block in enumerate(blocks):
        prefix = f"{tower}.encoder.layers.{index}"
        for ours, theirs in PARTS.items():
            named |= _linear(f"{prefix}.{theirs}", block.get_submodule(ours))

        # Views of the stacked tensor: nothing is copied.
        for part, value in block.get_submodule("attention.qkv").state_dict().items():
            for projection, values in zip("qkv", value.chunk(3), strict=True):
                named[f"{prefix}.self_attn.{projection}_proj.{part}"] = values

        named |= _linear(f"{prefix}.self_attn.out_proj", block.get_submodule("attention.out"))
    return named


def _pooling(name: str, pool: nn.Module) -> dict[str, Tensor]:
    q = pool.get_submodule("q").state_dict()
    kv = pool.get_submodule("kv").state_dict()

    # MultiheadAttention there has one parameter for q, k and v: ours side by side.
    return {
        f"{name}.probe": pool.get_parameter("probe"),
        f"{name}.attention.in_proj_weight": torch.cat([q["weight"], kv["weight"]]),
        f"{name}.attention.in_proj_bias": torch.cat([q["bias"], kv["bias"]]),
        **_linear(f"{name}.attention.out_proj", pool.get_submodule("out")),
        **_linear(f"{name}.layernorm", pool.get_submodule("norm")),
        **_linear(f"{name}.mlp", pool.get_submodule("mlp")),
    }


def _config(model: NativeModel) -> dict[str, Any]:
    vision = model.config.vision
    text = model.config.text

    # No token begins a text here; left out, transformers would fill in its own number.
    eos = end_of_text(model)["id"]
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            **_tower(vision, model.vision.norm.eps),
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "projection_size": model.embed_dim,
            "bos_token_id": None,
            "eos_token_id": eos,
            "pad_token_id": eos,
            **_tower(text, model.text.norm.eps),
        },
    }


def _tower(size: Any, eps: float) -> dict[str, Any]:
    """What both towers have in common; ``size`` is the configuration of either."""
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "intermediate_size": size.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh" if size.gelu == "tanh" else "gelu",
        "layer_norm_eps": eps,
    }


def _preprocessor(model: NativeModel) -> dict[str, Any]:
    pipeline = model.pipeline
    assert (pipeline.resize, pipeline.crop, pipeline.interpolation) == ("squash", "none", "bicubic")
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": pipeline.size, "width": pipeline.size},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pipeline.mean),
        "image_std": list(pipeline.std),
    }
