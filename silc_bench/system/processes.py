"""The processes of one command: torchrun starts several, each is a rank; without it there is one.

Flow: ``with joined(device): ...`` around the whole command; inside, ``rank()`` and ``num_ranks()``
say who we are, and ``summed``, ``of_all``, ``any_of``, ``of_first`` and ``concatenated`` let all
ranks know the same. With one process each of them answers at once and nothing is started.

``begun`` starts the processes that read for one of them, and ``is_of_dead_reader`` tells their
death from our own mistakes.

    torchrun --nproc-per-node 2 -m silc_bench train --preset b16 ...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from silc_bench.errors import RunError, UserError, first_line
from silc_bench.later import Later

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor
    from torch.utils.data import DataLoader
else:
    torch, dist = Later("torch"), Later("torch.distributed")

T = TypeVar("T")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
# Key of the store that all ranks see; the first rank that writes it speaks for all.
FAILURE = "silc_bench/failure"
WAITED = "silc_bench/waited"  # keys of the ranks that waited for another one until the timeout
MEETING = 10.0  # seconds in which all ranks that waited have said so: they began together
TIMEOUT_MINUTES = 30.0
_timeout = timedelta(minutes=TIMEOUT_MINUTES)  # of the group of all ranks, as ``joined`` was told

# Launchers that start processes by themselves: how many they started, and what starts them right.
#
# SLURM_NTASKS does not say it: salloc, sbatch and the shell that a newer salloc starts by itself
# (srun --interactive --preserve-env) set it to what was asked for, and run one process. What srun
# has started is in SLURM_STEP_NUM_TASKS: 1 in that shell, and neither salloc nor sbatch set it
# (SchedMD/slurm src/common/env.c, env_array_for_step).
LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "srun --ntasks-per-node 1 torchrun --nnodes $SLURM_NNODES"
    " --nproc-per-node GPUS --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 -m silc_bench ...",
    "OMPI_COMM_WORLD_SIZE": "torchrun --nproc-per-node GPUS -m silc_bench ... in place of mpirun",
    "PMI_SIZE": "torchrun --nproc-per-node GPUS -m silc_bench ... in place of mpiexec",
}


class StoppedError(RunError):
    """The end of a run that all ranks agreed on.

    Each of them raises it after the same step, with the same sentence.
    """


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _have_joined() else 0


def num_ranks() -> int:
    """Processes of this command, on all machines."""
    return dist.get_world_size() if _have_joined() else 1


def _have_joined() -> bool:
    """Whether there is a group; without torch there cannot be, and this does not import it."""
    return "torch.distributed" in sys.modules and dist.is_initialized()


def num_local_ranks() -> int:
    """Processes of this command on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks()))


