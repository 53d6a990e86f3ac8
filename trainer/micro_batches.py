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

    def forward(self, views: Views, tokens: Tensor) -> StudentOutput:
        outs: list[StudentOutput] = [
            # nothing is random in it; a locked tower is outside of what is computed again
            checkpoint(
                self.student,
                part,
                words,
                self.student.of_locked(part, words),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for part, words in zip(views.split(self.size), tokens.split(self.size), strict=True)
        ]
        return StudentOutput(
            torch.cat([out.image_features for out in outs], dim=1),
            torch.cat([out.text_features for out in outs]),
            outs[0].scale,
            outs[0].bias,
            None if outs[0].projections is None else torch.cat([_there(out.projections) for out in outs], dim=1),
            outs[0].prototypes,
        )


def _there(projections: Tensor | None) -> Tensor:
    assert projections is not None
    return projections
