"""The leaderboard: what shares a column, ranks, is compared; its files are safe and repeatable."""

import base64
import csv
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from silc_bench.errors import UserError
from silc_bench.reports import leaderboard
from silc_bench.reports.leaderboard import build, write
from silc_bench.reports.tables import Change, _chart, to_csv, to_html, to_markdown, to_terminal
from silc_bench.results.protocol import Protocol
from silc_bench.results.published import load_reported
from silc_bench.results.record import Record, save
from silc_bench.task import Scores
from silc_bench.tasks.selection import all_tasks, current_version

pytestmark = pytest.mark.broad

ROOT = Path(__file__).parents[3]


def put(
    folder,
    model,
    metrics,
    task="shapes/zeroshot",
    *,
    stderr=0.01,
    group="zero-shot",
    main="acc1",
    chance=0.02,
    limit=None,
    version=1,
    size=64,
    fingerprint="0" * 16,
    revision=None,
):
    """Write a made-up record; ``metrics`` may be the main metric alone."""
    metrics = metrics if isinstance(metrics, dict) else {main: metrics}
    revision = revision or f"{sum(model.encode()):016x}"[::-1]
    model = SimpleNamespace(
        name=model,
        revision=revision,
        num_params=1_640_000,
        image_size=size,
        image_protocol={"size": size},
        text_protocol={},
    )
    task = SimpleNamespace(
        name=task,
        version=version,
        group=group,
        main_metric=main,
        requires=frozenset(),
        protocol=lambda: {"words": list("abc")},
    )
    data = SimpleNamespace(name="shapes", split="val", fingerprint=fingerprint)
    scores = Scores(
        metrics, dict.fromkeys(metrics, stderr) if stderr is not None else {}, 500, chance
    )
    record = Record.create(
        model, task, data, scores, Protocol.of(model, task, "fp32"),
        model_source="x", device="cpu", limit=limit, seconds=1,
    )  # fmt: skip
    return save(record, folder)


def section(board, title):
    return next((part for part in board.sections if part.title == title), None)


def ranked(board):
    """{(task, metric, variant lines): {model: Cell}} of the measured tables."""
    found = {}
    for table in section(board, "Measured here").tables:
        for index, head in enumerate(table.heads[3:], start=3):
            column = (head.text, *head.details)
            assert column not in found, "two columns look alike"
            found[column] = {row[0].text: row[index] for row in table.rows}
    return found


