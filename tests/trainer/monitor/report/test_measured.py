"""What was measured of a run's checkpoints stands over its steps, and nothing of another run."""

import json
import re

import pytest
from made import put, trained
from refusals import refused

from silc_bench.trainer.config.config import to_dict
from silc_bench.trainer.config.identity import recipe_of
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.monitor.report.page import write_report

CONFIG = configure("shapes_tiny", "silc")


@pytest.fixture
def run(made):
    """runs/own, of 30 steps."""
    start = {"event": "start", "step": 0, "config": to_dict(CONFIG)}
    return made("own", log=[{"step": 30, "loss": 1.0}], history=[start])


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def training(step, branch="student", **changes):
    known = {"recipe": recipe_of(CONFIG), "seed": CONFIG.seed, "data": CONFIG.data.source}
    return trained(branch=branch, step=step, **{**known, **changes})


def measure(results, step, value, branch="student", name="own", more=(), **changes):
    put(
        results,
        f"{name}:{branch}",
        value,
        training=training(step, branch, **changes),
        revision=f"{step:06x}{ord(branch[0]):02x}{0:08}",
        **dict(more),
    )


def document_of(run, results):
    page = write_report([run], run / "page.html", [results]).read_text()
    document = json.loads(
        re.search('<script type="application/json" id="data">(.*)</script>', page)[1]
    )
    charts = [group["charts"] for group in document["groups"] if group["title"] == "Measured"]
    return document["runs"][0]["curves"], (charts or [[]])[0]


def test_student_and_teacher_stand_in_one_chart_over_their_steps(run, results):
    for step in (30, 10, 20):
        measure(results, step, step / 100)
        measure(results, step, step / 50, branch="teacher")
    measure(results, 30, 0.7, branch="average")
    curves, (chart, average) = document_of(run, results)
    assert curves[chart["name"]]["points"] == [[step, step / 100, 0.01] for step in (10, 20, 30)]
    assert curves[chart["teacher"]]["points"] == [[step, step / 50, 0.01] for step in (10, 20, 30)]
    assert curves[average["name"]]["points"] == [[30, 0.7, 0.01]]
    assert average["title"] == f"{chart['title']}, average of the weights"


def test_questions_have_charts_of_their_own(run, results):
    measure(results, 10, 0.1)
    measure(results, 10, 0.2, more={"limit": 50})
    measure(results, 10, 0.3, more={"protocol": "openai80"})
    measure(results, 10, 0.4, more={"version": 2})
    _, charts = document_of(run, results)
    title, *others = sorted(chart["title"] for chart in charts)
    assert others == [f"{title} (2)", f"{title}, limited to 50 images", f"{title}, openai80"]


def test_of_two_setups_the_newest_counts_and_it_is_said(run, results, capsys):
    measure(results, 10, 0.1, more={"created": "2026-01-02T00:00:00Z"})
    measure(results, 10, 0.2, more={"created": "2026-01-01T00:00:00Z", "precision": "bf16"})
    curves, (chart,) = document_of(run, results)
    assert curves[chart["name"]]["points"] == [[10, 0.1, 0.01]]
    assert capsys.readouterr().err.startswith("1 measurement counts not: a newer one ")


@pytest.mark.parametrize(
    "changes", [{"seed": 7}, {"recipe": "1" * 16}, {"data": "other"}, {"name": "another"}]
)
def test_what_is_of_another_run_is_left_out_and_said(run, results, capsys, changes):
    measure(results, 10, 0.1, **changes)
    assert document_of(run, results)[1] == []
    assert "is of the run own" in capsys.readouterr().err


def test_a_record_with_another_name_is_told_by_its_folder(run, results):
    inside = {"name": "ours", "more": {"source": f"{run}/checkpoints/step_10.pt:teacher"}}
    measure(results, 10, 0.1, **inside)
    measure(results, 20, 0.1, name="theirs", more={"source": f"{run}2"})
    curves, (chart,) = document_of(run, results)
    assert [point[0] for point in curves[chart["name"]]["points"]] == [10]


def test_a_folder_of_records_that_is_not_there_is_refused(run, results):
    with refused(about="none"):
        write_report([run], None, [results / "none"])
