"""AdamW against its formula in float64, which parameters decay and how much, clipping."""

import math
from dataclasses import replace

import pytest
import torch

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

SIZE = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
OPTIM = OptimConfig(lr=1e-2, weight_decay=0.05)


def student(loss="sigmoid", weight=1.0, masked=0.0):
    config = Config(
        preset="tiny",
        vision=VisionConfig(image_size=16, patch_size=8, **SIZE),
        text=TextConfig(vocab_size=300, context_length=8, **SIZE),
        contrastive=ContrastiveConfig(loss=loss),
        distillation=DistillationConfig(
            weight=weight, num_prototypes=20, hidden_dim=24, bottleneck_dim=8
        ),
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
    decaying, others = (group["params"] for group in make_optimizer(model, OPTIM).param_groups)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(names[id(p)] for p in [*decaying, *others]) == sorted(
        n for n, p in model.named_parameters() if p.requires_grad
    )
    not_matrices = (
        "bias",
        "positions",
        "probe",
        "log_scale",
        "norm1.weight",
        "norm2.weight",
        "norm.weight",
        "embedding.weight",
        "mask_token",
    )
    assert sorted(names[id(p)] for p in others) == sorted(
        n for n, p in model.named_parameters() if n.endswith(not_matrices) and p.requires_grad
    )
    assert ("head.prototypes" in {names[id(p)] for p in decaying}) == (weight > 0)
    assert ("patch_head.prototypes" in {names[id(p)] for p in decaying}) == (masked > 0)
    assert all(p.dim() >= 2 for p in decaying)


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
        is_matrix = any(p is q for q in optimizer.param_groups[0]["params"])
        torch.testing.assert_close(
            p.detach(), before[name] * (1 - share * 0.05 if is_matrix else 1.0), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("size", [1.0, 1e-7])  # of the gradients; 1e-8 is added to a root
def test_steps_equal_the_formula_in_float64(size):
    """Loshchilov & Hutter 1711.05101, algorithm 2, at a changing rate and unusual momenta."""
    model, rates, config = (
        student(),
        [1e-3, 1e-2, 4e-3, 1e-3],
        replace(OPTIM, beta1=0.8, beta2=0.99),
    )
    optimizer = make_optimizer(model, config)
    matrices = {id(p) for p in optimizer.param_groups[0]["params"]}
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step, rate in enumerate(rates):
        give_gradients(model, seed=step, size=size)
        set_lr(optimizer, rate)
        for name, p in model.named_parameters():
            gradient = p.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            mean, square = (
                first[name] / (1 - 0.8 ** (step + 1)),
                second[name] / (1 - 0.99 ** (step + 1)),
            )
            decay = rate / OPTIM.lr * 0.05 if id(p) in matrices else 0.0
            weights[name] = (
                weights[name] - decay * weights[name] - rate * mean / (square.sqrt() + 1e-8)
            )
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), weights[name], rtol=1e-5, atol=1e-6)
    assert {
        group["beta1"]
        for group in make_optimizer(model, replace(config, kind="adafactor")).param_groups
    } == {0.8}


@pytest.mark.parametrize(("max_norm", "is_clipped"), [(1e-3, True), (1e6, False)])
def test_gradients_are_clipped_by_their_global_norm(max_norm, is_clipped):
    model = student()
    give_gradients(model, seed=0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = math.sqrt(sum(g.double().square().sum().item() for g in before.values()))
    found = clip_gradients(model, max_norm)
    assert found.item() == pytest.approx(norm, rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.grad, before[name] * (max_norm / norm if is_clipped else 1.0), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_layers_further_from_the_end_move_less(kind):
    """BEiT's rule for a tower of depth 3: rates 0.5, 0.25, 0.125, embedding 0.0625, the rest 1."""
    config = Config(
        preset="deep",
        vision=VisionConfig(image_size=16, patch_size=8, **SIZE | {"depth": 3}),
        text=TextConfig(vocab_size=300, context_length=8, **SIZE),
        distillation=DistillationConfig(num_prototypes=20, hidden_dim=24, bottleneck_dim=8),
    )
    model = Student(config)
    init_weights(model, seed=0)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-2, layer_decay=0.5, kind=kind))
    set_lr(optimizer, 4e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        "vision.blocks.2.": 0.5,
        "vision.blocks.1.": 0.25,
        "vision.blocks.0.": 0.125,
        "vision.patch.": 0.0625,
    }
    expected |= {
        "vision.positions": 0.0625,
        "text.blocks.0.": 0.5,
        "text.embedding.": 0.25,
        "text.positions": 0.25,
    }
    for name, rate in rates.items():
        scale = next((scale for start, scale in expected.items() if name.startswith(start)), 1.0)
        assert rate == pytest.approx(4e-3 * scale), name


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
    tensors = [
        x for state in optimizer.state.values() for name, x in state.items() if name != "step"
    ]
    assert sum(x.numel() * x.element_size() for x in tensors) == state_bytes(model, config)
    locked = model.text.embedding.weight.requires_grad_(False)
    kept = [
        x
        for p, state in optimizer.state.items()
        if p is not locked
        for name, x in state.items()
        if name != "step"
    ]
    assert sum(x.numel() * x.element_size() for x in kept) == state_bytes(model, config)
