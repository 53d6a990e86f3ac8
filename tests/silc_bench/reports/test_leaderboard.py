"""The leaderboard: what shares a column, ranks, is compared; its files are safe and repeatable."""

import base64
import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile import HOSTILE_NAMES, cells
from hypothesis import given, settings
from hypothesis import strategies as st
from made import N, put, record_of, trained
from rich.console import Console

from silc_bench.metrics.statistics import Paired
from silc_bench.reports.comparison.compare import compare
from silc_bench.reports.forms.terminal import to_terminal
from silc_bench.reports.leaderboard import build
from silc_bench.reports.tables import Change, axis, to_csv, to_markdown
from silc_bench.results import published
from silc_bench.tasks.selection import all_tasks, current_version

pytestmark = pytest.mark.broad

ROOT = Path(__file__).parents[3]


OURS = published.OURS


@pytest.fixture(autouse=True, scope="module")
def nothing_of_the_package(tmp_path_factory):
    """The published numbers that come with the package are not under test: there are 130 rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "OURS", tmp_path_factory.mktemp("none"))
        yield


def put_all(folder, values, task="shapes/zeroshot", **more):
    """A record for each model of ``values``."""
    for model, value in values.items():
        put(folder, model, value, task, **more)


def tables(board, title="Measured here"):
    """Of a section; none where it is not shown."""
    return next((part.tables for part in board.sections if part.title == title), None)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def ranked(board):
    """{(task, metric, variant lines): {model: Cell}} of the measured tables; no gaps."""
    columns = {}
    for table in tables(board):
        for index, head in enumerate(table.heads[3:], start=3):
            column = (head.text, *head.details)
            assert column not in columns, "two columns look alike"
            cells = {row[0].text: row[index] for row in table.rows}
            columns[column] = {name: cell for name, cell in cells.items() if cell.text}
    return columns


def only(columns):
    (column,) = columns.values()
    return column


def terminal(board, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(to_terminal(board))
    return console.file.getvalue()


def csv_of(board):
    return list(csv.DictReader(io.StringIO(to_csv(board))))


def test_values_errors_chance_best_and_gaps(tmp_path):
    put(tmp_path, "a", {"acc1": 0.455, "acc5": 0.8}, stderr=0.012)
    put(tmp_path, "b", 0.41, stderr=None)
    put(tmp_path, "c", 0.455)
    put(tmp_path, "b", 0.3, "shapes/knn", group="knn")
    columns = ranked(build(tmp_path))
    assert {head[1:] for head in columns} == {("top-1", "chance 2.0")}
    knn, zeroshot = (columns[head] for head in sorted(columns))  # by title
    assert {name: (cell.text, cell.detail, cell.is_best) for name, cell in zeroshot.items()} == {
        "a": ("45.5", " ±1.2", True), "c": ("45.5", " ±1.0", True), "b": ("41.0", "", False)
    }  # fmt: skip
    assert not knn["b"].is_best, "there is nothing to be better than"


def test_other_groups_come_last(tmp_path):
    put(tmp_path, "m", 0.5, "s/own", group="a third party's")
    put(tmp_path, "m", 0.5, "s/dense", group="dense")
    assert [table.title for table in tables(build(tmp_path))] == ["dense", "a third party's"]


def test_of_ranks_the_lowest_is_best_and_no_percent(tmp_path):
    put_all(tmp_path, {"a": 3.0, "b": 12.5}, main="median_rank", chance=250.0)
    ((head, column),) = ranked(build(tmp_path)).items()
    assert head[1:] == ("median_rank", "chance 250.0")
    cells = [(cell.text, cell.is_best) for cell in column.values()]
    assert cells == [("3.0", True), ("12.5", False)]


def test_models_with_other_preprocessing_share_a_column(tmp_path):
    """What is asked makes a column; how a model takes it in belongs to its row."""
    put(tmp_path, "a", 0.1, size=64)
    put(tmp_path, "b", 0.2, size=224, crop="center", mean=[0.5] * 3)
    put(tmp_path, "c", 0.3, protocol="openai80", asks={"prompts": "80"})
    native, openai80 = ranked(build(tmp_path)).items()
    assert set(native[1]) == {"a", "b"}
    assert set(openai80[1]) == {"c"}
    assert [head[-1] for head, _ in (native, openai80)] == ["native", "openai80"]
    (table,) = tables(build(tmp_path), "Questions that differ")
    assert [head.text for head in table.heads] == ["field", "native", "openai80"]
    assert ["asks.prompts", "–", "80"] in texts(table)


def test_one_model_under_two_setups_is_two_rows_with_what_differs(tmp_path):
    for precision, value in (("fp32", 0.5), ("bf16", 0.4)):
        put(tmp_path, "a", value, precision=precision)
    (table,) = tables(build(tmp_path))
    assert [row[0].detail.partition(" ")[2] for row in table.rows] == ["(fp32)", "(bf16)"]
    (table,) = tables(build(tmp_path), "Setups that differ")
    assert texts(table) == [["precision", "bf16", "fp32"]]


def test_what_is_tied_with_the_best_is_marked(tmp_path):
    """By the paired test; not where the samples are unknown, nor where only the best stands."""
    hits = np.arange(N) < 200
    for model, own in {
        "best": hits,
        "tied": np.roll(hits, 3),
        "worse": np.arange(N) < 100,
    }.items():
        put(tmp_path, model, own.mean() - 0, arrays={"acc1": own})
    put(tmp_path, "near", 0.499)
    put(tmp_path, "far", 0.1)
    column = only(ranked(build(tmp_path)))
    marks = {name: (cell.is_best, cell.is_tied) for name, cell in column.items()}
    assert marks.pop("best") == marks.pop("tied") == (True, False), "equal values are both best"
    assert set(marks.values()) == {(False, False)}

    lucky = np.arange(N) < 199
    put(tmp_path, "tied", lucky.mean(), arrays={"acc1": lucky})
    column = only(ranked(build(tmp_path)))
    assert [name for name, cell in column.items() if cell.is_tied] == ["tied"]


RUNS = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["d/zeroshot", "d/knn"]),
    st.sampled_from(["native", "other"]),  # protocol
    st.sampled_from(["0" * 16, "1" * 16]),  # fingerprint
    st.sampled_from([None, 10]),  # limit
    st.integers(1, 2),  # task version
)


@given(st.lists(RUNS, min_size=1, max_size=8, unique=True))
@settings(max_examples=25)
def test_whatever_was_measured_a_column_holds_one_kind_of_number(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("results")
    newest = {}
    for number, (model, task, protocol, fingerprint, limit, version) in enumerate(runs):
        how = {"protocol": protocol, "fingerprint": fingerprint, "limit": limit, "version": version}
        put(folder, f"{model}{protocol}{fingerprint[0]}", number / 1000, task, **how)
        if limit is None:
            newest[task] = max(version, newest.get(task, 0))

    # what sets columns apart; a value says of which run it is
    expected = {run[1:4] for run in runs if run[4] is None and run[5] == newest[run[1]]}
    kinds = []
    for column in ranked(build(folder)).values():
        of_column = [runs[round(float(cell.text) * 10)] for cell in column.values()]
        assert all(run[4] is None and run[5] == newest[run[1]] for run in of_column)
        assert len({run[1:4] for run in of_column}) <= 1
        kinds += [run[1:4] for run in of_column[:1]]
    assert sorted(kinds) == sorted(expected)


@pytest.mark.parametrize(
    ("title", "kind", "left_out"),
    [("Limited runs", "limited", {"limit": 100}), ("Outdated", "outdated", {"version": 1})],
)
def test_limited_and_outdated_runs_never_rank(tmp_path, title, kind, left_out):
    put(tmp_path, "left out", 0.9, **{"version": 2, **left_out})
    if kind == "limited":
        board = build(tmp_path)
        assert tables(board) == ()
        assert "Nothing yet" in terminal(board)
    put(tmp_path, "ranked", 0.2, version=2)
    board = build(tmp_path)
    assert set(only(ranked(board))) == {"ranked"}
    (table,) = tables(board, title)
    (number,) = left_out.values()
    assert texts(table) == [["left out", "shapes/zeroshot", "acc1", "90.0", str(number)]]
    assert {row["kind"] for row in csv_of(board)} == {"ranked", kind}


def test_what_the_program_measures_otherwise_today_does_not_rank(tmp_path):
    """Also before anybody measures anew: two old records would be compared by an abandoned rule."""
    today = current_version("shapes/fewshot")
    for kind, task, version in (
        ("outdated", "shapes/fewshot", today - 1),
        ("outdated", "shapes/fewshot", today - 2),
        ("outdated", "my_pets/fewshot", today - 1),
        ("ranked", "my_dogs/fewshot", today),
        ("ranked", "shapes/zeroshot", 99),
        ("ranked", "theirs/something", 1),
    ):
        put(tmp_path, f"{kind} {version}", 0.5, task, main="acc1_10shot", version=version)
    scores = build(tmp_path, current_version=current_version).scores
    assert all(row.model.startswith(row.kind) for row in scores.itertuples())


# Published numbers.


def test_the_published_numbers_of_this_repository_are_of_our_tasks():
    """So that they stand beside what is measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "OURS", OURS)
        rows, problems = published.load([])
    assert not problems
    unknown = {task for row in rows for task in row.values} - set(all_tasks())
    assert {task.split("/")[1] for task in unknown} == {"segmentation_open_vocabulary"}


