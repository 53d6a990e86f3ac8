"""The page of runs: what it knows of them, and what it says of a folder that is no run."""

import json
import os
import re
from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import refused

from silc_bench.system.checksums import sealed
from silc_bench.system.terminal import duration
from silc_bench.trainer.monitor.bounds import LEAP
from silc_bench.trainer.monitor.report.charts import GROUPS, charts_of
from silc_bench.trainer.monitor.report.page import render, write_report
from silc_bench.trainer.monitor.report.run import (
    MOST_POINTS,
    Run,
    facts,
    names_in,
    read_run,
    seconds_of,
    thinned,
)

CONFIG = {"preset": "b16", "objective": "silc", "seed": 3, "samples": 640, "batch_size": 64}
CONFIG |= {"data": {"source": "a.tar"}, "init": ""}
START = {
    "event": "start",
    "date": "2026-11-30T08:05:09Z",
    "device": "H200",
    "processes": 2,
    "processor": "EPYC",
    "platform": "Linux",
    "versions": {"torch": "2.15", "numpy": "2.4"},
    "commit": "0123456789abcdef",
    "dirty": True,
    "config": CONFIG,
}


def rows(*steps, **more):
    """Rows of a run of 64 images a step, 32 images a second."""
    return [
        {"step": step, "samples_seen": 64 * step, "images_per_second": 32.0, **more}
        for step in steps
    ]


def page_of(*folders):
    return write_report(folders, folders[0].parent / "page.html").read_text()


def document_of(*folders):
    """The data of the page, and in ``charts`` the titles of its charts by group."""
    found = re.search('<script type="application/json" id="data">(.*)</script>', page_of(*folders))
    document = json.loads(found[1])
    document["charts"] = {
        group["title"]: [chart["title"] for chart in group["charts"]]
        for group in document["groups"]
    }
    return document


def facts_of(folder):
    return facts(read_run(folder, folder.name))


# ---- numbers and charts ----


def test_each_number_has_a_chart_in_its_group(made):
    log = rows(1, 2, loss=1.0, teacher_entropy=0.5, odd_one=3, left_out=16)
    folder = made(log=log, probes=[{"step": 2, "probe/shapes/knn": 0.25, "stderr/shapes/knn": 0.1}])
    document = document_of(folder)
    assert document["charts"] == {
        "Losses": ["Loss"],
        "Health": ["Teacher's entropy"],
        "Speed and data": ["Speed", "Left out"],
        "Others": ["odd_one"],
        "Probes": ["shapes/knn"],
    }
    (run,) = document["runs"]
    assert run["curves"]["left_out_share"]["points"] == [[1, 0.2], [2, 0.111111]]
    assert run["curves"]["probe/shapes/knn"]["points"] == [[2, 0.25, 0.1]]


def test_every_number_of_a_real_run_is_known_to_a_chart(tiny, train, tmp_path):
    said = tiny(steps=2, log_every=1, masked={"weight": 1.0}, probe={"every": 0})
    train(said, tmp_path / "real")
    run = read_run(tmp_path / "real", "real")
    assert "Others" not in charts_of(names_in(run))
    of_run = facts(run)
    assert of_run["state"] == "finished: 2 steps"
    assert of_run["images seen"] == "16 of 16"
    assert [name for name, text in of_run.items() if text == "not recorded"] in ([], ["commit"])


def test_thresholds_are_those_of_the_verdicts():
    (chart,) = [chart for chart in GROUPS["Health"] if chart.name == "update_ratio"]
    assert [bound.value for bound in chart.bounds] == [LEAP]
    assert all(bound.side in ("above", "below") for bound in chart.bounds)


def test_values_that_are_not_finite_are_marked_and_leave_the_rest(made):
    values = (2.0, inf, 1.0, nan, -inf)
    log = [{"step": step, "loss": value} for step, value in enumerate(values)]
    curve = document_of(made(log=log))["runs"][0]["curves"]["loss"]
    assert curve["points"] == [[0, 2.0], [2, 1.0]]
    assert curve["odd"] == [[1, "inf"], [3, "nan"], [4, "-inf"]]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5 * MOST_POINTS))
def test_a_thinned_curve_keeps_its_ends_its_least_and_its_largest(values):
    points = [[step, value] for step, value in enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(values), max(values)} <= {value for _, value in kept}


