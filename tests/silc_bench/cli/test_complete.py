"""What the Tab key offers, without loading torch."""

import json
import os
import subprocess
import sys

import pytest
from made import put

from silc_bench.cli import complete, export
from silc_bench.errors import UserError
from silc_bench.evaluation import protocols
from silc_bench.evaluation.settings import EXISTING
from silc_bench.models.interface import FEATURE_POINTS, JOINT
from silc_bench.reports import leaderboard
from silc_bench.reports.comparison import report
from silc_bench.reports.view import GROUPED_BY, SORTED_BY

pytestmark = pytest.mark.broad

PROGRAM = """
import contextlib, io, json, os, sys
from silc_bench.cli.app import app

os.environ["_SILC_BENCH_COMPLETE"] = "complete_bash"
offered = []
for line in json.loads(sys.argv[1]):
    os.environ.update(COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        app(prog_name="silc-bench")
    offered.append(out.getvalue().split())
heavy = [name for name in ("numpy", "torch", "pandas", "scipy") if name in sys.modules]
print(json.dumps({"offered": offered, "heavy": heavy}))
"""
LINES = {  # a line as far as it is typed, and what is offered
    "silc-bench lead": ["leaderboard"],
    "silc-bench cache p": ["prune"],
    "silc-bench eval --batch": ["--batch-size"],
    "silc-bench train --preset l": ["l16"],
    "silc-bench train --objective contrastive+": ["contrastive+views"],
    "silc-bench train --set optim.lock": ["optim.locked="],
    "silc-bench eval --tasks camvid_mini/c": ["camvid_mini/correspondence"],
    "silc-bench eval --tasks knn,camvid_mini/c": ["knn,camvid_mini/correspondence"],
    "silc-bench eval --protocol na": ["native", "naclip"],
    "silc-bench eval --device c": ["cpu", "cuda"],
    "silc-bench leaderboard --format md,": ["md,csv", "md,json", "md,html", "md,tex", "md,parquet"],
    "silc-bench leaderboard --sort par": ["params"],
    "silc-bench compare own-": ["own-a", "own-b"],
    "silc-bench results ls --models own-a,own-": ["own-a,own-b"],
    "silc-bench data check voc2": ["voc20", "voc21"],
    "silc-bench export x --to s": ["safetensors"],
    "silc-bench env --device": ["--device"],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What one process offers to all lines, in a folder whose file names the results."""
    folder = tmp_path_factory.mktemp("own")
    for model in ("own-a", "own-b"):
        put(folder / "kept", model, 0.5)
    (folder / "kept" / "broken@1" / "x").mkdir(parents=True)
    (folder / "kept" / "broken@1" / "x" / "y.json").write_text("{")
    (folder / "silc-bench.toml").write_text('results = "kept"\n[eval]\nlimit = 3\n')
    environ = {name: text for name, text in os.environ.items() if name != "SILC_BENCH_CONFIG"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(LINES))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", LINES)
def test_what_is_offered(answers, line):
    assert dict(zip(LINES, answers["offered"], strict=True))[line] == LINES[line]


def test_nothing_heavy_is_loaded(answers):
    assert answers["heavy"] == []


def test_words_that_are_written_down_are_those_of_the_modules():
    for name in complete.PROTOCOLS:
        protocols.choose(name)
    with pytest.raises(UserError) as unknown:
        protocols.choose("?")
    assert set(complete.PROTOCOLS) == set(unknown.value.fix.removeprefix("known: ").split(", "))
    assert set(complete.DENSE_METHODS) == set(JOINT)
    assert set(complete.FEATURE_POINTS) == set(FEATURE_POINTS)
    assert complete.EXISTING == EXISTING
    assert set(complete.BOARDS) == set(leaderboard.FORMATS)
    assert set(complete.COMPARISONS) == set(report.FORMATS)
    assert complete.targets(None) == tuple(export.LOADING)
    assert set(complete.WORDS["group_by"](None)) == set(GROUPED_BY)
    assert set(SORTED_BY) < set(complete.order(None))
