"""What a process says before it joins others; for groups see tests/trainer/test_distributed.py."""

import os
import signal
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from refusals import refused

from silc_bench.errors import UserError
from silc_bench.system import processes as ranks
from silc_bench.system.processes import begun, is_of_dead_reader, joined

GPU = torch.device("cuda")


class ReachedError(Exception):
    """The place where processes look for each other."""


@pytest.fixture
def gpus(monkeypatch):
    """torchrun's variables for the second of three processes, two GPUs, and which was chosen."""
    chosen = []
    for name, value in {"WORLD_SIZE": 3, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def rendezvous(url):
        raise ReachedError

    monkeypatch.setattr(dist, "rendezvous", rendezvous)
    return chosen


def test_each_process_takes_the_gpu_of_its_number_on_the_machine(gpus):
    with pytest.raises(ReachedError), joined(GPU):
        pass
    assert gpus == [1]


def test_more_processes_than_gpus_are_refused_with_how_many_there_are(gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with refused(about="--nproc-per-node") as caught, joined(GPU):
        pass
    assert caught.value.fix.endswith("--nproc-per-node 2")
    assert gpus == []


@pytest.mark.parametrize("world", [None, "1"])
def test_one_process_looks_for_nobody(gpus, monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", world) if world else monkeypatch.delenv("WORLD_SIZE")
    with joined(GPU):
        assert (ranks.rank(), ranks.num_ranks()) == (0, 1)
    assert gpus == []


# What Slurm sets (SchedMD/slurm, src/common/env.c). An allocation of eight tasks:
ALLOCATED = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8"}
# Its shell, where LaunchParameters has use_interactive_step, is a step of one task:
INTERACTIVE = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
STEP_OF_EIGHT = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}
OF_TORCHRUN = {"WORLD_SIZE": "1"}
STARTS = {  # the environment, and the variable that a refusal names
    "a shell": ({}, None),
    "salloc": (ALLOCATED, None),
    "salloc with an interactive step": (ALLOCATED | INTERACTIVE, None),
    "sbatch": (ALLOCATED | {"SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}, None),
    "srun in sbatch": (
        ALLOCATED | {"ENVIRONMENT": "BATCH"} | STEP_OF_EIGHT,
        "SLURM_STEP_NUM_TASKS",
    ),
    "srun in salloc": (ALLOCATED | INTERACTIVE | STEP_OF_EIGHT, "SLURM_STEP_NUM_TASKS"),
    "srun of one task in salloc": (
        ALLOCATED | {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        None,
    ),
    "torchrun by srun": (ALLOCATED | STEP_OF_EIGHT | OF_TORCHRUN, None),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE"),
    "mpirun in salloc": (ALLOCATED | {"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE"),
    "mpirun of one": ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    "mpiexec": ({"PMI_SIZE": "8"}, "PMI_SIZE"),
    "torchrun beside mpiexec": ({"PMI_SIZE": "8"} | OF_TORCHRUN, None),
    "what is no number": ({"PMI_SIZE": "many"}, None),
}


@pytest.mark.parametrize("start", STARTS)
def test_processes_that_do_not_know_of_each_other_are_refused(gpus, monkeypatch, start):
    environment, refused_for = STARTS[start]
    monkeypatch.delenv("WORLD_SIZE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refusal = refused(about=f"{refused_for}=8") if refused_for else nullcontext()
    with refusal, joined(GPU):
        pass


@pytest.mark.parametrize(
    ("error", "waited", "hanging"),
    [
        ("gloo: Timed out waiting 1000ms for recv", [1, 2], []),
        ("gloo: Timed out waiting 1000ms for recv", [2], ["1"]),
        ("gloo: Connection closed by peer", [], []),
    ],
)
def test_a_rank_hangs_when_it_did_not_wait_as_the_others_did(monkeypatch, error, waited, hanging):
    monkeypatch.setattr(ranks, "MEETING", 0.2)
    store = dist.HashStore()
    for number in waited:
        store.set(f"{ranks.WAITED}/{number}", "")
    assert ranks._hanging(store, 0, 3, RuntimeError(error)) == hanging


def test_ranks_that_start_again_read_nothing_of_the_start_before(monkeypatch):
    """torchrun keeps the store of one node; between nodes that come and go each start has one."""
    store = dist.HashStore()
    for variable, value in {"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(variable, value)
    ranks._of_this_start(store).set("address", "of a dead rank")
    assert ranks._of_this_start(store).check(["address"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not ranks._of_this_start(store).check(["address"])
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert ranks._of_this_start(store) is store


def test_processes_of_one_machine_are_those_that_torchrun_counts_there(gpus, monkeypatch):
    """Of several machines each has its own."""
    assert ranks.num_local_ranks() == 3
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert ranks.num_local_ranks() == 1


@pytest.mark.parametrize(
    ("spoke", "raised"),
    [("rank 1 of 3", UserError), ("rank 0 of 3", SystemExit), (None, UserError)],
)
def test_the_first_rank_to_fail_says_why_and_where_the_store_is_gone_every_rank(
    gpus, monkeypatch, spoke, raised
):
    """Without torchrun rank 0 holds the store, and takes it along when it ends."""

    class Failures:
        def compare_set(self, key, expected, name):
            if spoke is None:
                raise dist.DistNetworkError("Connection reset by peer")
            return spoke.encode()

    def refuse(*args, **how):
        raise UserError("no such run", about="runs/a", fix="train it")

    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(Failures(), 1, 3)]))
    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(raised) as caught, joined(GPU):
        pass
    assert str(caught.value) == (
        "1" if raised is SystemExit else "rank 1 of 3: runs/a: no such run; train it"
    )


class Dying(torch.utils.data.Dataset):
    """Whoever reads the second sample is killed."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.timing
def test_a_reader_that_dies_disturbs_nothing_but_who_waits_for_its_data():
    before = signal.getsignal(signal.SIGCHLD)
    loader = torch.utils.data.DataLoader(Dying(), batch_size=None, num_workers=1, timeout=1)
    answers = begun(loader)
    assert signal.getsignal(signal.SIGCHLD) is before
    (reader,) = answers._workers
    reader.join()  # the main thread is here while the signal comes
    with pytest.raises((RuntimeError, EOFError, ConnectionError)) as caught:
        list(answers)
    assert is_of_dead_reader(caught.value)
