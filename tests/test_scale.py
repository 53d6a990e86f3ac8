"""The files of docs/scale.md are run, or parsed where nothing here could run them.

The Slurm file and the submitit program run on this machine: two processes, gloo, a tiny model. What
stands in for Slurm does as its manual says: srun starts a line on each node, scancel sends a signal
to what srun started, a requeued job starts anew. torchrun is PyTorch's.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_docs import command_fault

from silc_bench.trainer.checkpoints import file as checkpoint

ROOT = Path(__file__).resolve().parent.parent
FILES = dict(
    re.findall(
        r'^```\w+ title="(\S+)"\n(.*?)^```',
        (ROOT / "docs/scale.md").read_text(encoding="utf-8"),
        flags=re.M | re.S,
    )
)
STEPS = 6  # of told_to_stop.py
OUT = "/checkpoints/b16"

TORCHRUN = f"""\
#!{sys.executable}
import os, sys
from torch.distributed.run import main
words = sys.argv[1:]
at = words.index("-m")
assert words[at + 1] == "silc_bench"
here = ["--nproc-per-node", os.environ["PROCESSES"], "--rdzv-endpoint", os.environ["ENDPOINT"]]
told = [{str(ROOT / "tests/trainer/told_to_stop.py")!r}, os.environ["ONCE"], os.environ["LAUNCHER"]]
main([*words[:at], *here, *told, *words[at + 2:]])
"""

SLURM = {
    "sbatch": """\
export LAUNCHER=$$ SLURM_JOB_ID=7 SLURM_NNODES=2 SLURM_JOB_NODELIST='node[0-1]' SLURM_NTASKS=2
export SLURM_JOB_NUM_NODES=2
exec bash "$1"
""",
    "srun": """\
[ "$1" = --ntasks-per-node=1 ] || exit 9
shift
for node in 0 1; do "$@" & echo $! >> "$STEP"; done
code=0
for task in $(jobs -p); do wait $task || code=$?; done
exit $code
""",
    "scancel": '[ "$*" = "--signal=TERM 7.0" ] && kill -TERM $(cat "$STEP")\n',
    "scontrol": """\
case "$*" in
    "show hostnames node[0-1]") printf 'node0\\nnode1\\n' ;;
    "requeue 7") touch "$REQUEUED" ;;
    *) exit 9 ;;
esac
""",
}


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A folder, and an environment in which torchrun has a part of this machine."""
    lay_programs(tmp_path, {"torchrun": TORCHRUN})
    for name, value in {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ONCE": str(tmp_path / "once"),
        "STEP": str(tmp_path / "step"),
        "REQUEUED": str(tmp_path / "requeued"),
        "ENDPOINT": f"localhost:{free_port()}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay_programs(folder, programs):
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def laid(folder, name, **words):
    """The page's file, with a run of this folder, and what a reader would replace."""
    text = FILES[name].replace(OUT, str(folder / "run"))
    for old, new in words.items():
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return folder / name


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def newest_in(run):
    return checkpoint.all_in(run)[-1]


def test_the_page_holds_the_files_that_are_tested_here():
    assert sorted(FILES) == ["submit.py", "train.sbatch", "train.yaml"]


def test_the_batch_file_is_bash_and_asks_slurm_for_what_it_needs(tmp_path):
    subprocess.run(["bash", "-n", laid(tmp_path, "train.sbatch")], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", FILES["train.sbatch"], re.M))
    assert (asked["ntasks-per-node"], asked["requeue"]) == ("1", "")
    assert asked["signal"].startswith("B:USR1@")


@pytest.mark.slow
@pytest.mark.timing
def test_a_slurm_job_whose_time_is_over_is_requeued_and_goes_on(shell, monkeypatch):
    """Two nodes, each with a torchrun; both stop after the same step and save."""
    lay_programs(shell, {name: f"#!/bin/bash\n{text}" for name, text in SLURM.items()})
    monkeypatch.setenv("PROCESSES", "1")
    sbatch = ["sbatch", laid(shell, "train.sbatch")]
    first = subprocess.run(sbatch, capture_output=True, text=True, timeout=250)
    assert first.returncode == 0, first.stderr
    assert "SIGTERM to every rank" in first.stderr
    assert (shell / "requeued").exists()
    assert newest_in(shell / "run") == checkpoint.path_of(shell / "run", 3)

    (shell / "requeued").unlink()
    (shell / "step").unlink()
    second = subprocess.run(sbatch, capture_output=True, text=True, timeout=250)
    assert second.returncode == 0, second.stderr
    assert not (shell / "requeued").exists(), "a run that has ended is not requeued"
    assert steps_of(shell / "run") == [*range(1, STEPS + 1)]


@pytest.mark.slow
@pytest.mark.timing
def test_submitit_starts_preempts_and_requeues_a_run_to_its_end(shell, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PROCESSES", "2")
    monkeypatch.setenv("LAUNCHER", "submitit")
    here = {"nodes=8": "nodes=1", "print(job.job_id)": "job.result()"}
    here["max_num_timeout=100"] = 'max_num_timeout=100, cluster="local"'
    program = laid(shell, "submit.py", **here)
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=280)
    said = "".join(path.read_text() for path in (shell / "jobs").glob("*_log.*"))
    assert ended.returncode == 0, ended.stderr + said
    assert "this job is preempted" in said
    assert "SIGTERM to every rank" in said
    assert steps_of(shell / "run") == [*range(1, STEPS + 1)]


def test_the_kubernetes_file_says_what_torchrun_and_train_understand(monkeypatch):
    from torch.distributed.run import config_from_args, parse_args

    job = yaml.safe_load(FILES["train.yaml"])
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    policy, pod = job["spec"]["elasticPolicy"], worker["template"]["spec"]
    (container,) = pod["containers"]
    # what the operator tells torchrun (kubeflow/training-operator, pkg/controller.v1/pytorch)
    for name, value in {
        "NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}",
        "NPROC_PER_NODE": job["spec"]["nprocPerNode"],
        "MAX_RESTARTS": policy["maxRestarts"],
        "RDZV_BACKEND": policy["rdzvBackend"],
        "RDZV_ENDPOINT": "b16-worker-0:23456",
    }.items():
        monkeypatch.setenv(f"PET_{name}", str(value))
    torchrun, *words = [*container["command"], *container["args"]]
    assert torchrun == "torchrun"
    config, _, _ = config_from_args(parse_args(words))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (8, 8, 8)
    assert worker["replicas"] == config.max_nodes
    assert container["resources"]["limits"]["nvidia.com/gpu"] == config.nproc_per_node
    assert command_fault(shlex.join([torchrun, *words])) is None

    claims = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claims
    (grace,) = (int(one["value"]) for one in container["env"])
    assert grace < pod["terminationGracePeriodSeconds"]
