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
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from differences import Rows, differences
from plan import (
    AGAINST,
    FINALISTS,
    PHOTOGRAPHS,
    PLACES,
    QUICK_SAMPLES,
    SEARCH_FINALISTS,
    SEARCHED,
    SETTINGS,
    TRIED_LATER,
    TUNING_SEEDS,
    VARIANTS,
    Pair,
    World,
)

HERE = Path(__file__).parent
FRESH = 1  # seed of the scenes on which the confirmation is measured; all else has 0
VAL_SHARD = "cifar100-train-000009.tar"  # which no run of photographs learns from


@dataclass(frozen=True)
class Study:
    """Where lines, checkpoints and photographs lie, and how much of it is done."""

    out: Path
    work: Path
    processes: int = 2
    num_seeds: int | None = None  # of each setting; None: all
    is_quick: bool = False
    data_root: Path | None = None

    def tried(self, world: World) -> tuple[Pair, ...]:
        return world.tried[:FINALISTS] if self.is_quick else world.tried

    def has_second_seed(self, world: World) -> bool:
        return world.has_second_seed and not self.is_quick

    def seeds(self, setting: str) -> tuple[int, ...]:
        return SETTINGS[setting].seeds[: self.num_seeds]

    def lines_of(self, step: str, setting: str) -> Path:
        return self.out / f"{setting}-{step}.jsonl"

    def rows(self, step: str, setting: str) -> Rows:
        path = self.lines_of(step, setting)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tune(study: Study, world: World) -> None:
    """Each arm with each pair, and the best of an arm once more; on "val"."""
    first, second = TUNING_SEEDS
    setting = world.tuned_on
    pairs = study.tried(world)
    asked = [job(study, setting, arm, first, pair, "val") for arm in world.arms for pair in pairs]
    carry_out(study, "tune", setting, asked)
    if study.has_second_seed(world):
        finals = finalists(study, world)
        asked = [
            job(study, setting, arm, second, pair, "val")
            for arm in world.arms
            for pair in finals[arm]
        ]
        carry_out(study, "tune", setting, asked)
    for arm, (lr, clip) in best(study, world).items():
        print(f"{arm}: optim.lr={lr} optim.clip_norm={clip}")


def run(study: Study, setting: str) -> None:
    """Each arm with its best pair, on "test"."""
    plan = SETTINGS[setting]
    pairs = best(study, plan.world)
    if plan.is_confirmation:
        carry_out(study, "run", setting, confirmation(study, setting, pairs))
        return
    samples = dict.fromkeys(plan.arms, plan.samples)
    if plan.has_equal_seconds:
        samples = equal_seconds(study, plan.others_of, plan.arms)
    asked = [
        job(study, setting, arm, seed, pairs[arm], "test", samples[arm])
        for seed, arm in itertools.product(study.seeds(setting), plan.arms)
    ]
    carry_out(study, "run", setting, asked)


def confirmation(study: Study, setting: str, pairs: dict[str, Pair]) -> list[dict[str, Any]]:
    """The jobs of what the search chose; an arm that this leaves as it was runs as tuned."""
    name = chosen(study)
    variant = SEARCHED[name]
    changes = {"variant": name, "sets": dict(variant.sets), "samples": variant.samples}
    return [
        job(study, setting, arm, seed, pairs[arm], "fresh")
        | (changes if arm in variant.arms else {})
        for seed, arm in itertools.product(study.seeds(setting), SETTINGS[setting].arms)
    ]


def search(study: Study) -> None:
    """Each of SEARCHED, the best once more, then TRIED_LATER; with each of its arms, on "val"."""
    first, second = TUNING_SEEDS
    setting = PLACES.tuned_on
    pairs = best(study, PLACES)

    def carry_out_with(seed: int, names: Iterable[str]) -> None:
        asked = [
            job(study, setting, arm, seed, pairs[arm], "val", VARIANTS[name].samples)
            | {"variant": name, "sets": dict(VARIANTS[name].sets)}
            for name in names
            for arm in VARIANTS[name].arms
        ]
        carry_out(study, "search", setting, asked)

    carry_out_with(first, SEARCHED)
    finals = sorted(SEARCHED, key=lambda name: margin(study, name, [first]), reverse=True)
    carry_out_with(second, finals[:SEARCH_FINALISTS])
    print(f"chosen: {chosen(study)}", flush=True)

    carry_out_with(first, TRIED_LATER)
    carry_out_with(second, (name for name in TRIED_LATER if margin(study, name, [first]) > 0))


def equal_seconds(study: Study, setting: str, arms: Iterable[str]) -> dict[str, int]:
    """Images with which each arm trains as many CPU seconds as silc does in ``setting``."""
    seconds: dict[str, list[float]] = {}
    for row in study.rows("run", setting):
        seconds.setdefault(row["arm"], []).append(row["train_seconds"])
    if any(len(seconds.get(arm, ())) < len(study.seeds(setting)) for arm in (*arms, "silc")):
        sys.exit(f"{setting} is not complete: python benchmarks/study run --setting {setting}")
    batch = 64  # of the preset: whole batches
    samples = SETTINGS[setting].samples
    return {
        arm: round(samples * mean(seconds["silc"]) / mean(seconds[arm]) / batch) * batch
        for arm in arms
    }


