"""The memory of the distillation loss, ours and lightly's over full tables of logits.

At equal values, for ``train_step``.

What counts is the peak of forward and backward pass beyond what goes in: features, prototypes and
the teacher's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
from plain_silc import dino_loss
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from silc_bench.trainer.config.config import DistillationConfig
from silc_bench.trainer.silc.distillation import Targets, distillation_loss, log_sum_exp
from silc_bench.trainer.train import TrainState


def compare_memory(state: TrainState, num_prototypes: int) -> None:
    """From bottleneck and prototypes to the gradients of both, teacher's distributions included."""
    config, device = state.config, state.student.log_scale.device
    views, d = config.views, replace(config.distillation, num_prototypes=num_prototypes)
    generator = torch.Generator(device).manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return F.normalize(
            torch.randn(*shape, d.bottleneck_dim, generator=generator, device=device), dim=-1
        )

    teacher, student = (
        unit(views.num_global, config.batch_size),
        unit(views.num_global + views.num_local, config.batch_size),
    )
    weights, offsets = unit(num_prototypes), torch.zeros(num_prototypes, device=device)
    dino = dino_loss(replace(state, config=replace(config, distillation=d)))

    def ours(h: Tensor, w: Tensor) -> Tensor:
        normalizers = log_sum_exp(teacher, weights, d.teacher_temp, offsets)
        targets = Targets(teacher, weights, offsets, normalizers, d.teacher_temp)
        return distillation_loss(h, w, targets, d.student_temp, views.num_global)

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return dino(list(teacher @ weights.T), list(h @ w.T))

    found = []
    for loss in (ours, plain):
        h, w = student.clone().requires_grad_(), weights.clone().requires_grad_()
        found.append(allocated(lambda loss=loss, h=h, w=w: loss_and_gradients(loss, h, w), device))
    (mine, my_loss), (theirs, their_loss) = found
    exact = exact_loss(teacher, student, weights, d)
    print(f"its value: {my_loss:.6f}, plain {their_loss:.6f}, in float64 {exact:.6f}")
    assert abs(my_loss - exact) <= 1e-5 * exact, "the loss is wrong"
    # it adds B * K terms up in fp32
    assert abs(their_loss - exact) <= 5e-2 * exact, "the plain loss is another one"
    rows = (
        f"{views.num_global} and {views.num_global + views.num_local} views x {config.batch_size} "
        f"x {num_prototypes:,}"
    )
    print(
        f"loss memory, {rows}: {mine / 1e6:,.0f} MB against {theirs / 1e6:,.0f} MB, of each", end=""
    )
    print(
        (
            f" {4 * weights.numel() / 1e6:,.0f} MB the prototypes' gradient; "
            f"RATIO {mine / theirs:.3f} (goal: at most 0.25)"
        ),
        flush=True,
    )


def loss_and_gradients(loss: Callable[[Tensor, Tensor], Tensor], h: Tensor, w: Tensor) -> float:
    value = loss(h, w)
    value.backward()
    return value.item()


def allocated(work: Callable[[], float], device: torch.device) -> tuple[int, float]:
    """The most bytes of tensors alive at once beyond those before, and what ``work`` returns."""
    if device.type == "cuda":
        before = reset_peak(device)
        value = work()
        return peak(device) - before, value
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        value = work()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes)), value


def exact_loss(
    teacher: Tensor, student: Tensor, weights: Tensor, config: DistillationConfig
) -> float:
    """Of the features [T, B, d] and [S, B, d], by definition: in float64, an image at a time."""
    total, weights = 0.0, weights.double()
    for t, s in zip(teacher.double().unbind(1), student.double().unbind(1), strict=True):
        pairs = (
            torch.softmax(t @ weights.T / config.teacher_temp, -1)
            @ torch.log_softmax(s @ weights.T / config.student_temp, -1).T
        )
        total -= (pairs.sum() - pairs.diagonal().sum()).item()
    return total / (teacher.shape[1] * (len(teacher) * len(student) - len(teacher)))


def reset_peak(device: torch.device) -> int:
    """Bytes in use now, from which on ``peak`` counts.

    On a CPU resident ones (Linux, glibc), of which malloc may keep more.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed would be used again without a trace
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
