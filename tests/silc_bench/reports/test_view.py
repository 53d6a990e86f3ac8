"""Which rows and columns a leaderboard shows: tasks, models, order, grouping, limit."""

import json

import pytest
from commands import fail, succeed
from made import put
from refusals import refused

from silc_bench.reports.leaderboard import build
from silc_bench.reports.tables import to_csv, to_markdown
from silc_bench.reports.view import View

pytestmark = pytest.mark.broad

PUBLISHED = {
    "model": "paper",
    "params": None,
    "source": {"url": "https://arxiv.org/abs/1", "where": "table 1"},
    "note": "",
    "values": {"one/zeroshot": {"acc1": 0.9}, "three/knn": {"acc1": 0.8}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models on two tasks of each of two datasets; "b" has not measured one of them."""
    folder = tmp_path_factory.mktemp("results")
    values = {
        "one/zeroshot": {"a": 0.1, "b": 0.3, "c:student": 0.2},
        "one/knn": {"a": 0.3, "b": 0.2, "c:student": 0.1},
        "two/zeroshot": {"a": 0.5, "c:student": 0.6},
        "two/segmentation_knn": {"a": 0.3, "b": 0.4, "c:student": 0.5},
    }
    groups = {"zeroshot": "zero-shot", "knn": "knn", "segmentation_knn": "dense"}
    for task, of_models in values.items():
        for model, value in of_models.items():
            measured = {"acc1": value, "acc5": 1 - value}
            revision = {"a": "a1" * 8, "b": "b1" * 8}.get(model, "c1" * 8)
            group = groups[task.partition("/")[2]]
            put(folder, model, measured, task, group=group, revision=revision, version=99)
    (folder / "reported").mkdir()
    content = {"schema": "reported/1", "rows": [PUBLISHED]}
    (folder / "reported" / "papers.json").write_text(json.dumps(content))
    return folder


def shown(folder, **view):
    """{title of a table: (its models from top to bottom, the titles of its columns)}."""
    board = build(folder, View(**view))
    (section,) = (part for part in board.sections if part.title == "Measured here")
    tables = {}
    for table in section.tables:
        models = "".join(row[0].text[0] for row in table.rows)
        tables[table.title] = models, [head.text for head in table.heads[3:]]
    return tables


@pytest.mark.parametrize(
    ("patterns", "tasks"),
    [
        (["zeroshot"], {"one zero-shot", "two zero-shot"}),
        (["two"], {"two zero-shot", "two kNN segmentation"}),
        (["dense"], {"two kNN segmentation"}),
        (["segmentation"], {"two kNN segmentation"}),
        (["one/knn", "tw*/zero*"], {"one kNN", "two zero-shot"}),
    ],
)
def test_tasks(folder, patterns, tasks):
    tables = shown(folder, tasks=patterns)
    assert {title for _, titles in tables.values() for title in titles} == tasks


@pytest.mark.parametrize(
    ("patterns", "models"),
    [
        (["a"], "a"),
        (["c*", "b"], "bc"),
        (["./x/"], "abc"),
        (["b@b1b1"], "b"),
        (["a@" + "a1" * 8, "c:s*"], "ac"),
    ],
)
def test_models(folder, patterns, models):
    tables = shown(folder, models=patterns)
    assert {model for rows, _ in tables.values() for model in rows} == set(models)
    kinds = {row["kind"] for row in build(folder, View(models=patterns)).scores.to_dict("records")}
    assert kinds == {"ranked"}, "published rows of other models are left out, too"


def test_published_rows_are_chosen_alike(folder):
    scores = build(folder, View(models=["paper"], tasks=["three"])).scores
    assert scores[["model", "task"]].values.tolist() == [["paper", "three/knn"]]


@pytest.mark.parametrize(
    ("sort", "of_zeroshot"),
    [
        ("", "bca"),
        ("name", "abc"),
        ("params", "abc"),
        ("one/knn", "abc"),
        ("two/zeroshot", "cab"),
        ("one/zeroshot:acc5", "acb"),
    ],
)
def test_the_order_of_rows(folder, sort, of_zeroshot):
    tables = shown(folder, sort=sort)
    assert tables["zero-shot"][0] == of_zeroshot
    if sort:
        assert tables["dense"][0] == of_zeroshot, "in every table the same"


def test_grouping_by_dataset_and_protocol(folder):
    assert set(shown(folder, group_by="dataset")) == {"one", "two"}
    assert list(shown(folder, group_by="protocol")) == ["native"]


def test_a_limit_is_said_with_what_it_leaves_out(folder):
    assert [rows for rows, _ in shown(folder, limit=2).values()] == ["bc", "ab", "cb"]
    said = "2 of 3 rows; left out from a on"
    assert said in to_markdown(build(folder, View(limit=2)))
    words = f"leaderboard --results {folder}"
    assert said in succeed(f"{words} --limit 2 --tasks zeroshot --sort one/zeroshot")
    assert "left out" not in succeed(f"{words} --limit 3")
    everything = to_csv(build(folder))
    assert to_csv(build(folder, View(limit=1))) == everything, "of tables, not of the data"


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({"tasks": ["zeroshot", "zershot"]}, "--tasks"),
        ({"models": ["a", "d"]}, "--models"),
        ({"models": ["a@"]}, "--models"),
        ({"models": ["b"], "tasks": ["two/zeroshot"]}, "--models, --tasks"),
        ({"sort": "two/zershot"}, "--sort"),
        ({"sort": "one/knn:acc2"}, "--sort"),
        ({"group_by": "families"}, "--group-by"),
    ],
)
def test_what_means_nothing_is_refused(folder, options, about):
    with refused(about=about):
        build(folder, View(**options))


def test_a_wrong_option_is_one_sentence(folder):
    fail(f"leaderboard --results {folder} --tasks zershot", "--tasks")
