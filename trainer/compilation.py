"""``compile=true``: each block of the towers through torch.compile, one graph for all sizes of crops; the rest stays as it is.

Flow: ``TrainState.create`` -> ``compile_blocks(student, teacher)``. Names of weights and checkpoints do not change.
"""

from __future__ import annotations

import torch
from torch import nn

from silc_bench.errors import UserError
from trainer.layers import Block


def compile_blocks(*models: nn.Module) -> None:
    """In place; the compiler runs at each block's first call.

    Raises:
        UserError: nothing can be compiled on this machine, found out with a small function.
    """
    device = next(models[0].parameters()).device
    try:
        torch.compile(torch.nn.functional.relu)(torch.ones(8, device=device))
    except RuntimeError as error:  # every error of dynamo and inductor is one
        reason = " ".join(next(iter(str(error).splitlines()), type(error).__name__).split())
        raise UserError(
            f"compile=true: torch.compile does not work on this machine ({reason}); install a C++ compiler (g++ or clang++, or"
            " name it in CXX), or leave compile out"
        ) from None
    for model in models:
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(dynamic=True)