SOURCE = {"url": "https://arxiv.org/abs/2310.13355", "where": "table 1"}
PUBLISHED = {
    "model": "paper",
    "params": None,
    "source": SOURCE,
    "note": "",
    "values": {"shapes/zeroshot": {"acc1": 0.99}},
}


def publish(folder, *rows):
    """A file of rows that differ from PUBLISHED as said."""
    (folder / "reported").mkdir(exist_ok=True)
    content = {"schema": "reported/1", "rows": [PUBLISHED | row for row in rows]}
    (folder / "reported" / "papers.json").write_text(json.dumps(content))


def test_published_numbers_stand_apart_with_their_source(tmp_path):
    publish(tmp_path, {})
    board = build(tmp_path)
    assert "Nothing yet" in to_markdown(board)
    assert [column["published"]["values"] for column in board.page()["columns"]] == [[0.99]]
    assert "1 row: see" in terminal(board)

    put_all(tmp_path, {"a": 0.1, "b": 0.2})
    board = build(tmp_path)
    assert [cell.is_best for cell in only(ranked(board)).values()] == [True, False]
    (table,) = tables(board, "Published numbers")
    assert texts(table)[0] == ["paper", "", "99.0", "table 1", ""]
    assert board.page()["models"]["url"] == [None, None, SOURCE["url"]]
    assert f"[table 1](<{SOURCE['url']}>)" in to_markdown(board)
    (published,) = (row for row in csv_of(board) if row["kind"] == "reported")
    assert published["source"] == f"reported({SOURCE['url']})"


