"""Does self-distillation help where parts predict wholes? Asked on ``places``, with controls.

The rule, written down before the runs: SILC's claim holds in a setting if the difference
"silc - contrastive+views" AND the difference "silc - silc+frozen" exclude 0 (95 %
intervals, paired by seed) on linear segmentation of things and stuff and on zero-shot segmentation
of things and stuff.

The arms run on one code path. Two are controls: a teacher that keeps its first, random weights, and
targets that belong to another image. A gain that they share is no self-distillation.

Learning rate and clipping are chosen for each arm by itself, on "val", with seeds that are not
reported: every pair of TRIED with the first of TUNING_SEEDS, then the FINALISTS best of an arm with
the second one too. The highest mean of the sum of the two decisive measures is taken. TRIED is no
full grid: four rates with one clipping, and the other clipping with one rate. It is done once, with
1,024 pairs, and all settings take what it chose. Both spare time: 35 runs of a minute or two
instead of 240. The rate 4e-3 was added, for all arms, when contrastive+views turned out best at
2e-3, the highest until then.

Flow: ``tune`` -> ``run`` trains each arm with its best pair and eight seeds, and measures student
and teacher on "test" -> ``report`` writes table and verdict.

    python benchmarks/study --quick                  # all of it, very small, in runs/study_quick
    python benchmarks/study tune
    python benchmarks/study run --setting 1024
    python benchmarks/study report --setting 1024

Each finished run is a line in ``--out``, by default benchmarks/study/results, which is committed.
``tune`` and ``run`` do what has no line there yet, so a study goes on from any checkout: give the
same command again. Checkpoints lie in ``--work``; a run that was stopped goes on from its last one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).parent
ARMS = ("contrastive", "contrastive+views", "silc", "silc+frozen", "silc+shuffled")  # objectives
SETTINGS = {  # (source, images seen by a run)
    "1024": ("places:num_pairs=1024", 38_400),
    "4096": ("places:num_pairs=4096", 38_400),
    "endless": ("places", 38_400),
}
TUNED_ON = "1024"
TRIED = (  # optim.lr, clip_norm
    ("1e-3", "0.3"),
    ("2e-3", "0.3"),
    ("5e-4", "0.3"),
    ("1e-3", "1.0"),
    ("4e-3", "0.3"),
)
FINALISTS = 2  # pairs of TRIED that an arm is given with the second seed
TUNING_SEEDS = (100, 101)
SEEDS = tuple(range(8))
QUICK_SAMPLES = 3_200
MEASURES = {  # column: (task, metric)
    "linear things+stuff": ("places/segmentation_linear", "mIoU"),
    "zero-shot things+stuff": ("places/segmentation_zeroshot", "mIoU"),
    "linear things": ("places_things/segmentation_linear", "mIoU"),
    "zero-shot things": ("places_things/segmentation_zeroshot", "mIoU"),
    "correspondence": ("places/correspondence", "patch_recall@1"),
    "discovery": ("places_things/discovery", "foreground_iou"),
    "zero-shot place": ("places/zeroshot", "acc1"),
    "zero-shot thing": ("places_things/zeroshot", "acc1"),
    "kNN place": ("places/knn", "acc1_20nn"),
}
DECISIVE = ("linear things+stuff", "zero-shot things+stuff")
OF_TEACHER = (*DECISIVE, "zero-shot place", "zero-shot thing")  # the quick ones
AGAINST = ("contrastive+views", "silc+frozen")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("tune", "run", "report", "job"))
    parser.add_argument("--quick", action="store_true", help="everything, two seeds, few images")
    parser.add_argument("--setting", choices=SETTINGS, default="1024")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="lines and tables")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="checkpoints")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "job":
        run_job(json.loads(args.job))
        return
    if args.quick:
        args.out, args.work, args.seeds = Path("runs/study_quick"), Path("runs/study_quick"), 2
    what = ("tune", "run", "report") if args.quick else (args.what or parser.error("what?"),)
    for step in what:
        {"tune": tune, "run": run, "report": report}[step](args)


def tune(args: argparse.Namespace) -> None:
    """Each arm with each pair, and the best of an arm once more; on "val"."""
    args.setting = TUNED_ON
    first, second = TUNING_SEEDS
    pairs = tried(args)
    carry_out(args, "tune", [job(args, arm, first, *pair, "val") for arm in ARMS for pair in pairs])
    if not args.quick:
        finals = finalists(args)
        jobs = [job(args, arm, second, *pair, "val") for arm in ARMS for pair in finals[arm]]
        carry_out(args, "tune", jobs)
    for arm, (lr, clip) in best(args).items():
        print(f"{arm}: optim.lr={lr} optim.clip_norm={clip}")


def run(args: argparse.Namespace) -> None:
    """Each arm with its best pair, on "test"."""
    chosen = best(args)
    carry_out(
        args,
        "run",
        [
            job(args, arm, seed, *chosen[arm], "test")
            for seed, arm in itertools.product(SEEDS[: args.seeds], ARMS)
        ],
    )


def tried(args: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    return TRIED[:FINALISTS] if args.quick else TRIED


def finalists(args: argparse.Namespace) -> dict[str, list[tuple[str, str]]]:
    """Of each arm the pairs that were best with the first tuning seed, the best first."""
    of_first = ranked(args, TUNING_SEEDS[:1])
    if any(set(tried(args)) - set(of_first[arm]) for arm in ARMS):
        sys.exit(f"{lines_of(args, 'tune')} is not complete: python benchmarks/study tune")
    return {arm: pairs[:FINALISTS] for arm, pairs in of_first.items()}


def best(args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Of each arm the finalist that was best over all tuning seeds."""
    finals = finalists(args)
    of_all = finals if args.quick else ranked(args, TUNING_SEEDS)
    if any(set(finals[arm]) - set(of_all[arm]) for arm in ARMS):
        sys.exit(f"{lines_of(args, 'tune')} is not complete: python benchmarks/study tune")
    return {arm: next(pair for pair in of_all[arm] if pair in finals[arm]) for arm in ARMS}


