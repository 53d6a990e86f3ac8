"""Plant each mistake in a copy of the tree and run the tests of its line there.

One process imports what others wrote (torch, transformers, ...), nothing of ours, and forks for
each run: seconds are saved each time. A test that fails is believed if it passes without the
mistake and fails with it again, both by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from changes import Change, all_in, find
from selection import Suite

# Imported once, by the parent. The tests set HF_HUB_OFFLINE before they import transformers; here
# it is set earlier.
PEERS = (
    "numpy", "PIL.Image", "PIL.ImageDraw", "PIL.PngImagePlugin", "PIL.JpegImagePlugin", "pandas",
    "scipy.stats", "sklearn.linear_model", "sklearn.neighbors", "torch", "torch._dynamo",
    "torch.distributed", "torch.utils.data", "torch.utils.tensorboard",
    "torch.utils.flop_counter", "torchvision.transforms.v2", "torchvision.tv_tensors",
    "tokenizers", "transformers", "transformers.models.auto.modeling_auto",
    "transformers.models.siglip.modeling_siglip", "transformers.models.siglip2.modeling_siglip2",
    "transformers.models.clip.modeling_clip", "open_clip", "timm", "safetensors.torch",
    "sentencepiece", "typer.testing", "rich.console", "rich.progress", "jinja2", "jsonschema",
    "hypothesis", "hypothesis.strategies", "hypothesis.extra.numpy", "pytest",
    "_pytest.assertion.rewrite", "fsspec", "webdataset", "torchmetrics", "pycocotools.mask",
)  # fmt: skip
FIRST_TESTS, FIRST_SECONDS = 25, 10.0
HANG_SECONDS = 60.0  # a test that takes this long and ten times its own time hangs
KILLED, SURVIVED, NOT_COVERED, GONE = "killed", "survived", "not covered", "gone"


class Run(NamedTuple):
    failed: str | None  # the first test that failed, or the file that could not be collected
    why: str
    cpu: float


class Copy:
    """A tree of its own: a commit of its own, compiled once, one file changed at a time."""

    def __init__(self, tree: Path, place: Path) -> None:
        self.tree, self.place = tree, place
        self.num_planted = 0

    def make(self) -> None:
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "__pycache__", ".hypothesis", ".*_cache", "runs", "demo"
        )
        shutil.copytree(self.tree, self.place, ignore=ignored, symlinks=True)
        told = os.environ | {
            f"GIT_{who}_{what}": "mutants"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        for words in (
            ["init", "-q"],
            ["add", "-A"],
            ["commit", "-q", "-m", "The tree that is judged"],
        ):
            subprocess.run(["git", *words], cwd=self.place, env=told, check=True)
        collected = run(self, ["tests"], 600, "--collect-only", writes_bytecode=True)
        assert collected.failed is None, collected

    def plant(self, change: Change) -> None:
        path = self.place / change.file
        path.write_bytes(change.plant(path.read_bytes()))
        self.num_planted += 1
        moment = (
            time.time() + 1000 * self.num_planted
        )  # no bytecode of an earlier state has this time
        os.utime(path, (moment, moment))

    def restore(self, change: Change) -> None:
        shutil.copy2(self.tree / change.file, self.place / change.file)


def import_peers() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PEERS:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        import torch

        torch.set_num_threads(1)
        torch.optim.AdamW([torch.zeros(1)])  # the first one imports what every training run needs


def judge_all(
    mutants: list[dict[str, Any]],
    tree: Path,
    folder: Path,
    verdicts: Path,
    *,
    killers: dict[int, str],
    num_processes: int,
    limit: float,
) -> None:
    import_peers()
    assert not {"silc_bench", "tasks", "trainer"} & sys.modules.keys(), (
        "ours is imported by each run anew"
    )
    suite, known = Suite(tree, folder), all_in(tree)
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copies = [Copy(tree, Path(place, str(number), "tree")) for number in range(num_processes)]
        copies[0].make()
        for copy in copies[1:]:
            shutil.copytree(copies[0].place, copy.place, symlinks=True)
        busy: dict[int, Copy] = {}
        for mutant in mutants:
            change = find(known, mutant)
            first = [killers[mutant["number"]]] if mutant["number"] in killers else []
            if change:
                suite.select(
                    change, first=first, limit=limit
                )  # read here, as SQLite does not like forks
            if not copies:
                copies.append(busy.pop(os.wait()[0]))
            copy = copies.pop()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    verdict = (
                        judge(change, suite, copy, first, limit) if change else {"verdict": GONE}
                    )
                    row = {"number": mutant["number"]} | verdict
                    with verdicts.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
                    status = 0
                finally:
                    os._exit(status)
            busy[child] = copy
        for _ in range(len(busy)):
            os.wait()


def judge(
    change: Change, suite: Suite, copy: Copy, first: list[str], limit: float
) -> dict[str, Any]:
    chosen = suite.select(change, first=first, limit=limit)
    says = {
        "how": chosen.how,
        "covering": chosen.num_covering,
        "chosen": len(chosen.tests),
        "cut": chosen.is_cut,
    }
    if not chosen.tests:
        return {"verdict": NOT_COVERED, **says}
    doubted: dict[str, str] = {}  # what failed once, and not for the mistake
    cpu = 0.0
    left = _portions(chosen.tests, suite)
    while left:
        names = left.pop(0)
        copy.plant(change)
        failed, why, seconds = run(copy, names, _patience(names, suite))
        copy.restore(change)
        cpu += seconds
        if failed is None:
            continue
        # Without the mistake and with it again, by itself. A file that was not collected: its first
        # test.
        alone = (
            failed
            if failed in names
            else next((name for name in names if name.startswith(failed)), names[0])
        )
        before = names[: names.index(alone) + 1]
        for again in [[alone], before][: len(before)]:
            is_good, seconds = _confirmed(change, copy, again, suite)
            cpu += seconds
            if is_good:
                return {
                    "verdict": KILLED,
                    "by": failed,
                    "why": why,
                    **says,
                    "doubted": doubted,
                    "cpu": round(cpu, 1),
                }
        doubted[failed] = why
        left.insert(0, names[names.index(alone) + 1 :])
        left = [portion for portion in left if portion]
    return {"verdict": SURVIVED, **says, "doubted": doubted, "cpu": round(cpu, 1)}


def _confirmed(change: Change, copy: Copy, names: list[str], suite: Suite) -> tuple[bool, float]:
    without, _, seconds = run(copy, names, _patience(names, suite))
    if without is not None:
        return False, seconds
    copy.plant(change)
    again, _, more = run(copy, names, _patience(names, suite))
    copy.restore(change)
    return again is not None, seconds + more


def _portions(names: list[str], suite: Suite) -> list[list[str]]:
    """A few cheap tests, then all others: most mistakes fall at the first."""
    seconds, number = 0.0, 0
    while number < min(FIRST_TESTS, len(names)) and (number == 0 or seconds < FIRST_SECONDS):
        seconds += suite.cost(names[number])
        number += 1
    return [_by_file(portion) for portion in (names[:number], names[number:]) if portion]


def _by_file(names: list[str]) -> list[str]:
    """Together what shares a file's fixtures; files in the order of their first test."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))
    return sorted(names, key=lambda name: files.index(name.partition("::")[0]))


