"""``silc-bench env``: what a bug report needs, without loading torch."""

import json
import re
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch
from commands import succeed

from silc_bench.cli import env


def found(line="env --json"):
    return json.loads(succeed(line))


def test_it_loads_no_torch():
    program = (
        "import sys; from silc_bench.cli.app import app; app(['env'], standalone_mode=False);"
        " sys.exit(bool({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_names_what_is_installed_and_what_is_not(monkeypatch):
    packages = found()["packages"]
    assert packages["torch"] == version("torch")
    assert packages["numpy"] == version("numpy")
    assert "pytest" not in packages, "the tests' own"
    assert {"transformers", "open-clip-torch", "timm", "wandb"} <= set(packages), "the extras"

    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(env, "version", nothing)
    assert set(found()["packages"].values()) == {"not installed"}
    monkeypatch.setattr(env, "requires", nothing)
    assert found()["packages"] == {"silc-bench": "not installed"}


def test_it_says_what_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr("silc_bench.system.limits.num_cores", lambda: 3)
    monkeypatch.setattr("silc_bench.system.limits.memory_limit", lambda: 2_500_000_000.0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "kept"))
    (tmp_path / "kept" / "a").mkdir(parents=True)
    (tmp_path / "kept" / "a" / "b.npy").write_bytes(bytes(1500))
    here = found()
    assert (here["machine"]["cores"], here["machine"]["memory_bytes"]) == (3, 2_500_000_000)
    assert here["limits"]["open_files"] == 1024
    assert here["limits"]["open_files_at_most"] is None
    assert here["variables"]["OMP_NUM_THREADS"] == "7"
    kept = {"folder": f"{tmp_path}/kept", "files": 1, "bytes": 1500}
    assert here["cache"]["embeddings"] == kept
    table = succeed("env")
    for words in ("memory  +2.5 GB", "open files at most +no limit", "OMP_NUM_THREADS +7"):
        assert re.search(words, table)
    assert here["defaults"]["cache"] == {
        "value": f"{tmp_path}/kept",
        "source": "SILC_BENCH_CACHE",
    }
    assert here["defaults"]["results"] == {"value": "results", "source": "built in"}


@pytest.mark.parametrize("is_there", [False, True])
def test_torch_is_asked_for_the_device_alone_where_one_asks(monkeypatch, is_there):
    gpu = SimpleNamespace(name="GPU [x]", total_memory=24_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    assert "device" not in found()
    device = found("env --device --json")["device"]
    assert device["device"] == ("cuda" if is_there else "cpu")
    assert device.get("GPU_0") == ("GPU [x], 24.0 GB" if is_there else None)
