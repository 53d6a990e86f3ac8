"""Does a step fit into memory, how long will a run take, and what would fit instead.

Flow: ``check_fit(config, device, ...)`` before a run -> nothing, or lines that say what would fit
and a UserError. ``ways(...)`` makes these lines, each from the count of
``silc_bench.trainer.monitor.plan.cost``; ``show_estimate`` prints that count, which is all that
``silc-bench train --dry-run`` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from rich.console import Console

from silc_bench.errors import UserError
from silc_bench.system.processes import num_local_ranks, num_ranks, rank
from silc_bench.system.terminal import duration, notes, say, warn
from silc_bench.system.terminal_table import Listing
from silc_bench.trainer.config.config import Config, apply_objective, changed
from silc_bench.trainer.config.presets import PRESETS, SECOND_PHASES, make_preset
from silc_bench.trainer.device import resolve, share_of
from silc_bench.trainer.monitor.plan.accelerators import ACCELERATORS
from silc_bench.trainer.monitor.plan.cost import (
    REACHED,
    Place,
    estimate,
    matmul_rate,
    mean_flops,
    memory,
    memory_of,
    parts_of,
    place_of,
    student_of,
)

GIB = 2**30
ROOM = 0.9  # share of a memory that a proposal may fill: not everything is counted
LONG = 24.0  # hours; what takes longer is said before it starts
MOST_PRESETS = 3  # smaller presets that are named
LARGEST_NODE = 8  # GPUs of one machine, as servers have them
FEWEST_PAIRS = 4  # at a time; with fewer a device has too little to do


class Gpu(NamedTuple):
    """A device that nobody measured here."""

    name: str
    memory: int  # bytes
    rate: float  # FLOP/s of dense bf16 products with fp32 sums


GPUS = {
    words.partition(" (")[0]: Gpu(words, ACCELERATORS[name].memory, ACCELERATORS[name].bf16)
    for name, words in {
        "rtx4090": "RTX 4090 (24 GB)",
        "a100-80": "A100 (80 GB)",
        "h100": "H100 (80 GB)",
    }.items()
}
ELSEWHERE = GPUS["H100"]  # for what does not fit on a CPU


@dataclass(frozen=True)
class Way:
    """A run that would fit."""

    options: str  # to add to the command
    config: Config
    devices: int
    where: str  # "here", or on which devices
    size: int  # bytes of a step on one device
    hours: float  # of the whole run, at half the rate of matrix products

    def __str__(self) -> str:
        time = f"{duration(3600 * self.hours)} or more {self.where}"
        return f"{self.options}    ({size_text(self.size)} a device, {time})"


def check_fit(
    config: Config, device: torch.device, console: Console, *, is_resumed: bool, force: bool
) -> None:
    """Refuse a run whose step cannot fit, and say before a long one how long it takes.

    Args:
        is_resumed: then only what leaves the result as it is can be proposed.
        force: warn instead of refusing.

    Raises:
        UserError: a step needs more memory than this process may use; what would fit is said first.
    """
    devices = num_ranks()
    room = memory_of(device)
    if device.type == "cpu":
        room //= num_local_ranks()  # processes of one machine share its memory

    parts = parts_on(resolve(config, device), place_of(device, devices))
    needed = sum(parts.values())
    if needed > room:
        problem = too_large(parts, room)
        if force:
            warn(f"{problem}; starting all the same (--force)", console)
        else:
            if rank() == 0:
                say_ways(config, device, room, devices, is_resumed, notes)
            raise UserError(
                f"{problem}; nothing was trained",
                about=config.name,
                fix="add the options of a line above, or --force to start all the same",
            )

    if rank() > 0 or is_resumed:
        return
    hours = hours_of(config, device, devices)
    if hours > LONG:
        show_estimate(config, device, devices, console)
        say(
            f"this run takes {duration(3600 * hours)} or more here. Ctrl-C stops it after a step,"
            " with a checkpoint, and the same command with --resume goes on; --samples N makes it"
            " shorter",
            console,
        )


def say_ways(
    config: Config,
    device: torch.device,
    room: int,
    devices: int,
    is_resumed: bool,
    console: Console,
) -> None:
    lines = list(ways(config, device, room, devices, is_resumed))
    if lines:
        say("these would fit, by the same count:", console)
    for way in lines:
        say(f"  {way}", console)


def too_large(parts: dict[str, int], room: int) -> str:
    """What does not fit, with its largest part. ``parts``: as of ``cost.memory``."""
    needed = size_text(sum(parts.values()))
    largest = max(parts, key=lambda part: parts[part])
    return (
        f"a step needs {needed} ({size_text(parts[largest])} of them for {largest}) and this"
        f" process may use {size_text(room)}"
    )


def parts_on(config: Config, place: Place) -> dict[str, int]:
    """Bytes of a step by part on each rank of ``place``, which share its batch."""
    return memory(config, student_of(config), place)


def hours_of(config: Config, device: torch.device, devices: int = 1) -> float:
    """Of the whole run, at half the measured rate of this device."""
    config = resolve(config, device)
    return _hours(config, matmul_rate(device, config.precision), devices)


def _hours(config: Config, rate: float, devices: int) -> float:
    return config.samples * mean_flops(config) / (REACHED[-1] * rate * devices) / 3600


# ---- what would fit ----


def ways(
    config: Config, device: torch.device, room: int, devices: int = 1, is_resumed: bool = False
) -> Iterator[Way]:
    """Runs whose step fits: first those with the same result, then others, then more devices.

    Args:
        room: bytes of each device.
        is_resumed: other batches and presets would be other runs.
    """
    here = resolve(config, device)
    place = place_of(device, devices)
    rate = matmul_rate(device, here.precision)

    def on_this(fitted: Config, options: str, words: str = "here") -> Way:
        size = sum(parts_on(fitted, place).values())
        return Way(options, fitted, devices, words, size, _hours(fitted, rate, devices))

    settings = list(_settings(here, room, place))
    for fitted in settings:
        yield on_this(fitted, _sets(here, fitted))
    if not is_resumed:
        if not settings and (smaller := _smaller_batch(here, room, place)) is not None:
            yield on_this(smaller, _sets(here, smaller), "here; another batch learns otherwise")
        for fitted, options in _smaller_presets(here, room, place):
            yield on_this(fitted, options)

    # More devices like this one, or a GPU where this is none.
    gpu = Gpu(f"{device} like this one", room, rate) if device.type == "cuda" else ELSEWHERE
    fewest = 2 * devices if device.type == "cuda" else 1
    there = config
    if config.precision == "auto":
        there = changed(config, {"precision": "bf16" if device.type == "cpu" else here.precision})
    yield from _on_gpus(there, gpu, fewest)


def _settings(config: Config, room: int, place: Place) -> Iterator[Config]:
    """The same run, to the same result, in less memory."""
    anew = changed(config, {"checkpointing": "blocks"})
    in_parts = _micro_batched(config, room, place)
    if in_parts is not None:
        yield in_parts

    if config.checkpointing == "blocks":
        return
    if _fits(anew, room, place):
        yield anew
    elif in_parts is None and (both := _micro_batched(anew, room, place)) is not None:
        yield both


def _micro_batched(config: Config, room: int, place: Place) -> Config | None:
    """With the largest micro-batch that fits, a power of two: it divides the usual batch sizes."""
    share = config.batch_size // place.ranks
    parts = parts_on(config, place)
    pairs_now = min(config.micro_batch or share, share)
    of_pair = parts["activations"] / pairs_now
    left = ROOM * room - (sum(parts.values()) - parts["activations"])
    pairs = min(int(left / of_pair), pairs_now - 1) if left > 0 else 0
    if pairs < max(1, min(FEWEST_PAIRS, pairs_now - 1)):
        return None
    return changed(config, {"micro_batch": 2 ** (pairs.bit_length() - 1)})


def _smaller_batch(config: Config, room: int, place: Place) -> Config | None:
    """With the largest power of two as a batch that fits, in micro-batches if it takes them."""
    batch_size = 2 ** ((config.batch_size - 1).bit_length() - 1)
    while batch_size >= max(2, FEWEST_PAIRS) * place.ranks:
        smaller = changed(config, {"batch_size": batch_size, "micro_batch": 0})
        for fitted in (smaller, changed(smaller, {"checkpointing": "blocks"})):
            if _fits(fitted, room, place):
                return fitted
            if (in_parts := _micro_batched(fitted, room, place)) is not None:
                return in_parts
        batch_size //= 2
    return None


def _smaller_presets(config: Config, room: int, place: Place) -> Iterator[tuple[Config, str]]:
    """The largest presets below this one that fit, with their options."""
    candidates = []
    for name in PRESETS:
        preset = apply_objective(make_preset(name), config.objective)
        preset = changed(preset, {"precision": config.precision})
        key = _extent(preset)
        if name not in (config.preset, *SECOND_PHASES) and key < _extent(config):
            candidates.append((key, name, preset))

    objective = "" if config.objective == "silc" else f" --objective {config.objective}"
    num_named = 0
    for _, name, preset in sorted(candidates, reverse=True, key=lambda candidate: candidate[0]):
        if preset.batch_size % place.ranks or num_named == MOST_PRESETS:
            continue
        fitted: Config | None = preset
        if not _fits(preset, room, place):
            fitted = next(_settings(preset, room, place), None)
        if fitted is not None:
            num_named += 1
            options = f"--preset {name}{objective} {_sets(preset, fitted)}".rstrip()
            yield fitted, options


def _extent(config: Config) -> tuple[int, int]:
    parameters = parts_of(student_of(config))
    return sum(parameters.values()), config.batch_size


def _on_gpus(config: Config, gpu: Gpu, fewest: int) -> Iterator[Way]:
    """On as few as do, in whatever setting; and on as few as need no other setting."""
    counts = []
    devices = fewest
    while devices <= config.batch_size // 2:
        if config.batch_size % devices == 0:
            counts.append(devices)
        devices *= 2

    has_any = False
    for devices in counts:
        place = Place("cuda", devices)
        as_it_is = _fits(config, gpu.memory, place)
        if has_any and not as_it_is:
            continue
        fitted = config if as_it_is else next(_settings(config, gpu.memory, place), None)
        if fitted is None:
            continue

        has_any = True
        start = "--device cuda"
        if devices > 1:
            of_node = max(n for n in range(1, LARGEST_NODE + 1) if devices % n == 0)
            nodes = f"--nnodes {devices // of_node} " if devices > of_node else ""
            start = f"torchrun {nodes}--nproc-per-node {of_node} -m silc_bench train ..."
        yield Way(
            f"{start} {_sets(config, fitted)}".rstrip(),
            fitted,
            devices,
            f"on {devices:,} {gpu.name}",
            sum(parts_on(fitted, place).values()),
            _hours(fitted, gpu.rate, devices),
        )
        if as_it_is:
            return


def _fits(config: Config, room: int, place: Place) -> bool:
    return sum(parts_on(config, place).values()) <= ROOM * room


def _sets(before: Config, after: Config) -> str:
    """The options that make the one of the other."""
    fields = ("batch_size", "micro_batch", "checkpointing")
    differing = [name for name in fields if getattr(before, name) != getattr(after, name)]
    return " ".join(f"--set {name}={getattr(after, name)}" for name in differing)


# ---- for people ----


def show_estimate(config: Config, device: torch.device, devices: int, console: Console) -> None:
    """What a step costs on ``devices`` like this one, as a table.

    Raises:
        UserError: they cannot share its batch.
    """
    share_of(config.batch_size, devices, "devices")
    cost = estimate(config, device, devices)

    where = "one device" if devices == 1 else f"{devices:,} devices"
    head = where if devices == 1 else f"one of {where}"
    table = Listing(f"of a step on {head}", "", title=config.name)

    for name, count in cost.parameters.items():
        table.add_row(f"parameters, {name}", f"{count / 1e6:,.1f} M")
    for name, size in cost.bytes_by_part.items():
        table.add_row(f"memory, {name}", size_text(size))
    table.add_row("memory, all of it", size_text(sum(cost.bytes_by_part.values())))
    table.add_row("FLOPs an image, counted", f"{cost.flops_per_image / 1e9:,.2f} G")
    matmul_rate_text = f"{cost.matmul_rate / 1e12:,.3f} TFLOP/s"
    table.add_row(f"matrix products on {device}, measured", matmul_rate_text)

    # No step reaches the rate of bare matrix products; which share it reaches is only known after
    # a run, so the time is given for several shares.
    for share in REACHED:
        speed = share * cost.images_per_second
        rate = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        time = duration(3600 * cost.hours / share)
        table.add_row(f"at {100 * share:.0f} % of that", f"{rate} images/s, {time} on {where}")
    console.print(table)

    room = memory_of(device)
    if sum(cost.bytes_by_part.values()) > room:
        warn(f"{too_large(cost.bytes_by_part, room)}.", console)
        say_ways(config, device, room, devices, False, console)


def estimate_as_dict(config: Config, device: torch.device, devices: int) -> dict[str, Any]:
    """The same for ``--json``: bytes, FLOP/s, and hours at the measured rate of matrix products.

    Raises:
        UserError: ``devices`` cannot share its batch.
    """
    share_of(config.batch_size, devices, "devices")
    cost = estimate(config, device, devices)
    room = memory_of(device)
    needed = sum(cost.bytes_by_part.values())
    fitting = [] if needed <= room else ways(config, device, room, devices)
    return {
        "name": config.name,
        "device": str(device),
        "devices": devices,
        **asdict(cost),
        "bytes": needed,
        "room_bytes": room,
        "fits": needed <= room,
        "ways": [
            {
                "options": way.options,
                "where": way.where,
                "devices": way.devices,
                "bytes": way.size,
                "hours": way.hours,
            }
            for way in fitting
        ],
    }


def size_text(num_bytes: int) -> str:
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:,.2f} GiB"
    if num_bytes >= 2**20 / 10:
        return f"{num_bytes / 2**20:,.1f} MiB"
    return f"{num_bytes / 2**10:,.1f} KiB"