def _patience(names: list[str], suite: Suite) -> float:
    return HANG_SECONDS + 10 * max(suite.cost(name) for name in names)


def run(
    copy: Copy, names: list[str], patience: float, *options: str, writes_bytecode: bool = False
) -> Run:
    """The tests in the copy, up to the first that fails, in a process that is killed where it
    hangs.
    """
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=copy.place.parent))
    child = os.fork()
    if child == 0:
        os._exit(_in_child(copy.place, scratch, names, options, patience, writes_bytecode))
    deadline = time.monotonic() + 3 * patience + 2 * len(names)
    status = None
    while status is None:
        time.sleep(0.05)
        pid, ended, usage = os.wait4(child, os.WNOHANG)
        if pid:
            status = os.waitstatus_to_exitcode(ended)
        elif time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests left running
    told = scratch / "failed.json"
    cpu = usage.ru_utime + usage.ru_stime
    if told.exists():
        result = Run(*json.loads(told.read_text()), cpu)
    elif status in (0, 5):
        result = Run(None, "", cpu)
    else:
        running = scratch / "running"
        result = Run(
            running.read_text() if running.exists() else names[0],
            f"the process ended with {status}",
            cpu,
        )
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(
        copy.place / ".hypothesis", ignore_errors=True
    )  # its examples would judge the next mistake
    return result


def _in_child(
    place: Path,
    scratch: Path,
    names: list[str],
    options: tuple[str, ...],
    patience: float,
    writes_bytecode: bool,
) -> int:
    os.setsid()
    output = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.dont_write_bytecode = not writes_bytecode
    sys.path[:] = [
        str(place),
        *(entry for entry in sys.path if entry and Path(entry).resolve() != Path(__file__).parent),
    ]
    for name in (
        "changes",
        "cover",
        "judge",
        "selection",
    ):  # names that ours or the tests' may have too
        sys.modules.pop(name, None)
    told = {"PYTHONPATH": str(place), "TMPDIR": str(scratch)} | (
        {} if writes_bytecode else {"PYTHONDONTWRITEBYTECODE": "1"}
    )
    os.environ.update(told)
    tempfile.tempdir = None
    os.chdir(place)
    import pytest

    words = [
        "-x",
        "-p",
        "no:cacheprovider",
        "--timeout",
        str(patience),
        "-o",
        "faulthandler_timeout=0",
    ]
    files = dict.fromkeys(name.partition("::")[0] for name in names)
    return int(pytest.main([*words, *options, *files], plugins=[_Told(scratch, names)]))


class _Told:
    """pytest plugin: runs the tests that are named, writes down which runs, and what failed first
    and why.
    """

    def __init__(self, scratch: Path, names: list[str]) -> None:
        self.scratch, self.places = scratch, {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.places),
            key=lambda item: self.places[item.nodeid],
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        (self.scratch / "running").write_text(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._tell(report, "")

    def pytest_collectreport(self, report: Any) -> None:
        self._tell(report, "not collected: ")

    def _tell(self, report: Any, before: str) -> None:
        told = self.scratch / "failed.json"
        if report.failed and not told.exists():
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
            sentence = message.strip().splitlines()[0].replace(f"{self.scratch}/", "")
            told.write_text(json.dumps([report.nodeid, before + sentence[:160]]))


def plan(
    mutants: list[dict[str, Any]], tree: Path, folder: Path, killers: dict[int, str], limit: float
) -> None:
    suite, known = Suite(tree, folder), all_in(tree)
    for mutant in mutants:
        change = find(known, mutant)
        if change is None:
            print(f"{mutant['number']:3} gone")
            continue
        first = [killers[mutant["number"]]] if mutant["number"] in killers else []
        chosen = suite.select(change, first=first, limit=limit)
        counted = (
            f"{len(chosen.tests)} tests ({chosen.num_covering} run it), {chosen.seconds:.0f} s"
        )
        cut = ", cut" if chosen.is_cut else ""
        print(f"{mutant['number']:3} {change.file}:{change.lines[0]} {chosen.how}: {counted}{cut}")
