"""What changes over a run, learning rate and teacher's momentum, as pure functions of the step: nothing to checkpoint."""

from __future__ import annotations

import math

from trainer.sections import DistillationConfig, OptimConfig


def lr_at(step: int, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of optimiser update number ``step`` (from 0) of ``num_steps``.

    rsqrt: linear warm-up to the peak, peak * sqrt(warmup / step), linear cool-down to 0 (Zhai et al. 2106.04560). It is
    big_vision's with its timescale equal to the warm-up; left out there, that is 10,000 steps, and rates fall sooner.
    cosine: linear warm-up to the peak, half a cosine to 0.
    wsd: linear warm-up to the peak, constant, a cool-down by 1 - sqrt(progress) to 0 (Haegele et al. 2405.18392).
    """
    warmup = max(1, round(config.warmup_fraction * num_steps))
    cooldown = round(config.cooldown_fraction * num_steps)
    position = step + 1  # the first update already moves, and the last of a cosine is not wasted on a rate of 0
    if position < warmup:
        return config.lr * position / warmup
    if config.schedule == "cosine":
        progress = (position - warmup) / (num_steps + 1 - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    left = min(1.0, (num_steps + 1 - position) / (cooldown + 1))
    if config.schedule == "wsd":
        return config.lr * (1 - math.sqrt(1 - left))
    return config.lr * math.sqrt(warmup / position) * left


def ema_at(step: int, num_steps: int, config: DistillationConfig, batch_size: int) -> float:
    """The teacher's momentum after optimiser update number ``step`` (from 0) of ``num_steps``.

    With ``ema_batch`` the momentum is meant for batches of that size: 1 - m grows in proportion to the batch, so that the
    teacher remembers as many pictures at any size. 0.966 at 16,384 is so 0.9915 at 4,096 and 0.9979 at 1,024.

    fixed: the same at every step (SILC: at 1 the teacher would stop learning from the text loss).
    cosine: half a cosine from there to 1 (DINO, 2104.14294).
    """
    distance = 1 - config.ema_momentum
    if config.ema_batch:
        distance = min(1.0, distance * batch_size / config.ema_batch)
    if config.ema_schedule == "cosine":
        distance *= (1 + math.cos(math.pi * step / num_steps)) / 2
    return 1 - distance
