"""An evaluation on a pretended GPU: tasks of the generated scenes give the numbers of a CPU."""

import pytest
from commands import train_tiny
from given import measured
from pretended_gpu import CUDA, pretended_gpu

from silc_bench.models.load import load_model
from silc_bench.tasks.selection import select

pytestmark = pytest.mark.broad

FAMILIES = ["zeroshot", "knn", "linear", "correspondence"]
FAMILIES += [f"segmentation_{kind}" for kind in ("linear", "knn", "sgd")]


def test_tasks_on_a_gpu_score_as_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("silc_bench.probes.patch_sgd.MAX_STEPS", 5)
    train_tiny(tmp_path / "run", "--samples 8 --set precision=fp32")

    def scores(device):
        model, tasks = load_model(str(tmp_path / "run")), select(f"shapes/{f}" for f in FAMILIES)
        settings = {"limit": 24, "device": device, "precision": "fp32"}
        records = measured(model, tasks, tmp_path / device, **settings)
        return {record.task.name: record.metrics for record in records}

    on_cpu = scores("cpu")
    assert len(on_cpu) == len(FAMILIES)
    monkeypatch.setattr("silc_bench.evaluation.evaluate.choose_device", lambda name: CUDA)
    with pretended_gpu():
        on_gpu = scores("cuda")
    assert on_gpu.keys() == on_cpu.keys()
    for name, metrics in on_cpu.items():
        assert on_gpu[name] == pytest.approx(metrics, abs=1e-6, nan_ok=True), name
