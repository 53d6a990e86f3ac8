"""What the leaderboard of many models costs, and how fast its page answers.

Records of made-up models are written (each task asks all of them; every second one names 100
classes, as CIFAR-100 does) -> ``silc-bench leaderboard --out`` in a process of its own: its CPU
seconds and its peak memory -> the page in chromium: milliseconds until it is interactive, of a sort
of the longest table, and of a filter, each to the frame that shows it.

    python benchmarks/page.py --models 500 --tasks 40
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from silc_bench.results.question import MODELS_OWN, Question
from silc_bench.results.record import Record, key, record_path
from silc_bench.results.setup import Setup
from silc_bench.system.checksums import CHECKSUMS, sealed
from silc_bench.task import Scores
from silc_bench.tasks.selection import current_version

GROUPS = {
    "zeroshot": "zero-shot",
    "fewshot": "few-shot",
    "linear": "linear",
    "knn": "knn",
    "retrieval": "retrieval",
    "segmentation_linear": "dense",
}
CLASSES = [f"class number {index}" for index in range(100)]
# from the click on an element to the frame that shows what it did
TIMED = """([selector, value]) => new Promise(done => {
  const element = document.querySelector(selector);
  const start = performance.now();
  window.addEventListener("hashchange", () => requestAnimationFrame(
    () => setTimeout(() => done(performance.now() - start))), {once: true});
  if (value === null) element.click();
  else { element.value = value; element.dispatchEvent(new Event("input")); }
})"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=40)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        size = write_records(results, options.models, options.tasks)
        print(f"{options.models} models x {options.tasks} tasks: {size / 1e6:.0f} MB of records")
        command = [sys.executable, "-m", "silc_bench", "leaderboard"]
        command += ["--results", str(results), "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        page = Path(folder) / "leaderboard.html"
        seconds = used.ru_utime + used.ru_stime
        print(f"leaderboard --out: {seconds:.1f} s CPU, {used.ru_maxrss / 1024:.0f} MB")
        print(f"the page: {page.stat().st_size / 1e6:.1f} MB")
        for what, milliseconds in browse(page).items():
            print(f"{what}: {milliseconds:.0f} ms")


def write_records(results: Path, num_models: int, num_tasks: int) -> int:
    """Bytes written. Whole files at once: validating each would take longer than all else."""
    draws = random.Random(0)
    families = list(GROUPS)
    questions = [_question(index, families[index % len(families)]) for index in range(num_tasks)]
    templates = [_template(question, _setup(0)) for question in questions]
    size = 0
    for model in range(num_models):
        name, revision, setup = f"open_clip:ViT-{model}/made_up", f"{model:016x}", _setup(model)
        for question, template in zip(questions, templates, strict=True):
            path = record_path(results, name, revision, question.task, key(question, setup))
            path.parent.mkdir(parents=True, exist_ok=True)
            text = _record(template, setup, name, revision, draws)
            size += path.write_text(text, encoding="utf-8")
    return size


def _setup(model: int) -> Setup:
    return Setup(
        image={"size": 224, "mean": [model / 1000] * 3},
        text={"length": 77},
        network={},
        feature_point="pooled",
        precision="fp32",
        device="cpu",
        libraries={"torch": "2.15.0"},
    )


def _question(index: int, family: str) -> Question:
    dataset = {"name": f"set{index}", "split": "test", "fingerprint": f"{index:016x}"}
    templates = [f"a photo of a {{c}}, {number}." for number in range(18)]
    task = f"set{index}/{family}"
    return Question(
        task=task,
        task_version=current_version(task) or 1,  # another one would not rank
        main_metric="acc1",
        protocol="native",
        protocol_version=1,
        image=MODELS_OWN,
        class_names={"count": 100, "sha256": "0" * 16},
        asks={"templates": templates},
        dataset={**dataset, "pools": {}, "masks": {}},
        limit=None,
    )


def _template(question: Question, setup: Setup) -> dict[str, Any]:
    """The fields of a record of this question, as the program writes them."""
    family = question.task.partition("/")[2]
    model = SimpleNamespace(name="x", revision="0" * 16, num_params=1, image_size=224)
    task = SimpleNamespace(
        name=question.task,
        version=question.task_version,
        group=GROUPS[family],
        main_metric=question.main_metric,
    )
    metrics = dict.fromkeys(("acc1", "acc5", "mean_per_class_recall"), 0.5)
    scores = Scores(metrics, dict.fromkeys(metrics, 0.004), 10_000, chance=0.01)
    record = Record.create(model, task, scores, question, setup, model_source="x", seconds=1)
    fields = json.loads(record.to_json())
    del fields[CHECKSUMS]
    return fields


def _record(
    template: dict[str, Any], setup: Setup, name: str, revision: str, draws: random.Random
) -> str:
    value = draws.uniform(0.1, 0.9)
    metrics = {"acc1": value, "acc5": value + 0.1, "mean_per_class_recall": value}
    details: dict[str, Any] = {"cost": 0.1}
    if int(template["question"]["dataset"]["name"].removeprefix("set")) % 2 == 0:
        details = {"acc1_by_class": [[name, draws.randrange(101) / 100] for name in CLASSES]}
    model = {"name": name, "source": name, "revision": revision}
    model["params"] = draws.choice((86, 150, 428, 986, 2540)) * 1_000_000
    fields = {**template, "metrics": metrics, "details": details, "setup": setup.as_dict()}
    fields["model"] = template["model"] | model
    return json.dumps(sealed(fields), indent=2)


def browse(page: Path) -> dict[str, float]:
    """Milliseconds, in chromium."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("SILC_BENCH_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(page.as_uri())
        tab.wait_for_selector("main[data-ready]")
        name = "performance.getEntriesByType('navigation')[0].domInteractive"
        times = {"interactive": tab.evaluate(name)}
        for what, selector, value in (
            ("sort of the overview", "#overview thead th:nth-child(3) button", None),
            (
                "sort of a family",
                "section[data-part='zero-shot'] thead th:nth-child(3) button",
                None,
            ),
            ("filter by a name", "#q", "7"),
        ):
            times[what] = tab.evaluate(TIMED, [selector, value])
        browser.close()
    return times


if __name__ == "__main__":
    main()
