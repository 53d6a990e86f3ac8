"""What a run takes on named accelerators, from data sheets: nothing is measured, nobody ran it.

Flow: ``plan(config, "h100x64", price)`` -> Plan, by the counts of ``cost``; ``show_plan`` prints
it. It chooses ``parallel``, ``checkpointing`` and ``micro_batch``, but for what the user set: of
all that fits, what takes least time.

Shapes: W ranks, b pairs of a rank, B of all, D embedding, K prototypes, V views that meet the text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from rich.console import Console
from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.system.terminal import duration, say, warn
from silc_bench.system.terminal_table import Listing
from silc_bench.trainer.config.config import Config, changed
from silc_bench.trainer.device import share_of
from silc_bench.trainer.monitor.plan import cost
from silc_bench.trainer.monitor.plan.accelerators import Accelerator, named
from silc_bench.trainer.monitor.plan.fit import ROOM, parts_on, size_text
from silc_bench.trainer.silc.distillation import SINKHORN_STEPS
from silc_bench.trainer.silc.student import Student

DECODED = 100.0  # images a second that a core decodes: an assumption, named with the answer
PARALLEL = ("ddp", "hsdp", "fsdp")


class Collective(NamedTuple):
    """What the ranks of a group say to each other in a step."""

    name: str
    kind: str  # "all-reduce", "all-gather" or "reduce-scatter"
    size: int  # bytes of the whole tensor, over all calls of a step
    ranks: int  # of its group

    @property
    def sent(self) -> float:
        """Bytes that each rank sends, in a ring."""
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * (self.ranks - 1) / self.ranks * self.size


@dataclass(frozen=True)
class Plan:
    name: str
    on: str
    count: int
    parallel: str
    checkpointing: str
    micro_batch: int
    fits: bool
    room_bytes: int
    # by way of ``parallel``, then by part, with the setting chosen
    bytes_by_part: dict[str, dict[str, int]]
    collectives: list[dict[str, Any]]
    compute_seconds: float  # of a step
    communication_seconds: float
    images_per_second: float  # where none of it overlaps
    decoding_cores: float
    nodes: int
    hours: tuple[float, float]  # all communication hidden behind compute, and none of it
    cost: tuple[float, float] | None
    assumptions: list[str]


def plan(config: Config, on: str, price: float | None = None, held: Collection[str] = ()) -> Plan:
    """What ``config`` takes there, in the setting that is the fastest of those that fit.

    Args:
        on: as "h100x64".
        price: of a GPU for an hour.
        held: fields that the user set.

    Raises:
        UserError: an unknown accelerator, or a batch that they cannot share.
    """
    name, accelerator, count = named(on)
    share_of(config.batch_size, count, "accelerators")
    if config.precision == "auto":
        config = changed(config, {"precision": "bf16" if accelerator.bf16 else "fp32"})
    if config.precision == "bf16" and not accelerator.bf16:
        raise UserError(f"{name} has no bf16", about="precision", fix="leave precision out")

    tried = list(_candidates(config, accelerator, count, held))
    room = int(ROOM * accelerator.memory)
    fitting = [setting for setting in tried if _size(setting, accelerator, count) <= room]
    if fitting:
        chosen = min(fitting, key=lambda setting: sum(seconds(setting, accelerator, count)))
    else:
        chosen = min(tried, key=lambda setting: _size(setting, accelerator, count))

    compute, communication = seconds(chosen, accelerator, count)
    hours = tuple(
        config.num_steps * time / 3600
        for time in (max(compute, communication), compute + communication)
    )
    speed = config.batch_size / (compute + communication)
    return Plan(
        name=config.name,
        on=name,
        count=count,
        parallel=chosen.parallel,
        checkpointing=chosen.checkpointing,
        micro_batch=chosen.micro_batch,
        fits=bool(fitting),
        room_bytes=room,
        bytes_by_part={
            way: parts_on(changed(chosen, {"parallel": way}), _place(accelerator, count))
            for way in {chosen.parallel: 0, **dict.fromkeys(_ways(config, accelerator, count))}
        },
        collectives=[
            {**part._asdict(), "sent": part.sent}
            for part in collectives(chosen, accelerator, count)
        ],
        compute_seconds=compute,
        communication_seconds=communication,
        images_per_second=speed,
        decoding_cores=speed / DECODED,
        nodes=-(-count // accelerator.per_node),
        hours=(hours[0], hours[1]),
        cost=None if price is None else (hours[0] * count * price, hours[1] * count * price),
        assumptions=[
            f"{name}: {accelerator.form}; {accelerator.per_node} in a node; links:"
            f" {accelerator.links}",
            f"a step reaches {100 * cost.REACHED[-1]:.0f} % of the rate of dense products"
            f" ({_rate(config, accelerator) / 1e12:,.0f} TFLOP/s in {config.precision})",
            "links are as fast as their data sheet, in rings; overlap is between none and all",
            "an update reads and writes weights, gradients and states once, at the memory's speed",
            f"a memory is filled to {100 * ROOM:.0f} % at most",
            f"a core decodes {DECODED:.0f} images a second",
            "time of data, probes and checkpoints is not counted; hours are unmeasured",
            *_of_late_start(config),
        ],
    )


def _of_late_start(config: Config) -> list[str]:
    if not config.start_step:
        return []
    return [
        f"the teacher begins after step {config.start_step:,} of {config.num_steps:,}: times are"
        " the mean over the run, memory and what is said in a step are those with a teacher"
    ]


def _ways(config: Config, accelerator: Accelerator, count: int) -> list[str]:
    """Of PARALLEL, those that differ there: hsdp on one node is fsdp."""
    if count == 1 or config.exchange == "bf16":  # which is for ddp alone
        return ["ddp"]
    return [way for way in PARALLEL if way != "hsdp" or count > accelerator.per_node]


def _candidates(
    config: Config, accelerator: Accelerator, count: int, held: Collection[str]
) -> Iterator[Config]:
    share = config.batch_size // count
    depth = max(config.vision.depth, config.text.depth)
    step = max(1, depth // 6)  # each count of a setting takes a part of a second
    policies = ["none", *(f"blocks:{n}" for n in range(step, depth, step)), "blocks"]
    # The largest first: of those that take as long by this count it is what keeps a device busy.
    powers = reversed(range(share.bit_length()))
    sizes = [0, *(2**power for power in powers if 2**power < share)]
    ways = _ways(config, accelerator, count)
    for way in [config.parallel] if "parallel" in held else ways:
        for policy in [config.checkpointing] if "checkpointing" in held else policies:
            for size in [config.micro_batch] if "micro_batch" in held else sizes:
                fields = {"parallel": way, "checkpointing": policy, "micro_batch": size}
                yield changed(config, fields)


def _place(accelerator: Accelerator, count: int) -> cost.Place:
    return cost.Place("cuda", count, accelerator.per_node)


def _size(config: Config, accelerator: Accelerator, count: int) -> int:
    return sum(parts_on(config, _place(accelerator, count)).values())


def collectives(
    config: Config, accelerator: Accelerator, count: int, *, is_taught: bool = True
) -> list[Collective]:
    """Of one step, but for the few bytes of the gradient's norm.

    ``is_taught``: False: of a step before the teacher teaches.

    ``tests/trainer/test_collectives.py`` counts what a step says, and finds these bytes.
    """
    if count == 1:
        return []
    said = []
    is_taught = is_taught and config.has_teacher
    student = cost.student_of(changed(config, {"checkpointing": "none"}))
    shards = _place(accelerator, count).shards(config)
    if shards == 1:
        width = 2 if config.exchange == "bf16" else 4
        size = width * sum(weight.numel() for weight in _learning(student, is_taught))
        said.append(Collective("gradients", "all-reduce", size, count))
    else:
        said += _of_shards(config, student, shards, count, is_taught)

    for name, size in cost.gathered_features(config).items():
        said.append(Collective(f"features of {name}", "all-gather", size, count))
        is_locked = config.optim.locked == {"texts": "text", "images": "vision"}[name]
        if not is_locked:
            said.append(Collective(f"gradients of {name}", "reduce-scatter", size, count))
    if config.contrastive.equal_texts == "positive":
        size = 8 * config.batch_size * config.text.context_length
        said.append(Collective("tokens", "all-gather", size, count))

    heads = [head for head in (student.head, student.patch_head) if is_taught and head is not None]
    for _ in heads:
        if config.distillation.centering == "sinkhorn":
            size = 2 * SINKHORN_STEPS * 4 * config.distillation.num_prototypes
        else:
            size = 4 * config.distillation.bottleneck_dim
        said.append(Collective("centre", "all-reduce", size, count))
    said.append(Collective("scalars", "all-reduce", 4 * (3 + len(heads)), count))
    return said


def _learning(student: Student, is_taught: bool) -> list[Tensor]:
    """Weights that get a gradient; before a teacher teaches heads and mask token get none."""
    idle = set() if is_taught else {*map(id, student.taught_parameters())}
    return [
        weight for weight in student.parameters() if weight.requires_grad and id(weight) not in idle
    ]


def _of_shards(
    config: Config, student: Student, shards: int, count: int, is_taught: bool
) -> list[Collective]:
    """What stands outside the blocks comes once a step, and the gradients are summed once.

    A block comes for each call of its tower, and once more for the backward pass of that call.
    """
    share = config.batch_size // count
    num_micro = -(-share // config.micro_batch) if config.micro_batch else 1
    kinds = {*config.contrastive.images.split("+")}
    if is_taught and student.head is not None and config.distillation.pairs == "local+global":
        kinds.add("global")
    has_local = is_taught and student.head is not None and config.views.num_local > 0
    has_masked = is_taught and student.patch_head is not None
    calls = {"vision": len(kinds) + has_local + has_masked, "text": 1}

    weights = dict(student.named_parameters())
    outside = [name for name in weights if ".blocks." not in name]
    gathered = _padded((weights[name] for name in outside), shards)
    of_blocks = {}
    for tower in ("vision", "text"):
        of_blocks[tower] = _padded(student.get_submodule(f"{tower}.blocks").parameters(), shards)
        passes = 2 * calls[tower]
        if config.optim.locked == tower:
            # No backward pass; but PyTorch fetches ahead, and so one of its blocks comes again
            # where the tower runs inside of what has a backward pass. With micro-batches it does
            # not.
            again = 0 if config.micro_batch else 1 / getattr(config, tower).depth
            passes = calls[tower] + again
        gathered += round(num_micro * passes * of_blocks[tower])

    learning = _padded(_learning(student, is_taught), shards)
    said = [
        Collective("weights of the student", "all-gather", gathered, shards),
        Collective("gradients", "reduce-scatter", learning, shards),
    ]
    if is_taught:
        taught = [name for name in outside if name.startswith(("vision.", "head.", "patch_head."))]
        teacher = _padded((weights[name] for name in taught), shards)
        teacher += num_micro * of_blocks["vision"]
        said.append(Collective("weights of the teacher", "all-gather", teacher, shards))
    if count > shards:
        size = learning // shards
        said.append(Collective("gradients between nodes", "all-reduce", size, count // shards))
    return said


def _padded(weights: Iterable[Tensor], shards: int) -> int:
    """Bytes of fp32 weights; one that no dimension spreads evenly is padded along its first."""
    total = 0
    for weight in weights:
        is_even = any(size % shards == 0 for size in weight.shape)
        rows = weight.shape[0]
        total += 4 * weight.numel() * (rows if is_even else -(-rows // shards) * shards) // rows
    return total


def seconds(config: Config, accelerator: Accelerator, count: int) -> tuple[float, float]:
    """Of compute and of communication in a step, the mean over the run."""
    flops = cost.mean_flops(config) + cost.mean_over_run(
        config, lambda is_taught: cost.recomputed_flops(config, is_taught=is_taught)
    )
    compute = config.batch_size / count * flops / (cost.REACHED[-1] * _rate(config, accelerator))
    # The update reads all that stays on a rank and writes it.
    parts = parts_on(config, _place(accelerator, count))
    compute += 2 * sum(parts.get(part, 0) for part in cost.SHARDED) / accelerator.bandwidth
    return compute, _communication(changed(config, {"checkpointing": "none"}), accelerator, count)


@lru_cache(maxsize=128)
def _communication(config: Config, accelerator: Accelerator, count: int) -> float:
    """Seconds of a step, the mean over the run; the same for every setting of checkpointing."""

    def of_step(is_taught: bool) -> float:
        said = collectives(config, accelerator, count, is_taught=is_taught)
        return sum(part.sent / _speed(part, accelerator) for part in said)

    return cost.mean_over_run(config, of_step)


def _speed(part: Collective, accelerator: Accelerator) -> float:
    """Bytes a second that a rank sends."""
    if part.name == "gradients between nodes":
        return accelerator.net  # one rank of each node
    if part.ranks > accelerator.per_node:
        # a ring over all nodes leaves each through all of its links
        return min(accelerator.link, accelerator.per_node * accelerator.net)
    return accelerator.link


def _rate(config: Config, accelerator: Accelerator) -> float:
    return accelerator.bf16 if config.precision == "bf16" else accelerator.fp32


def _on_nodes(cores: float, nodes: int) -> str:
    of_each = "" if nodes == 1 else f", {math.ceil(cores / nodes):,} on each of {nodes:,} nodes"
    return f"{math.ceil(cores):,}{of_each}"


def as_dict(planned: Plan) -> dict[str, Any]:
    return asdict(planned)


def show_plan(planned: Plan, console: Console) -> None:
    """The plan as tables and sentences."""
    where = f"{planned.count:,} {planned.on}"
    ways = list(planned.bytes_by_part)
    table = Listing("memory of a rank", *ways, title=f"{planned.name} on {where}")
    names = dict.fromkeys(name for parts in planned.bytes_by_part.values() for name in parts)
    for name in names:
        sizes = (parts.get(name) for parts in planned.bytes_by_part.values())
        table.add_row(name, *("" if size is None else size_text(size) for size in sizes))
    table.add_row(
        "all of it", *(size_text(sum(p.values())) for p in planned.bytes_by_part.values())
    )
    console.print(table)

    if planned.collectives:
        traffic = Listing("said in a step", "how", "of", "sent by a rank", title=planned.parallel)
        for part in planned.collectives:
            sent = size_text(int(part["sent"]))
            traffic.add_row(part["name"], part["kind"], f"{part['ranks']:,} ranks", sent)
        console.print(traffic)

    fewest, most = planned.hours
    step = f"{planned.compute_seconds:.3f} s of compute, {planned.communication_seconds:.3f} s"
    rows = {
        "a step": f"{step} of communication",
        "images a second": f"{planned.images_per_second:,.0f}",
        "cores that decode them": _on_nodes(planned.decoding_cores, planned.nodes),
        "hours, unmeasured": " to ".join(
            dict.fromkeys(duration(3600 * hours) for hours in (fewest, most))
        ),
    }
    if planned.cost is not None:
        rows["cost"] = f"{planned.cost[0]:,.0f} to {planned.cost[1]:,.0f}"
    times = Listing("the run", "")
    for name, words in rows.items():
        times.add_row(name, words)
    console.print(times)

    options = f"--set parallel={planned.parallel} --set checkpointing={planned.checkpointing}"
    options += f" --set micro_batch={planned.micro_batch}"
    if planned.fits:
        say(f"the fastest that fits: {options}", console)
    else:
        least = size_text(sum(planned.bytes_by_part[planned.parallel].values()))
        warn(
            f"nothing fits into {size_text(planned.room_bytes)}: the least is {least}, with"
            f" {options}; take more of them, ones with more memory, or a smaller batch",
            console,
        )
    for assumption in planned.assumptions:
        say(f"assumed: {assumption}", console)
