"""Activation checkpointing changes no bit of a step and keeps less of it."""

import pytest
import torch
from on_ranks import first_batches, train

from trainer import estimate
from trainer.model import Student
from trainer.train import TrainState, train_step
from trainer.views import make_views

CPU = torch.device("cpu")


def kept(config, batch, tokenizer):
    """Bytes that the student's forward pass keeps for its backward pass, each storage once, weights left out."""
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
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in weights)


@pytest.mark.parametrize(
    "changes",
    [{}, {"micro_batch": 3}, {"masked": {"weight": 0.5}}, {"optim": {"locked": "text"}}, {"objective": "contrastive"}],
    ids=str,
)
def test_checkpointed_blocks_give_the_same_bits(tiny, changes):
    changes = {"precision": "fp32"} | changes
    tokenizer, batches = first_batches(tiny(precision="fp32"), 3)
    plain, anew = (train(tiny(checkpointing=policy, **changes), tokenizer, batches) for policy in ("none", "blocks"))
    assert plain[0] == anew[0]
    for mine, theirs in zip((*anew[1], *anew[2:4]), (*plain[1], *plain[2:4]), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_checkpointed_blocks_keep_what_enters_them(tiny):
    """A third of the bytes at most, with four blocks a tower; the estimate knows of both."""
    tower = {"depth": 4}
    plain, anew = (tiny(precision="fp32", vision=tower, text=tower, checkpointing=policy) for policy in ("none", "blocks"))
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
