"""What a configuration will cost, before it does: parameters, FLOPs, memory by part, images a
second, hours.

FLOPs and saved activations are counted on the model itself, built without memory; the rate of
matrix products is measured on the device in a fraction of a second. Nothing here changes a run.

    silc-bench train --preset b16 --data "DIR/*.tar" --dry-run
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from silc_bench.system.limits import memory_limit
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.device import resolve
from silc_bench.trainer.optim import averaged, state_bytes
from silc_bench.trainer.silc.distillation import Head
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.silc.towers import TextTower, VisionTower, count_parameters

MATRIX = {"cuda": 4096, "cpu": 512}  # rows and columns of the products that are timed
REACHED = (
    1.0,
    0.5,
    # shares of the measured rate that the hours are given for: the bound, and what a tuned run
    # reaches
)


@dataclass(frozen=True)
class Estimate:
    parameters: dict[str, int]  # by part
    # of a step, forward, backward and teacher, of one pair: model FLOPs, without recomputation;
    # where
    flops_per_image: int
    # the teacher begins late the mean over the run
    bytes_by_part: dict[str, int]  # of a step on one device
    matmul_rate: float  # FLOP/s, measured
    images_per_second: float  # if all time were matrix products at that rate
    hours: float  # of the whole run at it


def estimate(config: Config, device: torch.device, num_ranks: int = 1) -> Estimate:
    """For ``num_ranks`` devices like this one, which share each batch."""
    config = resolve(config, device)
    with torch.device("meta"):
        student = Student(config)
    late = config.start_step / config.num_steps
    flops = round(
        (1 - late) * flops_per_image(config, student)
        + late * flops_per_image(config, student, is_taught=False)
    )
    rate = matmul_rate(device, config.precision)
    images_per_second = num_ranks * rate / flops
    return Estimate(
        parts_of(student),
        flops,
        memory(config, student, config.batch_size // num_ranks),
        rate,
        images_per_second,
        config.samples / images_per_second / 3600,
    )


def parts_of(student: Student) -> dict[str, int]:
    parts: dict[str, nn.Module] = {"vision tower": student.vision, "text tower": student.text}
    heads = {"head": student.head, "patch head": student.patch_head}
    parts |= {name: head for name, head in heads.items() if head is not None}
    return {name: count_parameters(module) for name, module in parts.items()}


def flops_per_image(
    config: Config, student: Student | None = None, *, is_taught: bool = True
) -> int:
    """Of one pair of a step, forward and backward (twice the forward pass), with the teacher;
    counted, not derived.

    ``is_taught``: False: of a step before the teacher teaches.
    """
    if student is None:
        with torch.device("meta"):
            student = Student(config)
    is_taught = is_taught and config.is_taught_at(config.start_step)
    (num_global, global_flops), (num_local, local_flops) = _views(config, student, is_taught)
    tokens = torch.zeros(1, config.text.context_length, dtype=torch.long, device="meta")
    meets_text = _meets_text(config)
    locked = config.optim.locked  # it runs forward alone, and the logits pass it no gradient
    total = (1 if locked == "vision" else 3) * (num_global * global_flops + num_local * local_flops)
    total += (1 if locked == "text" else 3) * _flops(lambda: student.text(tokens))
    logits = (
        meets_text * 2 * config.batch_size * config.vision.width
    )  # of a picture with every text
    total += (2 if locked else 3) * logits
    if not is_taught:
        return total
    total += config.views.num_global * global_flops  # the teacher's
    if student.head is not None:
        head = _head_flops(student.head, config)
        shown = num_local + (
            config.views.num_global if config.distillation.pairs == "local+global" else 0
        )
        total += (
            3 * shown + config.views.num_global
        ) * head  # the student's, and the teacher's once
    if student.patch_head is not None:
        masked_view = _flops(lambda: student.vision.tokens(_picture(config.views.global_size)))
        patches = config.num_masked * _head_flops(student.patch_head, config)
        total += config.views.num_global * (3 * (masked_view + patches) + patches)
    return total


def memory(config: Config, student: Student, batch_size: int) -> dict[str, int]:
    """Bytes by part on one device: what stays, then what a step with a teacher saves for its
    backward pass.
    """
    teacher = sum(count for name, count in parts_of(student).items() if name != "text tower")
    (_, _), (num_local, _) = _views(config, student, config.is_taught_at(config.start_step))
    made = config.view_kinds
    squares = ("global_crops" in made) * config.views.num_global + ("original" in made)
    pixels = squares * config.views.global_size**2 + num_local * config.views.local_size**2
    of_head = 0
    if student.patch_head is not None:
        rows = torch.empty(config.num_masked, config.vision.width, device="meta")
        of_head = config.views.num_global * _saved(
            student.patch_head.layers, rows
        )  # in fp32 whatever the towers run in
    here = config.micro_batch or batch_size  # pairs whose activations are there at the same time
    return {
        "weights": 4 * count_parameters(student),
        "gradients": sum(4 * p.numel() for p in student.parameters() if p.requires_grad),
        "optimiser state": state_bytes(student, config.optim),
        "teacher": 4 * teacher,
        **(
            {"average": 4 * sum(p.numel() for p in averaged(student).values())}
            if config.average_momentum
            else {}
        ),
        "activations": here * (_activations(config, student) + of_head),
        "contrastive logits": 4 * 2 * _meets_text(config) * batch_size * config.batch_size,
        "pictures and views": 3 * batch_size * (config.data.decode_size**2 + 4 * pixels),
    }


def memory_of(device: torch.device) -> int:
    """Bytes that the device has in all, or that this process may use of them."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit()))


