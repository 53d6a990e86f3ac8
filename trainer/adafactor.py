"""Adafactor as big_vision trains with it (``scale_by_adafactor`` there): a factored second moment, a first moment kept in bf16.

For a gradient g at update t (from 1), with the decay rate d = min(0.999, 1 - t^-0.8) and s = g^2 + 1e-30:

    rows <- d rows + (1 - d) mean of s over the largest dimension        columns <- the same over the second largest
    u = g / sqrt(rows / mean(rows)) / sqrt(columns)                      a tensor too thin to factor keeps s whole
    momentum <- 0.9 momentum + 0.1 u                                     not corrected for its start at zero
    weight <- weight - lr (weight_decay weight + momentum)

Neither updates nor rates are scaled by the weights, and nothing is clipped here (Shazeer & Stern 1804.04235 do both). What
gets its first gradient later than the others counts t from there. A matrix
of n x m takes 2 n m + 4 (n + m) bytes of state, against 8 n m of AdamW: ``state_bytes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MIN_FACTORED = 32  # the second largest dimension of a tensor that is factored
DECAY_POWER, MAX_DECAY, EPSILON = 0.8, 0.999, 1e-30


class Adafactor(torch.optim.Optimizer):
    """``groups`` as torch's optimisers take them, each with its ``weight_decay``."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, beta1: float):
        super().__init__(groups, {"lr": lr, "beta1": beta1, "weight_decay": 0.0, "step": 0})
        # torch gives every state the type of its weight when it loads; bf16 survives the way there and back
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
                if not state and group["step"] > 1:
                    state["missed"] = group["step"] - 1
                updates = group["step"] - state.get("missed", 0)
                update = _scaled(weight.grad, state, min(MAX_DECAY, 1 - updates**-DECAY_POWER))
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight, dtype=torch.bfloat16)
                update.lerp_(state["momentum"].to(update.dtype), group["beta1"])
                state["momentum"].copy_(update)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def _scaled(gradient: Tensor, state: dict[str, Tensor], decay: float) -> Tensor:
    """The gradient over the root of its second moment, which is moved on first."""
    square = gradient.square() + EPSILON
    dims = factored_dims(gradient.shape)
    if dims is None:
        state["square"] = _moved(state.get("square"), square, decay)
        return gradient * state["square"].rsqrt()
    second, largest = dims
    state["rows"] = _moved(state.get("rows"), square.mean(largest, keepdim=True), decay)
    state["columns"] = _moved(state.get("columns"), square.mean(second, keepdim=True), decay)
    rows = state["rows"] / state["rows"].mean(second, keepdim=True)
    return gradient * rows.rsqrt() * state["columns"].rsqrt()


def _moved(moment: Tensor | None, value: Tensor, decay: float) -> Tensor:
    """At the first update the decay rate is 0."""
    return value if moment is None else moment.lerp_(value, 1 - decay)


def factored_dims(shape: torch.Size) -> tuple[int, int] | None:
    """Indices of the second largest and the largest dimension; None where the former is below MIN_FACTORED."""
    order = sorted(range(len(shape)), key=lambda index: shape[index])
    return (order[-2], order[-1]) if len(shape) >= 2 and shape[order[-2]] >= MIN_FACTORED else None


def state_bytes(shapes: Iterable[torch.Size]) -> int:
    """Bytes of state for fp32 weights of these shapes."""
    total = 0
    for shape in shapes:
        count = shape.numel()
        dims = factored_dims(shape)
        total += 2 * count + 4 * (count if dims is None else sum(count // shape[dim] for dim in dims))
    return total


def _narrow_momenta(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state["momentum"] = state["momentum"].bfloat16()
