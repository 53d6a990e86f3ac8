"""``--json``: one document on the output, and everything else beside it."""

import json

import numpy as np
import pytest
import typer
from commands import call, fail
from made import put
from PIL import Image

from silc_bench.cli.app import app
from silc_bench.cli.command import _commands
from silc_bench.system.cache import Store
from silc_bench.system.terminal import print_json

pytestmark = pytest.mark.broad

HITS = np.arange(400) % 4 > 0
LINES = {  # the command line, the keys of the document or of its rows
    "tasks": ("", {"name", "version", "group", "main_metric", "requires"}),
    "results-ls": ("--results {r}", {"path", "model", "task", "value", "stderr", "n", "limit"}),
    "results-validate": (
        "--results {r}",
        {"folders", "records", "in_two_folders", "problems", "no_records"},
    ),
    "leaderboard": ("--results {r} --out {r}/../out --format md", {"schema", "columns", "rows"}),
    "compare": (
        "a b --results {r} --out {r}/../out --format md",
        {"schema", "baseline", "results"},
    ),
    "cache-ls": ("--cache {r}/../kept", {"path", "model", "what", "bytes", "last_used"}),
    "data-check": ("folder:{r}/../photos", {"name", "is_ready", "found", "problems"}),
    "data-stats": ("shapes --count 2", {"source", "looked_at", "quantiles"}),
    "train --dry-run": (
        "--device cpu --set vision.depth=1",
        {"name", "bytes", "fits", "ways", "hours"},
    ),
    "train --dry-run --on h100x8": (
        "--device cuda --set vision.depth=1 --set text.depth=1",
        {"name", "fits", "bytes_by_part", "hours", "cost", "assumptions"},
    ),
    "train --show-config": ("", {"preset", "optim.lr", "vision.width"}),
    "env": ("", {"packages", "machine", "limits", "defaults", "cache"}),
}


def as_typed(name, rest, results):
    command = name if " " in name else name.replace("-", " ", 1)
    return f"{command} {rest} --json".replace("{r}", f"'{results}'")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "[red]results"
    for model in ("a", "b"):
        put(folder, model, 0.75, arrays={"acc1": HITS})
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    kept = Store(tmp_path / "kept").entry({"model": "[bold]a", "precision": "fp32"})
    kept.save(0, np.zeros((2, 3), np.float32))
    return folder


@pytest.mark.parametrize("name", LINES)
def test_the_output_is_one_document_and_nothing_else(results, name):
    rest, keys = LINES[name]
    line = as_typed(name, rest, results)
    result = call(line)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (row, *_) = document if isinstance(document, list) else [document]
    assert keys <= set(row)
    assert ("wrote" in result.stderr) == ("--out" in line)


def test_every_command_that_lists_or_reports_has_it():
    commands = dict(_commands(typer.main.get_command(app), None))
    having = {
        name
        for name, command in commands.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert having >= {*(name.split(" ")[0] for name in LINES), "doctor"}


def test_a_run_has_no_document():
    fail("train --json", "--json")


@pytest.mark.parametrize("name", ["results-validate", "data-check", "compare"])
def test_what_is_wrong_is_in_the_document_and_in_the_exit_code(results, tmp_path, name):
    rest, _ = LINES[name]
    for path in [*results.rglob("*.json"), tmp_path / "photos" / "cat" / "1.png"]:
        path.write_text("{")
    line = as_typed(name, rest, results)
    result = call(line)
    assert result.exit_code in (1, 2)
    assert result.stderr.splitlines()[-1].startswith("error: ")
    if result.stdout:
        assert json.loads(result.stdout)["problems"]


def test_a_document_holds_no_nan(capsys):
    value = {"a": [float("nan"), 1.5, (float("-inf"),)], "é": "[/x]\x1b"}
    print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"a": [None, 1.5, [None]], "é": "[/x]\x1b"}
    assert printed.isascii()
    assert "\x1b" not in printed
