"""The average of a run's weights: formula, cost, and measured, started from and resumed."""

import shutil
from dataclasses import replace

import pytest
import torch
from runs import close, differing, end_of, run, started, student_of

from silc_bench.errors import UserError
from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.monitor.plan.cost import Place, memory
from silc_bench.trainer.optim import Average
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.train import train_step

pytestmark = pytest.mark.broad


def test_it_is_the_formula_over_the_steps_of_a_run(tiny):
    """In float64, weight by weight, of towers and scalars alone; nothing of the run changes."""
    config = tiny(average_momentum=0.5, steps=12)
    state, batches = started(config, 12)
    plain, _ = started(replace(config, average_momentum=0), 12)
    expected = {
        name: value.detach().double()
        for name, value in state.student.named_parameters()
        if name.startswith(("vision.", "text.", "log"))
    }
    assert state.average.weights.keys() == expected.keys()
    for step, batch in enumerate(batches):
        train_step(state, batch)
        train_step(plain, batch)
        momentum = min(0.5, (1 + step) / (10 + step))
        for name in expected:
            value = state.student.get_parameter(name).detach().double()
            expected[name] = momentum * expected[name] + (1 - momentum) * value
    averages = {name: value.double() for name, value in state.average.weights.items()}
    close(averages, expected, atol=1e-6)
    assert differing(state.payload(), plain.payload()) == {"average", "config"}


def test_weights_of_another_average_are_refused_before_any_is_taken(tiny):
    """One name too few, and a shape that would be spread over its tensor."""
    average, name = Average(student_of(tiny())), "text.head.weight"
    before = {key: value.clone() for key, value in average.weights.items()}
    whole = {key: torch.full_like(value, 3.0) for key, value in before.items()}
    fewer = {key: value for key, value in whole.items() if key != name}
    for other in (fewer, whole | {name: torch.ones(1)}):
        with pytest.raises(KeyError, match=name):
            average.load(other)
    assert not differing(average.weights, before)


@pytest.mark.usefixtures("few_captions")
def test_a_run_is_measured_resumed_and_started_from_by_its_average(tiny, tmp_path):
    config = tiny(average_momentum=0.9, checkpoint_every=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, whole)
    average = end_of(whole)["average"]
    shutil.copytree(whole, parts)
    checkpoint.path_of(parts, 4).unlink()
    run(config, parts, resume=True)
    assert not differing(end_of(parts)["average"], average)

    model, student = load_model(f"{whole}:average"), load_model(f"{whole}")
    assert model.name == "whole:average"
    assert model.revision != student.revision
    assert model.log_scale == average["log_scale"].item()
    assert torch.equal(model.text.head.weight, average["text.head.weight"])
    assert torch.equal(model.vision.patch.weight, average["vision.patch.weight"])

    still = {"lr": 1e-12, "weight_decay": 0.0}
    run(tiny(init=f"{whole}:average", optim=still), tmp_path / "second")
    begun = end_of(tmp_path / "second")["student"]
    close(begun["text.head.weight"], average["text.head.weight"], 0, atol=1e-6)


@pytest.mark.usefixtures("few_captions")
def test_a_run_without_one_says_so(tiny, tmp_path):
    run(tiny(), tmp_path)
    with pytest.raises(UserError, match="--set average_momentum="):
        load_model(f"{tmp_path}:average")


def test_the_dry_run_counts_it(tiny):
    config = tiny(average_momentum=0.9)
    with torch.device("meta"):
        student = Student(config)
    count = sum(value.numel() for value in Average(student).weights.values())
    assert memory(config, student, Place("cpu"))["average"] == 4 * count
    assert "average" not in memory(tiny(), student, Place("cpu"))
