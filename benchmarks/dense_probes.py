"""Linear probes of patches, in closed form and descended: seconds after the passes, and mIoU.

On 46 CamVid photographs; the seconds are those after the forward passes.

Run:  python benchmarks/dense_probes.py --data-root DATA [--view 448,448,224] [--closed-form]
      [--ckpt open_clip:ViT-B-16/random --ckpt ...]
Prints its command, the machine, and a line a checkpoint and probe. Each image is encoded once,
before any clock starts; the clock then runs over the training images (masks are read, cells are
summed or descended on), not over the scored ones.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch

from silc_bench.evaluation.features import Extractor
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.load import load_model
from silc_bench.models.windows import View
from silc_bench.tasks.selection import all_tasks

FAMILIES = ("segmentation_linear", "segmentation_sgd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-root", type=Path, required=True, help="holds camvid/{train,trainannot,val,valannot}"
    )
    parser.add_argument("--ckpt", action="append", help="default: open_clip:ViT-B-16/random")
    parser.add_argument("--view", help="SIZE,WINDOW,STRIDE in pixels; default: the model's own")
    parser.add_argument(
        "--closed-form", action="store_true", help="leave the descent out, which takes minutes"
    )
    options = parser.parse_args()
    print(f"python {' '.join(sys.argv)}")
    print(machine())
    print(
        f"{'checkpoint':<32} {'probe':<20} {'encode s':>9} {'fit s':>7} {'CPU s':>7} "
        f"{'mIoU %':>14}   chosen"
    )
    view = View(*map(int, options.view.split(","))) if options.view else None
    for spec in options.ckpt or ["open_clip:ViT-B-16/random"]:
        settings = EvalSettings(device="cpu", precision="fp32", batch_size=16)
        extract = Extractor(load_model(spec), settings)
        for family in FAMILIES[: 1 if options.closed_form else None]:
            measure(spec, extract, family, view, options.data_root)


def measure(spec: str, extract: Extractor, family: str, view: View | None, data_root: Path) -> None:
    task = all_tasks()[f"camvid_mini/{family}"]
    task.view = view
    features = Kept(extract(task.load(data_root, None)))
    started = time.perf_counter()
    for role in ("train", "test"):  # once a checkpoint: they are kept
        for _ in features.grids(role, view, task.method):
            pass
    encoded = time.perf_counter()
    features.clock = None
    scores = task.score(features)
    fit, cpu = features.spent
    score = f"{100 * scores.metrics['mIoU']:.1f} ± {100 * scores.stderr['mIoU']:.1f}"
    chosen = {name: value for name, value in scores.details.items() if name in ("l2", "steps")}
    print(
        (
            f"{spec:<32} {family:<20} {encoded - started:>9.1f} {fit:>7.1f} {cpu:>7.1f} "
            f"{score:>14}   {chosen}"
        ),
        flush=True,
    )


class Kept:
    """Features that say what the fit took: from the first training image to the first scored."""

    def __init__(self, features) -> None:
        self._features = features
        self.data, self.device = features.data, features.device
        self.clock: tuple[float, float] | None = None
        self.spent = (0.0, 0.0)

    def grids(self, role, view, method):
        now = time.perf_counter(), time.process_time()
        if role == "train" and self.clock is None:
            self.clock = now
        if role == "test" and self.clock is not None:
            self.spent = now[0] - self.clock[0], now[1] - self.clock[1]
        return self._features.grids(role, view, method)


def machine() -> str:
    names = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    return f"{cpu}, {os.cpu_count()} cores, {threads} threads, load {load:.1f}; {versions}"


if __name__ == "__main__":
    main()
