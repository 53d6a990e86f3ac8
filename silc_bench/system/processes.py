"""The processes of one command: torchrun starts them, each is a rank, and without torchrun there is
one.

Flow: ``with joined(device): ...`` around the whole command; inside, ``rank()`` and ``num_ranks()``
say who we are, ``summed``, ``of_all``, ``any_of`` and ``of_first`` agree. With one process each of
them answers at once and nothing is started.

    torchrun --nproc-per-node 2 -m silc_bench train --preset b16 ...
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from silc_bench.errors import RunError, UserError
from silc_bench.system.limits import core_limit

T = TypeVar("T")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
# key of the store that all ranks see; the first to write it speaks for all
FAILURE = "silc_bench/failure"


class StoppedError(RunError):
    """The end of a run that all ranks agreed on: each of them raises it after the same step, with
    the same sentence.
    """


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def num_local_ranks() -> int:
    """Those on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks()))


def num_cores() -> int:
    """Those that this process may use, also in a container with a quota; a share of a core counts
    as one.
    """
    found = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return math.ceil(min(found, core_limit()))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """The group of all ranks, where torchrun started this process; else nothing.

    Tensors of GPUs (one a rank) go by nccl. Those of CPUs, and all that the hosts say to each
    other, go by gloo: a host that asked by nccl would wait until its GPU has done all that it was
    asked for before.

    Raises:
        the error of the block. Of all ranks only the first that fails says why, with its number;
        the others exit in silence. StoppedError: every rank raised it, and rank 0 speaks for all.
        RunError: another rank was killed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= found:
            raise UserError(
                f"torchrun started more processes than there are GPUs ({found}): --nproc-per-node {found}"
            )
        torch.cuda.set_device(local)
    store, number, count = next(dist.rendezvous("env://"))
    try:
        dist.init_process_group(BACKENDS[device.type], store=store, rank=number, world_size=count)
        try:
            yield
        except StoppedError:
            # torchrun ends every rank as soon as one has ended, so rank 0 ends first: when it has
            # saved, closed its log and
            # said why. Its end breaks the connection that the others wait at.
            meet()
            if number > 0:
                with suppress(RuntimeError):
                    meet()
                raise SystemExit(1) from None
            raise
    except StoppedError:
        raise
    except Exception as error:
        name = f"rank {number} of {count}"
        try:
            speaker = store.compare_set(FAILURE, "", name).decode()
        except (
            dist.DistError
        ):  # the process that held the store has ended, and may not have said why
            speaker = name
        if speaker != name:
            raise SystemExit(1) from None
        if isinstance(error, UserError | RunError):
            raise type(error)(f"{name}: {error}") from error
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and "gloo" in str(error).lower()
        ):
            raise RunError(
                f"{name}: lost another rank, which torchrun names below ({str(error)[:200]})"
            ) from error
        error.add_note(f"on {name}")
        raise
    dist.destroy_process_group()  # not after an error: the others would wait for it


def summed(values: Tensor) -> Tensor:
    """``values``, in place, summed over the ranks; equal on each of them to the last bit."""
    if num_ranks() > 1:
        dist.all_reduce(values)
    return values


def of_all(number: int) -> list[int]:
    """The number of each rank, in their order; every rank must ask. One small sum, which waits for
    no GPU.
    """
    numbers = torch.zeros(num_ranks(), dtype=torch.int64)
    numbers[rank()] = number
    return summed(numbers).tolist()


def any_of(flag: bool) -> bool:
    """Whether it is true on any rank; every rank must ask."""
    return any(of_all(flag))


def of_first(make: Callable[[], str]) -> str:
    """What the first rank makes, on every rank; the others make nothing."""
    box = [make() if rank() == 0 else None]
    if num_ranks() > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    assert box[0] is not None, "the first rank sends what it made"
    return box[0]


def concatenated(values: list[T]) -> list[T]:
    """The lists of all ranks, one after the other; anything that pickles. Costs one number where
    all are empty.
    """
    if num_ranks() == 1 or not any_of(bool(values)):
        return values
    parts: list[list[T]] = [[] for _ in range(num_ranks())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def meet() -> None:
    """Wait until every rank is here."""
    any_of(False)
