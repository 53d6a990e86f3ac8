"""What a configuration will cost, before it does: parameters, FLOPs, memory, speed, hours.

Flow: ``estimate(config, device)`` -> Estimate. FLOPs and saved activations are counted on the model
itself, built without memory (on the device "meta"); the rate of matrix products is measured on the
device in a fraction of a second. Nothing here changes a run.

    silc-bench train --preset b16 --data "DIR/*.tar" --dry-run

Shapes: V views that meet the text, B pairs, N tokens, W width of a tower, D embedding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from silc_bench.system.limits import memory_limit
from silc_bench.trainer.config.config import Config, DataConfig, OptimConfig, changed
from silc_bench.trainer.device import resolve
from silc_bench.trainer.optim import averaged, state_bytes
from silc_bench.trainer.silc.distillation import Head
from silc_bench.trainer.silc.losses import peak_bytes
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.silc.towers import TextTower, VisionTower, blocks_of, count_parameters

# Rows and columns of the products that are timed, by kind of device.
MATRIX = {"cuda": 4096, "cpu": 512}

# Shares of the measured rate that the hours are given for: the bound, and what a tuned run reaches.
REACHED = (1.0, 0.5)


# Fields without a part in what one pair costs, at one value: of many runs it is counted once.
NOT_OF_A_PAIR: dict[str, Any] = {
    "preset": "",
    "init": "",
    "seed": 0,
    "data": DataConfig(),
    "batch_size": 2,
    "micro_batch": 0,
    "parallel": "ddp",
    "samples": 2,
    "checkpoint_every": 1,
    "log_every": 1,
    "optim.lr": 1.0,
    "optim.warmup_fraction": 0.0,
    "optim.cooldown_fraction": 0.0,
}


# Of what the ranks share where they share weights (fsdp, hsdp).
SHARDED = ("weights", "gradients", "optimiser state", "teacher", "average")


class Place(NamedTuple):
    """The ranks of a run, by which its memory is counted."""

    kind: str  # of device: "cpu" or "cuda"
    ranks: int = 1
    of_node: int = 8  # ranks of a machine, where nobody says how many

    def shards(self, config: Config) -> int:
        """Ranks that share one copy of the weights."""
        of_node = min(self.ranks, self.of_node)
        return {"ddp": 1, "fsdp": self.ranks, "hsdp": of_node}[config.parallel]


@dataclass(frozen=True)
class Estimate:
    parameters: dict[str, int]  # by part
    # Of a step (forward, backward and teacher), of one pair: model FLOPs, without recomputation.
    # Where the teacher begins late, the mean over the run.
    flops_per_image: int
    bytes_by_part: dict[str, int]  # of a step on one device
    matmul_rate: float  # FLOP/s, measured
    images_per_second: float  # if all time were matrix products at that rate
    hours: float  # of the whole run at it


def estimate(config: Config, device: torch.device, num_ranks: int = 1) -> Estimate:
    """For ``num_ranks`` devices like this one, which share each batch."""
    config = resolve(config, device)
    with torch.device("meta"):
        student = Student(config)

    flops = mean_flops(config)
    rate = matmul_rate(device, config.precision)
    images_per_second = num_ranks * rate / flops
    return Estimate(
        parameters=parts_of(student),
        flops_per_image=flops,
        bytes_by_part=memory(config, student, place_of(device, num_ranks)),
        matmul_rate=rate,
        images_per_second=images_per_second,
        hours=config.samples / images_per_second / 3600,
    )


def place_of(device: torch.device, ranks: int) -> Place:
    """``ranks`` devices like this one; torchrun says how many of them are one machine's."""
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE") or Place._field_defaults["of_node"])
    return Place(device.type, ranks, of_node)


def mean_flops(config: Config) -> int:
    """Of one pair of a step, the mean over the run."""
    return round(
        mean_over_run(config, lambda is_taught: flops_per_image(config, is_taught=is_taught))
    )


