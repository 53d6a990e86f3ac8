"""The optimiser as the recipe asks: decoupled weight decay on matrices only, gradients clipped by their global norm."""

from __future__ import annotations

import re

import torch
from torch import nn

from trainer import adafactor
from trainer.adafactor import Adafactor
from trainer.model import Student
from trainer.sections import OptimConfig


def make_optimizer(student: Student, config: OptimConfig) -> torch.optim.Optimizer:
    """Weights of linear layers, patches and prototypes decay; biases, norms, positions, embeddings, the mask token do not.

    ``weight_decay`` is big_vision's: per step the weight shrinks by weight_decay * lr / peak, so 1e-4 there is
    1e-4 / peak in PyTorch's convention, where the factor is lr * weight_decay.

    With ``layer_decay`` below 1 a layer's rate is layer_decay^n, n the layers of its tower above it (BEiT, 2106.08254).
    """
    matrices = {f"{name}.weight" for name, m in student.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    matrices |= {"head.prototypes", "patch_head.prototypes"}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            scale = config.layer_decay ** layers_above(name, student)
            groups.setdefault((name in matrices, scale), []).append(parameter)
    decay = config.weight_decay / config.lr
    described = [
        {"params": group, "weight_decay": decay if is_matrix else 0.0, "lr_scale": scale}
        for (is_matrix, scale), group in groups.items()
    ]
    if config.kind == "adafactor":
        return Adafactor(described, config.lr, config.beta1)
    return torch.optim.AdamW(described, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)


def layers_above(name: str, student: Student) -> int:
    """Of a parameter's tower: 0 for its end (norm, pooling, head) and all outside a tower, depth + 1 for what embeds."""
    tower, _, rest = name.partition(".")
    if tower not in ("vision", "text"):
        return 0
    depth = len(getattr(student, tower).blocks)
    block = re.match(r"blocks\.(\d+)\.", rest)
    if block:
        return depth - int(block[1])
    return depth + 1 if rest.startswith(("patch.", "positions", "embedding.")) else 0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # groups of runs from before it existed have none


def clip_gradients(student: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most ``max_norm``; the norm before scaling, on the device."""
    return nn.utils.clip_grad_norm_(student.parameters(), max_norm, foreach=True)


def state_bytes(student: nn.Module, config: OptimConfig) -> int:
    """Bytes that the optimiser will keep beside the fp32 weights: two moments of AdamW, or Adafactor's."""
    shapes = [p.shape for p in student.parameters() if p.requires_grad]
    if config.kind == "adafactor":
        return adafactor.state_bytes(shapes)
    return sum(8 * shape.numel() for shape in shapes)
