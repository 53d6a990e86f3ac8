"""``silc_bench.load_results``: a tidy frame of records; records say in a line what they are."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hostile import HOSTILE_NAMES
from made import put, record_of
from refusals import refused

import silc_bench
from silc_bench import load_results
from silc_bench.results import folders

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.broad


def test_a_row_is_a_record_and_a_metric(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    put(first, "a", {"acc1": 0.5, "acc5": 0.75}, "cifar100/zeroshot", stderr=0.01)
    put(second, "b", {"median_rank": 3.0}, "mine/retrieval", stderr=None, limit=10, size=96)
    frame = load_results(first, second)
    names = ["title", "model", "metric", "value", "stderr", "is_main", "limit"]
    rows = [[None if pd.isna(value) else value for value in row] for row in frame[names].values]
    assert rows == [
        ["CIFAR-100 zero-shot, top-1", "a", "acc1", 0.5, 0.01, True, None],
        ["CIFAR-100 zero-shot, top-5", "a", "acc5", 0.75, 0.01, False, None],
        ["mine retrieval, median_rank", "b", "median_rank", 3.0, None, True, 10],
    ]
    assert frame.chance.isna().tolist() == [False, True, False]

    # question and setup, field by field and as the hashes by which rows are alike
    (a, b) = folders.read([first, second]).records
    records = [a, a, b]
    assert frame.question.tolist() == [record.question.hash for record in records]
    assert frame.setup.tolist() == [record.setup.row for record in records]
    assert frame["setup.image.size"].tolist() == [64, 64, 96]
    assert frame["setup.precision"].unique().tolist() == [records[0].setup.precision]
    assert frame["question.dataset.split"].unique().tolist() == ["test"]
    assert frame.limit.dtype == frame.params.dtype == "Int64"


def test_the_records_of_this_repository_make_a_frame():
    frame = load_results(ROOT / "results")
    assert len(frame) == sum(
        len(record.metrics) for record in folders.read([ROOT / "results"]).records
    )
    pivot = frame[frame.is_main].pivot_table("value", "model", "title")
    assert pivot.loc["cifar_tiny-silc:student", "CIFAR-100 zero-shot, top-1"] > 0.05
    held = {type(value) for name in frame for value in frame[name].tolist()}
    assert not {list, dict} & held, "plain values alone"


def test_no_folder_and_no_sound_record(tmp_path):
    with refused(about="load_results"):
        load_results()
    with refused(about="absent"):
        load_results(tmp_path / "absent")
    (tmp_path / "model@12345678").mkdir()
    (tmp_path / "model@12345678" / "foreign.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"foreign\.json"):
        assert len(load_results(tmp_path)) == 0


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'pandas', 'numpy', 'torch', 'rich', 'silc_bench.errors'}"
    code = f"import silc_bench, sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "load_results" in dir(silc_bench)
    with pytest.raises(AttributeError, match="loud_results"):
        silc_bench.loud_results  # noqa: B018


@pytest.mark.parametrize("name", ["a", *HOSTILE_NAMES[2:]])
def test_records_and_their_parts_say_what_they_are_in_a_line(name):
    record = record_of(name, 0.4567, "cifar100/zeroshot", limit=10)
    assert repr(record).startswith(f"<Record cifar100/zeroshot of {name!r} @")
    assert "acc1 0.4567" in repr(record)
    parts = (record.task, record.model, record.question, record.setup, record.code, record.env)
    for part in (record, *parts):
        assert repr(part).startswith(f"<{type(part).__name__} ")
        assert len(repr(part)) < 150 + len(repr(name))
        assert repr(part).isprintable()
