"""What the readers and writers of other libraries' models share.

Each library has one table of names, {ours: theirs}, which ``renamed`` reads in both directions.

Reading: a source of weights in our words (``Towers``), sizes that are checked, the words of a
refusal. ``silc_bench.trainer.checkpoints.libraries.transformers`` reads transformers'
and big_vision's models, ``silc_bench.trainer.checkpoints.libraries.open_clip`` open_clip's.

Writing: ``write_tensors`` makes a safetensors file: 8 bytes with the length of the header, a JSON
header, then the values, tensor after tensor. It is the counterpart of
``silc_bench.models.weights.tensor_files``, and writes one tensor at a time, so that no second copy
of the weights is held.

``write_tokenizer`` makes the tokenizer's files for transformers' AutoTokenizer, which open_clip
uses too. tokenizer.json is the one in the checkpoint, cleaning and merges included.
tokenizer_config.json adds what transformers decides outside of it: ``<eos>`` also pads, on the
right; no attention mask is made, because the model reads its padding; ``<eos>`` spelt in a text is
text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.weights.tensor_files import CHECKSUMS, part_checksums
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.config.config import TextConfig, VisionConfig
from silc_bench.trainer.silc.tokenizers import AnyTokenizer

EPS = 1e-6  # of our norms
# Two parts of a refusal: what our towers are, and what to do instead.
OURS = (
    "a run's towers are SigLIP's (patches alone, pooled by attention; "
    "texts without a causal mask, their last token pooled)"
)
INSTEAD = (
    "start from a SigLIP or SigLIP 2 of one resolution (hf:FOLDER, open_clip:ARCH/TAG,"
    " big_vision:FILE.npz) or from a run made here; `silc-bench eval` measures this model as it is"
)
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Towers:
    """A source of weights, in our words."""

    vision: VisionConfig
    text: TextConfig
    weights: Weights  # by the names of Student, without a head
    tokenizer: AnyTokenizer
    note: str = ""  # what a run does otherwise than the source, though the towers are the same


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Weights:
    """Tensors by other names: of each, the first prefix of ``names`` that fits is replaced.

    N in a prefix is the number of a block. A name that no prefix fits stays as it is.
    """
    patterns = {re.escape(old).replace("N", r"(\d+)"): new for old, new in names.items()}
    by_name = {}
    for name, value in tensors.items():
        new_name = name
        for pattern, new in patterns.items():
            if match := re.match(pattern, name):
                number = match[1] if match.groups() else ""
                new_name = new.replace("N", number) + name[match.end() :]
                break
        by_name[new_name] = value
    return by_name


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


# ---- reading ----


def state(network: nn.Module) -> Weights:
    # transformers' models keep 0, 1, 2 ... in a buffer: no weight, and not in every release.
    values = network.state_dict().items()
    return {name: value for name, value in values if not name.endswith("position_ids")}


def unfit(problem: str) -> UserError:
    """A model that our towers do not represent exactly."""
    return UserError(f"{problem}, and {OURS}", about="its towers", fix=INSTEAD)


def towers_from(
    weights: Weights,
    sizes: dict[str, dict[str, Any]],
    *,
    network: nn.Module,
    embed_dim: int,
    patch_size: int,
    tokenizer: AnyTokenizer,
) -> Towers:
    """What the readers of both libraries end with.

    Args:
        weights: by our names. Names that are missing or left over are refused before a run begins.
        sizes: fields of our configuration that both towers have, for "vision" and "text".
        network: the source's, whose norms are looked at.

    Raises:
        UserError: the embedding has another width than the image tower, the layers another
            activation, the norms another epsilon.
    """
    width = sizes["vision"]["width"]
    if embed_dim != width:
        raise unfit(f"embeddings of {embed_dim} numbers after an image tower {width} wide")
    for side, size in sizes.items():
        if size["gelu"] not in ("tanh", "exact"):
            raise unfit(f"{size['gelu']} between the layers of the {side} tower, not a GELU")

    norms = (module for module in network.modules() if isinstance(module, nn.LayerNorm))
    if other := {norm.eps for norm in norms} - {EPS}:
        raise unfit(f"norms that add {min(other):g} to the variance, ours {EPS:g}")
    for name in ("vision.positions", "text.positions", "text.embedding.weight"):
        if name not in weights:
            raise unfit(f"nothing in the place of our {name}")

    # A softmax loss has no bias.
    for name in ("log_scale", "logit_bias"):
        weights[name] = weights.get(name, torch.zeros(())).reshape(())

    # Told by the positions, one a patch: they are what the tower was trained with.
    image_size = patch_size * round(weights["vision.positions"].shape[1] ** 0.5)
    vision = VisionConfig(**sizes["vision"], patch_size=patch_size, image_size=image_size)
    text = TextConfig(
        **sizes["text"],
        vocab_size=len(weights["text.embedding.weight"]),
        context_length=weights["text.positions"].shape[1],
    )
    return Towers(vision, text, weights, tokenizer)


# ---- writing ----


ALIGNMENT = 8  # bytes; the header is padded with spaces, so that values can be mapped into memory


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """fp32 tensors by name, and texts beside them; one more text holds the checksum of each.

    Raises:
        OSError: it could not be written.
    """
    checksums = json.dumps(part_checksums(tensors, metadata))
    header: dict[str, object] = {"__metadata__": {**metadata, CHECKSUMS: checksums}}

    # Offsets count from the end of the header.
    end = 0
    for name, value in tensors.items():
        assert value.dtype == torch.float32, f"{name} is {value.dtype}"
        begin = end
        end = begin + value.numel() * value.element_size()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [begin, end]}

    header_json = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    header_json += b" " * (-len(header_json) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(header_json).to_bytes(8, "little"))
        file.write(header_json)
        for value in tensors.values():
            array = value.detach().cpu().contiguous().numpy()
            file.write(array.reshape(-1).view(np.uint8).data)


def write_tokenizer(model: NativeModel, folder: Path) -> None:
    """The files with which AutoTokenizer gives the ids of ``model.tokenize``.

    It must be called as ``tokenizer(texts, padding="max_length", truncation=True)``. A processor of
    transformers takes these settings from the file, and ``padding=True`` means them there, too.
    """
    text = model.tokenizer.to_json()
    length = model.config.text.context_length

    # The token's number is its key there, and not one of its settings.
    eos = end_of_text(model)
    eos_settings = {key: eos[key] for key in eos if key != "id"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "eos_token": eos["content"],
        "pad_token": eos["content"],
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ["input_ids"],
        # of AutoProcessor alone: a tokenizer is told at each call
        "padding": "max_length",
        "truncation": True,
        "max_length": length,
        "pad_to_multiple_of": length,  # the longest of a batch, with padding=True, is as long
        "split_special_tokens": True,
        "add_prefix_space": True,  # else transformers 4 takes it out of tokenizer.json
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(eos["id"]): eos_settings},
    }

    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)


def end_of_text(model: NativeModel) -> dict[str, Any]:
    """The one token that is no piece of text, as the tokenizer describes it: id, content, ..."""
    (eos,) = json.loads(model.tokenizer.to_json())["added_tokens"]
    return eos


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