def mean_over_run(config: Config, of_step: Callable[[bool], float]) -> float:
    """The mean of what ``of_step`` says of a step with a teacher, and of one before it begins."""
    late = config.start_step / config.num_steps  # share of the steps without a teacher
    return (1 - late) * of_step(True) + (late * of_step(False) if late else 0)


def parts_of(student: Student) -> dict[str, int]:
    """Parameters by part."""
    parts = {
        "vision tower": student.vision,
        "text tower": student.text,
        "head": student.head,
        "patch head": student.patch_head,
    }
    return {name: count_parameters(module) for name, module in parts.items() if module is not None}


def flops_per_image(config: Config, *, is_taught: bool = True) -> int:
    """Of one pair of a step, forward and backward, with the teacher; counted, not derived.

    A backward pass costs twice its forward pass, so what learns counts three times. ``is_taught``:
    False: of a step before the teacher teaches.
    """
    # Each image that meets the text meets every text of the batch. A locked tower gets no gradient
    # from the logits.
    logits = num_meeting_text(config) * 2 * config.batch_size * config.vision.width
    logit_passes = 2 if config.optim.locked else 3
    of_pair = changed(config, {**NOT_OF_A_PAIR, "checkpointing": "none"})
    return _flops_of_pair(of_pair, is_taught) + logit_passes * logits


@lru_cache(maxsize=32)
def _flops_of_pair(config: Config, is_taught: bool) -> int:
    """Without those of the logits."""
    with torch.device("meta"):
        student = Student(config)
    is_taught = is_taught and config.is_taught_at(config.start_step)
    num_global, num_local = _num_encoded(config, is_taught)
    global_flops = _flops(lambda: student.vision(_image(config.views.global_size)))
    local_flops = _flops(lambda: student.vision(_image(config.views.local_size)))
    tokens = _tokens(config)

    # A locked tower runs forward alone.
    locked = config.optim.locked
    vision_passes = 1 if locked == "vision" else 3
    text_passes = 1 if locked == "text" else 3
    total = vision_passes * (num_global * global_flops + num_local * local_flops)
    total += text_passes * _flops(lambda: student.text(tokens))
    if not is_taught:
        return total

    num_views = config.views.num_global
    total += num_views * global_flops  # the teacher's
    if student.head is not None:
        num_answers = num_local + num_views * (config.distillation.pairs == "local+global")
        total += (3 * num_answers + num_views) * _head_flops(student.head, config)

    if student.patch_head is not None:
        # The student encodes each global view once more, masked; the teacher has its tokens.
        masked_view = _flops(lambda: student.vision.tokens(_image(config.views.global_size)))
        patches = config.num_masked * _head_flops(student.patch_head, config)
        total += num_views * (3 * (masked_view + patches) + patches)
    return total


def recomputed_flops(config: Config, *, is_taught: bool = True) -> int:
    """Of one pair of a step: forward passes done again, for micro-batches and checkpointing."""
    student = student_of(changed(config, {"checkpointing": "none"}))
    is_taught = is_taught and config.is_taught_at(config.start_step)
    num_global, num_local = _num_encoded(config, is_taught)
    num_global += config.views.num_global * (is_taught and student.patch_head is not None)
    total = 0.0
    for count, tower, inputs in (
        (1, student.text, _tokens(config)),
        (num_global, student.vision, _image(config.views.global_size)),
        (num_local, student.vision, _image(config.views.local_size)),
    ):
        if tower.positions.requires_grad:
            depth = len(tower.blocks)
            times = bool(config.micro_batch) + config.num_checkpointed(depth) / depth
            total += count * times * _forward_flops(tower, inputs.shape)
    return round(total)


@lru_cache(maxsize=32)
def _forward_flops(tower: VisionTower | TextTower, shape: torch.Size) -> int:
    kind = torch.long if isinstance(tower, TextTower) else torch.float32
    inputs = torch.zeros(shape, dtype=kind, device="meta")
    return _flops(lambda: tower(inputs))


