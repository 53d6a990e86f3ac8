"""W&B gets what the log gets: configuration once, each row and probe, one run over resumes."""

import importlib.machinery
import io
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console

from silc_bench.errors import RunError, UserError
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor.log import WandbLog

CPU = torch.device("cpu")


class FakeWandb(types.ModuleType):
    """The part of the package that is used; ``fails_at``: the step whose row it refuses."""

    def __init__(self, fails_at=None, init_error=None, offline=False):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.begun, self.rows, self.ended, self.fails_at, self.init_error = (
            [],
            [],
            [],
            fails_at,
            init_error,
        )
        self.offline, self.url = offline, "https://wandb.example/run"

    def Settings(self, **kwargs):  # noqa: N802
        return kwargs

    def init(self, **kwargs):
        if self.init_error:
            raise self.init_error
        assert Path(kwargs["dir"]).is_dir(), "W&B would warn of it"
        self.begun.append(kwargs)
        return self

    def log(self, row, step):
        if step == self.fails_at:
            raise ConnectionError("the line\nis dead")
        self.rows.append((step, row))

    def finish(self, exit_code):
        self.ended.append(exit_code)


@pytest.fixture
def fake(monkeypatch):
    def install(**kwargs):
        module = FakeWandb(**kwargs)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def train(config, run, *, resume=False, wandb="team/project"):
    said = io.StringIO()
    console = Console(file=said, width=300)
    run_training(config, run, resume=resume, device=CPU, console=console, wandb=wandb)
    return said.getvalue()


def rows_in(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row.pop("step"), row) for row in rows]


def test_the_configuration_once_each_row_each_probe(tiny, tmp_path, fake, few_captions):
    wandb = fake()
    probe = {"every": 2, "tasks": "shapes/knn", "limit": 8}
    said = train(tiny(precision="fp32", probe=probe), tmp_path / "first")
    (begun,) = wandb.begun
    assert (begun["entity"], begun["project"], begun["name"], begun["resume"]) == (
        "team",
        "project",
        "first",
        None,
    )
    assert begun["config"]["optim.lr"] == 1e-3
    assert begun["config"]["batch_size"] == 8
    assert begun["dir"] == str(tmp_path / "first")
    both = rows_in(tmp_path / "first" / "log.jsonl") + rows_in(tmp_path / "first" / "probes.jsonl")
    assert sorted(wandb.rows, key=str) == sorted(both, key=str)
    assert [step for step, _ in wandb.rows] == [2, 2, 4, 4]
    assert wandb.ended == [0]
    assert "W&B: https://wandb.example/run" in said
    assert json.loads((tmp_path / "first" / "wandb.json").read_text())["id"] == begun["id"]


def test_a_resumed_run_goes_on_in_the_same_one(tiny, tmp_path, fake, few_captions, monkeypatch):
    wandb = fake()
    from silc_bench.trainer import loop

    step = loop.train_step

    def failing(state, batch):
        if state.step == 3 and len(wandb.begun) == 1:
            raise RunError("power cut")
        return step(state, batch)

    monkeypatch.setattr(loop, "train_step", failing)
    config = tiny(precision="fp32", log_every=1, checkpoint_every=1)
    with pytest.raises(RunError, match="power cut"):
        train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    first, second = wandb.begun
    assert second["id"] == first["id"]
    assert (first["resume"], second["resume"]) == (None, "allow")
    assert [step for step, _ in wandb.rows] == [1, 2, 3, 4]
    assert wandb.ended == [1, 0]


def test_a_failure_in_the_middle_is_a_sentence_and_training_goes_on(
    tiny, tmp_path, fake, few_captions
):
    wandb = fake(fails_at=2)
    said = train(tiny(precision="fp32", log_every=1), tmp_path / "run")
    assert said.count("W&B failed and gets no more rows (the line); the run goes on") == 1
    assert [step for step, _ in wandb.rows] == [1]
    assert wandb.ended == []
    assert [step for step, _ in rows_in(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4]


def test_what_is_wrong_at_the_start_is_the_users_error(
    tiny, tmp_path, fake, few_captions, monkeypatch
):
    fake(init_error=RuntimeError("no API key configured"))
    with pytest.raises(
        UserError,
        match=r"--wandb team/project: no API key configured; `wandb login` once, or set WANDB_MODE",
    ):
        train(tiny(precision="fp32"), tmp_path / "run")
    (tmp_path / "wandb.json").write_text("[]")
    with pytest.raises(UserError, match=r"wandb.json holds no id of a W&B run; remove it"):
        WandbLog("project", tmp_path, {}, True, Console(file=io.StringIO()))
    for place in ("", "team/", " "):
        with pytest.raises(
            UserError, match=rf"--wandb '{place}' names no project; write PROJECT or ENTITY/PROJECT"
        ):
            train(tiny(data={"source": "nowhere/*.tar"}), tmp_path / "other", wandb=place)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"the package wandb is missing; pip install 'silc-bench\[wandb\]'"
    ):
        train(tiny(data={"source": "nowhere/*.tar"}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_without_the_option_nothing_is_imported(tiny, tmp_path, few_captions, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(tiny(precision="fp32"), tmp_path / "run", wandb=None)
    assert not (tmp_path / "run" / "wandb.json").exists()


def test_without_a_network_it_says_where_the_run_is_kept(tmp_path, fake):
    wandb, run, said = fake(offline=True), tmp_path / "run", io.StringIO()
    WandbLog("project", run, {"optim.lr": 1e-3}, False, Console(file=said, width=300))
    assert said.getvalue() == f"W&B: kept in {run / 'wandb'}, for `wandb sync`\n"
    (begun,) = wandb.begun
    assert (begun["entity"], begun["project"], begun["settings"]) == (
        None,
        "project",
        {"silent": True, "console": "off"},
    )


@pytest.mark.slow
def test_the_real_package_without_a_network(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"  # not there yet
    for is_resumed in (False, True):
        said = io.StringIO()
        log = WandbLog(
            "project", run, {"optim.lr": 1e-3}, is_resumed, Console(file=said, width=300)
        )
        log.log(1, {"loss": 2.0})
        log.log(1, {"probe/shapes/knn": 0.5})
        log.finish(has_failed=False)
        assert said.getvalue() == f"W&B: kept in {run / 'wandb'}, for `wandb sync`\n"
    number = json.loads((run / "wandb.json").read_text())["id"]
    assert "WARNING" not in capfd.readouterr().err
    kept = list((run / "wandb").glob("offline-run-*"))
    assert kept
    assert all(folder.name.endswith(number) for folder in kept)
    assert all((folder / f"run-{number}.wandb").stat().st_size > 0 for folder in kept)
