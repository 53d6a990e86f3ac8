"""Which patches of the global views the student sees as a mask token, and how both read them out.

Flow: ``draw_masked`` (on the CPU, as views are) -> ``VisionTower.embed`` puts the
token there -> ``take`` after the last norm.

The patches are drawn independently of each other. iBOT (2111.07832) and DINOv2 draw blocks of
patches and vary the share; of SigLIP 2 only the share is known, 50 %. The masks are a pure function
of (seed, step, view, place in the global batch), so any number of processes draws the same ones and
there is nothing to checkpoint.

Shapes: T global views, B images, N patches of a view, n of them masked, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from silc_bench.trainer.config.config import Config
from silc_bench.trainer.silc.views import seeded, table

STREAM = 1  # beside (seed, step, view), which silc_bench.trainer.silc.views draws from


def draw_masked(config: Config, count: int, step: int, first: int = 0) -> Tensor:
    """int64 [T, B, n]: places, row by row, of the masked patches of ``count`` images, in no order.

    ``first``: the place of the first of them in the global batch.
    """
    views = []
    for view in range(config.views.num_global):
        key = (config.seed, step, view, STREAM)
        numbers = table(first, count, config.num_patches, seeded(*key), key)

        # The n smallest of N uniform numbers are n places drawn without replacement.
        views.append(numbers.argsort(dim=1, stable=True)[:, : config.num_masked])
    return torch.stack(views)


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """[B, N, W], int64 [B, n] -> [B, n, W]: the tokens at these places, nothing of the others."""
    width = tokens.shape[-1]
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, width))