def test_what_was_measured_stands_beside_what_was_published(tmp_path):
    """A second protocol has a second row; limited runs and other tasks have none."""
    put(tmp_path, "a", 0.1, stderr=0.02)
    put(tmp_path, "a", 0.3, protocol="openai80")
    put(tmp_path, "a", 0.5, "other/zeroshot")
    put(tmp_path, "limited", 0.9, limit=10)
    put(tmp_path, "knn", 0.9, "shapes/knn")
    publish(tmp_path, {}, {"model": "two", "values": {"other/zeroshot": {"acc1": 0.7}}})
    (table,) = tables(build(tmp_path), "Published numbers")
    assert [head.text for head in table.heads[2:4]] == ["other", "shapes"]
    paper, two, *ours = texts(table)
    assert [paper[2:4], two[2:4]] == [["", "99.0"], ["70.0", ""]]
    assert {(row[0], row[4]) for row in ours} == {("a", "measured here")}
    assert sorted(row[3] for row in ours) == ["10.0", "30.0"]
    assert sorted(row[2] for row in ours) == ["", "50.0"]
    details = {row[3].text: row[3].detail for row in table.rows}
    assert [details["10.0"], details["30.0"]] == [" ±2.0", " ±1.0 openai80"]


def test_a_record_that_says_it_was_reported_does_not_rank(tmp_path):
    put_all(tmp_path, {"a": 0.9, "b": 0.2})
    (path,) = tmp_path.glob("a@*/*/*.json")
    url = "https://example.org/x"
    path.write_text(replace(record_of("a", 0.9), source=f"reported({url})").to_json())
    board = build(tmp_path)
    assert set(only(ranked(board))) == {"b"}
    assert tables(board, "Published numbers")[0].rows[0][3].url == url


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{}, {"model": "b", "values": {}}], "rows[1].values"),
        ([{"values": {"a/b": {"acc1": 83.3}}}], "rows[0].values['a/b'].acc1"),
        ([{"values": {"ab": {"acc1": 0.3}}}], "rows[0].values: 'ab'"),
        ([{"source": {"url": "javascript:alert(1)", "where": "x"}}], "rows[0].source.url"),
        ([{"colour": 1}], "'colour'"),
        ([{}, {}], "'paper'"),
        (None, "JSON"),
    ],
)
def test_a_wrong_published_file_is_named(tmp_path, rows, problem):
    publish(tmp_path, *(rows or []))
    if rows is None:
        (tmp_path / "reported" / "papers.json").write_text("{")
    put(tmp_path, "a", 0.5)
    (remark,) = build(tmp_path).remarks
    assert problem in remark
    assert "papers.json" in remark
    assert build(tmp_path).page()["remarks"] == [remark]


