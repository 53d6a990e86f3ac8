"""An evaluation on a pretended GPU: tasks of the generated scenes give the numbers of a CPU."""

import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretended_gpu import CUDA, pretended_gpu

from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.load import load_model
from silc_bench.tasks.selection import select
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.loop import run_training

pytestmark = pytest.mark.broad

FAMILIES = (
    "zeroshot",
    "knn",
    "linear",
    "correspondence",
    "segmentation_linear",
    "segmentation_knn",
    "segmentation_sgd",
)
TASKS = [f"shapes/{family}" for family in FAMILIES]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    sets = [
        "precision=fp32",
        "batch_size=8",
        "vision.depth=1",
        "text.depth=1",
        "distillation.num_prototypes=64",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
        config = configure("shapes_tiny", "silc", sets=sets, samples=8)
        run_training(
            config,
            run,
            resume=False,
            device=torch.device("cpu"),
            console=Console(file=io.StringIO()),
        )
    return str(run)


def test_tasks_on_a_gpu_score_as_on_a_cpu(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("silc_bench.probes.patch_sgd.MAX_STEPS", 5)

    def scores(device):
        # else the second takes features of the first
        monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / device / "cache"))
        model, tasks = load_model(trained), select(TASKS)
        settings = EvalSettings(limit=24, device=device, precision="fp32")
        places = {"data_root": None, "results_dir": tmp_path / device}
        found = evaluate(model, tasks, settings, model_source=trained, **places)
        return {record.task.name: record.metrics for record in found}

    wanted = scores("cpu")
    assert len(wanted) == len(TASKS)
    monkeypatch.setattr("silc_bench.evaluation.evaluate.choose_device", lambda name: CUDA)
    with pretended_gpu():
        found = scores("cuda")
    assert found.keys() == wanted.keys()
    for name, metrics in wanted.items():
        assert found[name] == pytest.approx(metrics, abs=1e-6, nan_ok=True), name
