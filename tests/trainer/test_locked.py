"""``optim.locked``: the tower stays as it started; nothing is computed for its learning alone."""

from __future__ import annotations

import io
import json
from collections import Counter

import on_ranks
import pytest
import torch
from rich.console import Console

from silc_bench.errors import UserError
from silc_bench.trainer.config.config import validate
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor.cost import flops_per_image, memory
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.train import TrainState, train_step

pytestmark = pytest.mark.broad

CPU = torch.device("cpu")
STEPS = 3
OTHER = {"vision": "text", "text": "vision"}


def locked_config(tiny, side: str, **changes):
    objective = "silc" if side != "vision" else "contrastive"
    optim = {"locked": side, "layer_decay": 0.8, "weight_decay": 0.1}
    return tiny(
        objective,
        steps=STEPS,
        precision="fp32",
        contrastive={"loss": "sigmoid"},
        optim=optim,
        **changes,
    )


def steps_of(config, count: int = STEPS):
    """The state before and after ``count`` steps, and which towers ran how often."""
    tokenizer, batches = on_ranks.first_batches(config, count)
    state = TrainState.create(config, tokenizer, CPU)
    before = {name: value.clone() for name, value in state.student.state_dict().items()}
    calls: Counter[str] = Counter()
    for side in OTHER:
        first = state.student.get_submodule(f"{side}.blocks.0")
        first.register_forward_hook(lambda module, inputs, output, side=side: calls.update([side]))
    for batch in batches:
        train_step(state, batch)
    return before, state, calls


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("side", list(OTHER))
def test_a_locked_tower_stays_to_the_bit_and_all_others_move(side, micro_batch, tiny):
    before, state, _ = steps_of(locked_config(tiny, side, micro_batch=micro_batch))
    for name, value in state.student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(f"{side}."), name
    assert all(
        parameter.grad is None for parameter in state.student.get_submodule(side).parameters()
    )
    moved = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert not moved & {id(p) for p in state.student.get_submodule(side).parameters()}, (
        "not even to decay"
    )


@pytest.mark.parametrize("side", list(OTHER))
def test_it_is_not_computed_again_for_the_backward_pass(side, tiny):
    _, _, calls = steps_of(locked_config(tiny, side, micro_batch=4))
    # micro-batches, times views of a size
    per_step = {"text": 2, "vision": 2 * (1 if side == "vision" else 2)}
    assert calls[side] == STEPS * per_step[side]
    assert calls[OTHER[side]] == 2 * STEPS * per_step[OTHER[side]], "what learns is"


@pytest.mark.parametrize("side", list(OTHER))
def test_micro_batches_give_the_same_gradients(side, tiny):
    """Of the first step: what Adam makes of a gradient that is only rounding is not compared."""
    _, whole, _ = steps_of(locked_config(tiny, side), 1)
    _, parts, _ = steps_of(locked_config(tiny, side, micro_batch=2), 1)
    for (name, one), other in zip(
        whole.student.named_parameters(), parts.student.parameters(), strict=True
    ):
        if not name.startswith(f"{side}."):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("side", list(OTHER))
def test_the_estimate_knows(side, tiny):
    locked, free = locked_config(tiny, side), locked_config(tiny, "")
    if side == "vision":
        free = tiny("contrastive", steps=STEPS, precision="fp32", contrastive={"loss": "sigmoid"})
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
    out = io.StringIO()
    config = locked_config(tiny, "vision", log_every=1)
    run_training(
        config,
        tmp_path / "run",
        resume=False,
        device=CPU,
        console=Console(file=out, width=400),
        on_collapse="stop",
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    for row in rows:
        assert "gradient_norm_vision" not in row
        assert row["gradient_norm_text"] > 0
        assert row["update_ratio"] > 0
        assert row["ema_distance"] == 0
    assert "stands still" not in out.getvalue()


def test_self_distillation_needs_a_tower_to_teach(tiny):
    with pytest.raises(UserError, match=r"optim\.locked: a locked image tower cannot learn"):
        validate(tiny("silc", optim={"locked": "vision"}))