# ---- what tuning chooses ----


def finalists(study: Study, world: World) -> dict[str, list[Pair]]:
    """Of each arm the pairs that were best with the first tuning seed, the best first."""
    of_first = ranked(study, world, TUNING_SEEDS[:1])
    if any(set(study.tried(world)) - set(of_first[arm]) for arm in world.arms):
        raise not_tuned(study, world)
    return {arm: pairs[:FINALISTS] for arm, pairs in of_first.items()}


def best(study: Study, world: World) -> dict[str, Pair]:
    """Of each arm the finalist that was best over all tuning seeds."""
    finals = finalists(study, world)
    of_all = ranked(study, world, TUNING_SEEDS) if study.has_second_seed(world) else finals
    if any(set(finals[arm]) - set(of_all[arm]) for arm in world.arms):
        raise not_tuned(study, world)
    return {arm: next(pair for pair in of_all[arm] if pair in finals[arm]) for arm in world.arms}


def not_tuned(study: Study, world: World) -> SystemExit:
    command = f"python benchmarks/study tune --setting {world.tuned_on}"
    return SystemExit(f"{study.lines_of('tune', world.tuned_on)} is not complete: {command}")


def ranked(study: Study, world: World, seeds: tuple[int, ...]) -> dict[str, list[Pair]]:
    """Of each arm the pairs that were tried with all of ``seeds``, the best first.

    By the measures in ``tuned_by``, summed, in the mean over these seeds; also summed over the arms
    where they share a pair.
    """
    scores: dict[str, dict[Pair, dict[int, float]]] = {arm: {} for arm in world.arms}
    for row in study.rows("tune", world.tuned_on):
        value = sum(row["student"][name] for name in world.tuned_by)
        scores[row["arm"]].setdefault((row["lr"], row["clip"]), {})[row["seed"]] = value
    if world.has_one_pair:
        scores = dict.fromkeys(scores, summed(list(scores.values())))
    return {
        arm: sorted(
            (pair for pair, of_seed in pairs.items() if set(seeds) <= set(of_seed)),
            key=lambda pair: mean(pairs[pair][seed] for seed in seeds),
            reverse=True,
        )
        for arm, pairs in scores.items()
    }


def summed(of_arms: list[dict[Pair, dict[int, float]]]) -> dict[Pair, dict[int, float]]:
    """Of the pairs and seeds that every arm has."""
    sums: dict[Pair, dict[int, float]] = {}
    for pair, of_seed in of_arms[0].items():
        seeds = set(of_seed).intersection(*(arm.get(pair, {}) for arm in of_arms))
        sums[pair] = {seed: sum(arm[pair][seed] for arm in of_arms) for seed in seeds}
    return sums


# ---- what the search chooses ----


def chosen(study: Study) -> str:
    """The finalist of the search with the highest margin over both tuning seeds."""
    found = study.rows("search", PLACES.tuned_on)
    seeds: dict[str, set[int]] = {}
    for row in found:
        if row["arm"] == "silc" and row["variant"] in SEARCHED:
            seeds.setdefault(row["variant"], set()).add(row["seed"])
    finals = [name for name in SEARCHED if seeds.get(name) == set(TUNING_SEEDS)]
    if set(seeds) != set(SEARCHED) or len(finals) < SEARCH_FINALISTS:
        lines = study.lines_of("search", PLACES.tuned_on)
        sys.exit(f"{lines} is not complete: python benchmarks/study search")
    return max(finals, key=lambda name: margin(study, name, TUNING_SEEDS))


def margin(study: Study, variant: str, seeds: Iterable[int]) -> float:
    """The smallest of the rule's differences, in points, in the mean over ``seeds``."""
    rows = [row for row in rows_of_variant(study, variant) if row["seed"] in seeds]
    return min(mean(differences(rows, arm)[name]) for arm in AGAINST for name in PLACES.decisive)


def rows_of_variant(study: Study, variant: str) -> Rows:
    """Those of the search; an arm that the variant leaves as it was comes from the tuning runs."""
    own = [row for row in study.rows("search", PLACES.tuned_on) if row["variant"] == variant]
    others = [row for row in rows_as_tuned(study) if row["arm"] not in VARIANTS[variant].arms]
    return own + others


def rows_as_tuned(study: Study) -> Rows:
    """The tuning runs of each arm's best pair."""
    pairs = best(study, PLACES)
    rows = study.rows("tune", PLACES.tuned_on)
    return [row for row in rows if (row["lr"], row["clip"]) == pairs[row["arm"]]]


# ---- jobs ----


