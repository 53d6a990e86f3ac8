"""Memory above the model, and time, of zero-shot segmentation of one large image by a ViT-B/16.

The image has 2048 x 1024 pixels, and there are 847 classes.

Flow: for each view a process of its own -> the image's windows through the tower alone, then all
of it (resize, windows, dense features, cosines, up-sampling, argmax of every pixel), one after the
other, as often as asked -> peak memory above the loaded model, and the ratio of the two times.
Weights are random, which changes neither; the words' embeddings are given.

CPU seconds of one thread: what else the machine does hardly counts.

    python benchmarks/dense_memory.py --repeats 5
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import process_time

WIDTH, HEIGHT, CLASSES = 2048, 1024, 847
# size, window, stride
VIEWS = {"shorter side 448": (448, 448, 224), "full resolution": (1024, 448, 224)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--method", default="maskclip", help="a dense method in the space shared with text"
    )
    parser.add_argument("--view", choices=VIEWS, help="one of the two, in this process")
    args = parser.parse_args()
    if args.view:
        print(measure(args.view, args.method, args.repeats))
        return
    command = [sys.executable, __file__, "--repeats", str(args.repeats), "--method", args.method]
    rows = [
        subprocess.run(
            [*command, "--view", view], env=_one_thread(), check=True, stdout=-1, text=True
        )
        for view in VIEWS
    ]
    import torch

    print(
        f"`python benchmarks/dense_memory.py --repeats {args.repeats} --method {args.method}`",
        end=" · ",
    )
    print(f"{platform.machine()}, torch {torch.__version__}, fp32, one thread\n")
    print(
        "| view | windows | forward, s | all, s | all / forward: min, median, max | "
        "peak above the model, GB |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print("".join(row.stdout for row in rows), end="")


def measure(name: str, method: str, repeats: int) -> str:
    """A row of the table."""
    import torch

    from silc_bench.models.load import load_model
    from silc_bench.models.windows import View

    model = load_model("open_clip:ViT-B-16/random")
    view, image = View(*VIEWS[name]), _Noise()
    weights = torch.nn.functional.normalize(
        torch.randn(CLASSES, model.embed_dim, generator=torch.Generator().manual_seed(0))
    )
    with torch.inference_mode():
        # what is made once
        model.encode_dense(torch.zeros(1, 3, view.window, view.window), (method,))
    before = _reset_peak()
    segment(model, view, method, weights, image)
    peak = _peak() - before
    alone, whole = [], []
    for _ in range(repeats):
        started = process_time()
        count = forward(model, view, image)
        alone.append(process_time() - started)
        started = process_time()
        segment(model, view, method, weights, image)
        whole.append(process_time() - started)
    ratios = sorted(both / one for one, both in zip(alone, whole, strict=True))
    spread = f"{ratios[0]:.3f}, {statistics.median(ratios):.3f}, {ratios[-1]:.3f}"
    seconds = f"{statistics.median(alone):.1f} | {statistics.median(whole):.1f}"
    return f"| {name} | {count} | {seconds} | {spread} | {peak / 1e9:.2f} |"


def segment(model, view, method, weights, image):  # type: ignore[no-untyped-def]
    """int64 [HEIGHT, WIDTH], as ``silc_bench.tasks.dense.segmentation_zeroshot`` predicts it."""

    from silc_bench.evaluation.dense_features import cosines_with
    from silc_bench.evaluation.features import Extractor
    from silc_bench.evaluation.settings import EvalSettings
    from silc_bench.models.windows import predict

    extract = Extractor(model, EvalSettings(device="cpu", precision="fp32"))
    (seen,) = extract({"test": image}).grids("test", view, method)
    return predict(cosines_with(weights.numpy()), seen.grid, seen.layout, HEIGHT, WIDTH)


def forward(model, view, image) -> int:  # type: ignore[no-untyped-def]
    """The same windows in the same batches through the tower, pooled; how many."""
    import torch

    from silc_bench.evaluation.dense_features import TOKENS

    height, width = view.resized_sides(HEIGHT, WIDTH)
    layout = view.layout(height, width, model.patch_size)
    windows = torch.zeros(len(layout.places), 3, view.window, view.window)
    with torch.inference_mode():
        for batch in windows.split(TOKENS["cpu"] // layout.cells**2):
            model.encode_image(batch)
    return len(windows)


@dataclass
class _Noise:
    """A set of one image: noise."""

    name: str = "noise"
    split: str = "test"
    fingerprint: str = "0" * 16

    def __post_init__(self) -> None:
        import numpy as np
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        self._image = Image.fromarray(pixels)

    def __len__(self) -> int:
        return 1

    def image(self, index: int):  # type: ignore[no-untyped-def]
        return self._image


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _reset_peak() -> int:
    """Resident bytes now, from which on the peak counts (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    main()
