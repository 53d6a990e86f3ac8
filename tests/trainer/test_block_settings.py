"""Settings that make a step cheaper and change no result.

Activation checkpointing to the bit, torch.compile to a rounding.
"""

import copy
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from on_ranks import first_batches, train
from refusals import refused
from runs import CPU, close, equal, run, saved_bytes, started

from silc_bench.trainer.monitor.plan import cost as estimate
from silc_bench.trainer.silc.towers import Block, compile_blocks
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState, train_step


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 3},
        {"masked": {"weight": 0.5}},
        {"optim": {"locked": "text"}},
        {"objective": "contrastive"},
    ],
    ids=str,
)
def test_checkpointed_blocks_give_the_same_bits(tiny, changes):
    depths = {"vision": {"depth": 2}, "text": {"depth": 1}}
    begun = first_batches(tiny(**depths), 3)
    plain, *anew = (
        train(tiny(checkpointing=policy, **depths, **changes), *begun)
        for policy in ("none", "blocks:1", "blocks")
    )
    assert all(equal(answer, plain) for answer in anew)


def test_checkpointed_blocks_keep_what_enters_them(tiny):
    """A third of the bytes at most, with four blocks a tower, and with some of them between.

    The estimate knows of each.
    """
    tower, held, guesses = {"depth": 4}, [], []
    for policy in ("none", "blocks:1", "blocks:3", "blocks"):
        config = tiny(vision=tower, text=tower, checkpointing=policy)
        state, (batch,) = started(config, 1)
        student, tokens = state.student, state.tokenizer(batch.texts)
        views = make_views(batch.images, batch.sizes, config.views, 0, 0, needs=config.view_kinds)
        saved, _ = saved_bytes(lambda forward=student, inputs=(views, tokens): forward(*inputs))
        for weight in student.parameters():
            saved.pop(weight.untyped_storage().data_ptr(), None)
        held.append(sum(saved.values()))
        guess = estimate.memory(config, student.to("meta"), estimate.Place("cpu"))
        guesses.append(guess["activations"])
    assert held == sorted(held, reverse=True)
    assert len({*held}) == 4
    assert held[-1] < held[0] / 3
    assert guesses[-1] < guesses[0] / 2
    for guess, bytes_held in zip(guesses[:-1], held[:-1], strict=True):
        assert guess == pytest.approx(bytes_held, rel=0.25)


def test_the_teacher_computes_nothing_twice(tiny):
    calls = []
    state, (batch,) = started(tiny(checkpointing="blocks"), 1)
    for name in ("teacher", "student"):
        block = getattr(state, name).vision.blocks[0]
        block.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    train_step(state, batch)
    # global and local crops, forward and anew
    assert Counter(calls) == {"teacher": 1, "student": 4}


def trained_on(config, tokenizer, batches):
    """A run after a step, a resume and a step, as ``on_ranks.train`` reports its weights."""
    state = TrainState.create(config, tokenizer, CPU)
    train_step(state, batches[0])
    resumed = TrainState.restore(copy.deepcopy(state.payload()), CPU)
    train_step(resumed, batches[1])
    return resumed.student.state_dict(), resumed.teacher.state_dict()


def test_compile_compiles_each_block_and_nothing_else(tiny, monkeypatch):
    """By a compiler that only writes down its input; a run resumed with it goes on to the bit."""
    compiled, called = [], []

    def compile_nothing(function, **options):
        module = getattr(function, "__self__", None)
        compiled.append((module, options))
        return lambda *args, **kwargs: called.append(module) or function(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    config = tiny(compile="true")
    state, batches = started(config, 2)
    modules = [*state.student.modules(), *state.teacher.modules()]
    blocks = [module for module in modules if isinstance(module, Block)]
    assert len(blocks) == 3, "one a tower, and one of the teacher's"
    (first, _), *others = compiled
    assert first is None, "a small function is tried before anything else"
    assert others == [(block, {"dynamic": True}) for block in blocks]
    called.clear()
    train_step(state, batches[0])
    assert {*called} == {*blocks}
    plain = train(tiny(), state.tokenizer, batches)
    assert equal(trained_on(config, state.tokenizer, batches), plain[2:4])


@pytest.mark.slow
@pytest.mark.timeout(900)  # three graphs through a C++ compiler: 40 s of one core
def test_compiled_blocks_change_roundings_only_and_resume_to_the_bit(tiny):
    begun = first_batches(tiny(), 2)
    plain, fast = (train(tiny(compile=is_on), *begun) for is_on in ("false", "true"))
    for mine, theirs in zip(fast[0], plain[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    close(fast[1], plain[1])
    assert fast[2].keys() == plain[2].keys()
    state = TrainState.create(tiny(compile="true"), begun[0], CPU)
    for model in (state.student, state.teacher):
        assert model.vision.blocks[0]._compiled_call_impl is not None
    assert equal(trained_on(tiny(compile="true"), *begun), fast[2:4])


def test_the_compiler_is_tried_for_the_device_of_the_run(monkeypatch):
    """Weights that will be sharded are on the host at that moment."""
    tried = []
    monkeypatch.setattr(torch, "compile", lambda _: lambda values: tried.append(values.device.type))
    compile_blocks(torch.device("meta"), torch.nn.Linear(1, 1))
    assert tried == ["meta"]


def test_without_a_compiler_the_error_says_what_to_install(tiny, tmp_path, monkeypatch):
    def refuse(function, **options):
        raise RuntimeError("no compiler\nand forty lines of where it was sought")

    monkeypatch.setattr(torch, "compile", refuse)
    with refused(about="compile=true"):
        run(tiny(compile="true"), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torch_finds_no_compiler_in_one_sentence(tmp_path):
    """The error of a real torch.compile."""
    empty = str(tmp_path)
    nowhere = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": f"{empty}/cache", "PATH": empty}
    command = "-m silc_bench train --set compile=true --samples 64 --device cpu --out"
    done = subprocess.run(
        [sys.executable, *command.split(), f"{empty}/run"],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert "error: compile=true: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("few_captions")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distillation": {"products": "tf32"}}, "distillation.products=tf32 does nothing here"),
        ({"exchange": "bf16"}, "exchange=bf16 does nothing in one process"),
        ({"parallel": "fsdp"}, "parallel=fsdp does nothing in one process"),
    ],
    ids=str,
)
def test_what_does_nothing_here_is_said_at_the_start(tiny, tmp_path, changes, words):
    _, printed = run(tiny(steps=1, objective="contrastive", **changes), tmp_path)
    assert words in printed
