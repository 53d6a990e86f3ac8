"""What the checks look at, computed once, and what they answer with.

The first picture and the first text are timed, and of slow models fewer are looked at: all within ``IMAGE_SECONDS`` and
``TEXT_SECONDS``, and never less than ``FEWEST``, which as many directions need as the checks ask for.

Shapes: B = 32 pictures or texts, fewer where a model is slow, L tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.doctor.cards import TEXTS, scenes

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "not applicable"
BATCH = 8
IMAGE_SECONDS, TEXT_SECONDS, FEWEST = 20.0, 10.0, 4
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
        """[32, ...] as ``preprocess`` makes them."""
        return torch.stack([self.model.preprocess(scene) for scene in scenes()])

    @cached_property
    def first_image(self) -> tuple[Tensor, float]:
        """[1, D], the embedding of the first picture alone, and the seconds it took."""
        return _timed(self.model.encode_image, self.pixels[:1])

    @cached_property
    def images(self) -> Tensor:
        """[B, D] image embeddings."""
        count = _affordable(len(self.pixels), self.first_image[1], IMAGE_SECONDS)
        return torch.cat([self.model.encode_image(part) for part in self.pixels[:count].split(BATCH)])

    @cached_property
    def tokens(self) -> Tensor:
        """[32, L]."""
        return self.model.tokenize(TEXTS)

    @cached_property
    def texts(self) -> Tensor:
        """[B, D] text embeddings."""
        count = _affordable(len(self.tokens), self.first_text[1], TEXT_SECONDS)
        return self.model.encode_text(self.tokens[:count])

    @cached_property
    def first_text(self) -> tuple[Tensor, float]:
        """[1, D], the embedding of the first text alone, and the seconds it took."""
        return _timed(self.model.encode_text, self.tokens[:1])

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


def _timed(encode: Callable[[Tensor], Tensor], one: Tensor) -> tuple[Tensor, float]:
    started = perf_counter()
    return encode(one), perf_counter() - started


def _affordable(count: int, each: float, seconds: float) -> int:
    return max(FEWEST, min(count, int(seconds / max(each, 1e-9))))


def distance(left: Tensor, right: Tensor) -> float:
    """Largest difference between two embeddings, as a share of the norm; NaN counts as infinite."""
    share = (left - right).norm() / right.norm().clamp_min(1e-12)
    return share.item() if share.isfinite() else float("inf")
