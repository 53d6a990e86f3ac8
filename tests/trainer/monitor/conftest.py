"""Runs of a test's size, whose words and files are looked at."""

import io
import json

import pytest
import torch
from rich.console import Console

from silc_bench.trainer import loop


@pytest.fixture(scope="session")
def train():
    """Train ``config`` in ``run``, with a tokenizer from 50 captions; what was printed."""

    def trained(config, run, *, resume=False, **options):
        console = Console(file=io.StringIO(), width=500)
        device = torch.device("cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
            loop.run_training(config, run, resume=resume, device=device, console=console, **options)
        return console.file.getvalue()

    return trained


@pytest.fixture(scope="session")
def rows_in():
    """The rows of a file of a run's folder."""

    def read(path):
        return [json.loads(line) for line in path.read_text().splitlines()]

    return read
