"""Runs under torchrun that nobody attends: a rank dies or hangs, and what comes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import rows_of, saved_in

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timing]


def start(run, failure, rank, step, *, restarts):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command += [HERE / "one_rank_fails.py", run, failure, str(rank), str(step)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log of a run in which no rank fails."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ended = start(run, "dies", 0, 1000, restarts=0)
    assert ended.returncode == 0, ended.stderr
    return rows_of(run)


@pytest.mark.parametrize(("rank", "step"), [(1, 2), (0, 5), (1, 11)])
def test_torchrun_starts_a_run_again_that_goes_on_as_if_nothing_had_been(
    tmp_path, whole, rank, step
):
    ended = start(tmp_path / "run", "dies", rank, step, restarts=1)
    assert ended.returncode == 0, ended.stderr
    assert rows_of(tmp_path / "run") == whole, "each step once, with the same numbers"
    assert saved_in(tmp_path / "run")[-1] == 12


def test_a_rank_that_hangs_is_named_and_ends_the_run(tmp_path):
    ended = start(tmp_path / "run", "stops", 1, 5, restarts=0)
    assert ended.returncode != 0
    assert "from rank 1, for which the others waited" in ended.stderr
    assert saved_in(tmp_path / "run")[-1] >= 3, "what was saved before stays"