def job(
    study: Study,
    setting: str,
    arm: str,
    seed: int,
    pair: Pair,
    split: str,
    samples: int | None = None,
) -> dict[str, Any]:
    plan = SETTINGS[setting]
    return {
        "setting": setting,
        "source": plan.source,
        "samples": QUICK_SAMPLES if study.is_quick else samples or plan.samples,
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
        places = {"folder": str(folder), "data_root": str(study.data_root or "")}
        command.append(json.dumps(one | places))
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
    folder, root = Path(one.pop("folder")), one.pop("data_root")
    world = SETTINGS[one["setting"]].world
    source = f"{root}/{one['source']}" if world.needs_data else one["source"]
    command = ["train", "--preset", world.preset, "--objective", one["arm"]]
    command += ["--data", source, "--samples", str(one["samples"])]
    command += ["--seed", str(one["seed"]), "--out", str(folder)]
    sets = {"optim.lr": one["lr"], "optim.clip_norm": one["clip"], "log_every": "50"}
    for name, value in {**sets, **world.sets, **one.get("sets", {})}.items():
        command += ["--set", f"{name}={value}"]
    if any(folder.glob("checkpoints/step_*.pt")):
        command.append("--resume")
    began = time.process_time()
    silc_bench(command)
    row = {**one, "train_seconds": time.process_time() - began}

    # tuning asks for what it chooses by, of the student alone: a fifth of the time
    is_tuned = one["split"] == "val"
    asked = {"student": world.tuned_by if is_tuned else tuple(world.measures)}
    if one["arm"].startswith("silc") and not is_tuned:
        asked["teacher"] = world.of_teacher
    patterns = tasks_on(one["split"], world, root, folder)
    for branch, columns in asked.items():
        results = folder / f"records-{branch}"
        tasks = ",".join(patterns(world.measures[name][0])[0] for name in columns)
        measure = ["eval", "--ckpt", f"{folder}:{branch}", "--tasks", tasks, "--cache", "off"]
        if world.needs_data:
            measure += ["--data-root", root]
        silc_bench([*measure, "--results", str(results)])
        records = [json.loads(path.read_text()) for path in results.rglob("*.json")]
        values = {record["task"]["name"]: record["metrics"] for record in records}
        row[branch] = {}
        for name in columns:
            task, metric = world.measures[name]
            row[branch][name] = float(values[patterns(task)[1]][metric])
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


def tasks_on(split: str, world: World, root: str, folder: Path) -> Callable[[str], tuple[str, str]]:
    """Task of a measure -> (what `eval --tasks` is given, the name that the record has)."""
    if world is PHOTOGRAPHS:
        coco = Path(root, "coco_mini")
        words = f"seg:{coco}/images,{coco}/masks,{coco}/classes.json"
        if split == "val":
            words = f"wds:{held_out(Path(root), folder)}"

        def pattern(task: str) -> tuple[str, str]:
            dataset, family = task.split("/")
            if split == "val":
                return f"{words}#{family}", f"held_out/{family}"
            return (f"{words}#{family}" if dataset == "coco_mini" else task), task

        return pattern

    suffix = register_on(split, world)

    def renamed(task: str) -> tuple[str, str]:
        return (task.replace("/", f"{suffix}/"),) * 2

    return renamed


def held_out(root: Path, folder: Path) -> Path:
    """A folder "held_out" with the shard that no run learns from, and the names of its classes."""
    held = folder / "held_out"
    (held / "test").mkdir(parents=True, exist_ok=True)
    cifar = root / "cifar100"
    (held / "classnames.json").write_bytes((cifar / "classnames.json").read_bytes())
    link = held / "test" / VAL_SHARD
    if not link.exists():
        link.symlink_to((cifar / "train" / VAL_SHARD).resolve())
    return held


def register_on(split: str, world: World) -> str:
    """A world's tasks on another split, or on fresh scenes of "test"; the suffix of their names.

    For this process alone. Nothing is registered for "test", which the tasks have already.
    """
    from dataclasses import replace

    from silc_bench.datasets.generated.places.dataset import Places, PlacesThings
    from silc_bench.datasets.generated.shapes.dataset import Shapes
    from silc_bench.task import register
    from silc_bench.tasks.selection import all_tasks

    if split == "test":
        return ""
    scored, seed = ("test", FRESH) if split == "fresh" else (split, 0)
    kinds = {"places": Places, "places_things": PlacesThings, "shapes": Shapes}
    for name in sorted({task for task, _ in world.measures.values()}):
        task = all_tasks()[name]
        dataset, _, family = name.partition("/")
        count = len(task.load(None, None)["test"])

        def load(
            data_root: Any,
            limit: int | None,
            kind: Any = kinds[dataset],
            count: int = count,
        ) -> Any:
            return kind(scored, count, seed=seed, limit=limit)

        renamed = f"{dataset}_{split}/{family}"
        register(replace(task, name=renamed, sources=task.sources | {"test": load}))
    return f"_{split}"
