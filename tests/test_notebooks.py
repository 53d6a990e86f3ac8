"""Every notebook runs from its first cell to its last, in an empty folder.

Its cells are plain Python, so they are run as a notebook would run them, without a kernel: what a
kernel brings (25 packages, sockets, a process that may hang) tests nothing of ours. No outputs are
committed: they would be of one machine.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.broad

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
# As a kernel does: one namespace, and the last expression of a cell is shown.
RUN = """
import ast, json, sys
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]), f"cell {number}")
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        print(f"[{number}]", repr(shown), flush=True)
"""


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_plain_and_has_no_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["language_info"]["name"]) == (4, "python")
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert max(map(len, "".join(cell["source"]).splitlines())) <= 120
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))  # no magics of a kernel


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    words = [sys.executable, "-c", RUN, str(path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert any("<Results: 4 records in results" in line for line in shown)
    assert any("<Board: " in line for line in shown)
    assert (tmp_path / "board/leaderboard.html").is_file()
