"""What the checks look at, computed once, and what they answer with.

Shapes: B = 32 pictures or texts, L tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.doctor.cards import TEXTS, scenes

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "not applicable"
BATCH = 8
SAME = 1e-4  # of the norm; the sums of another batch size differ by about 1e-6 in fp32


@dataclass(frozen=True)
class Answer:
    """Of one check."""

    verdict: str  # OK, FAILED or NOT_APPLICABLE
    says: str  # what was seen, or why there was nothing to check
    cause: str = ""  # of a failure, the likely one
    fix: str = ""


@dataclass(frozen=True)
class Finding(Answer):
    """An answer, and to what."""

    check: str = ""  # "picture alone and in a batch"


class Subject:
    """A model (``ImageModel``, as far as it is one) and its answers to the pictures and texts of ``cards``."""

    def __init__(self, model: Any):
        self.model = model
        self.reads = callable(getattr(model, "tokenize", None)) and callable(getattr(model, "encode_text", None))
        self.is_dense = callable(getattr(model, "encode_dense", None))

    @cached_property
    def pixels(self) -> Tensor:
        """[B, ...] as ``preprocess`` makes them."""
        return torch.stack([self.model.preprocess(scene) for scene in scenes()])

    @cached_property
    def images(self) -> Tensor:
        """[B, D] image embeddings."""
        return torch.cat([self.model.encode_image(part) for part in self.pixels.split(BATCH)])

    @cached_property
    def tokens(self) -> Tensor:
        """[B, L]."""
        return self.model.tokenize(TEXTS)

    @cached_property
    def texts(self) -> Tensor:
        """[B, D] text embeddings."""
        return self.model.encode_text(self.tokens)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The networks that an adapter holds, by the name of its attribute."""
        found: dict[str, nn.Module] = {}
        for name, value in vars(self.model).items():
            if isinstance(value, nn.Module):
                found[name] = value
            elif isinstance(value, dict):
                found |= {f"{name}.{key}": part for key, part in value.items() if isinstance(part, nn.Module)}
        return found

    def layers(self) -> Iterator[nn.Module]:
        """All modules of all networks."""
        for network in self.modules.values():
            yield from network.modules()


def distance(left: Tensor, right: Tensor) -> float:
    """Largest difference between two embeddings, as a share of the norm; NaN counts as infinite."""
    share = (left - right).norm() / right.norm().clamp_min(1e-12)
    return share.item() if share.isfinite() else float("inf")
