"""What each part of SILC changes, at equal images and at equal cost.

The arms: contrastive -> contrastive+views -> silc.

Flow: for each seed and arm a training run and the study's tasks on its student (on ``shapes`` on
its teacher too) -> records -> the mean over the seeds with a 95 % interval (Student's t), and
paired differences from the contrastive arm. An arm at equal cost sees as many more images as its
step costs less than silc's: in counted FLOPs on ``shapes``, in measured seconds on CIFAR-100. Runs
and records are kept: the script goes on where it stopped, and prints the tables again when all is
done.

    python benchmarks/ablation.py --out runs/ablation --seeds 5 --processes 2
    python benchmarks/ablation.py --study cifar100 --data-root DATA --out runs/cifar100 \\
        --samples 40000 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

ARMS = {  # name: (objective, at equal cost)
    "contrastive": ("contrastive", False),
    "contrastive+views": ("contrastive+views", False),
    "silc": ("silc", False),
    "contrastive, equal cost": ("contrastive", True),
    "contrastive+views, equal cost": ("contrastive+views", True),
}


@dataclass(frozen=True)
class Study:
    preset: str
    source: str  # under --data-root, where there is one
    tasks: str
    metrics: dict[str, tuple[str, str]]  # column: (task, metric)
    branches: tuple[str, ...]
    cost: str  # "FLOPs" (counted) or "seconds" (measured): what is equal in the arms of equal cost


STUDIES = {
    "shapes": Study(
        "shapes_tiny",
        "",
        "shapes/*",
        {
            "zero-shot": ("shapes/zeroshot", "acc1"),
            "unseen pairs": ("shapes/zeroshot_unseen", "acc1"),
            "retrieval I2T R@1": ("shapes/retrieval", "text_retrieval_recall@1"),
            "retrieval T2I R@1": ("shapes/retrieval", "image_retrieval_recall@1"),
            "10-shot": ("shapes/fewshot", "acc1_10shot"),
            "kNN": ("shapes/knn", "acc1_20nn"),
            "linear segmentation mIoU": ("shapes/segmentation_linear", "mIoU"),
            "zero-shot segmentation mIoU": ("shapes/segmentation_zeroshot", "mIoU"),
        },
        ("student", "teacher"),
        "FLOPs",
    ),
    "cifar100": Study(
        "cifar_tiny",
        "cifar100/train/*.tar",
        "cifar100/zeroshot,cifar100/knn,cifar100/linear,shapes/segmentation_linear,camvid_mini/segmentation_linear,"
        "camvid_mini/segmentation_zeroshot,camvid_mini/correspondence",
        {
            "zero-shot": ("cifar100/zeroshot", "acc1"),
            "kNN": ("cifar100/knn", "acc1_20nn"),
            "linear": ("cifar100/linear", "acc1"),
            "shapes linear mIoU": ("shapes/segmentation_linear", "mIoU"),
            "CamVid linear mIoU": ("camvid_mini/segmentation_linear", "mIoU"),
            "CamVid zero-shot mIoU": ("camvid_mini/segmentation_zeroshot", "mIoU"),
            "CamVid patch R@1": ("camvid_mini/correspondence", "patch_recall@1"),
        },
        ("student",),
        "seconds",
    ),
}
TIMED_STEPS = 30  # of each objective, in turn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", choices=STUDIES, default="shapes")
    parser.add_argument(
        "--data-root", type=Path, help="folder of cifar100/ and camvid/; cifar100 needs it"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--samples", type=int, help="images of the silc arm; the preset's if not given"
    )
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument(
        "--set", action="append", default=[], dest="sets", help="field=value for every arm"
    )
    parser.add_argument("--arms", default=";".join(ARMS), help="names, separated by ';'")
    args = parser.parse_args()
    if args.study == "cifar100" and args.data_root is None:
        parser.error(
            "--study cifar100 needs --data-root, the folder that holds cifar100/ and camvid/"
        )
    arms = [name.strip() for name in args.arms.split(";")]
    steps_of = costs(args, [ARMS[arm][0] for arm in arms if ARMS[arm][1]])
    jobs = [(arm, seed) for seed in range(args.seeds) for arm in arms]
    # each job is a process of its own; the threads only wait for it
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(lambda job: run_arm(args, *job, steps_of), jobs))
    print(report(args, arms))


def run_arm(args: argparse.Namespace, arm: str, seed: int, cost: dict[str, float]) -> None:
    """Train and evaluate one arm in processes with one thread each; done parts are skipped."""
    study, (objective, has_equal_cost) = STUDIES[args.study], ARMS[arm]
    config = configured(args, "silc")
    ratio = cost["silc"] / cost[objective] if has_equal_cost else 1.0
    samples = (
        round(config.samples * ratio / config.batch_size) * config.batch_size
        if has_equal_cost
        else config.samples
    )
    run = args.out / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = [] if args.data_root is None else ["--data-root", str(args.data_root)]
    sets = [word for item in args.sets for word in ("--set", item)]
    train = [
        "train",
        "--preset",
        study.preset,
        "--objective",
        objective,
        "--samples",
        str(samples),
        "--seed",
        str(seed),
    ]
    train += ["--data", config.data.source, "--out", str(run), *sets]
    train += ["--resume"] if list(run.glob("checkpoints/*.pt")) else []
    # the results of an arm lie in a folder of their own: two arms differ in their runs' lengths,
    # not in their names
    checkpoints = [word for branch in study.branches for word in ("--ckpt", f"{run}:{branch}")]
    evaluate = [
        "eval",
        *checkpoints,
        "--tasks",
        study.tasks,
        *root,
        "--results",
        str(run / "results"),
    ]
    for command in (train, evaluate):
        subprocess.run(
            [sys.executable, "-m", "silc_bench", *command],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
    print(f"{arm}, seed {seed}: done", file=sys.stderr, flush=True)


def configured(args: argparse.Namespace, objective: str) -> Any:
    from silc_bench.trainer.config.presets import configure

    study = STUDIES[args.study]
    source = str(args.data_root / study.source) if study.source else "shapes"
    return configure(study.preset, objective, data=source, samples=args.samples, sets=args.sets)


def costs(args: argparse.Namespace, objectives: list[str]) -> dict[str, float]:
    """Of a training step of silc and of each of ``objectives``.

    FLOPs, or the median of its seconds. Kept with the runs.
    """
    kept = args.out / "cost_of_a_step.json"
    if not objectives:
        return {}
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if not {"silc", *objectives} <= set(found):
        steps = {
            objective: steps_of(args, objective)
            for objective in dict.fromkeys(["silc", *objectives])
        }
        found = flops(steps) if STUDIES[args.study].cost == "FLOPs" else seconds(steps)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return dict(found)


def steps_of(args: argparse.Namespace, objective: str) -> Callable[[], object]:
    """One training step of a new state, on the same batch each time."""
    import torch

    from silc_bench.trainer.data.stream import open_source
    from silc_bench.trainer.silc.tokenizers import Tokenizer
    from silc_bench.trainer.train import TrainState, train_step

    config = configured(args, objective)
    source = open_source(config.data)
    tokenizer = Tokenizer.train(
        source.captions(1000), config.text.vocab_size, config.text.context_length
    )
    state = TrainState.create(config, tokenizer, torch.device("cpu"))
    batches = source.batches(config.batch_size, start=0)
    batch = next(batches)
    batches.close()
    return lambda: train_step(state, batch)


def flops(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Counted matrix FLOPs, forward and backward, teacher included."""
    from torch.utils.flop_counter import FlopCounterMode

    found = {}
    for objective, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        found[objective] = float(counter.get_total_flops())
    return found