def student_of(config: Config) -> Student:
    """Without memory of its own, and the same for every batch."""
    return _student(changed(config, NOT_OF_A_PAIR))


@lru_cache(maxsize=64)
def _student(config: Config) -> Student:
    with torch.device("meta"):
        return Student(config)


def memory(config: Config, student: Student, place: Place) -> dict[str, int]:
    """Bytes by part on each rank of ``place``, at the peak.

    First what stays, then what a step with a teacher saves for its backward pass. Weights are fp32,
    4 bytes each, in every precision of a run.
    """
    views = config.views
    share = config.batch_size // place.ranks
    parts = dict(_staying(student, config.optim, config.average_momentum > 0))
    shards = place.shards(config)
    for part in parts.keys() & {*SHARDED}:
        parts[part] = -(-parts[part] // shards)
    if shards > 1:
        parts["whole weights"] = _gathered_weights(student)

    # Pairs whose activations are there at the same time.
    here = min(config.micro_batch or share, share)
    parts["activations"] = here * _of_pair(changed(config, NOT_OF_A_PAIR))
    parts["loss tables"] = peak_bytes(
        config.contrastive.loss,
        num_meeting_text(config),
        share,
        config.batch_size,
        place.kind,
        with_equal_texts=config.contrastive.equal_texts == "positive",
    )
    if place.ranks > 1:
        # with their gradients
        parts["gathered features"] = 2 * sum(gathered_features(config).values())

    # Images are bytes on their canvas, views are fp32; both have three channels.
    _, num_local = _num_encoded(config, config.is_taught_at(config.start_step))
    kinds = config.view_kinds
    num_global = ("global_crops" in kinds) * views.num_global + ("original" in kinds)
    pixels = num_global * views.global_size**2 + num_local * views.local_size**2
    canvas = config.canvas**2
    parts["images and views"] = 3 * share * (canvas + 4 * pixels)
    return parts


@lru_cache(maxsize=32)
def _staying(student: Student, optim: OptimConfig, has_average: bool) -> dict[str, int]:
    """Bytes by part of what is there all the time."""
    teacher = sum(count for name, count in parts_of(student).items() if name != "text tower")
    parts = {
        "weights": 4 * count_parameters(student),
        "gradients": sum(4 * p.numel() for p in student.parameters() if p.requires_grad),
        "optimiser state": state_bytes(student, optim),
        "teacher": 4 * teacher,
    }
    if has_average:
        parts["average"] = 4 * sum(p.numel() for p in averaged(student).values())
    return parts


@lru_cache(maxsize=32)
def _gathered_weights(student: Student) -> int:
    """Bytes of weights that are whole on a rank although the ranks share them, at the peak.

    What lies outside the blocks, with its gradients, and two blocks at a time, those of the student
    with their gradients.
    """
    blocks = 2 * max(count_parameters(block) for block in blocks_of(student))
    outside, of_text = (
        count_parameters(model) - sum(count_parameters(block) for block in blocks_of(model))
        for model in (student, student.text)
    )
    of_teacher = outside - of_text
    return 4 * (2 * (outside + blocks) + of_teacher + blocks)


def gathered_features(config: Config) -> dict[str, int]:
    """Bytes that a rank gathers of all: texts [B, D], and images [V, B, D] where the loss asks."""
    table = 4 * config.batch_size * config.vision.width
    gathered = {"texts": table}
    if config.contrastive.loss == "softmax":
        gathered["images"] = num_meeting_text(config) * table
    return gathered


def memory_of(device: torch.device) -> int:
    """Bytes that the device has in all, or that this process may use of them."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(of_machine, memory_limit()))


@lru_cache(maxsize=32)
def _of_pair(config: Config) -> int:
    """Bytes that a step keeps of one pair for its backward pass, the patch head's included."""
    with torch.device("meta"):
        student = Student(config)

    # The patch head runs in fp32 whatever the towers run in.
    of_head = 0
    if student.patch_head is not None:
        rows = torch.empty(config.num_masked, config.vision.width, device="meta")
        of_head = config.views.num_global * _saved(student.patch_head.layers, rows)
    return _activations(config, student) + of_head


def _activations(config: Config, student: Student) -> int:
    """Bytes that the student's forward passes through its towers keep of one pair.

    An upper bound where blocks are compiled.
    """
    half = 2 if config.precision == "bf16" else 1  # autocast keeps the large ones in bf16
    num_global, num_local = _num_encoded(config, config.is_taught_at(config.start_step))
    if student.patch_head is not None:
        num_global += config.views.num_global  # the masked ones

    passes: list[tuple[int, VisionTower | TextTower, Tensor]] = [
        (1, student.text, _tokens(config)),
        (num_global, student.vision, _image(config.views.global_size)),
        (num_local, student.vision, _image(config.views.local_size)),
    ]

    # Blocks that are computed anew keep nothing here but what enters them, added below.
    kept = sum(count * _saved(tower, inputs) // half for count, tower, inputs in passes if count)
    anew = 0  # the block whose activations are there while the backward pass is in it
    for count, tower, inputs in passes:
        num_anew = tower.blocks.num_checkpointed
        if num_anew and tower.positions.requires_grad:
            entered = _entering(tower, inputs)
            # 4 bytes, as in the text tower. In bf16 the vision tower keeps 2: an upper bound there.
            kept += count * num_anew * 4 * entered.numel()
            # Where blocks behind them kept theirs, it is free again by then.
            if num_anew == len(tower.blocks):
                anew = max(anew, count * _saved(tower.blocks[0], entered) // half)
    return kept + anew


def _entering(tower: VisionTower | TextTower, inputs: Tensor) -> Tensor:
    """[1, N, W] with a gradient: what its blocks get of one sample."""
    if isinstance(tower, TextTower):
        width = tower.positions.shape[-1]
        return torch.empty(*inputs.shape, width, device="meta", requires_grad=True)
    return tower.embed(inputs).detach().requires_grad_()


@lru_cache(maxsize=8)
def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of square matrix products in the run's precision, the best of three."""
    size = MATRIX.get(device.type, MATRIX["cpu"])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(size, size, dtype=dtype, device=device)

    seconds = []
    for _ in range(4):  # the first one warms up
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])


def _wait(device: torch.device) -> None:
    """Until the device has done what it was asked: a GPU computes while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_meeting_text(config: Config) -> int:
    """Images of a pair that meet its text: global views, the original, or both."""
    kinds = config.contrastive.images.split("+")
    return ("global" in kinds) * config.views.num_global + ("original" in kinds)


def _num_encoded(config: Config, is_taught: bool) -> tuple[int, int]:
    """Views of the global size, and of the local size, that the student encodes unmasked."""
    num_global = num_meeting_text(config)
    if not is_taught or config.distillation.weight == 0:
        return num_global, 0

    meets_teacher = config.distillation.pairs == "local+global"
    if meets_teacher and "global" not in config.contrastive.images:
        num_global += config.views.num_global
    return num_global, config.views.num_local


def _image(size: int) -> Tensor:
    return torch.empty(1, 3, size, size, device="meta")


def _tokens(config: Config) -> Tensor:
    return torch.zeros(1, config.text.context_length, dtype=torch.long, device="meta")


def _head_flops(head: Head, config: Config) -> int:
    """Its layers and the products with all prototypes.

    The head itself is not called: it names its device to autocast, which knows no "meta".
    """
    embedding = torch.empty(1, config.vision.width, device="meta")
    return _flops(lambda: F.linear(head.layers(embedding), head.prototypes))


def _flops(forward: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops()


def _saved(module: nn.Module, inputs: Tensor) -> int:
    """Bytes in fp32 that autograd keeps of one sample's forward pass, weights left out.

    Each storage counts once, however many operations keep it.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}

    # The tensor is held with its size, so that no other storage gets its address meanwhile.
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(inputs)
    del output
    return sum(size for _, size in kept.values())
