"""AdamW as the recipe asks: decoupled weight decay on matrices only, gradients clipped by their global norm."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import OptimConfig
from trainer.model import Student


def make_optimizer(student: Student, config: OptimConfig) -> torch.optim.AdamW:
    """Two groups: weights of linear layers, patches and prototypes decay; biases, norms, positions, embeddings do not.

    ``weight_decay`` is big_vision's: per step the weight shrinks by weight_decay * lr / peak, so 1e-4 there is
    1e-4 / peak in PyTorch's convention, where the factor is lr * weight_decay.
    """
    matrices = {id(m.weight) for m in student.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    if student.head is not None:
        matrices.add(id(student.head.prototypes))
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": config.weight_decay / config.lr},
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(student: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most ``max_norm``; the norm before scaling, on the device."""
    return nn.utils.clip_grad_norm_(student.parameters(), max_norm, foreach=True)
