"""Which tests run which line: the suite once under coverage, each test a context of its own.

The folder then holds ``contexts`` (coverage's own SQLite file) and ``tests.json``: each test's
outcome, CPU seconds and shared fixtures, and the CPU seconds of these.
Processes that a test starts are measured too; one that is killed with SIGKILL says nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import coverage

HERE = Path(__file__).resolve().parent
SETTINGS = """\
[run]
parallel = true
data_file = {folder}/data/lines
include =
    {tree}/silc_bench/*
    {tree}/tasks/*
    {tree}/trainer/*
patch =
    _exit
    fork
disable_warnings = no-data-collected,module-not-measured
"""


def cover(tree: Path, folder: Path, chosen: list[str], markers: str | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    settings = folder / "coveragerc"
    settings.write_text(SETTINGS.format(folder=folder, tree=tree))
    path = [tree, HERE / "in_tests", Path(coverage.__file__).parents[1]]
    told = {
        "COVERAGE_PROCESS_START": settings, "MUTANTS_FOLDER": folder, "OMP_NUM_THREADS": 1,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "record_contexts",
        "--numprocesses",
        "2",
        "--dist",
        "loadfile",
    ]
    command += [*chosen, *(["-m", markers] if markers else [])]
    with (folder / "log").open("w") as log:
        subprocess.run(
            command,
            cwd=tree,
            env=os.environ | {name: str(value) for name, value in told.items()},
            stdout=log,
        )
    gather(folder)
    print(f"{folder}: {(folder / 'log').read_text().splitlines()[-1]}")


def gather(folder: Path) -> None:
    measured = coverage.Coverage(data_file=str(folder / "contexts"), config_file=False)
    measured.combine([str(path) for path in (folder / "data").iterdir()], keep=True)
    measured.save()
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("tests.*.json"))]
    ran = {name: test for part in parts for name, test in part["tests"].items()}
    fixtures = {
        name: max(part["fixtures"].get(name, 0.0) for part in parts)
        for part in parts
        for name in part["fixtures"]
    }
    (folder / "tests.json").write_text(json.dumps({"tests": ran, "fixtures": fixtures}, indent=0))
