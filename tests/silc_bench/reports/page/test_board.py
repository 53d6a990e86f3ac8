"""What the board decided is what the page shows: titles, rows, ties, what does not rank."""

import json

import pytest
from made import put, trained

from silc_bench.reports.leaderboard import build, write
from silc_bench.results import published

pytestmark = pytest.mark.broad
TASK = "cifar100/zeroshot"


@pytest.fixture(autouse=True, scope="module")
def nothing_of_the_package(tmp_path_factory):
    """The published numbers that come with the package are not under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "OURS", tmp_path_factory.mktemp("none"))
        yield


def page_of(folder, **more):
    return build(folder, **more).page()


def columns_of(page):
    """{title: {name of the row: value}}."""
    names = page["models"]["id"]
    return {
        column["title"]: {
            names[row]: value for row, value in zip(column["rows"], column["values"], strict=True)
        }
        for column in page["columns"]
    }


def test_questions_of_one_task_are_told_apart_in_words(tmp_path):
    put(tmp_path, "a", 0.5, TASK, revision="1" * 16)
    put(tmp_path, "a", 0.6, TASK, revision="1" * 16, protocol="openai80")
    put(tmp_path, "a", 0.7, "shapes/knn", revision="1" * 16, group="knn")
    assert columns_of(page_of(tmp_path)) == {
        "CIFAR-100 zero-shot, top-1 (native)": {"a@11111111": 0.5},
        "CIFAR-100 zero-shot, top-1 (openai80)": {"a@11111111": 0.6},
        "shapes kNN, top-1": {"a@11111111": 0.7},
    }


def test_setups_of_one_model_are_rows_with_a_label(tmp_path):
    put(tmp_path, "a", 0.5, TASK, revision="1" * 16)
    put(tmp_path, "a", 0.6, TASK, revision="1" * 16, precision="bf16")
    (cells,) = columns_of(page_of(tmp_path)).values()
    assert cells == {"a@11111111 bf16": 0.6, "a@11111111 fp32": 0.5}


def test_the_best_is_the_boards(tmp_path):
    for name, value in {"a": 0.5, "b": 0.7, "c": 0.7}.items():
        put(tmp_path, name, value, TASK)
    page = page_of(tmp_path)
    (column,) = page["columns"]
    assert [page["models"]["name"][row] for row in column["best"]] == ["b", "c"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"limit": 10}, "run with --limit 10"),
        ({"version": 1}, "version 1 of its task, which gives other numbers today"),
    ],
)
def test_what_does_not_rank_stands_apart_with_its_reason(tmp_path, how, reason):
    put(tmp_path, "a", 0.5, TASK, version=2)
    put(tmp_path, "b", 0.9, TASK, **{"version": 2, **how})
    page = page_of(tmp_path)
    (unranked,) = page["unranked"]
    assert (unranked[0], unranked[3], unranked[5]) == ("b", 0.9, reason)
    assert page["columns"][0]["values"] == [0.5]


@pytest.mark.parametrize(
    ("task", "family"),
    [
        ("imagenet1k/zeroshot", "zero-shot"),
        ("voc20/segmentation_open_vocabulary", "dense"),
        ("x/strange", "published only"),
        ("x/own", "theirs"),
    ],
)
def test_a_published_column_stands_in_its_family(tmp_path, task, family):
    put(tmp_path, "a", 0.5, "shapes/own", group="theirs")
    source = {"url": "https://a.b/", "where": "table 1"}
    row = {
        "model": "p",
        "params": None,
        "source": source,
        "note": "",
        "values": {task: {"acc1": 1}},
    }
    (tmp_path / "reported").mkdir()
    content = {"schema": "reported/1", "rows": [row]}
    (tmp_path / "reported" / "papers.json").write_text(json.dumps(content))
    _, alone = page_of(tmp_path)["columns"]
    assert alone["family"] == family


def test_twins_show_their_differences_or_who_could_be_meant(tmp_path):
    put(tmp_path, "plain", 0.3, training=trained("contrastive"))
    put(tmp_path, "ours", 0.4, revision="1" * 16, training=trained())
    (change,) = page_of(tmp_path)["changes"]
    assert change["rows"] == [["shapes zero-shot, top-1", 0.3, 0.4, None, None]]
    put(tmp_path, "ours", 0.5, revision="2" * 16, training=trained())
    (change,) = page_of(tmp_path)["changes"]
    assert (change["rows"], len(change["names"])) == ([], 3)


def test_the_written_page_is_the_same_each_time(tmp_path):
    put(tmp_path / "results", "a", 0.5, TASK)
    board = build(tmp_path / "results")
    first, second = ([path.read_bytes() for path in write(board, tmp_path / name)] for name in "ab")
    assert first == second
