"""W&B gets what the log gets: configuration once, each row and probe, one run over resumes."""

import importlib.machinery
import io
import json
import sys
import types
from pathlib import Path

import pytest
from refusals import refused
from rich.console import Console

from silc_bench.trainer import loop
from silc_bench.trainer.monitor.log import WandbLog


class FakeWandb(types.ModuleType):
    """The part of the package that is used; ``fails_at``: the step whose row it refuses."""

    url = "https://wandb.example/run"
    Settings = dict

    def __init__(self, fails_at=None, offline=False):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.begun, self.rows, self.ended = [], [], []
        self.fails_at, self.offline = fails_at, offline

    def init(self, **kwargs):
        if self.fails_at == "start":
            raise RuntimeError("no API key configured")
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
        monkeypatch.setitem(sys.modules, "wandb", FakeWandb(**kwargs))
        return sys.modules["wandb"]

    return install


PLACE = "team/project"


def test_the_configuration_once_each_row_each_probe(tiny, tmp_path, fake, train, rows_in):
    wandb = fake()
    run = tmp_path / "first"
    said = train(tiny(probe={"every": 2, "tasks": "shapes/knn", "limit": 8}), run, wandb=PLACE)
    (begun,) = wandb.begun
    expected = {"entity": "team", "project": "project", "name": "first", "resume": None}
    assert expected.items() <= begun.items()
    assert begun["config"]["optim.lr"] == 1e-3
    assert begun["dir"] == str(run)
    both = rows_in(run / "log.jsonl") + rows_in(run / "probes.jsonl")
    sent = [{"step": step, **row} for step, row in wandb.rows]
    assert sorted(sent, key=str) == sorted(both, key=str)
    assert wandb.ended == [0]
    assert wandb.url in said
    assert json.loads((run / "wandb.json").read_text())["id"] == begun["id"]


def test_a_resumed_run_goes_on_in_the_same_one(tiny, tmp_path, fake, train, monkeypatch):
    wandb = fake()
    step = loop.train_step

    def failing(state, batch):
        if state.step == 3 and len(wandb.begun) == 1:
            raise KeyError("power cut")
        return step(state, batch)

    monkeypatch.setattr(loop, "train_step", failing)
    config = tiny(log_every=1, checkpoint_every=1)
    with pytest.raises(KeyError, match="power cut"):
        train(config, tmp_path, wandb=PLACE)
    train(config, tmp_path, resume=True, wandb=PLACE)
    first, second = wandb.begun
    assert second["id"] == first["id"]
    assert (first["resume"], second["resume"]) == (None, "allow")
    assert [step for step, _ in wandb.rows] == [1, 2, 3, 4]
    assert wandb.ended == [1, 0]


def test_a_failure_in_the_middle_is_a_sentence_and_training_goes_on(
    tiny, tmp_path, fake, train, rows_in
):
    wandb = fake(fails_at=2)
    said = train(tiny(log_every=1), tmp_path, wandb=PLACE)
    assert said.count("ConnectionError: the line is dead") == 1
    assert [step for step, _ in wandb.rows] == [1]
    assert wandb.ended == []
    assert [row["step"] for row in rows_in(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_what_is_wrong_at_the_start_is_the_users_error(tiny, tmp_path, fake, train):
    fake(fails_at="start")
    with refused(about=f"--wandb {PLACE}"):
        train(tiny(), tmp_path / "run", wandb=PLACE)
    (tmp_path / "wandb.json").write_text("[]")
    with refused(about="wandb.json"):
        begin(tmp_path, is_resumed=True)


@pytest.mark.parametrize("place", ["", "team/", " ", PLACE])
def test_what_cannot_be_is_said_before_anything_is_read(tiny, tmp_path, train, monkeypatch, place):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with refused(about="--wandb"):
        train(tiny(data={"source": "nowhere/*.tar"}), tmp_path / "run", wandb=place)
    assert not (tmp_path / "run").exists()


def test_without_the_option_nothing_is_imported(tiny, tmp_path, train, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(tiny(), tmp_path)
    assert not (tmp_path / "wandb.json").exists()


def begin(run, is_resumed=False):
    """A log of W&B, and what is said of it."""
    console = Console(file=io.StringIO(), width=300)
    log = WandbLog("project", run, {"optim.lr": 1e-3}, is_resumed, console)
    return log, console.file.getvalue()


def test_without_a_network_it_says_where_the_run_is_kept(tmp_path, fake):
    wandb = fake(offline=True)
    assert str(tmp_path / "wandb") in begin(tmp_path)[1]
    (begun,) = wandb.begun
    assert (begun["entity"], begun["project"]) == (None, "project")
    assert begun["settings"] == {"silent": True, "console": "off"}


@pytest.mark.slow
def test_the_real_package_without_a_network(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"  # not there yet
    for is_resumed in (False, True):
        log, said = begin(run, is_resumed)
        log.log(1, {"loss": 2.0})
        log.finish(has_failed=False)
        assert str(run / "wandb") in said
    number = json.loads((run / "wandb.json").read_text())["id"]
    assert "WARNING" not in capfd.readouterr().err
    assert list((run / "wandb").glob(f"offline-run-*{number}/run-{number}.wandb"))