def seconds(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians over TIMED_STEPS, the objectives in turn and one thread, as the runs."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, list[float]] = {objective: [] for objective in steps}
    for step in steps.values():
        step()  # what a first call costs, once
    for _ in range(TIMED_STEPS):
        for objective, step in steps.items():
            start = time.perf_counter()
            step()
            found[objective].append(time.perf_counter() - start)
    return {objective: median(values) for objective, values in found.items()}


def report(args: argparse.Namespace, arms: list[str]) -> str:
    """Markdown: a table a branch, then the paired differences of the students."""
    import torch

    study = STUDIES[args.study]
    values = {
        (arm, branch): read_arm(args, arm, branch) for arm in arms for branch in study.branches
    }
    lines = [
        (
            f"`python {' '.join(sys.argv)}` · {platform.processor() or platform.machine()}, "
            f"torch {torch.__version__}"
        )
    ]
    header = ["arm", "images", "training s", *study.metrics]
    for branch in study.branches:
        lines += [
            "",
            (
                f"{branch.capitalize()}, {args.seeds} seeds, percent, "
                "mean ± half of the 95 % interval:"
            ),
            "",
            row(header),
        ]
        lines.append(row(["---"] * len(header)))
        for arm in arms:
            table, seconds, samples = values[arm, branch]
            lines.append(
                row(
                    [
                        arm,
                        f"{samples:,}",
                        f"{seconds:.0f}",
                        *(interval(column) for column in table.T),
                    ]
                )
            )
    lines += [
        "",
        "Student of silc minus the student of each other arm, same seeds, points:",
        "",
        row(["arm", *study.metrics]),
    ]
    lines.append(row(["---"] * (1 + len(study.metrics))))
    for arm in arms:
        if arm != "silc" and "silc" in arms:
            difference = values["silc", "student"][0] - values[arm, "student"][0]
            lines.append(
                row([arm, *(interval(column, is_difference=True) for column in difference.T)])
            )
    return "\n".join(lines)


def read_arm(args: argparse.Namespace, arm: str, branch: str) -> tuple[np.ndarray, float, int]:
    """[seeds, metrics] in percent, mean seconds of training, images seen."""
    from silc_bench.results.folders import read

    rows, seconds, samples = [], [], 0
    for seed in range(args.seeds):
        run = args.out / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
        records = {
            r.task.name: r
            for r in read([run / "results"]).records
            if r.model.name.endswith(f":{branch}")
        }
        rows.append(
            [
                100 * records[task].metrics[metric]
                for task, metric in STUDIES[args.study].metrics.values()
            ]
        )
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        samples = log[-1]["samples_seen"]
        shares = np.diff([0] + [entry["samples_seen"] for entry in log])
        seconds.append(
            sum(
                share / entry["images_per_second"] for share, entry in zip(shares, log, strict=True)
            )
        )
    return np.array(rows), float(np.mean(seconds)), samples


def interval(values: np.ndarray, is_difference: bool = False) -> str:
    half = (
        scipy_stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        if len(values) > 1
        else np.nan
    )
    sign = "+" if is_difference else ""
    text = f"{values.mean():{sign}.1f} ± {half:.1f}"
    return f"**{text}**" if is_difference and abs(values.mean()) > half else text


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