def node() -> tuple[int, int]:
    """(Number of this rank's machine, how many there are); every rank must ask.

    torchrun numbers the ranks of a machine one after the other. Where another launcher does not, or
    machines have unequal numbers of ranks, the answer is one machine, and the first rank says so.
    """
    if num_ranks() == 1:
        return 0, 1
    counts, groups = of_all(num_local_ranks()), of_all(int(os.environ.get("GROUP_RANK", 0)))
    num_local = counts[0]
    is_even = counts == [num_local] * num_ranks() and num_ranks() % num_local == 0
    if is_even and groups == [number // num_local for number in range(num_ranks())]:
        return groups[rank()], num_ranks() // num_local

    if rank() == 0:
        from silc_bench.system.terminal import warn

        warn(
            f"ranks are not numbered node by node (LOCAL_WORLD_SIZE {counts}, GROUP_RANK {groups}):"
            " every node reads every shard"
        )
    return 0, 1


def check_launcher() -> None:
    """Raises UserError: processes that do not know of each other, each with all of the work."""
    if "WORLD_SIZE" in os.environ:
        return
    for name, line in LAUNCHERS.items():
        count = os.environ.get(name, "1")
        if count.isdecimal() and int(count) > 1:
            raise UserError(
                f"{count} processes were started that do not know of each other (no WORLD_SIZE):"
                " each would do all of the work, into one folder",
                about=f"{name}={count}",
                fix=f"start them with {line}; or set WORLD_SIZE=1 where this is the only one",
            )


@contextmanager
def joined(device: torch.device, timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[None]:
    """The group of all ranks, where torchrun started this process; else nothing.

    Tensors of GPUs (one GPU a rank) go by nccl. Those of CPUs, and all that the hosts say to each
    other, go by gloo: a host that asked by nccl would wait until its GPU has done all that it was
    asked for before.

    Args:
        timeout_minutes: how long a rank waits for another one before all of them end.

    Raises:
        UserError: as ``check_launcher``.
        Exception: the error of the block. Of all ranks only the first that fails says why, with
            its number; the others exit in silence.
        StoppedError: every rank raised it, and rank 0 speaks for all.
        RunError: another rank was killed, or hangs: it names those that do.
    """
    check_launcher()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return

    global _timeout
    _timeout = timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        _take_gpu()
    store, number, count = next(dist.rendezvous("env://"))
    store = _of_this_start(store)
    try:
        dist.init_process_group(
            BACKENDS[device.type],
            store=store,
            rank=number,
            world_size=count,
            timeout=_timeout,
        )
        # A rank that refuses its input at once must not leave while others still connect: gloo
        # would let them wait for it until their time is over.
        any_of(False)
        try:
            yield
        except StoppedError:
            # torchrun ends every rank as soon as one has ended. So rank 0 ends first, when it has
            # saved, closed its log and said why. Its end breaks the connection that the others
            # wait at in their second meeting.
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
        hanging = _hanging(store, number, count, error)
        try:
            # Sets the key only where it is empty, and gives what stands there: one rank wins.
            speaker = store.compare_set(FAILURE, "", name).decode()
        except dist.DistError:
            # The process that held the store has ended, and may not have said why.
            speaker = name

        if speaker != name:
            raise SystemExit(1) from None
        if hanging:
            raise RunError(
                f"no answer for {timeout_minutes:g} minutes from rank {', '.join(hanging)}, for"
                " which the others waited",
                about=name,
                fix="look at its machine; raise --timeout-minutes where it was only slow",
            ) from error
        if isinstance(error, UserError | RunError):
            about = f"{name}: {error.about}" if error.about else name
            raise type(error)(error.problem, about=about, fix=error.fix) from error

        # gloo reports a lost connection as a RuntimeError that has its own name in the message.
        is_gloo = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
        if is_gloo or isinstance(error, dist.DistError):
            raise RunError(
                f"lost another rank, which torchrun names below ({first_line(error)})",
                about=name,
                fix="mend what ended that one",
            ) from error
        error.add_note(f"on {name}")
        raise

    # Not after an error: it would wait for ranks that may never come.
    dist.destroy_process_group()


def group_of_mine(parts: Sequence[Sequence[int]], backend: str | None = None) -> dist.ProcessGroup:
    """A group of the ranks in that one of ``parts`` where this one is; every rank must ask.

    In it they wait for each other as long as in the group of all ranks. PyTorch would let them wait
    for 30 minutes, or 10, whatever ``joined`` was told.
    """
    groups = [dist.new_group(list(part), timeout=_timeout, backend=backend) for part in parts]
    of_mine = (group for group, part in zip(groups, parts, strict=True) if rank() in part)
    return cast("dist.ProcessGroup", next(of_mine))


def _of_this_start(store: dist.Store) -> dist.Store:
    """The store without what the ranks of an earlier start left in it.

    Where torchrun starts all ranks again it may keep the store, and in it the addresses of dead
    ranks. It then counts the starts. Between nodes that come and go those counts differ, but there
    each start has a new store.
    """
    is_one_node = os.environ.get("GROUP_WORLD_SIZE") == "1"
    is_kept = os.environ.get("TORCHELASTIC_RUN_ID") == "none"  # the launcher's static rendezvous
    if not (is_one_node or is_kept):
        return store
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"silc_bench/start_{start}", store)


def _hanging(store: dist.Store, number: int, count: int, error: Exception) -> list[str]:
    """The ranks that were not waiting when others had waited too long; [] of other errors.

    Whoever waits in vain says so. A rank that is stopped, or stuck somewhere else, says nothing.
    """
    if "timed out" not in str(error).lower():
        return []

    def said(rank_number: int) -> bool:
        try:
            return store.check([f"{WAITED}/{rank_number}"])
        except dist.DistError:
            return False  # the process that holds the store has ended

    with suppress(dist.DistError):
        store.set(f"{WAITED}/{number}", "")
    end = time.monotonic() + MEETING
    silent = list(range(count))
    while silent and time.monotonic() < end:
        silent = [one for one in silent if not said(one)]
        time.sleep(0.05)
    return [str(one) for one in silent]


def _take_gpu() -> None:
    """The GPU of this rank. Raises UserError where the machine has too few of them."""
    local_rank = int(os.environ["LOCAL_RANK"])
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise UserError(
            f"torchrun started more processes than there are GPUs ({num_gpus})",
            about="--nproc-per-node",
            fix=f"torchrun --nproc-per-node {num_gpus}",
        )
    torch.cuda.set_device(local_rank)


def summed(values: Tensor) -> Tensor:
    """``values``, in place, summed over the ranks; equal on each of them to the last bit."""
    if num_ranks() > 1:
        dist.all_reduce(values)
    return values


def of_all(number: int) -> list[int]:
    """The number of each rank, in their order; every rank must ask.

    Costs one small sum, which waits for no GPU.
    """
    # Each rank fills its own place, zeros elsewhere: the sum is then the same as a gathering.
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
    """The lists of all ranks, one after the other; anything that pickles.

    Costs one number a rank where all lists are empty.
    """
    if num_ranks() == 1 or not any_of(bool(values)):
        return values
    parts: list[list[T]] = [[] for _ in range(num_ranks())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def meet() -> None:
    """Wait until every rank is here."""
    any_of(False)


# ---- processes that read data ----


def begun(loader: DataLoader) -> Iterator[Any]:
    """``iter(loader)``, whose dead processes are seen where data is waited for.

    The handler that torch sets would raise their death out of whatever the main thread does then: a
    step, a checkpoint, a record. Without it torch looks after them every five seconds of waiting.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    answers = iter(loader)
    if signal.getsignal(signal.SIGCHLD) is not handler:
        signal.signal(signal.SIGCHLD, handler)
    return answers


def is_of_dead_reader(error: BaseException) -> bool:
    """Whether waiting for data failed because a process that reads it was killed."""
    # EOFError and ConnectionError come where torch has not yet seen that a process is dead.
    if not isinstance(error, RuntimeError | EOFError | ConnectionError):
        return False

    # "Caught ..." begins what torch sends from a process that lives, and a RuntimeError that names
    # no dead process is not about one: both are mistakes in our own code.
    message = str(error)
    is_sent = message.startswith("Caught ")
    names_one = "DataLoader worker (pid" in message
    return not is_sent and (names_one or not isinstance(error, RuntimeError))
