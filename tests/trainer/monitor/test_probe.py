"""What a probe logs during a run is what `silc-bench eval` measures of its checkpoint."""

import io
import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from silc_bench.errors import RunError
from silc_bench.evaluation.evaluate import evaluate
from silc_bench.models.load import load_model
from silc_bench.tasks.selection import select, words_of
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import ProbeConfig
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor.report import write_report
from silc_bench.trainer.train import train_step

pytestmark = pytest.mark.broad

LIMIT = 48  # so that a class occurs twice
FEW = 16


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of four steps that probes after two and at its end, all that is probed by default."""
    folder, config = (
        tmp_path_factory.mktemp("probed") / "run",
        tiny(precision="fp32", probe={"every": 2, "limit": LIMIT}),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
        console = Console(file=io.StringIO(), width=200)
        run_training(config, folder, resume=False, device=torch.device("cpu"), console=console)
    return folder


def test_classes_words_and_patches_are_probed_by_default(run):
    rows = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    names = {
        f"probe/shapes/{family}"
        for family in ("knn", "zeroshot", "segmentation_zeroshot", "discovery", "correspondence")
    }
    assert [row["step"] for row in rows] == [2, 4]
    assert all(set(row) - {"step"} == names for row in rows)
    assert {task.name for task in select(words_of(ProbeConfig().tasks))} == {
        name.removeprefix("probe/") for name in names
    }


def test_a_probe_is_an_evaluation(run, tmp_path):
    """Bit for bit, of every task."""
    last = json.loads((run / "probes.jsonl").read_text().splitlines()[-1])
    tasks = select(words_of(ProbeConfig().tasks))
    how = {
        "model_source": str(run),
        "data_root": None,
        "results_dir": tmp_path,
        "limit": LIMIT,
        "device": "cpu",
    }
    records = evaluate(
        load_model(str(run)), tasks, precision="fp32", batch_size=128, existing="overwrite", **how
    )
    measured = {
        f"probe/{record.task.name}": record.metrics[record.task.main_metric] for record in records
    }
    assert measured == {name: value for name, value in last.items() if name != "step"}


def test_the_report_draws_every_probe(run):
    page = write_report(run).read_text()
    for name in json.loads((run / "probes.jsonl").read_text().splitlines()[0]):
        assert (name in page) or name == "step"
    assert page.count("probe/shapes/") >= 5


def test_a_task_that_cannot_be_scored_is_left_out_in_a_sentence_and_the_run_goes_on(
    tiny, tmp_path, monkeypatch
):
    """Too few pictures for a class to occur twice."""
    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
    tasks = "shapes/knn,shapes/correspondence"
    config = tiny(precision="fp32", probe={"every": 2, "limit": FEW, "tasks": tasks})
    console = Console(file=io.StringIO(), width=200)
    run_training(
        config, tmp_path / "run", resume=False, device=torch.device("cpu"), console=console
    )
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "probes.jsonl").read_text().splitlines()
    ]
    assert [set(row) for row in rows] == [{"step", "probe/shapes/knn"}] * 2
    said = [line for line in console.file.getvalue().splitlines() if "left out" in line]
    assert len(said) == 1
    assert said[0].startswith(
        "step 2: shapes/correspondence is left out of probe.tasks from here on: "
    )


@pytest.mark.parametrize("on_collapse", ["warn", "stop"])
def test_a_student_that_cannot_be_measured_is_named_and_the_checkpoint_kept(
    tiny, tmp_path, monkeypatch, on_collapse
):
    """Its features outgrow fp16 at step 2; a probe that cannot encode must not end a warned run."""

    def step(state, batch):
        values = train_step(state, batch)
        with torch.no_grad():
            state.student.vision.pool.mlp.fc2.weight *= 1e6 if state.step == 2 else 1.0
        return values

    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
    monkeypatch.setattr("silc_bench.trainer.loop.train_step", step)
    tasks = "shapes/segmentation_zeroshot"
    config = tiny(
        precision="fp32", steps=3, log_every=9, probe={"every": 1, "limit": FEW, "tasks": tasks}
    )
    console, device = Console(file=io.StringIO(), width=400), torch.device("cpu")
    if on_collapse == "stop":
        with pytest.raises(
            RunError,
            match=(
                r"stopped at step 2: the student cannot be measured: "
                r".*not finite.*lower optim.lr"
            ),
        ):
            run_training(
                config, tmp_path, resume=False, device=device, console=console, on_collapse="stop"
            )
    else:
        run_training(config, tmp_path, resume=False, device=device, console=console)
    assert (
        "step 2: the student cannot be measured: tiny-silc:student gives" in console.file.getvalue()
    )
    assert "step_00000002.pt" in [path.name for path in checkpoint.all_in(tmp_path)]
    assert checkpoint.best_in(tmp_path).name == "step_00000001.pt", (
        "what was not measured is not the best"
    )
    assert [
        json.loads(line)["step"] for line in (tmp_path / "probes.jsonl").read_text().splitlines()
    ] == [1]


def test_the_speed_of_a_row_is_that_of_its_steps_without_the_probe(tiny, tmp_path, monkeypatch):
    """By a clock on which a step takes a second, its data another quarter and a probe a hundred."""
    clock = [0.0]

    def step(state, batch):
        clock[0] += 1
        return train_step(state, batch)

    def data(state, source, real=loop._my_batches):
        for batch in real(state, source):
            clock[0] += 0.25
            yield batch

    class SlowProbe:
        errors: ClassVar[dict[str, float]] = {}
        diverged = None

        def __init__(self, *_):
            pass

        def __call__(self, state):
            clock[0] += 100
            return {"probe/x": 0.5}

    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
    monkeypatch.setattr("silc_bench.trainer.loop.train_step", step)
    monkeypatch.setattr("silc_bench.trainer.loop.Probe", SlowProbe)
    monkeypatch.setattr("silc_bench.trainer.loop._my_batches", data)
    for module in ("loop", "device"):
        stands_still = SimpleNamespace(perf_counter=lambda: clock[0], monotonic=lambda: clock[0])
        monkeypatch.setattr(f"silc_bench.trainer.{module}.time", stands_still)
    config = tiny(precision="fp32", steps=6, log_every=2, probe={"every": 3})
    run_training(
        config,
        tmp_path,
        resume=False,
        device=torch.device("cpu"),
        console=Console(file=io.StringIO()),
    )
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    names = ("step", "images_per_second", "seconds_left", "data_wait_share")
    found = [tuple(row[name] for name in names) for row in rows]
    assert found == [(2, 64 / 9, 4.5, 1 / 9), (4, 6.4, 2.5, 0.2), (6, 6.4, 0, 0.2)], (
        "but for the first batch, which is the start's"
    )
