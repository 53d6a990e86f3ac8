"""Where a step runs: in several processes, in which precision, and without waiting for a GPU.

Several processes: rank r of W takes rows r * b to (r + 1) * b of a global batch of
B = W * b. Every rank computes its share of the loss, and the mean of these shares over the ranks is
the loss of the global batch. DDP takes the same mean of the gradients. So each step equals that
of one process, for any number of ranks. Flow: ``with_averaged_gradients(student)`` -> forward;
``gather`` inside the contrastive losses; ``mean_over_ranks`` and
``log_sum_exp_over_ranks`` for centre, Sinkhorn and log. With one process each of
them returns what it was given. ``silc_bench.system.processes`` starts and ends the
group.

Sharded (``parallel=fsdp`` or ``hsdp``): ``mesh_of`` says which ranks share the weights, ``shard``
spreads the weights of a model over them (PyTorch's ``fully_shard``). The weights of a block are
whole only while the block computes. The weights outside the blocks are whole during a whole pass of
the model. Weights, gradients and the optimiser's state are then DTensors. ``local_part`` gives what
this rank holds of one, ``whole`` gives all of it, on every rank; both return an unsharded tensor as
it is. Precision is autocast's, as without shards, so that the numbers are the same: weights are
gathered in fp32.

Precision: ``precision=auto`` becomes "bf16" or "fp32" once, when
``TrainState.create`` calls ``resolve``, and ``compile=auto`` "true" or "false". The answer is
saved with the run, so that a resumed one goes on in it on any machine.

Without waiting: the host stays ahead of the GPU, so that the GPU always has something to
do. ``send`` brings what the host made to the device; ``PendingValues`` brings the values of a step
back, to be read a step later; ``DataWait`` measures how long the device had to wait for a batch. On
a CPU nothing of this is delayed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from silc_bench.errors import UserError, first_line
from silc_bench.later import Later
from silc_bench.system.processes import (
    group_of_mine,
    num_local_ranks,
    num_ranks,
    of_all,
    rank,
    summed,
)
from silc_bench.trainer.config.config import Config

if TYPE_CHECKING:
    import torch.distributed.device_mesh as device_mesh
    import torch.distributed.fsdp as fsdp
    import torch.distributed.tensor as dtensor
    from torch.distributed.device_mesh import DeviceMesh
else:
    # as slow to import as half of torch, and most runs shard nothing
    fsdp, dtensor = Later("torch.distributed.fsdp"), Later("torch.distributed.tensor")
    device_mesh = Later("torch.distributed.device_mesh")

# Of torch.cpu.get_capabilities: two names of x86, then two of ARM.
NATIVE_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")

T = TypeVar("T")


# ---- several processes ----


def with_averaged_gradients(student: nn.Module, exchange: str = "fp32") -> nn.Module:
    """What to call in place of ``student``, so that its gradients are means over the ranks.

    It is ``student`` itself where there is one process or where it is sharded (``fully_shard``
    averages), else a DDP around it. ``exchange``: the precision in which DDP sends gradients.

    Raises:
        UserError: this PyTorch cannot send them in bf16. A PyTorch built for CPUs alone cannot.
    """
    if num_ranks() == 1 or _is_sharded_model(student):
        return student
    model = DistributedDataParallel(student, gradient_as_bucket_view=True)
    if exchange == "bf16":
        # here, because it is slow to import and few runs need it
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        try:
            model.register_comm_hook(None, bf16_compress_hook)
        except TypeError as error:
            raise UserError(
                f"this PyTorch has no such exchange ({first_line(error)})",
                about="exchange=bf16",
                fix="install a PyTorch built with CUDA and NCCL, or leave exchange out",
            ) from None
    return model


def mesh_of(config: Config, device: torch.device) -> DeviceMesh | None:
    """How the ranks share the weights (``config.parallel``); None: each rank holds all of them.

    The ranks along the last dimension share one copy. Along the one before it (hsdp) each has a
    copy. It is None for one process, too.

    Raises:
        UserError: hsdp on nodes with different numbers of processes; on every rank.
    """
    if config.parallel == "ddp" or num_ranks() == 1:
        return None
    if config.parallel == "fsdp":
        everyone = cast("dist.ProcessGroup", dist.group.WORLD)
        return device_mesh.DeviceMesh.from_group(everyone, device.type, mesh_dim_names=("shard",))

    # Each rank knows its own node: they ask each other, or they would make other groups and hang.
    of_nodes = sorted({*of_all(num_local_ranks())})
    of_node = of_nodes[0]
    if len(of_nodes) > 1 or num_ranks() % of_node:
        raise UserError(
            f"{num_ranks()} processes are no whole number of nodes with"
            f" {' or '.join(map(str, of_nodes))} each",
            about="parallel=hsdp",
            fix="start as many processes on every node, or take parallel=fsdp",
        )
    nodes = torch.arange(num_ranks()).view(-1, of_node)
    return device_mesh.DeviceMesh.from_group(
        [group_of_mine(nodes.T.tolist()), group_of_mine(nodes.tolist())],
        device.type,
        nodes,
        mesh_dim_names=("replicate", "shard"),
    )


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, methods: Sequence[str] = ()
) -> None:
    """Spread the weights of ``model`` over ``mesh``, in place, and bring them to its device.

    Args:
        blocks: parts of it that are gathered when they compute, one at a time.
        methods: names of methods other than ``forward`` that are called from outside and need the
            weights.
    """
    size = mesh.size(mesh.ndim - 1)

    def place(weight: nn.Parameter) -> dtensor.Shard:
        # Positions are [1, N, W]: along their first dimension one rank would hold all of them.
        # PyTorch shares other dimensions evenly only.
        even = (dim for dim, count in enumerate(weight.shape) if count % size == 0)
        return dtensor.Shard(next(even, 0))

    for block in blocks:
        fsdp.fully_shard(block, mesh=mesh, shard_placement_fn=place)
    # A model without a backward pass (the teacher) would stay whole until its next forward pass.
    learns = any(weight.requires_grad for weight in model.parameters())
    fsdp.fully_shard(model, mesh=mesh, reshard_after_forward=not learns, shard_placement_fn=place)
    for method in methods:
        fsdp.register_fsdp_forward_method(model, method)


def is_sharded(tensor: Any) -> bool:
    """Whether it is a tensor that is spread over several ranks."""
    # Where this module was never imported, no such tensor was made.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of it. It is the same memory, not a copy."""
    return cast("dtensor.DTensor", tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank; of a sharded one every rank must ask."""
    return cast("dtensor.DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor


def reduced(values: Tensor) -> dtensor.DTensor:
    """A sharded tensor whose ranks hold summands of it, summed; every rank must ask."""
    spread = cast("dtensor.DTensor", values)
    places = [dtensor.Replicate() if place.is_partial() else place for place in spread.placements]
    return spread.redistribute(placements=places)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """[n]: the 2-norm of each of n tensors; of sharded ones every rank must ask."""
    of_mine = torch.stack(torch._foreach_norm([local_part(tensor) for tensor in tensors]))
    if not is_sharded(tensors[0]):
        return of_mine

    mesh = cast("dtensor.DTensor", tensors[0]).device_mesh
    squares = of_mine.square()
    dist.all_reduce(squares, group=mesh.get_group(mesh.ndim - 1))
    return squares.sqrt()


@contextmanager
def gathered(*models: nn.Module) -> Iterator[None]:
    """Inside, any part of the models can be called; every rank must do the same there.

    Weights of their blocks come and go with each call, all others stay whole until the end.
    """
    sharded = [model for model in models if _is_sharded_model(model)]
    for model in sharded:
        cast("fsdp.FSDPModule", model).unshard()
    try:
        yield
    finally:
        for model in sharded:
            cast("fsdp.FSDPModule", model).reshard()


def _is_sharded_model(model: nn.Module) -> bool:
    return any(map(is_sharded, model.parameters()))


@torch.no_grad()
def state_for_first(model: nn.Module) -> dict[str, Tensor] | None:
    """All of a sharded model's state on the first rank, None elsewhere; every rank must ask."""
    state = {}
    for name, value in model.state_dict().items():
        complete = whole(value)
        if rank() == 0:
            state[name] = complete
    return state if rank() == 0 else None


def share_of(batch_size: int, count: int | None = None, sharers: str = "processes") -> int:
    """Pairs of the global batch that each of ``count`` takes, by default each rank.

    UserError where they do not divide.
    """
    count = count or num_ranks()
    if batch_size % count:
        near = max(1, batch_size // count) * count
        raise UserError(
            f"{batch_size} does not divide among {count} {sharers}",
            about="batch_size",
            fix=f"try --set batch_size={near}",
        )
    return batch_size // count


def first_of(share: int) -> int:
    """Index in the global batch of this rank's first pair, where each rank has ``share``."""
    return rank() * share


def gather(share: Tensor) -> Tensor:
    """[b, ...] of each rank -> [W * b, ...] of all, in the order of the ranks.

    The gradient of each row flows back to the rank that it came from.
    """
    return share if num_ranks() == 1 else _Gather.apply(share)


@torch.no_grad()
def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor without gradient, equal on each rank to the last bit."""
    return values if num_ranks() == 1 else summed(values.clone()) / num_ranks()


@torch.no_grad()
def log_sum_exp_over_ranks(values: Tensor) -> Tensor:
    """log of the sum over the ranks of exp(values), element by element."""
    if num_ranks() == 1:
        return values

    # The highest value of any rank is taken out first, so that no exponential overflows.
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
        """Our rows of the sum over the ranks: each rank's loss has its own gradient by all rows.

        Each rank asks for its rows alone: (W - 1) / W of the table's bytes, half of what it costs
        to sum the whole table everywhere.
        """
        rows = gradient.new_empty(len(gradient) // num_ranks(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(rows, gradient.contiguous())
        return rows


# ---- precision ----


def resolve(config: Config, device: torch.device) -> Config:
    """The same configuration, with what suits ``device`` where precision or compile is "auto".

    An emulated bf16 is worse than none: on a CPU with AVX2 alone ``shapes_tiny`` trains at 13
    images/s, in fp32 at 110.
    """
    if config.compile == "auto":
        config = replace(config, compile="true" if device.type == "cuda" else "false")
    if config.precision != "auto":
        return config

    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # What the processor has counts only where torch may use it (ATEN_CPU_CAPABILITY).
        has_kernels = torch.backends.cpu.get_cpu_capability() != "AVX2"
        capabilities = torch.cpu.get_capabilities()
        is_native = has_kernels and any(capabilities.get(name, False) for name in NATIVE_BF16)
    return replace(config, precision="bf16" if is_native else "fp32")


# ---- between the host and a GPU ----


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` of the host, on ``device``, without waiting for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    # From memory that is not page-locked the host would wait.
    return tensor.pin_memory().to(device, non_blocking=True)


def kept_on_host(tensor: Tensor) -> Tensor:
    """A copy of it on the CPU, which stays as it is."""
    return tensor.detach().to("cpu", copy=True)


class PendingValues:
    """Values of a step, one number each, which are still being copied to the host."""

    def __init__(self, step: int, values: dict[str, Tensor]) -> None:
        self.step = step
        self._names = list(values)

        # One copy for all of them. The mark behind it tells when the numbers may be read.
        numbers = torch.stack(list(values.values()))
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = _mark() if numbers.is_cuda else None

    @property
    def is_here(self) -> bool:
        """Whether ``wait`` returns without waiting, as on a CPU."""
        return self._arrived is None

    def wait(self) -> dict[str, float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._numbers.tolist(), strict=True))


class DataWait:
    """How long the device had nothing to do because the next batch was not there.

    For a GPU it is the time between its last work and the next batch. How long the host waited does
    not count.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def next(self, batches: Iterator[T]) -> T:
        """The next batch, with the wait for it added to the measure."""
        if self._is_cuda:
            # The GPU reaches the first mark when it has finished its work. Where the batch is here
            # before that, it reaches both marks at the same time: it has not waited.
            before = _mark(enable_timing=True)
            batch = next(batches)
            self._marks.append((before, _mark(enable_timing=True)))
            return batch

        start = time.perf_counter()
        batch = next(batches)
        self._seconds += time.perf_counter() - start
        return batch

    def seconds(self) -> float:
        """Seconds of waiting since this was last asked."""
        for before, after in self._marks:
            after.synchronize()
            self._seconds += before.elapsed_time(after) / 1000  # elapsed_time is in milliseconds

        seconds = self._seconds
        self._seconds = 0.0
        self._marks = []
        return seconds


def _mark(enable_timing: bool = False) -> torch.cuda.Event:
    """A mark that the GPU reaches when it has done all that it was asked for so far."""
    event = torch.cuda.Event(enable_timing=enable_timing)
    event.record()
    return event
