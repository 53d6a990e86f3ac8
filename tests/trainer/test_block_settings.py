"""Settings that make a step cheaper and change no result.

Activation checkpointing to the bit, torch.compile to a rounding.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from on_ranks import first_batches, train
from typer.testing import CliRunner

from silc_bench.cli.app import app
from silc_bench.trainer.config.overrides import parse_value
from silc_bench.trainer.monitor import cost as estimate
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.silc.towers import Block
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState, train_step

CPU = torch.device("cpu")


def kept(config, batch, tokenizer):
    """Bytes that the student's forward pass keeps for its backward pass, each storage once.

    Weights are left out.
    """
    state = TrainState.create(config, tokenizer, CPU)
    views = make_views(batch.images, batch.sizes, config.views, 0, 0, needs=config.view_kinds)
    weights = {p.untyped_storage().data_ptr() for p in state.student.parameters()}
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = state.student(views, tokenizer(batch.texts))
    assert out.image_features.requires_grad
    return sum(
        tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in weights
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch": 3},
        {"masked": {"weight": 0.5}},
        {"optim": {"locked": "text"}},
        {"objective": "contrastive"},
    ],
    ids=str,
)
def test_checkpointed_blocks_give_the_same_bits(tiny, changes):
    changes = {"precision": "fp32"} | changes
    tokenizer, batches = first_batches(tiny(precision="fp32"), 3)
    plain, anew = (
        train(tiny(checkpointing=policy, **changes), tokenizer, batches)
        for policy in ("none", "blocks")
    )
    assert plain[0] == anew[0]
    for mine, theirs in zip((*anew[1], *anew[2:4]), (*plain[1], *plain[2:4]), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_checkpointed_blocks_keep_what_enters_them(tiny):
    """A third of the bytes at most, with four blocks a tower; the estimate knows of both."""
    tower = {"depth": 4}
    plain, anew = (
        tiny(precision="fp32", vision=tower, text=tower, checkpointing=policy)
        for policy in ("none", "blocks")
    )
    tokenizer, (batch,) = first_batches(plain, 1)
    assert kept(anew, batch, tokenizer) < kept(plain, batch, tokenizer) / 3
    guesses = []
    for config in (plain, anew):
        with torch.device("meta"):
            student = Student(config)
        guesses.append(estimate.memory(config, student, config.batch_size)["activations"])
    assert guesses[1] < guesses[0] / 2
    assert guesses[0] == pytest.approx(kept(plain, batch, tokenizer), rel=0.25)


def test_the_teacher_computes_nothing_twice(tiny):
    config = tiny(precision="fp32", checkpointing="blocks")
    tokenizer, (batch,) = first_batches(config, 1)
    state = TrainState.create(config, tokenizer, CPU)
    calls = []
    state.teacher.vision.blocks[0].register_forward_pre_hook(lambda *_: calls.append("teacher"))
    state.student.vision.blocks[0].register_forward_pre_hook(lambda *_: calls.append("student"))
    train_step(state, batch)
    assert calls.count("teacher") == 1
    assert calls.count("student") == 4  # global and local crops, forward and anew


def test_compile_compiles_each_block_and_nothing_else(tiny, monkeypatch):
    """By a compiler that only writes down its input; a run resumed with it goes on to the bit."""
    compiled, called = [], []

    def compile_nothing(function, **options):
        module = getattr(function, "__self__", None)
        compiled.append((module, options))
        return lambda *args, **kwargs: called.append(module) or function(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    config = tiny(precision="fp32", compile=True)
    tokenizer, batches = first_batches(config, 2)
    state = TrainState.create(config, tokenizer, CPU)
    blocks = [
        module
        for model in (state.student, state.teacher)
        for module in model.modules()
        if isinstance(module, Block)
    ]
    assert len(blocks) == 3, "one a tower, and one of the teacher's"
    (first, _), *others = compiled
    assert first is None, "a small function is tried before anything else"
    assert others == [(block, {"dynamic": True}) for block in blocks]

    called.clear()
    train_step(state, batches[0])
    assert {*called} == {*blocks}
    resumed = TrainState.restore(copy.deepcopy(state.payload()), CPU)
    train_step(resumed, batches[1])
    plain = train(tiny(precision="fp32"), tokenizer, batches)
    for mine, theirs in ((resumed.student, plain[2]), (resumed.teacher, plain[3])):
        assert mine.state_dict().keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(900)  # three graphs through a C++ compiler: 40 s of one core
def test_compiled_blocks_change_roundings_only_and_resume_to_the_bit(tiny):
    config = tiny("silc", precision="fp32")
    compiled = tiny("silc", precision="fp32", compile=True)
    tokenizer, batches = first_batches(config, 2)
    plain, fast = train(config, tokenizer, batches), train(compiled, tokenizer, batches)
    for mine, theirs in zip(fast[0], plain[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for mine, theirs in zip(fast[1], plain[1], strict=True):
        for name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-5)
    assert fast[2].keys() == plain[2].keys()

    state = TrainState.create(compiled, tokenizer, CPU)
    assert state.student.vision.blocks[0]._compiled_call_impl is not None
    assert state.teacher.vision.blocks[0]._compiled_call_impl is not None
    train_step(state, batches[0])
    resumed = TrainState.restore(copy.deepcopy(state.payload()), CPU)
    train_step(resumed, batches[1])
    for name, weight in fast[2].items():
        assert torch.equal(resumed.student.state_dict()[name], weight), name
    for name, weight in fast[3].items():
        assert torch.equal(resumed.teacher.state_dict()[name], weight), name


COMPILED = ("train", "--set", "compile=true", "--samples", "64", "--device", "cpu")


def test_without_a_compiler_the_sentence_says_what_to_install(tmp_path, monkeypatch, few_captions):
    def refuse(function, **options):
        raise RuntimeError("no compiler\nand forty lines of where it was sought")

    monkeypatch.setattr(torch, "compile", refuse)
    done = CliRunner().invoke(app, [*COMPILED, "--out", str(tmp_path / "run")], terminal_width=400)
    assert done.exit_code == 2
    assert "compile=true: torch.compile does not work on this machine (no compiler)" in done.stderr
    assert "install a C++ compiler" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torch_finds_no_compiler_in_one_sentence(tmp_path):
    """The error of a real torch.compile."""
    nowhere = {
        "CXX": "/nowhere/g++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PATH": str(tmp_path),
    }
    command = [sys.executable, "-m", "silc_bench", *COMPILED, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, env=os.environ | nowhere, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2
    assert "compile=true: torch.compile does not work on this machine" in done.stderr
    assert "install a C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr


def test_true_and_false_are_the_only_words_of_a_switch():
    assert parse_value("true", bool, "compile") is True
    assert parse_value("False", bool, "compile") is False
    with pytest.raises(ValueError, match="compile"):
        parse_value("1", bool, "compile")
