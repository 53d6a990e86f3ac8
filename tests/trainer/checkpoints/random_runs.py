"""Runs whose weights are all drawn: no part can be left out or taken for another unnoticed."""

import torch

from silc_bench.models.interface import Training
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState

CAPTIONS = ["a red ring", "a blue star on a green ground", "the photo of a small dog"]


def fresh_state(config):
    tokenizer = Tokenizer.train(CAPTIONS, 300, config.text.context_length)
    return TrainState.create(config, tokenizer, torch.device("cpu"))


@torch.no_grad()
def random_state(config):
    """No number is zero or one by default, and the teacher is unlike its student."""
    state = fresh_state(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in (*state.student.parameters(), *state.teacher.parameters()):
        parameter.normal_(std=0.05 if parameter.ndim > 1 else 0.2, generator=generator)
    if state.teacher.center is not None:
        state.teacher.center.normal_(generator=generator)
    state.student.log_scale.fill_(2.5)
    return state


def random_run(config, folder):
    checkpoint.save(folder, random_state(config).payload())
    return folder


def random_model(config):
    state = random_state(config)
    student = state.student
    training = Training(config.preset, config.objective, "student", "shapes", seed=0, step=4)
    return NativeModel("own:student", student, student.vision, state.tokenizer, training)
