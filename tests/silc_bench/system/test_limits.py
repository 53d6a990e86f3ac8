"""Limits of a container are those of this process: the kernel's trees, of both versions."""

import math
import os

import pytest
import torch

from silc_bench.system import limits
from silc_bench.system.limits import core_limit, memory_limit, num_cores
from silc_bench.trainer.monitor.plan import cost as estimate

NO_LIMIT = "9223372036854771712"  # how version 1 writes it


@pytest.fixture
def machine(tmp_path):
    """Writes /proc/self of a process in ``groups``, mounts, and files of the groups.

    The mounts: below "fs", and another one of no groups.
    """

    def write(groups, mounts, files):
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text("\n".join(groups) + "\n")
        lines = ["24 23 0:27 / fs/other rw,relatime - tmpfs tmpfs rw,memory,cpu", *mounts]
        (proc / "mountinfo").write_text("\n".join(lines).replace(" fs", f" {tmp_path}/fs") + "\n")
        for name, text in {"other/memory.max": "1", "other/cpu.max": "1 100000", **files}.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return proc

    return write


SECOND = "30 23 0:26 / fs rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"


def first(root, *controllers):
    """Mounts of version 1, a line a controller, each beginning at ``root``."""
    return [
        f"32 31 0:29 {root} fs/{names.split(',')[0]} ro,relatime - cgroup cgroup rw,{names}"
        for names in controllers
    ]


TREE = {
    "a.slice/other/memory.max": "1",  # a neighbour does not count
    "a.slice/b.scope/cpu.max": "max 100000",
    "a.slice/cpu.max": "50000 20000",
    "a.slice/b.scope/memory.max": "8192",
    "a.slice/memory.max": "4096",
}
DOCKER = ["11:memory:/docker/af01{}", "3:cpu,cpuacct:/docker/af01{}", "1:name=systemd:/docker/af01"]
OF_HOST = {
    "memory/memory.limit_in_bytes": NO_LIMIT,
    "cpu/cpu.cfs_quota_us": "-1",
    "cpu/cpu.cfs_period_us": "100000",
}


def of_container(folder):
    return {
        f"memory{folder}/memory.limit_in_bytes": "1073741824",
        f"cpu{folder}/cpu.cfs_quota_us": "400000",
        f"cpu{folder}/cpu.cfs_period_us": "100000",
    }


def version_1(folder):
    """/proc/self/cgroup has the host's path, and the mount begins at the container's group."""
    groups = [line.format(folder) for line in DOCKER]
    mounts = first("/docker/af01", "memory", "cpu,cpuacct", "cpuset")
    return groups, mounts, OF_HOST | of_container(folder), 1 << 30, 4


BOTH = [*first("/", "cpu", "cpuacct", "memory"), SECOND.replace(" fs ", " fs/unified ")]
MACHINES = {  # groups, mounts, files, bytes, cores
    "a namespace of its own": (
        ["0::/"],
        [SECOND],
        {"memory.max": "8589934592", "cpu.max": "150000 100000"},
        8 << 30,
        1.5,
    ),
    # as of a service or a scheduler's job: the least up the tree, whose top has no such file
    "outer": (["0::/a.slice/b.scope"], [SECOND], TREE, 4096, 2.5),
    "inner": (["0::/a.slice/b.scope"], [SECOND], TREE | {"a.slice/memory.max": "9999"}, 8192, 2.5),
    "version 1": version_1(""),
    "version 1, in a group": version_1("/inner"),
    # a controller belongs to one of them; the other's files say nothing of it
    "version 1 beside version 2": (
        ["4:memory:/job", "2:cpuacct:/", "1:cpu:/", "0::/"],
        BOTH,
        OF_HOST | {"memory/job/memory.limit_in_bytes": "4096", "unified/cgroup.controllers": "x"},
        4096,
        math.inf,
    ),
    "a mount that begins above the namespace": (
        ["0::/"],
        [SECOND.replace("/ fs", "/../.. fs")],
        {"memory.max": "4096"},
        4096,
        math.inf,
    ),
    "no limit": (
        ["0::/user.slice"],
        [SECOND],
        {"user.slice/memory.max": "max", "user.slice/cpu.max": "max 100000"},
        math.inf,
        math.inf,
    ),
    "no groups": (["0::/user.slice"], [], {}, math.inf, math.inf),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_limits_of_a_container(machine, name):
    groups, mounts, files, num_bytes, cores = MACHINES[name]
    proc = machine(groups, mounts, files)
    assert (memory_limit(proc), core_limit(proc)) == (num_bytes, cores)


def test_another_system_has_none(tmp_path):
    assert memory_limit(tmp_path / "nothing") == core_limit(tmp_path / "nothing") == math.inf


@pytest.mark.parametrize(
    ("limit", "cores"), [(math.inf, 8), (16.0, 8), (2.0, 2), (1.5, 2), (0.25, 1)]
)
def test_cores_are_those_of_affinity_and_quota(monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(limits, "core_limit", lambda: limit)
    assert num_cores() == cores


def test_memory_is_that_of_the_machine_or_less(monkeypatch):
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < estimate.memory_of(torch.device("cpu")) <= of_machine
    for limit, memory in ((float(NO_LIMIT), of_machine), (1e6, 1_000_000)):
        monkeypatch.setattr(estimate, "memory_limit", lambda limit=limit: limit)
        assert estimate.memory_of(torch.device("cpu")) == memory
