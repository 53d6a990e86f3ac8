"""``optim.locked``: the tower stays as it started; nothing is computed for its learning alone."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from runs import run, started

from silc_bench.trainer.monitor.plan.cost import Place, flops_per_image, memory
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.train import train_step

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
    state, batches = started(config, count)
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
    """It does not decay, and is not computed again for the backward pass, as what learns is."""
    config = locked_config(tiny, side, micro_batch=micro_batch)
    before, state, calls = steps_of(config)
    for name, value in state.student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(f"{side}."), name
    if micro_batch:
        sizes_of_views = 1 if side == "vision" else 2
        expected = Counter(text=2 * STEPS, vision=2 * STEPS * sizes_of_views)
        expected["text" if side == "vision" else "vision"] *= 2
        assert calls == expected


@SIDES
def test_the_estimate_knows(side, tiny):
    def estimate(tower):
        config = locked_config(tiny, side, tower)
        student = Student(config).to("meta")
        return memory(config, student, Place("cpu", 2)), flops_per_image(config)

    (full, flops), (frugal, fewer_flops) = map(estimate, ("", side))
    tower = sum(p.numel() for p in Student(tiny()).get_submodule(side).parameters())
    assert full["gradients"] - frugal["gradients"] == 4 * tower
    assert full["optimiser state"] - frugal["optimiser state"] == 8 * tower
    assert full["activations"] > frugal["activations"]
    assert frugal["weights"] == full["weights"]
    assert fewer_flops < flops


def test_its_log_has_no_gradient_of_it_and_no_false_alarm(tiny, tmp_path, few_captions):
    run(locked_config(tiny, "vision", log_every=1), tmp_path, on_collapse="stop")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    for row in rows:
        assert "gradient_norm_vision" not in row
        assert row["gradient_norm_text"] > 0
        assert row["update_ratio"] > 0
        assert row["ema_distance"] == 0
