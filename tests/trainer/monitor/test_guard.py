"""A run from other weights that falls below its start is told so, and stops on request.

What falls is its zero-shot, beyond its errors.
"""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from silc_bench.errors import RunError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import OptimConfig
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor.probe import destroyed, is_zeroshot, remembered

pytestmark = pytest.mark.broad

CPU = torch.device("cpu")
ZEROSHOT, KNN = "probe/shapes/zeroshot", "probe/shapes/knn"


@pytest.mark.parametrize(
    ("now", "falls"), [(0.45, False), (0.401, False), (0.399, True), (0.9, False)]
)
def test_the_rule_is_twice_the_error_of_a_difference(now, falls):
    """0.5 +- 0.03 at the start, +- 0.04 now: 2 * sqrt(0.03^2 + 0.04^2) = 0.1."""
    start = {"probes": remembered({ZEROSHOT: 0.5}, {ZEROSHOT: 0.03})}
    assert (destroyed(start, {ZEROSHOT: now}, {ZEROSHOT: 0.04}, OptimConfig()) is not None) == falls


def test_what_stays_perfect_or_cannot_be_compared_has_not_fallen():
    """Every picture right, at the start and now, has an error of 0.

    A task may give no error, or drop out of the probe.
    """
    start = {"probes": remembered({ZEROSHOT: 1.0}, {ZEROSHOT: 0.0})}
    assert destroyed(start, {ZEROSHOT: 1.0}, {ZEROSHOT: 0.0}, OptimConfig()) is None
    assert destroyed(start, {ZEROSHOT: 0.9}, {ZEROSHOT: 0.0}, OptimConfig()) is not None
    assert destroyed(start, {ZEROSHOT: 0.9}, {}, OptimConfig()) is None
    assert destroyed(start, {}, {}, OptimConfig()) is None
    assert remembered({ZEROSHOT: 1.0}, {}) == {}


def test_the_sentence_names_the_deepest_fall_and_the_settings():
    names = {ZEROSHOT: 0.5, "probe/coco/retrieval": 0.6, KNN: 0.9}
    errors = dict.fromkeys(names, 0.01)
    start = {"probes": remembered(names, errors)}
    assert set(start["probes"]) == {ZEROSHOT, "probe/coco/retrieval"}, "kNN was never zero-shot"
    found = {ZEROSHOT: 0.4, "probe/coco/retrieval": 0.2, KNN: 0.0}
    sentence = destroyed(start, found, errors, OptimConfig(lr=0.002))
    assert sentence is not None
    assert (
        "coco/retrieval fell from 60.0 % at the start to 20.0 %, "
        "and its standard errors allow 2.8 points"
    ) in sentence
    assert "lower optim.lr (now 0.002), lock a tower (--set optim.locked=text)" in sentence
    assert "lock a tower" not in str(destroyed(start, found, errors, OptimConfig(locked="text")))
    assert destroyed(None, found, errors, OptimConfig()) is None
    assert (
        destroyed({"name": "a run whose start was not probed"}, found, errors, OptimConfig())
        is None
    )
    assert is_zeroshot("probe/shapes/segmentation_zeroshot")


class ScriptedProbe:
    """0.5 before the first step and 0.2 after the second."""

    def __init__(self, config, device, say):
        self.errors = {ZEROSHOT: 0.01, KNN: 0.01}
        self.diverged = None

    def __call__(self, state):
        return {ZEROSHOT: 0.5 if state.step < 3 else 0.2, KNN: 0.5}


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "source"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
        run_training(
            tiny(steps=1), folder, resume=False, device=CPU, console=Console(file=io.StringIO())
        )
    return folder


def probed(
    tiny,
    source,
    run,
    *,
    resume=False,
    on_collapse="warn",
    every=2,
    limit=256,
    tasks="shapes/zeroshot,shapes/knn",
):
    out = io.StringIO()
    config = tiny(steps=4, init=str(source), probe={"every": every, "tasks": tasks, "limit": limit})
    console = Console(file=out, width=500)
    run_training(config, run, resume=resume, device=CPU, console=console, on_collapse=on_collapse)
    return out.getvalue()


def test_a_run_is_warned_once_and_the_start_is_kept_for_a_resume(
    tiny, source, tmp_path, monkeypatch
):
    monkeypatch.setattr("silc_bench.trainer.loop.Probe", ScriptedProbe)
    said = probed(tiny, source, tmp_path / "run")
    assert (
        said.count("zero-shot is lost: shapes/zeroshot fell from 50.0 % at the start to 20.0 %")
        == 1
    )
    assert "step 4: zero-shot is lost" in said
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "probes.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [0, 2, 4]
    kept = json.loads(checkpoint.load(checkpoint.path_of(tmp_path / "run", 2))["start"])
    assert kept["probes"] == {ZEROSHOT: {"score": 0.5, "stderr": 0.01}}
    checkpoint.path_of(tmp_path / "run", 4).unlink()
    again = probed(tiny, source, tmp_path / "run", resume=True)
    assert "step 4: zero-shot is lost: shapes/zeroshot fell from 50.0 % at the start" in again
    assert "step 0/" not in again, "the start is not measured again"


def test_it_stops_on_request_with_its_checkpoint(tiny, source, tmp_path, monkeypatch):
    monkeypatch.setattr("silc_bench.trainer.loop.Probe", ScriptedProbe)
    with pytest.raises(
        RunError,
        match=r"stopped at step 4: zero-shot is lost: .*Its checkpoint and earlier ones are intact",
    ):
        probed(tiny, source, tmp_path / "run", on_collapse="stop")
    assert checkpoint.load(checkpoint.path_of(tmp_path / "run", 4))["step"] == 4


def test_a_real_probe_gives_the_errors_that_the_rule_needs(tiny, source, tmp_path):
    probed(tiny, source, tmp_path / "run", every=4, limit=32)
    start = json.loads(checkpoint.load(checkpoint.path_of(tmp_path / "run", 4))["start"])
    assert set(start["probes"]) == {ZEROSHOT}
    row = json.loads((tmp_path / "run" / "probes.jsonl").read_text().splitlines()[0])
    assert start["probes"][ZEROSHOT]["score"] == row[ZEROSHOT]
    assert 0 <= start["probes"][ZEROSHOT]["stderr"] < 0.2
