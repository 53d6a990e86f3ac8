"""``silc-bench`` in this process: command lines as a user types them, and how they end."""

import shlex

import pytest
import refusals
from typer.testing import CliRunner

from silc_bench.cli.app import app

# A run that takes a second.
TINY = """
    vision.width=32 vision.depth=1 vision.num_heads=2 vision.mlp_dim=48
    text.width=32 text.depth=1 text.num_heads=2 text.mlp_dim=48 text.vocab_size=300
    distillation.num_prototypes=64 distillation.hidden_dim=32 distillation.bottleneck_dim=16
    distillation.ema_momentum=0.5 views.num_local=2 batch_size=8 log_every=1
"""
SETS = " ".join(f"--set {field}" for field in TINY.split())


def call(line):
    """The result of a command line; its terminal is wide."""
    return CliRunner().invoke(app, shlex.split(line), env={"COLUMNS": "200"})


def succeed(line):
    """What it prints."""
    result = call(line)
    assert result.exit_code == 0, result.output
    assert not result.stderr, result.stderr
    return result.stdout


def fail(line, about, code=2, is_kept=True):
    """The one sentence of a command that fails; nothing else is printed.

    Args:
        is_kept: as of ``refusals.refused``.
    """
    result = call(line)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    sentence = error_of(result.stderr)
    assert str(about) in sentence
    if is_kept:
        refusals.check_sentence(sentence)
    return sentence


def error_of(text):
    """The sentence of an error, which is one line."""
    assert text.startswith("error: "), text
    assert text.count("\n") == 1
    return text.removeprefix("error: ").rstrip("\n")


def train_tiny(folder, options=""):
    """A run in ``folder``; what the command printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
        return succeed(f"train --out {folder} --device cpu {SETS} {options}")
