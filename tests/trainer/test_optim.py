"""Which parameters decay, clipping, rates by layer, and what the state weighs."""

import pytest
import torch
from runs import SPARED

from silc_bench.trainer.config.config import OptimConfig
from silc_bench.trainer.optim import make_optimizer, set_lr, state_bytes
from silc_bench.trainer.silc.student import Student


def give_gradients(model):
    for p in model.parameters():
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize(("weight", "masked"), [(1.0, 0.0), (0.0, 0.0), (1.0, 0.5)])
def test_matrices_decay_and_nothing_else_does(tiny, weight, masked):
    """Each parameter that may move is in one group, once."""
    model = Student(tiny(distillation={"weight": weight}, masked={"weight": masked}))
    groups = make_optimizer(model, OptimConfig()).param_groups
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    decaying, others = ([names.pop(id(p)) for p in group["params"]] for group in groups)
    assert not names
    assert all(name.endswith(SPARED) for name in others)
    assert not any(name.endswith(SPARED) for name in decaying)
    assert ("head.prototypes" in decaying) == (weight > 0)
    assert ("patch_head.prototypes" in decaying) == (masked > 0)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_layers_further_from_the_end_move_less(tiny, kind):
    """BEiT's rule for a tower of depth 3: rates 0.5, 0.25, 0.125, embedding 0.0625, the rest 1."""
    model = Student(tiny(vision={"depth": 3}))
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


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_the_state_weighs_what_is_reported(tiny, kind):
    model, config = Student(tiny()), OptimConfig(kind=kind)
    optimizer = make_optimizer(model, config)
    give_gradients(model)
    optimizer.step()
    for locked in (None, model.text.embedding.weight):
        if locked is not None:
            del optimizer.state[locked.requires_grad_(False)]
        tensors = [(name, x) for state in optimizer.state.values() for name, x in state.items()]
        held = sum(x.numel() * x.element_size() for name, x in tensors if name != "step")
        assert held == state_bytes(model, config)