def test_a_folder_of_published_numbers_that_is_none_is_named(tmp_path):
    put(tmp_path, "a", 0.5)
    (tmp_path / "reported").write_text("")
    (remark,) = build(tmp_path).remarks
    assert str(tmp_path / "reported") in remark


def test_published_rows_of_several_folders_meet_and_the_first_counts(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("one", "two", "package")]
    monkeypatch.setattr(published, "OURS", folders[2] / "reported")
    for folder, model in zip(folders, "abc", strict=True):
        folder.mkdir()
        publish(folder, {}, {"model": model})
    publish(folders[1], {"note": "read again"}, {"model": "b"})
    rows, (problem,) = published.load(folders[:2])
    assert [(row.model, row.note) for row in rows] == [
        ("paper", ""), ("a", ""), ("b", ""), ("c", "")
    ]  # fmt: skip
    assert str(folders[1]) in problem.about


# What self-distillation changed.


@pytest.mark.parametrize(
    "other",
    [
        None,
        *({"objective": name} for name in ("silc", "contrastive+views", "silc+frozen")),
        *({"preset": "b16"}, {"branch": "teacher"}, {"data": "shapes"}, {"seed": 2}, {"step": 200}),
    ],
    ids=str,
)
def test_what_differs_in_more_than_the_objective_is_no_twin(tmp_path, other):
    """Whatever they are called: names say nothing."""
    put(tmp_path, "tiny-silc:student", 0.3, training=trained())
    training = other and trained(**{"objective": "contrastive", **other})
    put(tmp_path, "tiny-contrastive:student", 0.4, training=training)
    assert "What self-distillation changed" not in [part.title for part in build(tmp_path).sections]


def test_several_seeds_are_several_pairs_of_twins(tmp_path):
    for seed in (0, 1):
        for objective in ("contrastive", "silc"):
            training = trained(objective, seed=seed)
            put(tmp_path, f"{objective}-{seed}", 0.3 + seed / 10, training=training)
    found = tables(build(tmp_path), "What self-distillation changed")
    for seed, table in enumerate(found):
        how = f"(tiny:student, seed {seed}, step 2,000)"
        assert table.title == f"silc-{seed} against contrastive-{seed} {how}"
    assert len(found) == 2


def test_twins_are_compared_within_a_column(tmp_path):
    hits = {"contrastive": np.arange(N) < 120, "silc": np.arange(N) < 140}
    for objective, own in hits.items():
        name, training = f"{objective} run", trained(objective)
        put(tmp_path, name, own.mean(), arrays={"acc1": own}, training=training)
        # two questions
        put(tmp_path, name, 0.3, "s/knn", protocol=objective, training=training)
    (table,) = tables(build(tmp_path), "What self-distillation changed")
    assert table.title == "silc run against contrastive run (tiny:student, seed 1, step 2,000)"
    (change,) = table.changes
    assert (change.contrastive, change.silc) == (0.30, 0.35)

    # the same test as everywhere else
    names = [f"{objective} run" for objective in hits]
    (result,) = compare(tmp_path, names, ["shapes/zeroshot"]).results
    assert change.paired == result.paired
    error = f" ±{100 * result.paired.stderr:.2f}"
    assert [cell.text + cell.detail for cell in table.rows[0]] == [
        "shapes zero-shot", "top-1", "30.0", "35.0", f"+5.00{error}", "yes, better"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("silc", "margin", "verdict"),
    [
        (0.5, 0.02, "yes, better"),
        (0.1, 0.02, "yes, worse"),
        (0.31, 0.02, "no"),
        (0.3, 0.0, "no"),
        (0.9, None, "unknown"),
    ],
)
def test_verdicts(silc, margin, verdict):
    paired = None if margin is None else Paired(silc - 0.3, margin / 2, margin, 0.5, "mcnemar")
    assert Change("t", "m", 0.3, silc, paired).verdict == verdict


