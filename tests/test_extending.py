"""The recipes of docs/extending.md, carried out as the page tells them, on a copy of the sources.

Each recipe writes files (blocks with a title), adds lines to a table (blocks of a diff), and runs
its commands. What a newcomer has to touch is counted, too.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## (A [^\n]+)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = {heading: BLOCK.findall(text) for heading, text in SECTION.findall(PAGE)}
SOURCES = ("silc_bench", "tasks", "trainer")
pytestmark = pytest.mark.broad


def add_lines(path, diff):
    """Put the lines that ``diff`` adds after its context, or at the end; how many there are."""
    context = [line[1:] + "\n" for line in diff.splitlines() if line.startswith(" ")]
    added = [line[1:] + "\n" for line in diff.splitlines() if line.startswith("+")]
    text = path.read_text(encoding="utf-8")
    before = "".join(context) or text
    assert text.count(before) == 1, f"{path.name} has not exactly one place after: {before}"
    path.write_text(text.replace(before, before + "".join(added)), encoding="utf-8")
    return len(added)


def run(commands, folder):
    """Each line with "$" is run; the others stand in what the command before them prints."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, start in (("python", ""), ("silc-bench", "-m silc_bench ")):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {start}"$@"\n')
        script.chmod(0o755)

    path = f"{bin_folder}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(folder), "PATH": path, "COLUMNS": "200"}
    printed = ""
    for line in commands.splitlines():
        if not line.startswith("$ "):
            assert line.strip() in printed, f"not printed: {line}\n{printed}"
            continue
        options = {"shell": True, "cwd": folder, "env": environment, "timeout": 250}
        result = subprocess.run(line[2:], capture_output=True, text=True, **options)
        printed = result.stdout + result.stderr
        assert result.returncode == 0, f"{line}\n{printed}"


@pytest.mark.parametrize(
    ("name", "files", "lines"),
    [("A dataset", 1, 0), ("A task family", 1, 1), ("A model family", 1, 1), ("A loss", 0, 1)],
)
def test_a_recipe_works_as_the_page_tells_it(name, files, lines, tmp_path):
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=unwanted)

    touched = {"files": 0, "lines": 0}
    for kind, title, content in RECIPES[name]:
        path = tmp_path / title
        if kind == "console":
            run(content, tmp_path)
        elif kind == "diff":
            added = add_lines(path, content)
            touched["lines"] += added if "\n def " not in content.replace("+", " ") else 0
        else:
            assert not path.exists(), f"{title} is there already"
            path.write_text(content, encoding="utf-8")
            touched["files"] += title.startswith(SOURCES)
    assert touched == {"files": files, "lines": lines}


def test_no_recipe_is_left_out():
    assert list(RECIPES) == ["A dataset", "A task family", "A model family", "A loss"]