def terminal(board, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(to_terminal(board))
    return console.file.getvalue()


class _Page(HTMLParser):
    """Tags, attributes and text of a page; fails on anything a browser would fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.text, self.images, self.stack = "", [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in {"script", "iframe", "object", "link", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert attributes["src"].startswith("data:image/")
            assert attributes["alt"]
            self.images.append(attributes)
        if tag == "a":
            assert re.match("(https?://|#part)", attributes["href"])
        if tag not in {"img", "meta", "line", "circle", "input", "br"}:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.text += data


def test_values_errors_chance_best_and_gaps(tmp_path):
    put(tmp_path, "a", {"acc1": 0.455, "acc5": 0.8}, stderr=0.012)
    put(tmp_path, "b", 0.41, stderr=None)
    put(tmp_path, "b", 0.3, "shapes/knn", group="knn")
    put(tmp_path, "c", 0.455)
    columns = ranked(build(tmp_path))
    assert set(columns) == {
        ("shapes/zeroshot", "acc1", "chance 2.0"),
        ("shapes/knn", "acc1", "chance 2.0"),
    }
    zeroshot = columns["shapes/zeroshot", "acc1", "chance 2.0"]
    assert {name: (cell.text, cell.detail, cell.is_best) for name, cell in zeroshot.items()} == {
        "a": ("45.5", " ±1.2", True), "c": ("45.5", " ±1.0", True), "b": ("41.0", "", False)
    }  # fmt: skip
    assert zeroshot["b"].share == pytest.approx((0.41 - 0.02) / 0.98)
    assert not columns["shapes/knn", "acc1", "chance 2.0"]["b"].is_best  # nothing to be better than


def test_a_gap_is_empty_and_goes_last(tmp_path):
    put(tmp_path, "only-first", 0.1, "a/zeroshot")
    put(tmp_path, "both", 0.2, "a/zeroshot")
    put(tmp_path, "both", 0.3, "b/zeroshot")
    put(tmp_path, "only-second", 0.9, "b/zeroshot")
    (table,) = section(build(tmp_path), "Measured here").tables
    assert [[row[0].text, row[3].text, row[4].text] for row in table.rows] == [
        ["both", "20.0", "30.0"], ["only-first", "10.0", ""], ["only-second", "", "90.0"]
    ]  # fmt: skip


def test_groups_and_metrics_have_a_natural_order(tmp_path):
    put(tmp_path, "m", 0.5, "s/dense", group="dense", main="mIoU")
    put(tmp_path, "m", 0.5, "s/own", group="a third party's")
    shots = {f"acc1_{shots}shot": 0.5 for shots in (1, 5, 10, 25)}
    put(tmp_path, "m", shots, "s/fewshot", group="few-shot", main="acc1_10shot")
    put(tmp_path, "m", 0.5, "s/zeroshot")
    tables = section(build(tmp_path), "Measured here").tables
    assert [table.title for table in tables] == [
        "zero-shot",
        "few-shot",
        "dense",
        "a third party's",
    ]
    metrics = [head.details[0] for head in tables[1].heads[3:]]
    assert metrics == ["acc1_10shot", "acc1_1shot", "acc1_5shot", "acc1_25shot"]


def test_of_ranks_the_lowest_is_best_and_no_percent(tmp_path):
    for name, value in (("a", 3.0), ("b", 12.5)):
        put(
            tmp_path,
            name,
            value,
            "s/retrieval",
            group="retrieval",
            main="median_rank",
            chance=250.0,
        )
    (column,) = ranked(build(tmp_path)).items()
    assert column[0] == ("s/retrieval", "median_rank", "chance 250.0")
    assert [(cell.text, cell.is_best, cell.share) for cell in column[1].values()] == [
        ("3.0", True, None),
        ("12.5", False, None),
    ]


def test_two_protocols_or_datasets_never_share_a_column(tmp_path):
    put(tmp_path, "a", 0.1, size=64)
    put(tmp_path, "b", 0.2, size=224)
    put(tmp_path, "c", 0.3, size=224, fingerprint="1" * 16)
    board = build(tmp_path)
    columns = ranked(board)
    assert sorted(
        [name for name, cell in column.items() if cell.text] for column in columns.values()
    ) == [["a"], ["b"], ["c"]]
    assert not any(cell.is_best for column in columns.values() for cell in column.values())
    hashes = {re.search(r"protocol ([0-9a-f]{8})", " ".join(head)).group(1) for head in columns}
    assert len(hashes) == 2
    (table,) = section(board, "Protocols that differ").tables
    differing = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert set(differing) == {"image.size", "dataset.fingerprint"}
    assert sorted(differing["image.size"]) == ["224", "224", "64"]
    assert all(
        hash8 in terminal(board, 200) and hash8 in to_markdown(board) and hash8 in to_html(board)
        for hash8 in hashes
    )


def test_protocols_share_a_column_only_when_asked_and_are_marked(tmp_path):
    put(tmp_path, "a", 0.1, size=64)
    put(tmp_path, "b", 0.2, size=224)
    put(tmp_path, "c", 0.3, size=224, fingerprint="1" * 16)
    put(tmp_path, "a", 0.5, "shapes/knn", group="knn")
    put(tmp_path, "b", 0.6, "shapes/knn", group="knn", size=64)
    columns = ranked(board := build(tmp_path, across_protocols=True))
    mixed = next(column for head, column in columns.items() if "protocols differ (#)" in head)
    marks = {
        name: re.search(r" #([0-9a-f]{8})$", cell.detail)
        for name, cell in mixed.items()
        if cell.text
    }
    assert set(marks) == {"a", "b"}, "other data stay apart"
    assert marks["a"][1] != marks["b"][1]
    assert not any(cell.is_best for cell in mixed.values())
    knn = next(column for head, column in columns.items() if head[0] == "shapes/knn")
    assert [knn["b"].is_best, "#" in knn["b"].detail] == [True, False], "one protocol is no mixture"
    assert {row[0].text for row in section(board, "Protocols that differ").tables[0].rows} == {
        "image.size",
        "dataset.fingerprint",
    }
    put(tmp_path, "a", 0.11, size=96)
    heads = ranked(build(tmp_path, across_protocols=True))
    assert not any("protocols differ (#)" in head for head in heads), (
        "a model with two values keeps two columns"
    )


RUNS = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["d/zeroshot", "d/knn"]),
    st.sampled_from([64, 96]),  # image size, and with it the protocol
    st.sampled_from(["0" * 16, "1" * 16]),  # fingerprint
    st.sampled_from([None, 10]),  # limit
    st.integers(1, 2),  # task version
)


@given(st.lists(RUNS, min_size=1, max_size=8, unique=True))
@settings(max_examples=25, deadline=None)
def test_whatever_was_measured_a_column_holds_one_kind_of_number(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("results")
    newest = {}
    for number, (model, task, size, fingerprint, limit, version) in enumerate(runs):
        name = f"{model}{size}{fingerprint[0]}"
        put(
            folder,
            name,
            number / 1000,
            task,
            size=size,
            fingerprint=fingerprint,
            limit=limit,
            version=version,
        )
        if limit is None:
            newest[task] = max(version, newest.get(task, 0))
    kinds = []
    for column in ranked(build(folder)).values():
        numbers = [round(float(cell.text) * 10) for cell in column.values() if cell.text]
        kinds.append({(runs[number][1:4], runs[number][5]) for number in numbers})
        assert all(
            runs[number][4] is None and runs[number][5] == newest[runs[number][1]]
            for number in numbers
        )
    assert all(len(kind) == 1 for kind in kinds)
    expected = {
        ((*run[1:4],), run[5]) for run in runs if run[4] is None and run[5] == newest[run[1]]
    }
    assert sorted(map(str, (kind for column in kinds for kind in column))) == sorted(
        map(str, expected)
    )


def test_a_limited_run_never_ranks(tmp_path):
    put(tmp_path, "whole", 0.2)
    put(tmp_path, "limited", 0.9, limit=100)
    board = build(tmp_path)
    (column,) = ranked(board).values()
    assert set(column) == {"whole"}
    (table,) = section(board, "Limited runs").tables
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["limited", "shapes/zeroshot", "acc1", "90.0", "100"]
    ]
    kinds = {row["model"]: row["kind"] for row in csv.DictReader(io.StringIO(to_csv(board)))}
    assert kinds == {"whole": "ranked", "limited": "limited"}


def test_only_limited_runs_leave_the_ranking_empty(tmp_path):
    put(tmp_path, "limited", 0.9, limit=100)
    board = build(tmp_path)
    assert section(board, "Measured here").tables == ()
    assert "Nothing yet" in terminal(board)


def test_only_the_newest_task_version_is_shown(tmp_path):
    put(tmp_path, "old", 0.9, version=1)
    put(tmp_path, "new", 0.2, version=2)
    board = build(tmp_path)
    (column,) = ranked(board).values()
    assert set(column) == {"new"}
    (table,) = section(board, "Outdated").tables
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["old", "shapes/zeroshot", "acc1", "90.0", "1"]
    ]
    assert set(board.scores[board.scores.model == "old"].kind) == {"outdated"}


def test_what_the_program_measures_otherwise_today_does_not_rank(tmp_path):
    """Also before anybody measures anew: two old records would be compared by an abandoned rule."""
    today = current_version("shapes/fewshot")
    for name, task, version in (
        ("old", "shapes/fewshot", today - 1),
        ("older", "shapes/fewshot", today - 2),
        ("own", "my_pets/fewshot", today - 1),
        ("now", "my_dogs/fewshot", today),
        ("later", "shapes/zeroshot", 99),
        ("theirs", "theirs/something", 1),
    ):
        put(tmp_path, name, 0.5, task, main="acc1_10shot", version=version)
    kinds = dict(
        build(tmp_path, current_version=current_version)
        .scores[["model", "kind"]]
        .itertuples(index=False)
    )
    assert kinds == {
        **dict.fromkeys(("old", "older", "own"), "outdated"),
        **dict.fromkeys(("now", "later", "theirs"), "ranked"),
    }


# Published numbers.


def test_published_numbers_bear_our_names_and_a_source():
    """A name of our own for each, to stand beside what is measured.

    Open-vocabulary heads are not measured here.
    """
    rows = load_reported(ROOT / "results/reported")
    assert len(rows) >= 130
    assert all(row.url.startswith("https://") and row.where for row in rows)
    unknown = {task for row in rows for task in row.values} - set(all_tasks())
    assert {task.split("/")[1] for task in unknown} == {"segmentation_open_vocabulary"}
    metrics = {
        (task.split("/")[1], metric)
        for row in rows
        for task, values in row.values.items()
        for metric in values
    }
    retrieval = {("retrieval", f"{way}_retrieval_recall@1") for way in ("image", "text")}
    segmentation = {("segmentation_zeroshot", "mIoU"), ("segmentation_open_vocabulary", "mIoU")}
    assert metrics == {("zeroshot", "acc1"), ("fewshot", "acc1_10shot")} | retrieval | segmentation


def publish(folder, rows, name="papers"):
    (folder / "reported").mkdir(exist_ok=True)
    (folder / "reported" / f"{name}.json").write_text(
        json.dumps({"schema": "reported/1", "rows": rows})
    )


def row(**changes):
    source = {"url": "https://arxiv.org/abs/2310.13355", "where": "table 1"}
    values = {"shapes/zeroshot": {"acc1": 0.99}}
    return {
        "model": "paper",
        "params": None,
        "source": source,
        "note": "",
        "values": values,
        **changes,
    }


def test_published_numbers_stand_apart_with_their_source(tmp_path):
    put(tmp_path, "a", 0.1)
    put(tmp_path, "b", 0.2)
    publish(tmp_path, [row()])
    board = build(tmp_path)
    (column,) = ranked(board).values()
    assert {name: cell.is_best for name, cell in column.items()} == {"a": False, "b": True}
    (table,) = section(board, "Published numbers").tables
    assert [cell.text for cell in table.rows[0]] == ["paper", "", "99.0", "table 1", ""]
    assert 'href="https://arxiv.org/abs/2310.13355"' in to_html(board)
    assert "[table 1](<https://arxiv.org/abs/2310.13355>)" in to_markdown(board)
    (published,) = board.scores[board.scores.kind == "reported"].itertuples()
    assert published.source == "reported(https://arxiv.org/abs/2310.13355)"


def test_what_was_measured_stands_beside_what_was_published(tmp_path):
    put(tmp_path, "a", 0.1, stderr=0.02)
    put(tmp_path, "a", 0.3, size=96)
    put(tmp_path, "a", 0.5, "other/zeroshot")
    put(tmp_path, "limited", 0.9, limit=10)
    put(tmp_path, "knn", 0.9, "shapes/knn")
    publish(tmp_path, [row(), row(model="two", values={"other/zeroshot": {"acc1": 0.7}})])
    (table,) = section(build(tmp_path), "Published numbers").tables
    assert [head.text for head in table.heads[2:4]] == ["other", "shapes"]
    cells = [[cell.text for cell in line] for line in table.rows]
    assert cells[:2] == [
        ["paper", "", "", "99.0", "table 1", ""],
        ["two", "", "70.0", "", "table 1", ""],
    ]
    assert [line[0] for line in cells[2:]] == ["a", "a"], "neither limited runs nor other tasks"
    assert {line[4] for line in cells[2:]} == {"measured here"}
    assert sorted(line[3] for line in cells[2:]) == ["10.0", "30.0"], (
        "a second protocol has a second row"
    )
    assert sorted(line[2] for line in cells[2:]) == ["", "50.0"]
    details = {line[3].text: line[3].detail for line in table.rows[2:]}
    assert re.fullmatch(r" ±2\.0 #[0-9a-f]{8}", details["10.0"])


def test_a_record_that_says_it_was_reported_does_not_rank(tmp_path):
    path = put(tmp_path, "a", 0.9)
    record = Record.from_json(path.read_text())
    path.write_text(replace(record, source="reported(https://example.org/x)").to_json())
    put(tmp_path, "b", 0.2)
    board = build(tmp_path)
    (column,) = ranked(board).values()
    assert set(column) == {"b"}
    (table,) = section(board, "Published numbers").tables
    assert table.rows[0][3].url == "https://example.org/x"


def test_published_numbers_alone_make_a_page(tmp_path):
    publish(tmp_path, [row()])
    board = build(tmp_path)
    assert "Nothing yet" in to_markdown(board)
    assert "99.0" in _Page(to_html(board)).text
    assert "1 rows" in terminal(board)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(params="1")], r"rows\[0\]\.params: expected integer or null"),
        ([row(), row(model="b", values={})], r"rows\[1\]\.values is empty"),
        (
            [row(values={"a/b": {"acc1": 83.3}})],
            r"rows\[0\]\.values\.a/b\.acc1: expected at most 1 \(a fraction",
        ),
        ([row(values={"ab": {"acc1": 0.3}})], r"name of rows\[0\]\.values\.ab: expected text like"),
        (
            [row(source={"url": "javascript:alert(1)", "where": "x"})],
            r"rows\[0\]\.source\.url: expected text like",
        ),
        ([{"model": "x"}], r"field rows\[0\]\.params is missing"),
        ([row(colour=1)], r"unknown field 'rows\[0\]\.colour'"),
        ([row(), row()], r"rows\[1\]: 'paper' from .* stands there twice"),
    ],
)
def test_a_wrong_published_file_is_named(tmp_path, rows, message):
    publish(tmp_path, rows)
    with pytest.raises(UserError, match=rf"papers\.json: {message}"):
        build(tmp_path)
    (tmp_path / "reported" / "papers.json").write_text("{")
    with pytest.raises(UserError, match=r"papers\.json: not a readable JSON file"):
        build(tmp_path)


def test_the_published_numbers_of_this_repository():
    rows = load_reported(ROOT / "results" / "reported")
    by_model = {(row.collection, row.model): row.values for row in rows}
    assert len(rows) == 130
    assert by_model["open_clip", "open_clip:ViT-B-32/openai"]["coco/retrieval"] == {
        "image_retrieval_recall@1": 0.3044, "text_retrieval_recall@1": 0.5012
    }  # fmt: skip
    assert by_model["papers", "SILC G/16"] == {
        "imagenet1k/zeroshot": {"acc1": 0.837},
        "coco/retrieval": {"image_retrieval_recall@1": 0.547, "text_retrieval_recall@1": 0.732},
    }
    silc = {name for collection, name in by_model if name.startswith("SILC")}
    # the paper's table 1 was not readable: no rows from it
    assert silc == {"SILC B/16", "SILC L/16 + CAT-Seg", "SILC G/16"}


# What self-distillation changed.


def test_twins_are_compared_within_a_column(tmp_path):
    put(tmp_path, "shapes_tiny-contrastive:student", 0.30, stderr=0.012)
    put(tmp_path, "shapes_tiny-silc:student", 0.35, stderr=0.016)
    put(tmp_path, "shapes_tiny-silc:teacher", 0.99)  # no twin
    put(tmp_path, "shapes_tiny-contrastive+views:student", 0.99)
    put(tmp_path, "shapes_tiny-contrastive:student", 0.3, "s/knn", size=32)  # another protocol
    put(tmp_path, "shapes_tiny-silc:student", 0.3, "s/knn", size=64)
    (table,) = section(build(tmp_path), "What self-distillation changed").tables
    assert table.title == "shapes_tiny:student"
    (change,) = table.changes
    assert (change.contrastive, change.silc) == (0.30, 0.35)
    assert change.stderr == pytest.approx(math.sqrt(0.012**2 + 0.016**2))
    assert [cell.text + cell.detail for cell in table.rows[0]] == [
        "shapes/zeroshot", "acc1", "30.0", "35.0", "+5.0 ±2.0", "yes, better"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("silc", "stderr", "verdict"),
    [
        (0.5, 0.01, "yes, better"),
        (0.1, 0.01, "yes, worse"),
        (0.31, 0.01, "no"),
        (0.3, 0.0, "no"),
        (0.9, None, "unknown"),
    ],
)
def test_verdicts(silc, stderr, verdict):
    assert Change("t", "m", 0.3, silc, stderr).verdict == verdict


def test_twins_with_several_revisions_are_listed_not_guessed(tmp_path):
    put(tmp_path, "p-contrastive", 0.3)
    put(tmp_path, "p-silc", 0.4, revision="1" * 16)
    put(tmp_path, "p-silc", 0.5, revision="2" * 16)
    (table,) = section(build(tmp_path), "What self-distillation changed").tables
    assert "not compared" in table.title
    assert [row[0].text + row[0].detail[:3] for row in table.rows][1:] == ["p-silc@11", "p-silc@22"]
    assert table.changes == ()


STDERRS = st.none() | st.floats(0, 0.5)
CHANGES = st.builds(Change, st.just("t"), st.just("m"), st.floats(0, 1), st.floats(0, 1), STDERRS)


@given(st.lists(CHANGES, min_size=1, max_size=6))
def test_chart_is_to_scale_and_inside_its_frame(changes):
    drawn = _chart(tuple(changes))
    ticks = [(float(place[:-1]), float(label)) for place, label in drawn["ticks"]]
    assert all(0 <= place <= 100 for place, _ in ticks)
    for mark in drawn["marks"]:
        low, middle, high = (float(mark[name][:-1]) for name in ("low", "middle", "high"))
        assert 0 <= low <= middle <= high <= 100
        zero = float(drawn["zero"][:-1])
        assert (middle - zero) * mark["change"].difference >= -1e-3
        if len(ticks) > 1 and abs(mark["change"].difference) > 1e-6:
            (first, start), (last, end) = ticks[0], ticks[-1]
            expected = first + (100 * mark["change"].difference - start) * (last - first) / (
                end - start
            )
            assert middle == pytest.approx(expected, abs=0.1)


# The files.

HOSTILE = "<script>alert(1)</script>|**x**[l](javascript:1)`\"'&{{7*7}}"


def test_hostile_names_are_shown_as_they_are(tmp_path):
    put(tmp_path, HOSTILE, 0.5)
    put(tmp_path, "p-contrastive" + HOSTILE, 0.5)
    put(tmp_path, HOSTILE + "-silc", 0.5, group=HOSTILE)
    put(tmp_path, HOSTILE + "-contrastive", 0.5)
    publish(
        tmp_path,
        [row(model=HOSTILE, note=HOSTILE, source={"url": "https://a.b/", "where": HOSTILE})],
    )
    board = build(tmp_path)
    text = to_html(board)
    assert "<script" not in text
    assert "49}}" not in text
    assert _Page(text).text.count(HOSTILE) >= 6
    lines = to_markdown(board).splitlines()
    table = [line for line in lines if "script" in line and line.startswith("| ")]
    # no name opened a cell of its own
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {5, 6}
    assert "<script" not in to_markdown(board)
    assert "**x**" not in to_markdown(board)
    assert HOSTILE[:8] in terminal(board, 400)
    names = {row["model"] for row in csv.DictReader(io.StringIO(to_csv(board)))}
    assert HOSTILE in names


@pytest.mark.timing
def test_rebuilding_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    runs = [
        (model, task)
        for model in ("p-silc", "p-contrastive", "q")
        for task in ("a/zeroshot", "b/knn", "a/retrieval")
    ]
    for model, task in runs:
        put(first, model, {"acc1": 0.5, "acc1_seen": 0.5}, task, group=task.split("/")[1])
    publish(first, [row()])
    paths = list(first.rglob("*.json"))
    random.Random(0).shuffle(paths)
    for path in paths:  # another order of creation
        (second / path.relative_to(first)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, second / path.relative_to(first))
    texts = [{path.name: path.read_bytes() for path in write(build(first), tmp_path / "out")}]
    for folder, seed in ((first, "1"), (second, "2")):  # another order of sets too
        code = (
            "from silc_bench.reports.leaderboard import build, write; "
            f"write(build({str(folder)!r}), {str(folder / 'out')!r})"
        )
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        texts.append({path.name: path.read_bytes() for path in (folder / "out").iterdir()})
    assert texts[0] == texts[1] == texts[2]
    assert set(texts[0]) == {"leaderboard.md", "leaderboard.csv", "leaderboard.html"}


def test_images_are_embedded_with_their_captions(tmp_path):
    put(tmp_path, "a", 0.5)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "zero_shot_masks.png").write_bytes(b"png bytes")
    (tmp_path / "pictures" / "zero_shot_masks.txt").write_text('Masks, the "truth" <beside>\n')
    (tmp_path / "pictures" / "pca.svg").write_text("<svg/>")
    board = build(tmp_path)
    images = _Page(to_html(board)).images
    assert [image["alt"] for image in images] == ["pca", 'Masks, the "truth" <beside>']
    assert base64.b64decode(images[1]["src"].removeprefix("data:image/png;base64,")) == b"png bytes"
    assert images[0]["src"].startswith("data:image/svg+xml;base64,")
    other = tmp_path / "other"
    other.mkdir()
    assert section(build(tmp_path, images=other), "Pictures") is None


def test_a_failing_write_leaves_the_old_page(tmp_path, monkeypatch):
    put(tmp_path, "a", 0.5)
    paths = write(build(tmp_path), tmp_path)
    before = {path: path.read_bytes() for path in paths}
    put(tmp_path, "b", 0.6)
    board = build(tmp_path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(board, tmp_path)
    assert {path: path.read_bytes() for path in paths} == before
    assert not list(tmp_path.glob(".leaderboard*"))


def test_the_csv_keeps_every_number_unrounded(tmp_path):
    put(tmp_path, "a", {"acc1": 1 / 3, "acc5": 2 / 3, "median_rank": 4.5}, stderr=1 / 7)
    rows = list(csv.DictReader(io.StringIO(to_csv(build(tmp_path)))))
    assert {row["metric"]: float(row["value"]) for row in rows} == {
        "acc1": 1 / 3,
        "acc5": 2 / 3,
        "median_rank": 4.5,
    }
    assert {float(row["stderr"]) for row in rows} == {1 / 7}
    assert {(row["n"], row["limit"], row["version"], row["params"]) for row in rows} == {
        ("500", "", "1", "1640000")
    }


def test_the_terminal_never_cuts_a_value(tmp_path):
    values = [0.111, 0.222, 0.333, 0.444, 0.555, 0.666, 0.777, 0.888]
    for index, value in enumerate(values):
        put(
            tmp_path,
            "a_rather_long_name_of_a_model-silc:student",
            value,
            f"data{index}/zeroshot",
            stderr=0.0123,
        )
    for width in (72, 80):
        shown = terminal(build(tmp_path), width)
        assert all(f"{100 * value:.1f} ±1.2" in shown for value in values)
        assert max(map(len, shown.splitlines())) <= width


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no records in"):
        build(tmp_path)
    with pytest.raises(UserError, match="no results folder"):
        build(tmp_path / "missing")


def test_public_names():
    assert set(leaderboard.__all__) == {
        "Board",
        "build",
        "to_csv",
        "to_html",
        "to_markdown",
        "to_terminal",
        "write",
    }