def test_the_clock_counts_training_steps_whatever_lies_between_rows(made):
    speeds = (32.0, 64.0, 0.0, nan)
    log = [
        {"step": step, "samples_seen": 64 * step, "images_per_second": speed}
        for step, speed in zip((1, 3, 5, 7), speeds, strict=True)
    ]
    clock = seconds_of(read_run(made(log=log), "run"))
    assert clock == [(1, 2.0), (3, 4.0), (5, 4.0), (7, 4.0)]


# ---- what was trained ----


def test_the_head_says_what_where_and_how(made):
    resumed = {**START, "step": 4, "date": "2026-11-30T09:00:00Z"}
    best = {"step": 5, "score": 0.5, "config": CONFIG}
    end = {"step": 5, "event": "end", "date": "2026-11-30T09:30:00Z", "how": "stopped"}
    history = [{**START, "step": 0}, resumed, end]
    folder = made(log=rows(2, 5), history=history, checkpoints=[best, {"step": 6, "score": 0.4}])
    assert facts_of(folder) == {
        "state": "ended at step 5 of 10: stopped",
        "preset": "b16",
        "objective": "silc",
        "data": "a.tar",
        "seed": "3",
        "begun from": "random weights",
        "images seen": "320 of 640",
        "duration": "10 s of training steps",
        "started": "2026-11-30 08:05 UTC, resumed after step 4, ended 2026-11-30 09:30 UTC",
        "machine": "2 processes, H200, EPYC, Linux",
        "commit": "0123456789ab with changes that were not committed",
        "versions": "torch 2.15, numpy 2.4",
        "best checkpoint": "step_5",
    }


@pytest.mark.parametrize(
    ("last_step", "how", "is_running", "state"),
    [
        (10, None, False, "finished: 10 steps"),
        (6, "stopped by SIGTERM", False, "ended at step 6 of 10: stopped by SIGTERM"),
        (6, "stopped by SIGTERM", True, "running: step 6 of 10"),
        (6, None, True, "running: step 6 of 10"),
        (6, None, False, "ended without a word, as after a kill: step 6 of 10"),
    ],
)
def test_its_state(made, monkeypatch, last_step, how, is_running, state):
    history = [{**START, "step": 0}]
    if how:
        history.append({"step": last_step, "event": "end", "how": how})
    folder = made(log=rows(2, last_step), history=history)
    monkeypatch.setattr("silc_bench.trainer.monitor.report.run.is_in_use", {folder: is_running}.get)
    assert facts_of(folder)["state"] == state


def test_a_run_of_an_earlier_version_says_what_was_not_recorded(made):
    of_run = facts_of(made())
    unknown = {name for name, text in of_run.items() if text == "not recorded"}
    assert unknown >= {"started", "machine", "commit", "versions", "preset", "seed"}
    assert of_run["state"] == "step 7; whether it goes on was not recorded"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3570, "1 h"), (12_000, "3 h 20 min"),
     (172_800, "2 days"), (194_400, "2 days 6 h"), (86_400_000, "3 years"),
     (3.2e11, "10,147 years")],
)  # fmt: skip
def test_durations_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_the_page_does_without_a_checkpoints_damaged_words_and_says_so(made):
    folder = made()
    whole = json.dumps(sealed({"step": 5, "score": 0.5, "config": CONFIG}))
    for step, words in enumerate((whole, '{"score": 0.', "3", whole.replace("0.5", "0.6")), 5):
        (folder / "checkpoints" / f"step_{step}.json").write_text(words)
    of_run = facts_of(folder)
    assert (of_run["best checkpoint"], of_run["preset"]) == ("step_5", "b16")
    damaged = "damaged records of checkpoints: step_6.json, step_7.json, step_8.json"
    assert of_run["left out"] == damaged


def test_what_the_run_said_stands_once_and_before_the_charts(made):
    said = ("<b>one</b>", "<b>one</b>", "step 1: two")
    page = page_of(made(notes=[{"step": 1, "note": note} for note in said]))
    assert page.count("step 1: &lt;b&gt;one&lt;/b&gt;") == 1
    assert page.count("<bdi>step 1: two</bdi>") == 1
    assert page.index("What the run said") < page.index('id="charts"')
    assert "said</h2>" not in page_of(made("silent"))


# ---- several runs ----


