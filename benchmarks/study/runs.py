"""The runs of the study: which are asked for, which have ended, and what one of them does.

Each finished run is a line of a file (``lines_of``); a job is such a line before its outcome. So
what has a line is not done again, and a study goes on from any checkout.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from plan import (
    ARMS,
    CHOSEN,
    DECISIVE,
    FINALISTS,
    MEASURES,
    OF_TEACHER,
    PRESET,
    QUICK_SAMPLES,
    SAMPLES,
    SEARCHED,
    SETTINGS,
    TRIED,
    TUNED_ON,
    TUNING_SEEDS,
)

HERE = Path(__file__).parent
FRESH = 1  # seed of the scenes on which the confirmation is measured; all else has 0


@dataclass(frozen=True)
class Study:
    """Where the lines and the checkpoints lie, and how much of it is done."""

    out: Path
    work: Path
    processes: int = 2
    num_seeds: int = 8
    is_quick: bool = False

    @property
    def tried(self) -> tuple[tuple[str, str], ...]:
        return TRIED[:FINALISTS] if self.is_quick else TRIED

    def lines_of(self, step: str, setting: str = TUNED_ON) -> Path:
        return self.out / f"{setting}-{step}.jsonl"

    def rows(self, step: str, setting: str = TUNED_ON) -> list[dict[str, Any]]:
        path = self.lines_of(step, setting)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tune(study: Study) -> None:
    """Each arm with each pair, and the best of an arm once more; on "val"."""
    first, second = TUNING_SEEDS
    asked = [job(study, TUNED_ON, arm, first, pair, "val") for arm in ARMS for pair in study.tried]
    carry_out(study, "tune", TUNED_ON, asked)
    if not study.is_quick:
        finals = finalists(study)
        asked = [
            job(study, TUNED_ON, arm, second, pair, "val") for arm in ARMS for pair in finals[arm]
        ]
        carry_out(study, "tune", TUNED_ON, asked)
    for arm, (lr, clip) in best(study).items():
        print(f"{arm}: optim.lr={lr} optim.clip_norm={clip}")


def run(study: Study, setting: str) -> None:
    """Each arm with its best pair, on "test"."""
    pairs = best(study)
    plan = SETTINGS[setting]
    changes: dict[str, Any] = {}
    samples = dict.fromkeys(plan.arms, QUICK_SAMPLES if study.is_quick else SAMPLES)
    if plan.is_confirmation:
        if not CHOSEN:
            sys.exit("the search has chosen nothing yet: write it into CHOSEN of plan.py")
        variant = SEARCHED[CHOSEN]
        changes = {"variant": CHOSEN, "sets": dict(variant.sets)}
        samples = dict.fromkeys(plan.arms, variant.samples)
    if plan.has_equal_seconds:
        samples = equal_seconds(study, plan.others_of, plan.arms)

    split = "fresh" if plan.is_confirmation else "test"
    asked = [
        job(study, setting, arm, seed, pairs[arm], split, samples[arm])
        | (changes if arm in variant_arms(plan.is_confirmation) else {})
        for seed, arm in itertools.product(plan.seeds[: study.num_seeds], plan.arms)
    ]
    carry_out(study, "run", setting, asked)


def variant_arms(is_confirmation: bool) -> tuple[str, ...]:
    """The arms whose settings the chosen variant changes; the others stay as tuned."""
    return SEARCHED[CHOSEN].arms if is_confirmation else ARMS


def search(study: Study) -> None:
    """Each of SEARCHED with each of its arms, on "val", with the tuning seeds."""
    pairs = best(study)
    asked = [
        job(study, TUNED_ON, arm, seed, pairs[arm], "val", variant.samples)
        | {"variant": name, "sets": dict(variant.sets)}
        for seed in TUNING_SEEDS
        for name, variant in SEARCHED.items()
        for arm in variant.arms
    ]
    carry_out(study, "search", TUNED_ON, asked)


def equal_seconds(study: Study, setting: str, arms: Iterable[str]) -> dict[str, int]:
    """Images with which each arm trains as many CPU seconds as silc does in ``setting``."""
    seconds: dict[str, list[float]] = {}
    for row in study.rows("run", setting):
        seconds.setdefault(row["arm"], []).append(row["train_seconds"])
    if any(len(seconds.get(arm, ())) < study.num_seeds for arm in (*arms, "silc")):
        sys.exit(f"{setting} is not complete: python benchmarks/study run --setting {setting}")
    batch = 64  # of the preset: whole batches
    return {
        arm: round(SAMPLES * mean(seconds["silc"]) / mean(seconds[arm]) / batch) * batch
        for arm in arms
    }


# ---- what tuning chooses ----


def finalists(study: Study) -> dict[str, list[tuple[str, str]]]:
    """Of each arm the pairs that were best with the first tuning seed, the best first."""
    of_first = ranked(study, TUNING_SEEDS[:1])
    if any(set(study.tried) - set(of_first[arm]) for arm in ARMS):
        sys.exit(f"{study.lines_of('tune')} is not complete: python benchmarks/study tune")
    return {arm: pairs[:FINALISTS] for arm, pairs in of_first.items()}


def best(study: Study) -> dict[str, tuple[str, str]]:
    """Of each arm the finalist that was best over all tuning seeds."""
    finals = finalists(study)
    of_all = finals if study.is_quick else ranked(study, TUNING_SEEDS)
    if any(set(finals[arm]) - set(of_all[arm]) for arm in ARMS):
        sys.exit(f"{study.lines_of('tune')} is not complete: python benchmarks/study tune")
    return {arm: next(pair for pair in of_all[arm] if pair in finals[arm]) for arm in ARMS}


def ranked(study: Study, seeds: tuple[int, ...]) -> dict[str, list[tuple[str, str]]]:
    """Of each arm the pairs that were tried with all of ``seeds``, the best first.

    By the decisive measures, summed, in the mean over these seeds.
    """
    scores: dict[str, dict[tuple[str, str], dict[int, float]]] = {arm: {} for arm in ARMS}
    for row in study.rows("tune"):
        value = sum(row["student"][name] for name in DECISIVE)
        scores[row["arm"]].setdefault((row["lr"], row["clip"]), {})[row["seed"]] = value
    return {
        arm: sorted(
            (pair for pair, of_seed in pairs.items() if set(seeds) <= set(of_seed)),
            key=lambda pair: mean(pairs[pair][seed] for seed in seeds),
            reverse=True,
        )
        for arm, pairs in scores.items()
    }


# ---- jobs ----


def job(
    study: Study,
    setting: str,
    arm: str,
    seed: int,
    pair: tuple[str, str],
    split: str,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    return {
        "setting": setting,
        "source": SETTINGS[setting].source,
        "samples": QUICK_SAMPLES if study.is_quick else samples,
        "arm": arm,
        "seed": seed,
        "lr": pair[0],
        "clip": pair[1],
        "split": split,
    }


def carry_out(study: Study, step: str, setting: str, jobs: list[dict[str, Any]]) -> None:
    """Run the jobs that have no line yet; a line is added when its run has ended."""
    path = study.lines_of(step, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = study.rows(step, setting)
    waiting = [one for one in jobs if not any(is_of(row, one) for row in done)]
    print(f"{step} {setting}: {len(jobs) - len(waiting)} of {len(jobs)} runs are there", flush=True)

    def start(number: int) -> None:
        one = waiting[number]
        words = [str(one[key]) for key in ("variant", "arm", "seed", "lr", "clip") if key in one]
        folder = study.work / setting / step / "-".join(words).replace(" ", "_")
        command = [sys.executable, str(HERE), "job", "--job"]
        command.append(json.dumps(one | {"folder": str(folder)}))
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
        if answer.returncode:
            sys.exit(f"{one}\n{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}")
        with open(path, "a", encoding="utf-8") as file:
            file.write(answer.stdout.splitlines()[-1] + "\n")
        print(f"{number + 1} of {len(waiting)}: {', '.join(words)}", flush=True)

    with ThreadPoolExecutor(study.processes) as pool:
        list(pool.map(start, range(len(waiting))))


def is_of(row: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Whether a line is the outcome of this job."""
    names = {*job, "variant", "sets"}
    return all(row.get(name) == job.get(name) for name in names)


