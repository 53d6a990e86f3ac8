"""Images a second of the batched views against torchvision's v2 transforms.

The transforms take one sample at a time, on the same cores.

Flow: the same uint8 images -> ``silc_bench.trainer.silc.views.make_views`` in this process with T
threads, and the same recipe as per-sample v2 transforms on uint8 in T data workers of one thread
each, as training loops run them -> a line for each.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/views_speed.py --threads 2

On cores that something else uses too, threads that wait by spinning make the batched views several
times slower: hence the policy.
"""

import argparse
import os
import shlex
import statistics
import sys
import time

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from silc_bench.trainer.config.config import ViewsConfig
from silc_bench.trainer.silc.views import BLUR_REACH, blur_sigmas, make_views

CROPS = frozenset({"global_crops", "local_crops"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--canvas", type=int, default=64, help="pixels a side of the decoded images"
    )
    parser.add_argument("--global-size", type=int, default=48)
    parser.add_argument("--local-size", type=int, default=24)
    parser.add_argument("--resize", choices=("bilinear", "bicubic"), default="bilinear")
    parser.add_argument("--batches", type=int, default=20, help="timed batches; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = ViewsConfig(
        global_size=options.global_size, local_size=options.local_size, resize=options.resize
    )
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, 3, options.canvas, options.canvas)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    policy = os.environ.get("OMP_WAIT_POLICY", "ACTIVE")
    print(
        f"$ OMP_NUM_THREADS={options.threads} OMP_WAIT_POLICY={policy} python "
        f"{shlex.join(sys.argv)}"
    )
    print(
        (
            f"torch {torch.__version__}, {options.threads} threads; B={len(images)}, "
            f"canvas {options.canvas} px, views "
        ),
        end="",
    )
    print(
        f"{config.num_global} x {config.global_size} px + {config.num_local} x "
        f"{config.local_size} px"
    )
    batched = batched_seconds(images, config, options.batches)
    single = per_sample_seconds(images, config, options.batches, options.threads)
    for name, seconds in (("silc_bench.trainer.silc.views", batched), ("torchvision v2", single)):
        print(
            f"{name:<15} {1000 * seconds:8.1f} ms a batch   {len(images) / seconds:8.0f} images/s"
        )
    print(f"ratio {single / batched:.1f}")


def batched_seconds(images: Tensor, config: ViewsConfig, batches: int) -> float:
    sizes = torch.full((len(images), 2), images.shape[-1])
    seconds = []
    for step in range(batches + 3):
        start = time.perf_counter()
        make_views(images, sizes, config, seed=0, step=step, needs=CROPS)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])  # the first ones warm up


def per_sample_seconds(images: Tensor, config: ViewsConfig, batches: int, workers: int) -> float:
    dataset = PerSampleViews(images, config, batches + 2 * workers)
    loader = DataLoader(dataset, batch_size=len(images), num_workers=workers)
    start = done = 0.0
    for index, _ in enumerate(loader):
        if index == 2 * workers - 1:  # the queue is warm
            start = time.perf_counter()
        done = time.perf_counter()
    return (done - start) / batches


class PerSampleViews(Dataset):
    """Every view of one image by torchvision alone."""

    def __init__(self, images: Tensor, config: ViewsConfig, batches: int) -> None:
        self.images, self.length = images, len(images) * batches
        first, other, local = config.blur_probs
        self.transforms = [transform(config, True, first, 0.0)]
        self.transforms += [transform(config, True, other, config.solarize_prob)] * (
            config.num_global - 1
        )
        self.transforms += [transform(config, False, local, 0.0)] * config.num_local

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Tensor]:
        return [view(self.images[index % len(self.images)]) for view in self.transforms]

    def one_batch(self) -> list[list[Tensor]]:
        """The views of each image once, in this process."""
        return [self[index] for index in range(len(self.images))]


def transform(
    config: ViewsConfig, is_global: bool, blur_prob: float, solarize_prob: float
) -> v2.Compose:
    size, area = (
        (config.global_size, config.global_area)
        if is_global
        else (config.local_size, config.local_area)
    )
    low, high = blur_sigmas(config, size)
    blur = v2.GaussianBlur(2 * max(1, round(BLUR_REACH * high)) + 1, (low, high))
    steps = [
        v2.RandomResizedCrop(
            size, scale=area, interpolation=v2.InterpolationMode(config.resize), antialias=True
        ),
        v2.RandomHorizontalFlip(config.flip_prob),
        v2.RandomApply([v2.ColorJitter(*config.jitter)], config.jitter_prob),
        v2.RandomGrayscale(config.gray_prob),
        v2.RandomApply([blur], blur_prob),
        v2.RandomSolarize(128, solarize_prob),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3, inplace=True),
    ]
    return v2.Compose(steps)


if __name__ == "__main__":
    main()
