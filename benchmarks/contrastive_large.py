"""A contrastive loss of a large batch on one device: its table of logits whole, and in chunks.

    OMP_NUM_THREADS=1 python benchmarks/contrastive_large.py

Seconds of a forward and a backward pass (on a CPU those of the processor, in turn), the peak of
memory beyond the features, and how far value and gradients are from those of the whole table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from loss_memory import allocated
from torch import Tensor
from torch.nn import functional as F

from silc_bench.trainer.config.config import LOSSES
from silc_bench.trainer.silc import losses

RULE = losses.MOST_CHUNKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)

    for name in LOSSES:
        inputs = made(options.batch, options.dim, device)
        losses.MOST_CHUNKS = math.inf
        whole = Measured(name, inputs)
        losses.MOST_CHUNKS = 0
        parts = Measured(name, inputs)

        for _ in range(options.repeats):
            for measured, most in ((whole, math.inf), (parts, 0)):
                losses.MOST_CHUNKS = most
                measured.repeat(inputs)

        table = 4 * options.batch**2
        ratios = [mine / theirs for mine, theirs in zip(parts.seconds, whole.seconds, strict=True)]
        print(
            f"{name}, {options.batch} pairs, D {options.dim}, {device}: tables in memory"
            f" {whole.bytes / table:.2f} whole, {parts.bytes / table:.2f} in chunks; seconds"
            f" {statistics.median(whole.seconds):.2f} and {statistics.median(parts.seconds):.2f};"
            f" RATIO {min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f};"
            f" largest difference {difference(parts.values, whole.values):.1e}",
            flush=True,
        )
        is_used = options.batch**2 > RULE * losses.CHUNK[device.type]
        print(f"  a run makes it {'in chunks' if is_used else 'whole'}", flush=True)


def made(batch: int, dim: int, device: torch.device) -> list[Tensor]:
    """Features of pairs that are alike, at the scale of a young model."""
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(batch, dim, generator=generator), dim=-1)
    images = texts + 0.1 * torch.randn(batch, dim, generator=generator)
    return [x.to(device) for x in (images, texts, torch.tensor(20.0), torch.tensor(-10.0))]


class Measured:
    """A loss at its inputs: values, memory, and seconds of each repetition."""

    def __init__(self, name: str, inputs: list[Tensor]) -> None:
        self.loss = getattr(losses, LOSSES[name].function)
        self.seconds: list[float] = []
        leaves = leaves_of(inputs)
        self.bytes, value = allocated(lambda: self.once(leaves), inputs[0].device)
        gradients = [torch.zeros(()) if x.grad is None else x.grad for x in leaves]
        self.values = [torch.tensor(value), *gradients]

    def once(self, leaves: list[Tensor]) -> float:
        value = self.loss(*leaves)
        value.backward()
        return value.item()

    def repeat(self, inputs: list[Tensor]) -> None:
        clock = time.perf_counter if inputs[0].is_cuda else time.process_time
        leaves = leaves_of(inputs)
        start = clock()
        self.once(leaves)
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(clock() - start)


def leaves_of(inputs: list[Tensor]) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in inputs]


def difference(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest, each against the largest entry of its tensor."""
    pairs = zip(mine, theirs, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)


if __name__ == "__main__":
    main()