def run_job(one: dict[str, Any]) -> None:
    """Train, measure, and print the line of the run; exit where the run was stopped or failed."""
    folder = Path(one["folder"])
    command = ["train", "--preset", PRESET, "--objective", one["arm"]]
    command += ["--data", one["source"], "--samples", str(one["samples"])]
    command += ["--seed", str(one["seed"]), "--out", str(folder)]
    sets = {"optim.lr": one["lr"], "optim.clip_norm": one["clip"], "log_every": "50"}
    for name, value in {**sets, **one.get("sets", {})}.items():
        command += ["--set", f"{name}={value}"]
    if any(folder.glob("checkpoints/step_*.pt")):
        command.append("--resume")
    began = time.process_time()
    silc_bench(command)
    seconds = time.process_time() - began

    # tuning asks for what it chooses by, of the student alone: a fifth of the time
    is_tuned = one["split"] == "val"
    asked = {"student": DECISIVE if is_tuned else tuple(MEASURES)}
    if one["arm"].startswith("silc") and not is_tuned:
        asked["teacher"] = OF_TEACHER
    suffix = register_on(one["split"])
    row = {name: one[name] for name in one if name != "folder"} | {"train_seconds": seconds}
    for branch, columns in asked.items():
        results = folder / f"records-{branch}"
        tasks = ",".join(MEASURES[name][0].replace("/", f"{suffix}/") for name in columns)
        measure = ["eval", "--ckpt", f"{folder}:{branch}", "--tasks", tasks, "--cache", "off"]
        silc_bench([*measure, "--results", str(results)])
        records = [json.loads(path.read_text()) for path in results.rglob("*.json")]
        row[branch] = {name: measured(records, name, suffix) for name in columns}
        row["commit"] = records[0]["code"]["commit"]
    print(json.dumps(row))


