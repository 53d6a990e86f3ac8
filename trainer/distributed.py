"""Training in several processes: what each rank does of one global batch, so that any number of ranks makes the same step.

Rank r of W takes rows r * b to (r + 1) * b of a global batch of B = W * b. Every loss is the rank's share, whose mean over the
ranks is the loss of the global batch; DDP takes the same mean of the gradients, so each step equals that of one process.

Flow: ``parallel(student)`` -> forward; ``gather`` inside the contrastive losses; the rest for centre and log.
With one process each of them returns what it was given. ``silc_bench.ranks`` starts and ends the group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from silc_bench.errors import UserError
from silc_bench.ranks import num_ranks, rank, summed


def parallel(student: nn.Module) -> nn.Module:
    """What is called instead of ``student``: DDP, which averages the gradients while they are made, or itself."""
    if num_ranks() == 1:
        return student
    return DistributedDataParallel(student, gradient_as_bucket_view=True)


def share_of(batch_size: int, count: int | None = None, sharers: str = "processes") -> int:
    """Pairs of the global batch that each of ``count`` takes, or each rank. UserError where they do not divide."""
    count = count or num_ranks()
    if batch_size % count:
        near = max(1, batch_size // count) * count
        raise UserError(f"batch_size {batch_size} does not divide among {count} {sharers}; try --set batch_size={near}")
    return batch_size // count


def first_of(share: int) -> int:
    """Index in the global batch of this rank's first pair, where each rank has ``share`` of them."""
    return rank() * share


def gather(share: Tensor) -> Tensor:
    """[b, ...] of each rank -> [W * b, ...] of all, in the order of the ranks. The gradient flows back to the rank it is of."""
    return share if num_ranks() == 1 else _Gather.apply(share)


@torch.no_grad()
def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over the ranks of a tensor without gradient, equal on each of them to the last bit."""
    return values if num_ranks() == 1 else summed(values.clone()) / num_ranks()


@torch.no_grad()
def log_sum_exp_over_ranks(values: Tensor) -> Tensor:
    """log of the sum over the ranks of exp(values), element by element."""
    if num_ranks() == 1:
        return values
    high = values.clone()
    dist.all_reduce(high, dist.ReduceOp.MAX)
    return summed((values - high).exp()).log() + high


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        shares = [torch.empty_like(share) for _ in range(num_ranks())]
        dist.all_gather(shares, share.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Each rank's loss has its own gradient by what was gathered: their sum, and of it our rows."""
        return summed(gradient.contiguous().clone()).chunk(num_ranks())[rank()]
