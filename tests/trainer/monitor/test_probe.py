"""What a probe logs during a run is what `silc-bench eval` measures of its checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from given import measured
from refusals import refused
from runs import run as run_of
from runs import saved_in

from silc_bench.models.load import load_model
from silc_bench.tasks.selection import select, words_of
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import ProbeConfig
from silc_bench.trainer.train import train_step

pytestmark = pytest.mark.broad

LIMIT = 48  # so that a class occurs twice
FEW = 16


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory, train):
    """A run of four steps that probes after two and at its end, all that is probed by default."""
    folder = tmp_path_factory.mktemp("probed") / "run"
    train(tiny(probe={"every": 2, "limit": LIMIT}), folder)
    return folder


def test_classes_texts_and_patches_are_probed_by_default(run, rows_in):
    families = "knn zeroshot segmentation_zeroshot discovery correspondence"
    names = {f"shapes/{family}" for family in families.split()}
    columns = {"step", *(f"{kind}/{name}" for name in names for kind in ("probe", "stderr"))}
    assert [set(row) for row in rows_in(run / "probes.jsonl")] == [columns] * 2
    assert {task.name for task in select(words_of(ProbeConfig().tasks))} == names


def test_a_probe_is_an_evaluation(run, tmp_path, rows_in):
    """Bit for bit, of every task."""
    last = rows_in(run / "probes.jsonl")[-1]
    tasks = select(words_of(ProbeConfig().tasks))
    settings = {"limit": LIMIT, "precision": "fp32", "batch_size": 128}
    expected = {"step": 4}
    for record in measured(load_model(str(run)), tasks, tmp_path, **settings):
        expected[f"probe/{record.task.name}"] = record.metrics[record.task.main_metric]
        expected[f"stderr/{record.task.name}"] = record.stderr[record.task.main_metric]
    assert expected == last


def test_the_teacher_is_measured_where_it_is_asked_for_and_chooses_nothing(
    tiny, tmp_path, train, rows_in
):
    probe = {"every": 2, "limit": LIMIT, "tasks": "shapes/knn", "teacher": True}
    config = tiny(probe=probe, distillation={"start_fraction": 0.5})
    train(config, tmp_path / "run")
    before, taught = rows_in(tmp_path / "run" / "probes.jsonl")
    assert set(before) == {"step", "probe/shapes/knn", "stderr/shapes/knn"}
    assert set(taught) == {*before, "teacher/shapes/knn", "stderr/teacher/shapes/knn"}

    settings = {"limit": LIMIT, "precision": "fp32", "batch_size": 128}
    teacher = load_model(f"{tmp_path / 'run'}:teacher")
    (record,) = measured(teacher, select(["shapes/knn"]), tmp_path, **settings)
    assert taught["teacher/shapes/knn"] == record.metrics[record.task.main_metric]
    scores = {row["step"]: row["probe/shapes/knn"] for row in (before, taught)}
    best = max(scores, key=lambda step: (scores[step], step))
    assert checkpoint.best_in(tmp_path / "run") == checkpoint.path_of(tmp_path / "run", best)


def test_a_task_that_cannot_be_scored_is_left_out_in_a_sentence_and_the_run_goes_on(
    tiny, tmp_path, train, rows_in
):
    """Too few images for a class to occur twice."""
    tasks = "shapes/zeroshot,shapes/correspondence"
    said = train(tiny(probe={"every": 2, "limit": FEW, "tasks": tasks}), tmp_path)
    rows = rows_in(tmp_path / "probes.jsonl")
    assert [set(row) for row in rows] == [
        {"step", "probe/shapes/zeroshot", "stderr/shapes/zeroshot"}
    ] * 2
    (sentence,) = [line for line in said.splitlines() if "left out" in line]
    assert sentence.startswith("step 2: shapes/correspondence ")


@pytest.mark.parametrize("tasks", ["cifar100/knn", "shapes/knn,imagenet1k/zeroshot", "no/such"])
def test_a_task_whose_data_is_missing_is_refused_before_anything_is_read(tiny, tmp_path, tasks):
    """With the option that a run has for it; `silc-bench eval` has another."""
    config = tiny(probe={"every": 2, "tasks": tasks}, data={"source": str(tmp_path / "nowhere")})
    with refused("probe.tasks") as caught:
        run_of(config, tmp_path / "run")
    assert "--data-root" not in str(caught.value)
    assert ("--set probe.data_root=" in caught.value.fix) == ("no/" not in tasks)
    assert not (tmp_path / "run").exists()


def test_a_data_root_that_is_not_there_is_refused_whatever_is_measured(tiny, tmp_path):
    probe = {"every": 2, "tasks": "shapes/knn", "data_root": str(tmp_path / "nowhere")}
    with refused("probe.data_root"):
        run_of(tiny(probe=probe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_that_cannot_be_measured_is_named_and_the_checkpoint_kept(
    tiny, tmp_path, monkeypatch, train, rows_in
):
    """Its features outgrow fp16 at step 2; a probe that cannot encode must not end a warned run."""

    def step(state, batch):
        values = train_step(state, batch)
        with torch.no_grad():
            state.student.vision.pool.mlp.fc2.weight *= 1e6 if state.step == 2 else 1.0
        return values

    monkeypatch.setattr(loop, "train_step", step)
    probe = {"every": 1, "limit": FEW, "tasks": "shapes/segmentation_zeroshot"}
    said = train(tiny(steps=3, log_every=9, probe=probe), tmp_path)
    (sentence,) = [line for line in said.splitlines() if "step 2: the student cannot be" in line]
    assert "optim.lr" in sentence
    assert 2 in saved_in(tmp_path)
    best = checkpoint.best_in(tmp_path)
    assert best == checkpoint.path_of(tmp_path, 1), "what was not measured is not the best"
    assert [row["step"] for row in rows_in(tmp_path / "probes.jsonl")] == [1]


def test_the_speed_of_a_row_is_that_of_its_steps_without_the_probe(
    tiny, tmp_path, monkeypatch, train, rows_in
):
    """By a clock on which a step takes a second, its data another quarter and a probe a hundred."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now, monotonic=lambda: clock.now)

    def step(state, batch):
        clock.now += 1
        return train_step(state, batch)

    def data(state, source, real=loop._my_batches):
        for batch in real(state, source):
            clock.now += 0.25
            yield batch

    def probe(state):
        clock.now += 100
        return {"probe/x": 0.5}

    probe.errors, probe.teacher, probe.diverged = {}, {}, None
    replaced = {"train_step": step, "_my_batches": data, "Probe": lambda *_: probe, "time": clock}
    for name, value in replaced.items():
        monkeypatch.setattr(loop, name, value)
    monkeypatch.setattr("silc_bench.trainer.device.time", clock)
    train(tiny(steps=6, log_every=2, probe={"every": 3}), tmp_path)
    names = ("step", "images_per_second", "seconds_left", "data_wait_share")
    rows = [tuple(map(row.get, names)) for row in rows_in(tmp_path / "log.jsonl")]
    assert rows == [(2, 64 / 9, 4.5, 1 / 9), (4, 6.4, 2.5, 0.2), (6, 6.4, 0, 0.2)], (
        "but for the first batch, which is the start's"
    )
