"""The average of a run's weights: formula, cost, and measured, started from and resumed."""

import io
import shutil

import pytest
import torch
from on_ranks import first_batches
from rich.console import Console

from silc_bench.errors import UserError
from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor.cost import memory
from silc_bench.trainer.optim import Average, average_at
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.train import TrainState, train_step

pytestmark = pytest.mark.broad

CPU = torch.device("cpu")


def ran(config, folder, resume=False):
    run_training(
        config, folder, resume=resume, device=CPU, console=Console(file=io.StringIO(), width=200)
    )
    return checkpoint.load(checkpoint.find(folder))


@pytest.fixture
def few(few_captions):
    """Tokenizers from few captions."""


def test_it_is_the_formula_over_the_steps_of_a_run(tiny):
    """In float64, weight by weight; heads are not in it."""
    config = tiny(precision="fp32", average_momentum=0.5, steps=12)
    tokenizer, batches = first_batches(config, 12)
    state = TrainState.create(config, tokenizer, CPU)
    expected = {name: value.detach().double() for name, value in state.student.named_parameters()}
    for step, batch in enumerate(batches):
        train_step(state, batch)
        momentum = min(0.5, (1 + step) / (10 + step))
        for name, value in state.student.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * value.detach().double()
    assert not [
        name
        for name in state.average.weights
        if name.startswith(("head.", "patch_head.", "mask_token"))
    ]
    assert {name.split(".")[0] for name in state.average.weights} == {
        "vision",
        "text",
        "log_scale",
        "logit_bias",
    }
    for name, value in state.average.weights.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_it_changes_nothing_of_the_run_and_is_absent_without_it(tiny):
    tokenizer, batches = first_batches(tiny(precision="fp32"), 3)
    payloads = []
    for momentum in (0.0, 0.9):
        state = TrainState.create(tiny(precision="fp32", average_momentum=momentum), tokenizer, CPU)
        for batch in batches:
            train_step(state, batch)
        payloads.append(state.payload())
    without, with_average = payloads
    assert set(with_average) - set(without) == {"average"}
    for name, value in without["student"].items():
        assert torch.equal(value, with_average["student"][name])


def test_weights_of_another_average_are_refused_before_any_is_taken(tiny):
    """One name too many, one too few, and a shape that would be spread over its tensor."""
    student = Student(tiny())
    init_weights(student, 0)
    average = Average(student)
    whole = {name: torch.full_like(value, 3.0) for name, value in average.weights.items()}
    before = {name: value.clone() for name, value in average.weights.items()}
    name = "text.head.weight"
    for other in (
        whole | {"text.extra": torch.ones(1)},
        {n: v for n, v in whole.items() if n != name},
        whole | {name: torch.ones(1)},
    ):
        with pytest.raises(KeyError, match=r"average of \['text\.(extra|head\.weight)'\]"):
            average.load(other)
    assert all(torch.equal(value, before[name]) for name, value in average.weights.items())
    average.load(whole)
    assert all((value == 3).all() for value in average.weights.values())


def test_it_warms_up():
    assert [average_at(step, 0.999) for step in (0, 1, 90)] == [1 / 10, 2 / 11, 91 / 100]
    assert average_at(10**6, 0.999) == 0.999


def test_a_run_is_measured_resumed_and_started_from_by_its_average(tiny, few, tmp_path):
    config = tiny(precision="fp32", average_momentum=0.9, checkpoint_every=2)
    whole = ran(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for suffix in (".pt", ".json"):
        checkpoint.path_of(tmp_path / "parts", 4).with_suffix(suffix).unlink()
    parts = ran(config, tmp_path / "parts", resume=True)
    for name, value in whole["average"].items():
        assert torch.equal(value, parts["average"][name])

    model, student = load_model(f"{tmp_path}/whole:average"), load_model(f"{tmp_path}/whole")
    assert model.name == "tiny-silc:average"
    assert model.revision != student.revision
    assert torch.equal(model.text.head.weight, whole["average"]["text.head.weight"])
    assert torch.equal(model.vision.patch.weight, whole["average"]["vision.patch.weight"])
    assert model.log_scale == whole["average"]["log_scale"].item()

    second = tiny(
        precision="fp32", init=f"{tmp_path}/whole:average", optim={"lr": 1e-12, "weight_decay": 0.0}
    )
    begun = ran(second, tmp_path / "second")
    torch.testing.assert_close(
        begun["student"]["text.head.weight"],
        whole["average"]["text.head.weight"],
        rtol=0,
        atol=1e-6,
    )


def test_a_run_without_one_says_so(tiny, few, tmp_path):
    ran(tiny(precision="fp32"), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"keeps no average of its weights; train with --set average_momentum="
    ):
        load_model(f"{tmp_path}/run:average")


def test_the_dry_run_counts_it(tiny):
    config = tiny(average_momentum=0.9)
    with torch.device("meta"):
        student = Student(config)
    assert memory(config, student, 4)["average"] == 4 * sum(
        value.numel() for value in Average(student).weights.values()
    )
    assert "average" not in memory(tiny(), student, 4)
