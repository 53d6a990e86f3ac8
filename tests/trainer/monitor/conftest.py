"""Runs of a test's size, whose words and files are looked at."""

import json

import pytest
from runs import run

from silc_bench.trainer import loop


@pytest.fixture(scope="session")
def train():
    """Train ``config`` in ``folder``, with a tokenizer from 50 captions; what was printed."""

    def trained(config, folder, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
            return run(config, folder, **options)[1]

    return trained


@pytest.fixture(scope="session")
def rows_in():
    """The rows of a file of a run's folder."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
