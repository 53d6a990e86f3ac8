"""Large contrastive batches on a small device: the towers see a few pairs at a time, the losses the whole batch, exactly.

The outputs of every micro-batch are computed and kept, their activations are not: the backward pass of the one loss makes them
anew, micro-batch by micro-batch (GradCache, 2101.06983, as activation checkpointing). So k micro-batches of b pairs equal one
batch of k * b in loss and gradients, and teacher and centre change once a step. It costs one more forward pass of the student.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model import Student, StudentOutput
from trainer.views import Views


class MicroBatches(nn.Module):
    """Called like the student; ``size`` pairs at a time."""

    def __init__(self, student: Student, size: int):
        super().__init__()
        self.student, self.size = student, size

    def forward(self, views: Views, tokens: Tensor, masked: Tensor | None = None, is_taught: bool = True) -> StudentOutput:
        words = tokens.split(self.size)
        places = [None] * len(words) if masked is None else masked.split(self.size, dim=1)
        outs: list[StudentOutput] = [
            # nothing is random in it; a locked tower is outside of what is computed again
            checkpoint(
                self.student,
                *part,
                is_taught,
                self.student.of_locked(*part[:2]),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for part in zip(views.split(self.size), words, places, strict=True)
        ]
        return outs[0]._replace(
            image_features=torch.cat([out.image_features for out in outs], dim=1),
            text_features=torch.cat([out.text_features for out in outs]),
            projections=_joined([out.projections for out in outs]),
            patch_projections=_joined([out.patch_projections for out in outs]),
        )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Along the pictures; None where there is none of them."""
    there = [part for part in parts if part is not None]
    assert len(there) in (0, len(parts))
    return torch.cat(there, dim=1) if there else None