def silc_bench(command: list[str]) -> None:
    """Carry out a command of ours.

    A run that was stopped leaves a checkpoint of half its steps, which must not be measured as if
    it were whole. So the process ends where a command does not end well.
    """
    from silc_bench.cli.app import app

    code = app(command, standalone_mode=False)
    if code:
        sys.exit(code)


def measured(records: list[dict[str, Any]], column: str, suffix: str) -> float:
    task, metric = MEASURES[column]
    by_task = {record["task"]["name"]: record["metrics"] for record in records}
    return float(by_task[task.replace("/", f"{suffix}/")][metric])


def register_on(split: str) -> str:
    """The tasks of ``places`` on another split, or on fresh scenes of "test"; the names' suffix.

    For this process alone. Nothing is registered for "test", which the tasks have already.
    """
    from dataclasses import replace

    from silc_bench.datasets.generated.places.dataset import Places, PlacesThings
    from silc_bench.task import register
    from silc_bench.tasks.selection import all_tasks

    if split == "test":
        return ""
    scored, seed = ("test", FRESH) if split == "fresh" else (split, 0)
    for name, task in list(all_tasks().items()):
        dataset, _, family = name.partition("/")
        kind = {"places": Places, "places_things": PlacesThings}.get(dataset)
        if kind is None:
            continue
        count = 1000 if family in ("zeroshot", "knn") else 500

        def load(data_root: Any, limit: int | None, kind: Any = kind, count: int = count) -> Any:
            return kind(scored, count, seed=seed, limit=limit)

        renamed = f"{dataset}_{split}/{family}"
        register(replace(task, name=renamed, sources=task.sources | {"test": load}))
    return f"_{split}"
