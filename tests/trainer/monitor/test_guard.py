"""A run from other weights that falls below its start is told so, and stops on request.

What falls is its zero-shot, beyond its errors.
"""

from __future__ import annotations

import json

import pytest
from refusals import refused
from runs import end_of

from silc_bench.errors import RunError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import OptimConfig
from silc_bench.trainer.monitor.probe import destroyed, is_zeroshot, remembered

pytestmark = pytest.mark.broad

ZEROSHOT, KNN = "probe/shapes/zeroshot", "probe/shapes/knn"


def kept(*score_and_error):
    """What is kept of a start."""
    return {"probes": remembered(*({ZEROSHOT: number} for number in score_and_error))}


@pytest.mark.parametrize(
    ("at_start", "now", "falls"),
    [
        # 2 * sqrt(0.03^2 + 0.04^2) = 0.1
        ((0.5, 0.03), (0.401, 0.04), False),
        ((0.5, 0.03), (0.399, 0.04), True),
        ((0.5, 0.03), (0.9, 0.04), False),
        # every image right, at the start and now, has an error of 0
        ((1.0, 0.0), (1.0, 0.0), False),
        ((1.0, 0.0), (0.9, 0.0), True),
    ],
)
def test_the_rule_is_twice_the_error_of_a_difference(at_start, now, falls):
    verdict = destroyed(kept(*at_start), {ZEROSHOT: now[0]}, {ZEROSHOT: now[1]}, OptimConfig())
    assert (verdict is not None) == falls


@pytest.mark.parametrize(
    ("start", "now", "error"),
    [
        (None, {ZEROSHOT: 0.0}, {ZEROSHOT: 0.0}),
        ({"name": "a run whose start was not probed"}, {ZEROSHOT: 0.0}, {ZEROSHOT: 0.0}),
        ({"probes": remembered({ZEROSHOT: 1.0}, {})}, {ZEROSHOT: 0.0}, {ZEROSHOT: 0.0}),
        (kept(1.0, 0.0), {ZEROSHOT: 0.9}, {}),
        (kept(1.0, 0.0), {}, {}),
    ],
)
def test_what_cannot_be_compared_has_not_fallen(start, now, error):
    """A task may give no error, or drop out of the probe."""
    assert destroyed(start, now, error, OptimConfig()) is None


def test_the_verdict_names_the_deepest_fall_and_the_settings():
    scores = {ZEROSHOT: 0.5, "probe/coco/retrieval": 0.6, KNN: 0.9}
    errors = dict.fromkeys(scores, 0.01)
    start = {"probes": remembered(scores, errors)}
    assert set(start["probes"]) == {ZEROSHOT, "probe/coco/retrieval"}, "kNN was never zero-shot"
    now = {ZEROSHOT: 0.4, "probe/coco/retrieval": 0.2, KNN: 0.0}
    problem, fix, _ = destroyed(start, now, errors, OptimConfig(lr=0.002))
    assert problem.startswith("coco/retrieval fell from 60.0 % at the start to 20.0 %")
    assert "2.8 points" in problem
    assert "optim.lr (now 0.002)" in fix
    assert "optim.locked=text" in fix
    assert "lock" not in destroyed(start, now, errors, OptimConfig(locked="text")).fix
    assert is_zeroshot("probe/shapes/segmentation_zeroshot")


class ScriptedProbe:
    """0.5 before the first step and 0.2 after the second."""

    def __init__(self, config, device, say):
        self.errors = {ZEROSHOT: 0.01, KNN: 0.01}
        self.teacher, self.diverged = {}, None

    def __call__(self, state):
        return {ZEROSHOT: 0.5 if state.step < 3 else 0.2, KNN: 0.5}


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory, train):
    folder = tmp_path_factory.mktemp("source") / "source"
    train(tiny(steps=1), folder)
    return folder


@pytest.fixture
def probed(tiny, source, monkeypatch):
    """The configuration of a run from ``source``, whose probe is scripted."""
    monkeypatch.setattr("silc_bench.trainer.loop.Probe", ScriptedProbe)
    probe = {"every": 2, "tasks": "shapes/zeroshot,shapes/knn", "limit": 32}
    return tiny(init=str(source), probe=probe)


def test_a_run_is_warned_once_and_the_start_is_kept_for_a_resume(probed, tmp_path, train, rows_in):
    said = train(probed, tmp_path)
    warning = "step 4: zero-shot is lost: shapes/zeroshot fell from 50.0 % at the start to 20.0 %"
    assert said.count("zero-shot is lost") == said.count(warning) == 1
    assert [row["step"] for row in rows_in(tmp_path / "probes.jsonl")] == [0, 2, 4]
    start = json.loads(checkpoint.load(checkpoint.path_of(tmp_path, 2))["start"])
    assert start["probes"] == {ZEROSHOT: {"score": 0.5, "stderr": 0.01}}
    checkpoint.path_of(tmp_path, 4).unlink()
    again = train(probed, tmp_path, resume=True)
    assert warning in again
    assert "step 0/" not in again, "the start is not measured again"


def test_it_stops_on_request_with_its_checkpoint(probed, tmp_path, train):
    with refused(about="step 4", kind=RunError):
        train(probed, tmp_path, on_collapse="stop")
    assert end_of(tmp_path)["step"] == 4


def test_a_real_probe_gives_the_errors_that_the_rule_needs(
    probed, tmp_path, train, rows_in, monkeypatch
):
    monkeypatch.undo()
    train(probed, tmp_path)
    ((name, start),) = json.loads(end_of(tmp_path)["start"])["probes"].items()
    assert name == ZEROSHOT
    assert start["score"] == rows_in(tmp_path / "probes.jsonl")[0][ZEROSHOT]
    assert 0 <= start["stderr"] < 0.2