def ranked(args: argparse.Namespace, seeds: tuple[int, ...]) -> dict[str, list[tuple[str, str]]]:
    """Of each arm the pairs that were tried with all of ``seeds``, the best first.

    By the decisive measures, summed, in the mean over these seeds.
    """
    scores: dict[str, dict[tuple[str, str], dict[int, float]]] = {arm: {} for arm in ARMS}
    for row in rows(args, "tune"):
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


def job(
    args: argparse.Namespace, arm: str, seed: int, lr: str, clip: str, split: str
) -> dict[str, object]:
    source, samples = SETTINGS[args.setting]
    return {
        "setting": args.setting,
        "source": source,
        "samples": QUICK_SAMPLES if args.quick else samples,
        "arm": arm,
        "seed": seed,
        "lr": lr,
        "clip": clip,
        "split": split,
    }


def carry_out(args: argparse.Namespace, step: str, jobs: list[dict[str, object]]) -> None:
    """Run the jobs that have no line yet; a line is added when its run has ended."""
    path = lines_of(args, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [{name: row[name] for name in jobs[0]} for row in rows(args, step)]
    waiting = [one for one in jobs if one not in done]
    print(f"{step} {args.setting}: {len(jobs) - len(waiting)} of {len(jobs)} runs are there")

    def start(number: int) -> None:
        one = waiting[number]
        name = f"{one['arm']}-{one['seed']}-{one['lr']}-{one['clip']}"
        folder = args.work / args.setting / step / name
        command = [
            sys.executable,
            str(HERE),
            "job",
            "--job",
            json.dumps(one | {"folder": str(folder)}),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
        if answer.returncode:
            sys.exit(f"{one}\n{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}")
        with open(path, "a", encoding="utf-8") as file:
            file.write(answer.stdout.splitlines()[-1] + "\n")
        print(f"{number + 1} of {len(waiting)}: {one['arm']}, seed {one['seed']}", flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(start, range(len(waiting))))


def run_job(one: dict[str, str]) -> None:
    """Train, measure, and print the line of the run; exit where the run was stopped or failed."""
    folder = Path(one["folder"])
    command = ["train", "--preset", "places_tiny", "--objective", one["arm"]]
    command += ["--data", one["source"], "--samples", str(one["samples"])]
    command += ["--seed", str(one["seed"]), "--out", str(folder)]
    for item in (f"optim.lr={one['lr']}", f"optim.clip_norm={one['clip']}", "log_every=50"):
        command += ["--set", item]
    if any(folder.glob("checkpoints/step_*.pt")):
        command.append("--resume")
    began = time.process_time()
    silc_bench(command)
    seconds = time.process_time() - began

    # tuning asks for what it chooses by, of the student alone: a fifth of the time
    is_tuned = one["split"] == "val"
    suffix = "_val" if is_tuned else ""
    asked = {"student": DECISIVE if is_tuned else tuple(MEASURES)}
    if one["arm"].startswith("silc") and not is_tuned:
        asked["teacher"] = OF_TEACHER
    if is_tuned:
        register_on("val", suffix)
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


def measured(records: list[dict], column: str, suffix: str) -> float:
    task, metric = MEASURES[column]
    by_task = {record["task"]["name"]: record["metrics"] for record in records}
    return by_task[task.replace("/", f"{suffix}/")][metric]


def register_on(split: str, suffix: str) -> None:
    """The tasks of ``places`` on another split, for this process alone."""
    from dataclasses import replace

    from silc_bench.task import register
    from silc_bench.tasks.selection import all_tasks
    from silc_bench.tasks.sources import places

    for name, task in list(all_tasks().items()):
        dataset, _, family = name.partition("/")
        if dataset in ("places", "places_things"):
            count = 1000 if family in ("zeroshot", "knn") else 500
            test = places(split, count, are_things=dataset == "places_things")
            sources = task.sources | {"test": test}
            register(replace(task, name=f"{dataset}{suffix}/{family}", sources=sources))


def lines_of(args: argparse.Namespace, step: str) -> Path:
    setting = TUNED_ON if step == "tune" else args.setting
    return args.out / f"{setting}-{step}.jsonl"


def rows(args: argparse.Namespace, step: str) -> list[dict]:
    path = lines_of(args, step)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(args: argparse.Namespace) -> None:
    """Write the tables, the figure, and what follows from the rule, as far as there are runs."""
    from silc_bench.reports.forms.forest_plot import draw

    found = rows(args, "run")
    if not found:
        sys.exit(f"{lines_of(args, 'run')} has no runs yet: python benchmarks/study run")
    title = f"places, {args.setting} pairs" if args.setting.isdigit() else f"places, {args.setting}"
    text = [f"# {title}", ""]
    chosen = sorted({(row["arm"], row["lr"], row["clip"]) for row in found})
    text += [f"`{arm}`: optim.lr={lr}, optim.clip_norm={clip}  " for arm, lr, clip in chosen]
    for branch, columns in (("student", tuple(MEASURES)), ("teacher", OF_TEACHER)):
        text += ["", f"{branch}, percent, mean ± half of the 95 % interval over seeds:", ""]
        text += header("arm", columns)
        for arm in ARMS:
            values = by_seed(found, arm, branch)
            if values:
                cells = [interval([row[name] for row in values.values()]) for name in columns]
                text.append(line(arm, len(values), cells))

    text += ["", "Differences of students in points, paired by seed; **bold** excludes 0:", ""]
    text += header("difference", tuple(MEASURES))
    for arm in (arm for arm in ARMS if arm != "silc"):
        of_arm = differences(found, arm)
        cells = []
        for name in MEASURES:
            points = of_arm[name]
            mark = "**" if len(points) > 1 and excludes_zero(points) else ""
            cells.append(f"{mark}{interval(points, '+')}{mark}" if points else "")
        text.append(line(f"silc - {arm}", len(of_arm[DECISIVE[0]]), cells))

    text += ["", verdict(found)]
    path = args.out / f"{args.setting}.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    figure = figure_rows(found)
    if figure:
        draw(figure, f"{title}: student of silc minus the student of ...", path.with_suffix(".png"))


def verdict(found: list[dict]) -> str:
    """What follows from the rule; nothing, as long as a seed of it is missing."""
    cells = [(arm, name, differences(found, arm)[name]) for arm in AGAINST for name in DECISIVE]
    fewest = min(len(points) for _, _, points in cells)
    if fewest < len(SEEDS):
        return (
            f"**Not decided**: the rule asks for {len(SEEDS)} seeds of each arm, and {fewest} are"
            " complete. Until then nothing here speaks about the method."
        )
    failed = [
        f"{name}, against {arm} ({interval(points, '+')})"
        for arm, name, points in cells
        if not (mean(points) > 0 and excludes_zero(points))
    ]
    if failed:
        return (
            "By the rule written in the script, SILC's claim **does not hold** in this setting: 0"
            f" is not excluded for {'; '.join(failed)}."
        )
    return "By the rule written in the script, SILC's claim **holds** in this setting."


def figure_rows(found: list[dict]) -> list[Any]:
    """A heading for each decisive measure, then a line for each arm; none without intervals."""
    from silc_bench.reports.forms.forest_plot import Row

    drawn = []
    for name in DECISIVE:
        own = []
        for arm in (arm for arm in ARMS if arm != "silc"):
            points = differences(found, arm)[name]
            if len(points) > 1:
                tone = "no difference"
                if excludes_zero(points):
                    tone = "better" if mean(points) > 0 else "worse"
                note = f"{interval(points, '+')}, {len(points)} seeds"
                own.append(Row(f"  {arm}", mean(points), half_interval(points), tone, note))
        drawn += [Row(f"{name}, mIoU"), *own] if own else []
    return drawn


def differences(found: list[dict], arm: str) -> dict[str, list[float]]:
    """Student of silc minus that of ``arm``, in points, of the seeds that both have."""
    silc, other = (by_seed(found, one, "student") for one in ("silc", arm))
    seeds = sorted(set(silc) & set(other))
    return {name: [silc[seed][name] - other[seed][name] for seed in seeds] for name in MEASURES}


def by_seed(found: list[dict], arm: str, branch: str) -> dict[int, dict[str, float]]:
    """{seed: {measure: percent}}."""
    return {
        row["seed"]: {name: 100 * value for name, value in row[branch].items()}
        for row in found
        if row["arm"] == arm and branch in row
    }


def header(first: str, columns: tuple[str, ...]) -> list[str]:
    cells = (first, "seeds", *columns)
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def line(name: str, num_seeds: int, cells: list[str]) -> str:
    return f"| {name} | {num_seeds} | {' | '.join(cells)} |"


def interval(values: list[float], sign: str = "") -> str:
    if len(values) < 2:
        return f"{mean(values):{sign}.1f}"
    return f"{mean(values):{sign}.1f} ± {half_interval(values):.1f}"


def excludes_zero(values: list[float]) -> bool:
    return abs(mean(values)) > half_interval(values)


def half_interval(values: list[float]) -> float:
    """Half of the 95 % interval of the mean (Student's t)."""
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5)


if __name__ == "__main__":
    main()
