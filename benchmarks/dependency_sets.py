"""Do the quick tests pass with the oldest and with the newest libraries that pyproject.toml allows?

    python benchmarks/dependency_sets.py --python python3.11 --python python3.13
    python benchmarks/dependency_sets.py lowest --python python3.11

For each set and interpreter: uv picks the versions (`--resolution lowest-direct` takes the lower
bound of each library named in pyproject.toml; of those that have a wheel, nothing is compiled), a
venv is made of them, and the tests of `make test-fast` run in it. The outcome is written to
`benchmarks/dependency_sets.md`, without a date, so that a second run that finds the same changes
nothing. Exit code 1 if a test failed anywhere.

A set takes 7 GB below --work (torch brings CUDA), all sets together about 16, because those of one
kind share files; everything there is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks/dependency_sets.md"
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
# What `make test-fast` runs.
SELECTION = "not slow and not timing and not broad"
HEAD = f"""# The oldest and the newest libraries

What `python benchmarks/dependency_sets.py` found last: the tests of `make test-fast`
(`{SELECTION}`) with the lower bounds of `pyproject.toml`, and with the newest
release of everything. Where a lower bound has no wheel for a version of Python, the first release
that has one stands in its place.
"""


@dataclass(frozen=True)
class Outcome:
    """One set on one Python: what was installed, and how each test ended."""

    name: str  # "lowest, Python 3.11.7"
    versions: dict[str, str]
    passed: int
    skipped: int
    failed: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", help="lowest, newest; both without it")
    parser.add_argument("--python", action="append", help="an interpreter; may be repeated")
    parser.add_argument("--work", type=Path, help="folder for venvs and downloads; removed after")
    parser.add_argument("--jobs", type=int, default=1, help="so many sets at a time")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the outcome is written")
    arguments = parser.parse_args()
    unknown = set(arguments.sets) - set(RESOLUTIONS)
    if unknown:
        parser.error(f"no such set: {', '.join(sorted(unknown))}; there are lowest and newest")

    tried = []
    with (
        tempfile.TemporaryDirectory(prefix="sets-", dir=arguments.work) as work,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        uv = install_uv(Path(work))
        for name in arguments.sets or RESOLUTIONS:
            for python in arguments.python or [sys.executable]:
                own = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))
                tried.append(pool.submit(try_set, uv, name, python, own))
        outcomes = [outcome.result() for outcome in tried]

    write_page(outcomes, arguments.page)
    failures = sum(len(outcome.failed) for outcome in outcomes)
    print(f"{failures} failed; {arguments.page}")
    sys.exit(1 if failures else 0)


def install_uv(work: Path) -> Path:
    """uv of the package index, in a venv of its own: nobody's own uv is needed or changed."""
    run([sys.executable, "-m", "venv", work / "tools"])
    run([work / "tools/bin/pip", "install", "--quiet", "uv"])
    return work / "tools/bin/uv"


def try_set(uv: Path, name: str, python: str, work: Path) -> Outcome:
    """Picks the versions, makes a venv in ``work``, runs the tests, removes the venv."""
    asked = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    version = run([python, "-c", asked]).strip()
    title = f"{name}, Python {version}"
    print(f"{title}: picking versions", flush=True)
    # Beside the venvs, so that what two of them share is linked and not copied.
    uv_with = [uv, "--quiet", "--cache-dir", work.parent / "downloads"]
    picked = work / "picked.txt"
    compiled = [*uv_with, "pip", "compile", "--no-build", "--no-annotate", "--no-header"]
    compiled += ["--resolution", RESOLUTIONS[name], "--python-version", version]
    run([*compiled, "--extra", "dev", "--output-file", picked, "pyproject.toml"])

    print(f"{title}: installing", flush=True)
    venv = work / "venv"
    run([*uv_with, "venv", "--clear", "--python", python, venv])
    installed = [*uv_with, "pip", "install", "--no-build", "--python", venv / "bin/python"]
    run([*installed, "--requirement", picked])
    # Its metadata; the modules come from the checkout.
    run([*uv_with, "pip", "install", "--no-deps", "--python", venv / "bin/python", ROOT])

    print(f"{title}: testing", flush=True)
    report = work / "report.xml"
    command = [venv / "bin/python", "-m", "pytest", "-p", "no:cacheprovider", "-m", SELECTION]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    tested = subprocess.run(
        [*command, f"--junitxml={report}"], cwd=ROOT, env=environment, capture_output=True
    )
    if tested.returncode not in (0, 1):  # neither passed nor failed: nothing was tested
        sys.exit(f"{title}: {(tested.stdout + tested.stderr).decode()[-3000:]}")
    lines = picked.read_text(encoding="utf-8").splitlines()
    versions = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
    shutil.rmtree(venv)
    return Outcome(title, versions, *ends_of_tests(report))


def ends_of_tests(report: Path) -> tuple[int, int, tuple[str, ...]]:
    """How many passed and were skipped, and the names of those that failed."""
    passed, skipped, failed = 0, 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        ends = {child.tag for child in case}
        if ends & {"failure", "error"}:
            failed.append(f"{case.get('classname')}::{case.get('name')}"[:120])
        elif "skipped" in ends:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, tuple(failed)


def write_page(outcomes: list[Outcome], page: Path) -> None:
    """The table of ends, what failed, and the version of each library that pyproject.toml names."""
    lines = [HEAD, "| set | passed | skipped | failed |", "|---|---:|---:|---:|"]
    for outcome in outcomes:
        counts = f"{outcome.passed:,} | {outcome.skipped:,} | {len(outcome.failed):,}"
        lines.append(f"| {outcome.name} | {counts} |")
    for outcome in outcomes:
        lines += [f"\nFailed with {outcome.name}:\n"] if outcome.failed else []
        lines += [f"- `{test}`" for test in outcome.failed]

    lines.append(f"\n| library | {' | '.join(outcome.name for outcome in outcomes)} |")
    lines.append("|---" * (len(outcomes) + 1) + "|")
    for library in named_libraries():
        versions = [outcome.versions.get(library, "") for outcome in outcomes]
        lines.append(f"| {library} | {' | '.join(versions)} |")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def named_libraries() -> list[str]:
    """What pyproject.toml asks for in the sets that were tried, each once, in its order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"]]
    names = []
    while wanted:
        requirement = wanted.pop(0).partition(">=")[0]
        name, _, inner = requirement.partition("[")
        if name == "silc-bench":
            for extra in inner.rstrip("]").split(","):
                wanted += extras[extra]
        else:
            names.append(name)
    return list(dict.fromkeys(names))


def run(command: list[str | Path]) -> str:
    """What the command prints; its own words if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