def test_several_runs_share_their_charts_and_say_where_they_differ(made, tmp_path, monkeypatch):
    folders = [
        made(name, log=rows(2, loss=1.0, **more), history=[{**START, "step": 0, "config": config}])
        for name, more, config in (
            ("a/same", {"masked": 2.0}, CONFIG),
            ("b/same", {}, {**CONFIG, "seed": 4}),
            ("other", {}, CONFIG),
        )
    ]
    document = document_of(*folders)
    assert [run["name"] for run in document["runs"]] == ["a/same", "b/same", "other"]
    assert document["charts"]["Losses"] == ["Loss", "Masked loss"]
    differences = page_of(*folders).partition("configurations differ</h3>")[2].partition("</table>")
    fields = re.findall('<tr><th scope="row">(.*?)</th>', differences[0])
    assert fields == ["seed"]

    monkeypatch.chdir(tmp_path)
    assert write_report(folders).resolve() == tmp_path / "report.html"
    assert write_report(folders[:1]) == folders[0] / "report.html"


def test_a_run_that_is_named_twice_is_refused(made):
    folder = made()
    with refused("run/../run"):
        write_report([folder, folder / ".." / "run"])


def test_one_of_several_that_is_no_run_is_refused(made, tmp_path):
    with refused(tmp_path / "none"):
        write_report([made(), tmp_path / "none"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# ---- what is no run, or hostile ----


def test_a_folder_in_the_place_of_the_page_is_named(tmp_path):
    with refused(tmp_path):
        write_report([tmp_path / "run"], tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b'{"loss": 1.0}',
        b'{"step": 2, "loss": "x"}',
        b'{"step": "2"}',
        b"\xff\xfe",
        b'{"step": 2, "loss": [1]}',
        b'{"step": 2, "loss": true}',
        b'{"step": -1}',
        pytest.param(b'{"step": 2, "loss": 1' + 400 * b"0" + b"}", id="line8"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    row = b'{"step": 1, "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_bytes(row + line + b"\n" + row)
    with refused("log.jsonl:2"):
        write_report([tmp_path])


@pytest.mark.parametrize("name", ["log", "probes", "notes", "history"])
def test_a_damaged_line_is_named_in_every_file_and_an_empty_end_in_none(made, name):
    folder = made(probes=[], notes=[], history=[])
    write_report([folder])
    path = folder / f"{name}.jsonl"
    path.write_text('{"step": 1}\n\x00\n{"step": 1}\n')
    with refused(f"{name}.jsonl:2"):
        write_report([folder])


HOSTILE = ["</script><script>x</script>", "<!--", "\ud800", "{{ 1 }}", "__proto__", "a" * 200]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_words_are_text(made, name):
    history = [{"step": 0, **dict.fromkeys(START, name), "event": "start", "config": {name: name}}]
    folder = made(log=rows(1, **{name: 1.0}), notes=[{"step": 1, "note": name}], history=history)
    page = page_of(folder)
    assert "<script>x" not in page
    assert "<!--" not in page.partition('<script type="application/json"')[0]
    assert document_of(folder)["charts"]["Others"] == [name]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats()


@given(
    start=st.fixed_dictionaries({}, optional=dict.fromkeys(START, ANYTHING)),
    config=st.fixed_dictionaries({}, optional=dict.fromkeys(CONFIG, ANYTHING)),
    record=st.fixed_dictionaries({}, optional={"step": ANYTHING, "score": ANYTHING}),
    row=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("loss", "samples_seen", "left_out", "images_per_second"), NUMBERS),
    ),
    probe=st.fixed_dictionaries({}, optional=dict.fromkeys(("probe/x", "stderr/x"), NUMBERS)),
)
@settings(max_examples=60)
@example(start={}, config={}, record={}, row={"images_per_second": 5e-324}, probe={})
def test_whatever_a_run_holds_makes_a_page(start, config, record, row, probe):
    run = Run(
        Path("nowhere"),
        "run",
        rows=[{**row, "step": 1}, {**row, "step": 3}],
        probes=[{**probe, "step": 2}],
        notes=[],
        history=[{**start, "step": 0, "event": "start"}] * 2,
        checkpoints=[("step_1", record)] * 2,
        damaged=[],
        config=config,
    )
    assert render([run, run], now=0.0).endswith("</html>\n")


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_a_folder_whose_name_is_no_text_has_a_page(made, tmp_path):
    folder = made()
    strange = os.fsencode(tmp_path) + b"/\xff"
    os.rename(folder, strange)
    assert "\\udcff" in write_report([Path(os.fsdecode(strange))]).read_text()
