"""The learning rate as a pure function of the step: nothing to checkpoint."""

from __future__ import annotations

import math

from trainer.config import OptimConfig


def lr_at(step: int, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of optimiser update number ``step`` (from 0) of ``num_steps``.

    rsqrt: linear warm-up to the peak, peak * sqrt(warmup / step), linear cool-down to 0 (big_vision; Zhai et al. 2106.04560).
    cosine: linear warm-up to the peak, half a cosine to 0.
    """
    warmup = max(1, round(config.warmup_fraction * num_steps))
    cooldown = round(config.cooldown_fraction * num_steps)
    position = step + 1  # the first update already moves, and the last of a cosine is not wasted on a rate of 0
    if position < warmup:
        return config.lr * position / warmup
    if config.schedule == "cosine":
        progress = (position - warmup) / max(1, num_steps + 1 - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    rate = config.lr * math.sqrt(warmup / position)
    return rate * min(1.0, (num_steps + 1 - position) / (cooldown + 1))
