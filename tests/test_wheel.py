"""An installation adds one name, ``silc_bench``, with all of three folders, and spares yours."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.broad

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("silc_bench", "tasks", "trainer", "pyproject.toml", "README.md", "LICENSE")
# What else a source archive holds.
AROUND = ("docs", "tests", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md")
PARTS = (*PACKAGE, *AROUND, "Makefile", "constraints.txt", "mkdocs.yml")
BUILD = (
    "from setuptools import build_meta; build_meta.build_wheel('dist'); "
    "build_meta.build_sdist('dist')"
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """What a release would upload, built from a copy of the checkout."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="this setuptools cannot build the package"
    )
    copy = tmp_path_factory.mktemp("checkout")
    for name in PARTS:
        if (ROOT / name).is_dir():
            no_cache = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=no_cache)
        else:
            shutil.copy(ROOT / name, copy)
    (copy / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return copy / "dist"


def files_of_the_checkout():
    files = set()
    for name in ("silc_bench", "silc_bench/tasks", "silc_bench/trainer"):
        for path in (ROOT / name).resolve().rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inner = path.relative_to((ROOT / name).resolve()).as_posix()
                files.add(f"{name}/{inner}")
    return files


def test_a_wheel_installs_one_name_with_every_file(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = (name for name in names if name.endswith("top_level.txt"))
        assert archive.read(top_level).decode().split() == ["silc_bench"]
    installed = [name for name in names if ".dist-info/" not in name]
    assert sorted(installed) == sorted(files_of_the_checkout())
    (licence,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
    assert [name for name in names if "LICENSE" in name or "LICENCE" in name] != [licence]


# A type of each of the three folders; without a ``py.typed`` that holds for all of them mypy would
# know none of these, and would not mind the last line.
PROGRAM = """\
from silc_bench.task import Scores
from silc_bench.tasks.selection import words_of
from silc_bench.trainer.config.presets import configure
count: int = Scores({}, {}, 1, 0.0, {}).n + configure("b16", "silc").batch_size
words: int = words_of("shapes")
"""


def test_types_hold_for_a_program_that_uses_the_wheel(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", tmp_path / "venv/bin/python"]
    # This venv has no library but ours.
    done = subprocess.run(
        [*mypy, "--ignore-missing-imports", "--no-error-summary", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert re.findall(r"^program.py:(\d+): error: .*\[(.*)\]$", done.stdout, re.MULTILINE) == [
        ("5", "assignment")
    ], done.stdout + done.stderr


def test_published_numbers_are_found_far_from_the_checkout(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    program = (
        "from silc_bench.results import published; rows, problems = published.load(['results']);"
        "print(published.__file__, sorted({row.collection for row in rows}), len(problems))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split(maxsplit=1) == [
        str(tmp_path / "installed" / "silc_bench" / "results" / "published.py"),
        "['open_clip', 'papers'] 0\n",
    ], done.stderr


def test_a_source_archive_holds_files_in_place_of_links(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = {member.name.partition("/")[2]: member for member in tar.getmembers()}
    assert files_of_the_checkout() <= set(members)
    assert not any(member.issym() or member.islnk() for member in members.values())
    assert {"docs/training.md", "docs/images/compare.png", "tests/test_wheel.py"} <= set(members)
    assert {name for name in PARTS if (ROOT / name).is_file()} <= set(members)
    assert not any("__pycache__" in name for name in members)


@pytest.mark.parametrize("words", [("tasks",), ("train", "--show-config")], ids=" ".join)
def test_a_folder_with_tasks_and_a_trainer_of_its_own_is_in_nobodys_way(tmp_path, words):
    (tmp_path / "tasks.py").write_text("raise SystemExit('the wrong tasks')")
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('the wrong trainer')")
    command = [sys.executable, "-m", "silc_bench", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"tasks": "shapes/zeroshot", "train": "vision.image_size"}[words[0]] in done.stdout
