"""The optimiser, what changes over a run, and an average of the weights for evaluation.

Flow, in the step's order: ``set_lr(optimizer, lr_at(step))`` -> the step of what
``make_optimizer`` made -> ``ema_at`` for the teacher -> ``Average.update``.

Learning rate and momenta are pure functions of the step, so that there is nothing
to checkpoint.

``Adafactor`` is big_vision's (``scale_by_adafactor`` there): a factored second
moment, and a first moment kept in bf16. For a gradient g at update t (from 1), with
the decay rate d = min(0.999, 1 - t^-0.8) and s = g^2 + 1e-30:

    rows     <- d rows + (1 - d) mean of s over the largest dimension
    columns  <- d columns + (1 - d) mean of s over the second largest
    u         = g / sqrt(rows / mean(rows)) / sqrt(columns)
    momentum <- 0.9 momentum + 0.1 u
    weight   <- weight - lr (weight_decay weight + momentum)

A tensor too thin to factor keeps s whole, and the momentum is not corrected for its
start at zero. Neither updates nor rates are scaled by the weights, and nothing is
clipped here (Shazeer & Stern, 1804.04235, do both). A weight that gets its first gradient
later than the others counts t from that update. A matrix of n x m takes 2 n m + 4 (n + m)
bytes of state, where AdamW takes 8 n m.

``Average`` is a moving average of the student's towers and scalars, for ``--ckpt
RUN:average``. The teacher averages only what its targets need, vision tower and
heads. This average has the text tower and the scalars of the contrastive loss too, and
does not influence the training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from silc_bench.trainer.config.config import DistillationConfig, OptimConfig
from silc_bench.trainer.device import is_sharded, local_part, reduced, whole
from silc_bench.trainer.silc.student import TAUGHT, Student

MIN_FACTORED = 32  # the second largest dimension of a tensor that Adafactor factors
DECAY_POWER = 0.8
MAX_DECAY = 0.999
EPSILON = 1e-30  # so that a gradient of 0 divides nothing by 0


def make_optimizer(student: Student, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or Adafactor over what asks for a gradient, with decoupled decay of matrices only.

    Weights of linear layers, patches and prototypes decay; biases, norms, positions, embeddings and
    the mask token do not.

    ``weight_decay`` is big_vision's: per step the weight shrinks by weight_decay * lr / peak, so
    1e-4 there is 1e-4 / peak in PyTorch's convention, where the factor is lr * weight_decay.

    With ``layer_decay`` below 1 a layer's rate is layer_decay^n, n the layers of its tower above it
    (BEiT, 2106.08254).
    """
    matrices = {
        f"{name}.weight"
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    matrices |= {"head.prototypes", "patch_head.prototypes"}

    # Checkpoints hold the optimiser's state by the order of groups: these two always come first.
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            scale = config.layer_decay ** layers_above(name, student)
            groups.setdefault((name in matrices, scale), []).append(parameter)

    decay = config.weight_decay / config.lr
    described = []
    for (is_matrix, scale), group in groups.items():
        group_decay = decay if is_matrix else 0.0
        described.append({"params": group, "weight_decay": group_decay, "lr_scale": scale})
    if config.kind == "adafactor":
        return Adafactor(described, config.lr, config.beta1)
    return torch.optim.AdamW(
        described, lr=config.lr, betas=(config.beta1, config.beta2), fused=True
    )


def layers_above(name: str, student: Student) -> int:
    """How many layers of its tower stand above the parameter ``name``.

    0 for the tower's end (norm, pooling, head) and for all outside a tower, depth + 1 for what
    embeds.
    """
    tower, _, rest = name.partition(".")
    if tower not in ("vision", "text"):
        return 0

    depth = len(getattr(student, tower).blocks)
    block = re.match(r"blocks\.(\d+)\.", rest)
    if block:
        return depth - int(block[1])
    return depth + 1 if rest.startswith(("patch.", "positions", "embedding.")) else 0


def clip_gradients(student: Student, max_norm: float) -> Tensor:
    """The norm of the gradient, over all weights and ranks, before it is cut to ``max_norm``."""
    weights = list(student.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients, foreach=True))
    nn.utils.clip_grads_with_norm_(weights, max_norm, norm, foreach=True)
    return norm


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def lr_at(step: int, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of optimiser update number ``step`` (from 0) of ``num_steps``.

    Each schedule begins with a linear warm-up to the peak. Then

    - rsqrt: peak * sqrt(warmup / step) and a linear cool-down to 0 (Zhai et al. 2106.04560). It is
      big_vision's with its timescale equal to the warm-up; left out there, that is 10,000 steps,
      and rates fall sooner.
    - cosine: half a cosine to 0.
    - wsd: constant, and a cool-down by 1 - sqrt(progress) to 0 (Haegele et al. 2405.18392).
    """
    warmup = max(1, round(config.warmup_fraction * num_steps))
    cooldown = round(config.cooldown_fraction * num_steps)

    # From 1: the first update already moves, and the last of a cosine is not wasted on a rate of 0.
    position = step + 1
    if position < warmup:
        return config.lr * position / warmup

    if config.schedule == "cosine":
        progress = (position - warmup) / (num_steps + 1 - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))

    left = min(1.0, (num_steps + 1 - position) / (cooldown + 1))  # of the cool-down; 1 before it
    if config.schedule == "wsd":
        return config.lr * (1 - math.sqrt(1 - left))
    return config.lr * math.sqrt(warmup / position) * left


def ema_at(step: int, num_steps: int, config: DistillationConfig, batch_size: int) -> float:
    """The teacher's momentum after optimiser update number ``step`` (from 0) of ``num_steps``.

    With ``ema_batch`` the momentum is meant for batches of that size. 1 - m is then scaled in
    proportion to the batch, so that the teacher averages over the same number of images at any
    batch size: 0.966 at 16,384 becomes 0.9915 at 4,096 and 0.9979 at 1,024.

    fixed: the same at every step (SILC: at 1 the teacher would stop learning from the text loss).
    cosine: half a cosine from there to 1 (DINO, 2104.14294).
    """
    distance = 1 - config.ema_momentum
    if config.ema_batch:
        distance = min(1.0, distance * batch_size / config.ema_batch)
    if config.ema_schedule == "cosine":
        distance *= (1 + math.cos(math.pi * step / num_steps)) / 2
    return 1 - distance


class Average:
    """The weights by the student's names, without heads and mask token; ``update`` moves them."""

    def __init__(self, student: Student) -> None:
        weights = averaged(student)
        self.weights = {name: value.detach().clone() for name, value in weights.items()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a checkpoint. KeyError where names or shapes are others."""
        theirs = {(name, value.shape) for name, value in weights.items()}
        ours = {(name, value.shape) for name, value in self.weights.items()}
        if theirs != ours:
            raise KeyError(f"average of {sorted({name for name, _ in theirs ^ ours})[:3]}")

        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def update(self, student: Student, momentum: float) -> None:
        """average <- momentum * average + (1 - momentum) * student, once an optimiser step."""
        average = [local_part(value) for value in self.weights.values()]
        weights = [local_part(value) for value in averaged(student).values()]
        get_ema_multi_avg_fn(momentum)(average, weights, 0)


def average_at(step: int, momentum: float) -> float:
    """The average's momentum after optimiser update number ``step`` (from 0).

    min(momentum, (1 + step) / (10 + step)), so that the average soon forgets the first weights,
    which are noise (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    return min(momentum, (1 + step) / (10 + step))


def averaged(student: Student) -> dict[str, Tensor]:
    """What ``Average`` keeps: all parameters except those that only a teacher's targets train."""
    return {
        name: value for name, value in student.named_parameters() if not name.startswith(TAUGHT)
    }


def state_bytes(student: nn.Module, config: OptimConfig) -> int:
    """Bytes that the optimiser will keep beside the fp32 weights."""
    total = 0
    for weight in student.parameters():
        count = weight.numel() if weight.requires_grad else 0
        if config.kind == "adamw":
            total += 8 * count  # two fp32 moments
            continue

        # A bf16 momentum and fp32 second moments.
        dims = factored_dims(weight.shape)
        moments = count if dims is None else sum(count // weight.shape[dim] for dim in dims)
        total += 2 * count + 4 * moments
    return total


class Adafactor(torch.optim.Optimizer):
    """``groups`` as torch's optimisers take them, each with its ``weight_decay``."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, beta1: float):
        super().__init__(groups, {"lr": lr, "beta1": beta1, "weight_decay": 0.0, "step": 0})
        # When torch loads a state, it gives it the type of its weight. bf16 to fp32 and back loses
        # nothing.
        self.register_load_state_dict_post_hook(_narrow_momenta)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "no step evaluates a loss here"
        for group in self.param_groups:
            group["step"] += 1
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]

                # Heads wait for a late teacher. Their updates count from their first gradient.
                if not state and group["step"] > 1:
                    state["missed"] = group["step"] - 1
                updates = group["step"] - state.get("missed", 0)
                decay = min(MAX_DECAY, 1 - updates**-DECAY_POWER)
                update = _scaled(weight.grad, state, decay)

                # Averaged in the update's own precision: only what is kept is rounded to bf16.
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight, dtype=torch.bfloat16)
                update.lerp_(state["momentum"].to(update.dtype), group["beta1"])
                state["momentum"].copy_(update)

                # The weight moves by the unrounded update.
                lr = group["lr"]
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(update, alpha=lr)


def _scaled(gradient: Tensor, state: dict[str, Tensor], decay: float) -> Tensor:
    """The gradient over the root of its second moment, which is moved on first."""
    square = gradient.square() + EPSILON
    dims = factored_dims(gradient.shape)
    if dims is None:
        state["square"] = _moved(state.get("square"), square, decay)
        return gradient * state["square"].rsqrt()

    second, largest = dims
    of_rows = _mean(square, largest)
    of_columns = _mean(square, second)
    rows = _moved(state.get("rows"), of_rows, decay)
    columns = _moved(state.get("columns"), of_columns, decay)
    state["rows"] = rows
    state["columns"] = columns

    # Their product stands for the whole moment; the mean would be in it twice.
    rows = rows / _mean(rows, second)
    return gradient * rows.rsqrt() * columns.rsqrt()


def _mean(values: Tensor, dim: int) -> Tensor:
    """Mean over one dimension, which is kept; of a sharded tensor over all ranks."""
    if not is_sharded(values):
        return values.mean(dim, keepdim=True)
    # The mean of the ranks' means would be another number where their shares differ in size.
    return reduced(values.sum(dim, keepdim=True)) / values.shape[dim]


def _moved(moment: Tensor | None, value: Tensor, decay: float) -> Tensor:
    """At the first update the decay rate is 0."""
    return value if moment is None else moment.lerp_(value, 1 - decay)


def factored_dims(shape: torch.Size) -> tuple[int, int] | None:
    """Indices of the second largest and the largest dimension.

    None where the former is below MIN_FACTORED: such a tensor is not factored.
    """
    order = sorted(range(len(shape)), key=lambda index: shape[index])
    if len(shape) < 2 or shape[order[-2]] < MIN_FACTORED:
        return None
    return order[-2], order[-1]


def _narrow_momenta(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state["momentum"] = state["momentum"].bfloat16()