def test_twins_of_several_runs_are_listed_not_guessed(tmp_path):
    put(tmp_path, "plain", 0.3, training=trained("contrastive"))
    for digit in "12":
        put(tmp_path, "p-silc", 0.4, revision=16 * digit, training=trained())
    (table,) = tables(build(tmp_path), "What self-distillation changed")
    assert "not compared" in table.title
    assert [row[0].text + row[0].detail[:3] for row in table.rows[1:]] == ["p-silc@11", "p-silc@22"]
    assert table.changes == ()


ENDS = st.integers(-(10**6), 10**6).map(lambda number: number / 10**4)


@given(st.lists(ENDS, min_size=1), st.integers(1, 6))
def test_an_axis_holds_zero_and_all_ends(ends, most_ticks):
    left, right, ticks = axis(ends, most_ticks)
    assert left < min([0, *ends]) <= max([0, *ends]) < right
    places = [place for place, _ in ticks]
    assert left <= min(places) <= 0 <= max(places) <= right
    assert len(ticks) <= most_ticks + 2
    for place, label in ticks:
        assert float(label) == pytest.approx(place, rel=1e-4)


# The files.

HOSTILE = "<script>alert(1)</script>|**x**[l](javascript:1)`\"'&{{7*7}}"


def test_hostile_names_are_shown_as_they_are(tmp_path):
    put_all(tmp_path, {HOSTILE: 0.5, f"p-contrastive{HOSTILE}": 0.5, f"{HOSTILE}-contrastive": 0.5})
    put(tmp_path, f"{HOSTILE}-silc", 0.5, group=HOSTILE)
    source = {"url": "https://a.b/", "where": HOSTILE}
    publish(tmp_path, {"model": HOSTILE, "note": HOSTILE, "source": source})
    board = build(tmp_path)
    markdown = to_markdown(board)
    assert "<script" not in markdown
    assert "**x**" not in markdown
    # no name opened a cell of its own
    rows = [line for line in markdown.splitlines() if "script" in line and line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5, 6}
    assert HOSTILE[:8] in terminal(board, 400)
    assert HOSTILE in {row["model"] for row in csv_of(board)}


def test_images_are_embedded_with_their_captions(tmp_path):
    put(tmp_path, "a", 0.5)
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "zero_shot_masks.png").write_bytes(b"png bytes")
    (folder / "zero_shot_masks.txt").write_text('Masks, the "truth" <beside>\n')
    (folder / "pca.svg").write_text("<svg/>")
    images = build(tmp_path).page()["images"]
    assert [(image["title"], image["caption"]) for image in images] == [
        ("pca", ""), ("zero shot masks", 'Masks, the "truth" <beside>')
    ]  # fmt: skip
    for image, kind, content in zip(
        images, ("svg+xml", "png"), (b"<svg/>", b"png bytes"), strict=True
    ):
        assert image["uri"] == f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.mkfifo(folder / "a.png"),
        lambda folder: (folder / "a.png").mkdir(),
        lambda folder: (folder / "a.png").symlink_to("a.png"),
        lambda folder: [(folder / f"a.{end}").write_bytes(b"\xff") for end in ("png", "txt")],
    ],
    ids=["a pipe", "a folder", "a link to itself", "a caption that is no text"],
)
def test_an_image_that_cannot_be_read_is_left_out_and_named(tmp_path, damage):
    put(tmp_path, "a", 0.5)
    folder = tmp_path / "pictures"
    folder.mkdir()
    damage(folder)
    (folder / "b.svg").write_text("<svg/>")
    board = build(tmp_path)
    assert len(board.page()["images"]) == 1
    (remark,) = board.remarks
    assert str(folder / "a.png") in remark


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("which", ["of this repository", "hostile"])
def test_the_terminal_shows_every_value_whole(tmp_path, width, which):
    folder = ROOT / "results"
    if which == "hostile":
        folder = tmp_path
        for number, name in enumerate(HOSTILE_NAMES, start=1):
            put(folder, name, number / 90, f"data{number}/zeroshot", stderr=0.0123, group=name)
            put(folder, name, 0.5, "data/knn", limit=number, group=name)
    board = build(folder, current_version=current_version)
    shown = terminal(board, width)
    assert max(map(cells, shown.splitlines())) <= width

    values = []
    for table in tables(board):
        values += [f"{cell.text}{cell.detail}" for row in table.rows for cell in row[1:]]
    for value in filter(None, values):
        number = re.findall(rf"(?<![\d.-]){re.escape(value)}(?![\d.])", shown)
        assert len(number) >= values.count(value)
