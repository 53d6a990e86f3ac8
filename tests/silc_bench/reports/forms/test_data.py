"""Scores for other programs: CSV, JSON, Parquet; which files are written, and what is refused."""

import csv
import io
import json

import pandas as pd
import pytest
from commands import fail, succeed
from hostile import HOSTILE_NAMES
from made import put

from silc_bench.cli import options
from silc_bench.reports import leaderboard
from silc_bench.reports.forms.data import to_json, to_parquet
from silc_bench.reports.tables import in_spreadsheet, to_csv

pytestmark = pytest.mark.broad


@pytest.fixture
def board(tmp_path):
    """A hostile name in each place that takes one; a published row with gaps."""
    names = [*HOSTILE_NAMES, "-1", "+1", "@x", "=1+1"]
    for name in names:
        put(tmp_path, name, 0.1, "d/zeroshot", group=name)
    (tmp_path / "reported").mkdir()
    row = {
        "model": "=paper",
        "params": None,
        "source": {"url": "https://a.b", "where": "@table"},
        "note": "+x",
        "values": {"d/zeroshot": {"acc1": 0.5}},
    }
    content = json.dumps({"schema": "reported/1", "rows": [row]})
    (tmp_path / "reported" / "papers.json").write_text(content)
    return leaderboard.build(tmp_path)


def test_no_cell_of_a_csv_is_a_formula(board):
    rows = list(csv.reader(io.StringIO(to_csv(board))))
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and not _is_number(cell)]
    assert {"'=1+1", "'@x", "'-1", "'+1", "'=paper", "'@table", "'+x"} <= set(cells)
    assert in_spreadsheet(-0.5) == -0.5
    shown = [row[rows[0].index("model")].removeprefix("'") for row in rows[1:]]
    assert set(shown) == {score.model for score in board.scores.itertuples()}


def _is_number(cell):
    return cell.replace(".", "").replace("e-", "").lstrip("-").isdigit() and cell != "-1"


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_other_programs_get_the_same_scores(board, kind):
    if kind == "json":
        data = json.loads(to_json(board))
        assert data["schema"] == "leaderboard/1"
        scores = pd.DataFrame(data["rows"], columns=data["columns"])
    else:
        pytest.importorskip("pyarrow")
        scores = pd.read_parquet(io.BytesIO(to_parquet(board)))
        assert scores.n.dtype == "Int64"
        assert scores.value.dtype == "float64"
    assert list(scores) == list(board.scores)
    expected = board.scores.astype(object).where(board.scores.notna(), None)
    found = scores.astype(object).where(scores.notna(), None)
    assert found.to_dict("records") == expected.to_dict("records")


@pytest.mark.parametrize(
    ("options", "endings"),
    [
        ("", "csv html json md"),
        ("--format tex,csv,tex", "csv tex"),
        ("--format parquet", "parquet"),
    ],
)
def test_the_formats_that_are_asked_for_are_written(board, tmp_path, options, endings):
    if "parquet" in options:
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    printed = succeed(f"leaderboard --results {tmp_path} --out {out} {options}")
    names = [f"leaderboard.{ending}" for ending in endings.split()]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(f"wrote {out / name}" in printed for name in names)


def test_a_leaderboard_among_its_records_is_none_of_them(tmp_path):
    put(tmp_path, "a", 0.5)
    line = f"leaderboard --results {tmp_path} --out {tmp_path}"
    assert succeed(line) == succeed(line)


@pytest.mark.parametrize("command", ["leaderboard", "compare a b"])
@pytest.mark.parametrize("words", ["--format tex", "--format tex,texx --out {out}"])
def test_a_wrong_format_is_refused(tmp_path, command, words):
    fail(f"{command} --results {tmp_path} {words.format(out=tmp_path / 'out')}", "--format")


@pytest.mark.parametrize(("command", "kind"), [("leaderboard", "parquet"), ("compare a b", "pdf")])
def test_a_missing_package_is_named_before_any_work(monkeypatch, tmp_path, command, kind):
    monkeypatch.setattr(options, "find_spec", lambda package: None)
    sentence = fail(
        f"{command} --results {tmp_path} --out {tmp_path / 'out'} --format {kind}", kind
    )
    assert f"pip install 'silc-bench[{kind}]'" in sentence