def _activations(config: Config, student: Student) -> int:
    """Bytes that the student's forward passes through its towers keep of one pair: a bound where
    blocks are compiled.
    """
    half = 2 if config.precision == "bf16" else 1  # autocast keeps the large ones in bf16
    (num_global, _), (num_local, _) = _views(
        config, student, config.is_taught_at(config.start_step)
    )
    if student.patch_head is not None:
        num_global += config.views.num_global  # the masked ones
    tokens = torch.zeros(1, config.text.context_length, dtype=torch.long, device="meta")
    passes: list[tuple[int, VisionTower | TextTower, Tensor]] = [
        (1, student.text, tokens),
        (num_global, student.vision, _picture(config.views.global_size)),
        (num_local, student.vision, _picture(config.views.local_size)),
    ]
    kept = sum(
        count * _saved(tower, inputs) // half for count, tower, inputs in passes if count
    )  # of blocks anew nothing
    anew = 0  # the block whose activations are there while the backward pass is in it
    for count, tower, inputs in passes:
        if tower.blocks.is_checkpointed and tower.positions.requires_grad:
            entered = _entering(tower, inputs)
            kept += count * len(tower.blocks) * 4 * entered.numel()  # the sums of a tower stay fp32
            anew = max(anew, count * _saved(tower.blocks[0], entered) // half)
    return kept + anew


def _entering(tower: VisionTower | TextTower, inputs: Tensor) -> Tensor:
    """[1, N, W] with a gradient: what its blocks get of one sample."""
    if isinstance(tower, TextTower):
        return torch.empty(
            *inputs.shape, tower.positions.shape[-1], device="meta", requires_grad=True
        )
    return tower.embed(inputs).detach().requires_grad_()


@lru_cache(maxsize=8)
def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of square matrix products in the run's precision, the best of three."""
    size = MATRIX.get(device.type, MATRIX["cpu"])
    matrix = torch.ones(
        size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device=device
    )
    seconds = []
    for _ in range(4):  # the first one warms up
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _meets_text(config: Config) -> int:
    kinds = config.contrastive.images.split("+")
    return ("global" in kinds) * config.views.num_global + ("original" in kinds)


def _views(
    config: Config, student: Student, is_taught: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((views of the global size that the student encodes, FLOPs of one), (the same of the local
    size)).
    """
    kinds, is_distilled = (
        set(config.contrastive.images.split("+")),
        is_taught and student.head is not None,
    )
    if is_distilled and config.distillation.pairs == "local+global":
        kinds.add("global")
    num_global = ("global" in kinds) * config.views.num_global + ("original" in kinds)
    num_local = config.views.num_local if is_distilled else 0
    return (
        (num_global, _flops(lambda: student.vision(_picture(config.views.global_size)))),
        (num_local, _flops(lambda: student.vision(_picture(config.views.local_size)))),
    )


def _picture(size: int) -> Tensor:
    return torch.empty(1, 3, size, size, device="meta")


def _head_flops(head: Head, config: Config) -> int:
    """Its layers and the products with all prototypes; ``head`` itself names its device to
    autocast, which knows no meta.
    """
    return _flops(
        lambda: F.linear(
            head.layers(torch.empty(1, config.vision.width, device="meta")), head.prototypes
        )
    )


def _flops(forward: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops()


def _saved(module: nn.Module, inputs: Tensor) -> int:
    """Bytes in fp32 that autograd keeps of one sample's forward pass, each storage once, weights
    left out.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    found: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = (
                tensor,
                storage.nbytes(),
            )  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(inputs)
    del output
    return sum(size for _, size in found.values())
