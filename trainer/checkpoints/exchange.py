"""What the readers of other libraries' towers share: the words of a refusal, weights that change
names, sizes that are checked.

``silc_bench.trainer.checkpoints.transformers`` reads transformers' and big_vision's models,
``silc_bench.trainer.checkpoints.open_clip`` open_clip's.

Writing a safetensors file: 8 bytes with the length of the header, a JSON header, then the values,
tensor after tensor.

The counterpart of ``silc_bench.models.weights.tensor_files``; one tensor at a time, so that no
second copy of the weights is held.

The tokenizer of a checkpoint as files for transformers' AutoTokenizer, which open_clip uses too.

tokenizer.json is the one in the checkpoint, cleaning and merges included. tokenizer_config.json
adds what transformers decides outside of it: ``<eos>`` also pads, on the right; no attention mask
is made, because the model reads its padding; ``<eos>`` spelt in a text is text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.weights.tensor_files import CHECKSUMS, part_checksums
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.silc.tokenizers import AnyTokenizer

EPS = 1e-6
OURS = (
    "a run's towers are SigLIP's (patches alone, pooled by attention; "
    "texts without a causal mask, their last token pooled)"
)
INSTEAD = (
    "start from a SigLIP or SigLIP 2 of one resolution (hf:FOLDER, open_clip:ARCH/TAG, big_vision:FILE.npz) or from a run made"
    " here; `silc-bench eval` measures this model as it is"
)
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Towers:
    """A source of weights, in our words."""

    vision: dict[str, Any]  # fields of VisionConfig
    text: dict[str, Any]  # fields of TextConfig
    weights: Weights  # by the names of Student, without a head
    tokenizer: AnyTokenizer
    note: str = ""  # what a run does otherwise than the source, though the towers are the same


def state(module: Any) -> list[tuple[str, Tensor]]:
    return [
        (name, value)
        for name, value in module.state_dict().items()
        if not name.endswith("position_ids")
    ]


def taken(left: Weights, theirs: str, ours: str) -> Weights:
    """The weight and bias of a layer under our name; ``left`` no longer holds them."""
    return {f"{ours}.{part}": left.pop(f"{theirs}.{part}") for part in ("weight", "bias")}


def scalars(module: Any) -> Weights:
    bias = getattr(module, "logit_bias", None)
    bias = torch.zeros(()) if bias is None else bias.detach()
    return {"log_scale": module.logit_scale.detach().reshape(()), "logit_bias": bias.reshape(())}


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm)


def check_nothing_left(left: Weights) -> None:
    if left:
        raise UserError(
            f"our towers have no place for {len(left)} of its weights, such as {next(iter(left))}; {INSTEAD}"
        )


def check_sizes(
    sizes: dict[str, dict[str, Any]], embed_dim: int, epsilons: Iterable[float]
) -> None:
    if embed_dim != sizes["vision"]["width"]:
        raise UserError(
            f"its embeddings have {embed_dim} numbers and its image tower is {sizes['vision']['width']} wide, ours are as"
            f" wide as the tower; {INSTEAD}"
        )
    for side, size in sizes.items():
        if size["gelu"] not in ("tanh", "exact"):
            raise UserError(
                f"its {side} tower has {size['gelu']} between its layers, ours have a GELU; {INSTEAD}"
            )
    if other := set(epsilons) - {EPS}:
        raise UserError(
            f"its norms add {sorted(other)[0]:g} to the variance, ours {EPS:g}; {INSTEAD}"
        )


ALIGNMENT = 8  # bytes; the header is padded with spaces, so that values can be mapped into memory


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """fp32 tensors by name, and texts beside them; one more text holds the checksum of each.

    Raises:
        OSError: it could not be written.
    """
    checksums = json.dumps(part_checksums(tensors, metadata))
    header: dict[str, object] = {"__metadata__": {**metadata, CHECKSUMS: checksums}}
    end = 0
    for name, value in tensors.items():
        assert value.dtype == torch.float32, f"{name} is {value.dtype}"
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [begin, end]}
    words = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    words += b" " * (-len(words) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(words).to_bytes(8, "little"))
        file.write(words)
        for value in tensors.values():
            file.write(value.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)


def write_tokenizer(model: NativeModel, folder: Path) -> None:
    """``tokenizer(texts, padding="max_length", max_length=L, truncation=True)`` gives the ids of
    ``model.tokenize``.
    """
    text = model.tokenizer.to_json()
    eos = end_of_text(model)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.text.context_length,
        "eos_token": eos["content"],
        "pad_token": eos["content"],
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ["input_ids"],
        "split_special_tokens": True,
        "add_prefix_space": True,  # else transformers 4 takes it out of tokenizer.json
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(eos["id"]): {key: eos[key] for key in eos if key != "id"}},
    }
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)


def end_of_text(model: NativeModel) -> dict[str, Any]:
    """The one token that is no piece of text, as the tokenizer describes it: id, content, ..."""
    (eos,) = json.loads(model.tokenizer.to_json())["added_tokens"]
    return eos


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
