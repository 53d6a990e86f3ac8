"""Light commands and everyday mistakes load nothing that computes.

Their lines, and their CPU seconds, are those of ``benchmarks/first_words.py``.
"""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WORDS = runpy.run_path(str(ROOT / "benchmarks" / "first_words.py"))
RESULTS = "--results {results}"
COMPUTING = (
    *WORDS["COMPUTING"],
    f"leaderboard {RESULTS} --out page",
    f"results validate {RESULTS}",
)
LINES = (*WORDS["LIGHT"], *WORDS["MISTAKES"], *COMPUTING)
COMPUTED_BY = {"numpy", "scipy", "pandas", "torch", "torchvision", "sklearn", "transformers"}
PROGRAM = """
import contextlib, io, json, shlex, sys
from silc_bench.cli.app import main

ends = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["silc-bench", *shlex.split(line)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    imported = [name for name in sys.modules if "." not in name]
    ends.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "imported": imported})
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """{line: how it ended}.

    One process runs them in turn: a module that one has imported, the next ones show too.
    """
    folder = tmp_path_factory.mktemp("words")
    WORDS["prepare"](folder)
    results = shlex.quote(str(ROOT / "results"))
    lines = json.dumps([line.format(results=results) for line in LINES])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, lines], capture_output=True, text=True, cwd=folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(zip(LINES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", WORDS["LIGHT"])
def test_what_lists_loads_nothing_that_computes(ends, line):
    end = ends[line]
    assert (end["code"], end["err"]) == (0, "")
    assert end["out"]
    assert COMPUTED_BY.isdisjoint(end["imported"])


@pytest.mark.parametrize("line", WORDS["MISTAKES"])
def test_a_mistake_is_answered_before_anything_is_loaded(ends, line):
    end = ends[line]
    assert (end["code"], end["out"]) == (2, ""), end["err"]
    assert end["err"]
    assert COMPUTED_BY.isdisjoint(end["imported"])


@pytest.mark.parametrize("line", COMPUTING)
def test_comparisons_need_neither_torch_nor_a_model(ends, line):
    assert ends[line]["code"] == 0
    assert {"torch", "torchvision", "transformers"}.isdisjoint(ends[line]["imported"])
