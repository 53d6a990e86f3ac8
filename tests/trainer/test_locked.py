"""``optim.locked``: the tower stays as it started; nothing is computed for its learning alone."""

from __future__ import annotations

import json
from collections import Counter

import on_ranks
import pytest
import torch
from runs import CPU, close, run

from silc_bench.errors import UserError
from silc_bench.trainer.monitor.cost import flops_per_image, memory
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.train import TrainState, train_step

pytestmark = pytest.mark.broad

STEPS = 3
SIDES = pytest.mark.parametrize("side", ["vision", "text"])


def locked_config(tiny, side, locked=None, **changes):
    """Of the objective that leaves ``side`` without a use; ``locked`` "": nothing is."""
    objective = "contrastive" if side == "vision" else "silc"
    optim = {"layer_decay": 0.8, "weight_decay": 0.1, "locked": side if locked is None else locked}
    return tiny(objective, steps=STEPS, optim=optim, **changes)


def steps_of(config, count=STEPS):
    """The weights before ``count`` steps, the state after them, and which towers ran how often."""
    tokenizer, batches = on_ranks.first_batches(config, count)
    state = TrainState.create(config, tokenizer, CPU)
    before = {name: value.clone() for name, value in state.student.state_dict().items()}
    calls = Counter()
    for side in ("vision", "text"):
        first = state.student.get_submodule(f"{side}.blocks.0")
        first.register_forward_hook(lambda *call, side=side: calls.update([side]))
    for batch in batches:
        train_step(state, batch)
    return before, state, calls


@pytest.mark.parametrize("micro_batch", [0, 4])
@SIDES
def test_a_locked_tower_stays_to_the_bit_and_all_others_move(side, micro_batch, tiny):
    """And is not computed again for the backward pass, as what learns is."""
    config = locked_config(tiny, side, micro_batch=micro_batch)
    before, state, calls = steps_of(config)
    for name, value in state.student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(f"{side}."), name
    locked = {id(weight) for weight in state.student.get_submodule(side).parameters()}
    groups = state.optimizer.param_groups
    moved = {id(weight) for group in groups for weight in group["params"]}
    assert not moved & locked, "not even to decay"
    if micro_batch:
        sizes_of_views = 1 if side == "vision" else 2
        expected = Counter(text=2 * STEPS, vision=2 * STEPS * sizes_of_views)
        expected["text" if side == "vision" else "vision"] *= 2
        assert calls == expected


@SIDES
def test_micro_batches_give_the_same_gradients(side, tiny):
    """Of the first step: what Adam makes of a gradient that is only rounding is not compared."""
    whole, parts = (steps_of(locked_config(tiny, side, micro_batch=size), 1)[1] for size in (0, 2))
    for name, weight in whole.student.named_parameters():
        gradient = parts.student.get_parameter(name).grad
        if name.startswith(f"{side}."):
            assert gradient is weight.grad is None
        else:
            close(gradient, weight.grad, 1e-6)


@SIDES
def test_the_estimate_knows(side, tiny):
    locked, free = (locked_config(tiny, side, locked=tower) for tower in (side, ""))
    with torch.device("meta"):
        students = [Student(locked), Student(free)]
    tower = sum(p.numel() for p in students[0].get_submodule(side).parameters())
    frugal, full = (memory(c, s, 4) for c, s in zip((locked, free), students, strict=True))
    assert full["gradients"] - frugal["gradients"] == 4 * tower
    assert full["optimiser state"] - frugal["optimiser state"] == 8 * tower
    assert full["activations"] > frugal["activations"]
    assert frugal["weights"] == full["weights"]
    assert flops_per_image(locked, students[0]) < flops_per_image(free, students[1])


def test_its_log_has_no_gradient_of_it_and_no_false_alarm(tiny, tmp_path, few_captions):
    run(locked_config(tiny, "vision", log_every=1), tmp_path, on_collapse="stop")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    for row in rows:
        assert "gradient_norm_vision" not in row
        assert row["gradient_norm_text"] > 0
        assert row["update_ratio"] > 0
        assert row["ema_distance"] == 0


def test_self_distillation_needs_a_tower_to_teach(tiny):
    with pytest.raises(UserError, match=r"optim\.locked"):
        tiny("silc", optim={"locked": "vision"})
