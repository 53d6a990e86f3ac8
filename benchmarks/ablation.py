"""What each part of SILC changes on ``shapes``: contrastive -> contrastive+views -> silc, at equal images and at equal compute.

Flow: for each seed and arm a training run and every ``shapes`` task on its student and teacher -> records -> the mean over the
seeds with a 95 % interval (Student's t), and paired differences from the contrastive arm. An arm at equal compute sees as
many more pictures as its step costs fewer counted FLOPs than silc's. Runs and records are kept: the script goes on where it
stopped, and prints the tables again when all is done.

    python benchmarks/ablation.py --out runs/ablation --seeds 5 --processes 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import stats as scipy_stats

ARMS = {  # name: (objective, at equal compute)
    "contrastive": ("contrastive", False),
    "contrastive+views": ("contrastive+views", False),
    "silc": ("silc", False),
    "contrastive, equal compute": ("contrastive", True),
    "contrastive+views, equal compute": ("contrastive+views", True),
}
METRICS = {
    "zero-shot": ("shapes/zeroshot", "acc1"),
    "unseen pairs": ("shapes/zeroshot_unseen", "acc1"),
    "retrieval I2T R@1": ("shapes/retrieval", "text_retrieval_recall@1"),
    "retrieval T2I R@1": ("shapes/retrieval", "image_retrieval_recall@1"),
    "10-shot": ("shapes/fewshot", "acc1_10shot"),
    "kNN": ("shapes/knn", "acc1_20nn"),
    "linear segmentation mIoU": ("shapes/segmentation_linear", "mIoU"),
    "zero-shot segmentation mIoU": ("shapes/segmentation_zeroshot", "mIoU"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, help="images of the silc arm; the preset's if not given")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="field=value for every arm")
    parser.add_argument("--arms", default=",".join(ARMS), help="names, separated by ','")
    args = parser.parse_args()
    arms = [name.strip() for name in args.arms.replace(", equal", "; equal").split(",")]
    arms = [name.replace("; equal", ", equal") for name in arms]
    jobs = [(arm, seed) for seed in range(args.seeds) for arm in arms]
    with ThreadPoolExecutor(args.processes) as pool:  # each job is a process of its own; the threads only wait for it
        list(pool.map(lambda job: run_arm(args, *job), jobs))
    print(report(args, arms))


def run_arm(args: argparse.Namespace, arm: str, seed: int) -> None:
    """Train and evaluate one arm in processes with one thread each; done parts are skipped."""
    objective, has_equal_compute = ARMS[arm]
    samples = samples_of(args, objective, has_equal_compute)
    run = args.out / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sets = [word for item in args.sets for word in ("--set", item)]
    train = ["train", "--preset", "shapes_tiny", "--objective", objective, "--samples", str(samples), "--seed", str(seed)]
    train += ["--out", str(run), *sets, *(["--resume"] if list(run.glob("checkpoints/*.pt")) else [])]
    # the results of an arm lie in a folder of their own: two arms differ in their runs' lengths, not in their names
    checkpoints = [word for branch in ("student", "teacher") for word in ("--ckpt", f"{run}:{branch}")]
    evaluate = ["eval", *checkpoints, "--tasks", "shapes/*", "--results", str(run / "results")]
    for command in (train, evaluate):
        subprocess.run([sys.executable, "-m", "silc_bench", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    print(f"{arm}, seed {seed}: done", file=sys.stderr, flush=True)


def samples_of(args: argparse.Namespace, objective: str, has_equal_compute: bool) -> int:
    from trainer.presets import configure

    config = configure("shapes_tiny", "silc", samples=args.samples, sets=args.sets)
    if not has_equal_compute:
        return config.samples
    ratio = step_flops("silc", args.sets) / step_flops(objective, args.sets)
    return round(config.samples * ratio / config.batch_size) * config.batch_size


def step_flops(objective: str, sets: list[str]) -> int:
    """Counted matrix FLOPs of one training step, forward and backward, teacher included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.data import open_source
    from trainer.presets import configure
    from trainer.tokenizer import Tokenizer
    from trainer.train import TrainState, train_step

    config = configure("shapes_tiny", objective, sets=sets)
    source = open_source(config.data)
    tokenizer = Tokenizer.train(source.captions(1000), config.text.vocab_size, config.text.context_length)
    state = TrainState.create(config, tokenizer, torch.device("cpu"))
    batches = source.batches(config.batch_size, start=0)
    with FlopCounterMode(display=False) as counter:
        train_step(state, next(batches))
    batches.close()
    return counter.get_total_flops()


def report(args: argparse.Namespace, arms: list[str]) -> str:
    """Markdown: a table a branch, then the paired differences of the students."""
    import torch

    values = {(arm, branch): read_arm(args, arm, branch) for arm in arms for branch in ("student", "teacher")}
    lines = [f"`python {' '.join(sys.argv)}` · {platform.processor() or platform.machine()}, torch {torch.__version__}"]
    header = ["arm", "images", "training s", *METRICS]
    for branch in ("student", "teacher"):
        lines += ["", f"{branch.capitalize()}, {args.seeds} seeds, percent, mean ± half of the 95 % interval:", "", row(header)]
        lines.append(row(["---"] * len(header)))
        for arm in arms:
            table, seconds, samples = values[arm, branch]
            lines.append(row([arm, f"{samples:,}", f"{seconds:.0f}", *(interval(column) for column in table.T)]))
    lines += ["", "Student of silc minus the student of each other arm, same seeds, points:", "", row(["arm", *METRICS])]
    lines.append(row(["---"] * (1 + len(METRICS))))
    for arm in arms:
        if arm != "silc" and "silc" in arms:
            difference = values["silc", "student"][0] - values[arm, "student"][0]
            lines.append(row([arm, *(interval(column, is_difference=True) for column in difference.T)]))
    return "\n".join(lines)


def read_arm(args: argparse.Namespace, arm: str, branch: str) -> tuple[np.ndarray, float, int]:
    """[seeds, metrics] in percent, mean seconds of training, images seen."""
    from silc_bench.results import load_all

    rows, seconds, samples = [], [], 0
    for seed in range(args.seeds):
        run = args.out / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
        records = {r.task.name: r for r in load_all(run / "results") if r.model.name.endswith(f":{branch}")}
        rows.append([100 * records[task].metrics[metric] for task, metric in METRICS.values()])
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        samples = log[-1]["samples_seen"]
        shares = np.diff([0] + [entry["samples_seen"] for entry in log])
        seconds.append(sum(share / entry["images_per_second"] for share, entry in zip(shares, log, strict=True)))
    return np.array(rows), float(np.mean(seconds)), samples


def interval(values: np.ndarray, is_difference: bool = False) -> str:
    half = scipy_stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    sign = "+" if is_difference else ""
    text = f"{values.mean():{sign}.1f} ± {half:.1f}"
    return f"**{text}**" if is_difference and abs(values.mean()) > half else text


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
