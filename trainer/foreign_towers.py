"""What the readers of other libraries' towers share: the words of a refusal, weights that change names, sizes that are checked.

``trainer.foreign`` reads transformers' and big_vision's models, ``trainer.foreign_open_clip`` open_clip's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from trainer.foreign_tokenizer import AnyTokenizer

EPS = 1e-6
OURS = "a run's towers are SigLIP's (patches alone, pooled by attention; texts without a causal mask, their last token pooled)"
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
    return [(name, value) for name, value in module.state_dict().items() if not name.endswith("position_ids")]


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
        raise UserError(f"our towers have no place for {len(left)} of its weights, such as {next(iter(left))}; {INSTEAD}")


def check_sizes(sizes: dict[str, dict[str, Any]], embed_dim: int, epsilons: Iterable[float]) -> None:
    if embed_dim != sizes["vision"]["width"]:
        raise UserError(
            f"its embeddings have {embed_dim} numbers and its image tower is {sizes['vision']['width']} wide, ours are as"
            f" wide as the tower; {INSTEAD}"
        )
    for side, size in sizes.items():
        if size["gelu"] not in ("tanh", "exact"):
            raise UserError(f"its {side} tower has {size['gelu']} between its layers, ours have a GELU; {INSTEAD}")
    if other := set(epsilons) - {EPS}:
        raise UserError(f"its norms add {sorted(other)[0]:g} to the variance, ours {EPS:g}; {INSTEAD}")
