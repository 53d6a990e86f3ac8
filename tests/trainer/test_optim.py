"""Which parameters decay and how much, clipping, rates by layer, and what the state weighs."""

import math

import pytest
import torch
from runs import SPARED, close

from silc_bench.trainer.config.config import (
    Config,
    ContrastiveConfig,
    DistillationConfig,
    MaskedConfig,
    OptimConfig,
    TextConfig,
    VisionConfig,
)
from silc_bench.trainer.optim import clip_gradients, make_optimizer, set_lr, state_bytes
from silc_bench.trainer.silc.student import Student, init_weights

OPTIM = OptimConfig(lr=1e-2, weight_decay=0.05)


def student(loss="sigmoid", weight=1.0, masked=0.0, depth=1):
    size = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
    head = {"num_prototypes": 20, "hidden_dim": 24, "bottleneck_dim": 8}
    config = Config(
        preset="tiny",
        vision=VisionConfig(image_size=16, patch_size=8, **size | {"depth": depth}),
        text=TextConfig(vocab_size=300, context_length=8, **size),
        contrastive=ContrastiveConfig(loss=loss),
        distillation=DistillationConfig(weight=weight, **head),
        masked=MaskedConfig(weight=masked),
    )
    model = Student(config)
    init_weights(model, seed=0)
    return model


def give_gradients(model, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = size * torch.randn(p.shape, generator=generator) if p.requires_grad else None


@pytest.mark.parametrize(
    ("loss", "weight", "masked"),
    [("sigmoid", 1.0, 0.0), ("sigmoid", 0.0, 0.0), ("softmax", 1.0, 0.0), ("sigmoid", 1.0, 0.5)],
)
def test_matrices_decay_and_nothing_else_does(loss, weight, masked):
    """Each parameter that may move is in one group, once."""
    model = student(loss, weight, masked)
    groups = make_optimizer(model, OPTIM).param_groups
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    decaying, others = ([names.pop(id(p)) for p in group["params"]] for group in groups)
    assert not names
    assert all(name.endswith(SPARED) for name in others)
    assert not any(name.endswith(SPARED) for name in decaying)
    assert ("head.prototypes" in decaying) == (weight > 0)
    assert ("patch_head.prototypes" in decaying) == (masked > 0)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_decay_is_big_visions(share):
    """Without a gradient a matrix loses weight_decay of itself a step at the peak rate.

    And less with the rate.
    """
    model = student()
    optimizer = make_optimizer(model, OPTIM)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    give_gradients(model, seed=0, size=0.0)
    set_lr(optimizer, share * OPTIM.lr)
    optimizer.step()
    for name, p in model.named_parameters():
        kept = 1.0 if name.endswith(SPARED) else 1 - share * 0.05
        close(p.detach(), before[name] * kept, 1e-6, atol=0)


@pytest.mark.parametrize("max_norm", [1e-3, 1e6])
def test_gradients_are_clipped_by_their_global_norm(max_norm):
    model = student()
    give_gradients(model, seed=0)
    before = [p.grad.clone() for p in model.parameters()]
    norm = math.sqrt(sum(g.double().square().sum().item() for g in before))
    assert clip_gradients(model, max_norm).item() == pytest.approx(norm, rel=1e-5)
    factor = min(1.0, max_norm / norm)
    close([p.grad for p in model.parameters()], [g * factor for g in before], 1e-4, atol=0)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_layers_further_from_the_end_move_less(kind):
    """BEiT's rule for a tower of depth 3: rates 0.5, 0.25, 0.125, embedding 0.0625, the rest 1."""
    model = student(depth=3)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-2, layer_decay=0.5, kind=kind, beta1=0.8))
    set_lr(optimizer, 4e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    expected = {f"vision.blocks.{layer}.": 0.5 ** (3 - layer) for layer in range(3)}
    expected |= dict.fromkeys(("vision.patch.", "vision.positions"), 0.0625)
    expected |= {"text.blocks.0.": 0.5, "text.embedding.": 0.25, "text.positions": 0.25}
    for group in optimizer.param_groups:
        assert (group["betas"][0] if kind == "adamw" else group["beta1"]) == 0.8
        for name in (names.pop(id(p)) for p in group["params"]):
            shares = [share for start, share in expected.items() if name.startswith(start)]
            assert group["lr"] == pytest.approx(4e-3 * sum(shares or [1.0])), name
    assert not names


def test_without_layer_decay_there_are_the_groups_of_ever(tmp_path):
    """A run begun before rates had layers goes on.

    Two groups, and a saved one without its share takes the whole rate.
    """
    optimizer = make_optimizer(student(), OPTIM)
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        del group["lr_scale"]
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_the_state_weighs_what_is_reported(kind):
    model, config = student(), OptimConfig(kind=kind)
    optimizer = make_optimizer(model, config)
    give_gradients(model, seed=0)
    optimizer.step()
    for locked in (None, model.text.embedding.weight):
        if locked is not None:
            del optimizer.state[locked.requires_grad_(False)]
        tensors = [(name, x) for state in optimizer.state.values() for name, x in state.items()]
        held = sum(x.numel() * x.element_size() for name, x in tensors if name != "step")
        assert held == state_bytes(model, config)
