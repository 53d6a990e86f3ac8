"""What a SILC step costs: by its arithmetic, and against the plain one of ``plain_silc``.

The losses of both are equal.

Flow: one batch of noise -> the parts named by ``--parts``; sides alternate, and a ratio is taken of
each repetition:

    step      seconds of a silc step / seconds of a contrastive step, over the ratio of their
              counted FLOPs
    plain     seconds of the plain step, views included / seconds of ours; first the losses and
              gradient norms must be equal
    memory    bytes at the peak of the distillation loss and its backward pass, beyond what goes
              in; ``--prototypes`` of them
    views     images a second of the batched views / of torchvision v2, a sample at a time, in
              this process; DINO's recipe
    compile   seconds of a silc step / of one with compile=true, after two steps that compile; not
              part of the default
    run       with ``--data`` shards: steps of a real run with decoding; images/s, MFU, memory and
              the share of waiting for data

    # cifar_tiny
    OMP_NUM_THREADS=1 python benchmarks/train_step.py
    OMP_NUM_THREADS=1 python benchmarks/train_step.py --preset b16 --depth 1 --batch-size 16 \\
        --canvas 256 --repeats 3
    # GPU
    python benchmarks/train_step.py --preset b16 --batch-size 256 --data "DIR/*.tar" \\
        --parts step,plain,memory,views,run

With one thread on a CPU the clock counts CPU seconds of this process, so that other work on the
machine weighs less.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from loss_memory import compare_memory, peak, reset_peak
from plain_silc import PlainSilc
from rich.console import Console
from side_by_side import print_header, spread
from torch.utils.flop_counter import FlopCounterMode
from views_speed import CROPS, PerSampleViews

from silc_bench.evaluation.features import choose_device
from silc_bench.system.limits import keep_freed_memory
from silc_bench.trainer.config.config import Config, ViewsConfig, apply_objective
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.data.stream import Batch
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState, train_step

DEVICE = choose_device("auto")
PARTS = ("step", "plain", "memory", "views")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="cifar_tiny")
    parser.add_argument(
        "--depth",
        type=int,
        help="blocks of each tower, where the preset's are too many for this machine",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--canvas", type=int, help="pixels a side of the decoded images, if not the preset's"
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--prototypes", type=int, default=65_536, help="of the loss whose memory is measured"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", help="shards for the part `run`")
    parser.add_argument("--run-steps", type=int, default=200)
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    if DEVICE.type == "cpu":
        keep_freed_memory()  # as `silc-bench train` does; both sides run in this process
    config = replace(
        make_preset(options.preset), batch_size=options.batch_size, precision=options.precision
    )
    if options.depth:
        towers = {
            "vision": replace(config.vision, depth=options.depth),
            "text": replace(config.text, depth=options.depth),
        }
        config = replace(config, **towers)
    print_header("torch", "torchvision", "lightly", "open_clip_torch")
    batch, tokenizer = make_batch(config, options.canvas or config.canvas)
    state = TrainState.create(config, tokenizer, DEVICE)
    config = state.config  # its precision is resolved
    card = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(
        (
            f"{card}, {config.precision}; {config.name}, {config.vision.depth} blocks, "
            f"batches of {config.batch_size}"
        ),
        flush=True,
    )
    for part in options.parts.split(","):
        if part == "step":
            compare_objectives(state, batch, options.repeats)
        elif part == "plain":
            compare_with_plain(config, tokenizer, batch, options.repeats)
        elif part == "memory":
            compare_memory(state, options.prototypes)
        elif part == "views":
            compare_views(config, batch, options.repeats)
        elif part == "compile":
            compare_compiled(config, tokenizer, batch, options.repeats)
        elif part == "run" and options.data:
            measure_run(config, options.data, options.run_steps)
        else:
            raise SystemExit(
                f"--parts: {part!r} is none of {', '.join(PARTS)}, compile, "
                "or run together with --data"
            )


def make_batch(config: Config, canvas: int) -> tuple[Batch, Tokenizer]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (config.batch_size, 3, canvas, canvas), dtype=torch.uint8, generator=generator
    )
    texts = [f"image {index} of noise" for index in range(config.batch_size)]
    tokenizer = Tokenizer.train(texts, config.text.vocab_size, config.text.context_length)
    return Batch(
        images, torch.full((config.batch_size, 2), canvas), texts, config.batch_size
    ), tokenizer


def compare_objectives(silc: TrainState, batch: Batch, repeats: int) -> None:
    silc = copy.deepcopy(silc)
    contrastive = TrainState.create(
        apply_objective(silc.config, "contrastive"), silc.tokenizer, DEVICE
    )
    flops = [count(lambda state=state: train_step(state, batch)) for state in (silc, contrastive)]
    seconds = alternate(
        [lambda state=state: train_step(state, batch) for state in (silc, contrastive)], repeats
    )
    for name, taken, flop in zip(("silc", "contrastive"), seconds, flops, strict=True):
        print(f"{name}: {spread(taken)} s a step, {flop / 1e9:.2f} GFLOP")
    excess = [ours / plain * flops[1] / flops[0] for ours, plain in zip(*seconds, strict=True)]
    print(
        (
            f"silc's seconds over its arithmetic: {flops[0] / flops[1]:.2f} x the FLOPs, "
            f"RATIO {spread(excess)}"
        ),
        end="",
    )
    print(" (goal: at most 1.15)", flush=True)


def compare_with_plain(config: Config, tokenizer: Tokenizer, batch: Batch, repeats: int) -> None:
    both = replace(config, distillation=replace(config.distillation, pairs="local+global"))
    ours = TrainState.create(both, tokenizer, DEVICE)
    plain = PlainSilc(TrainState.create(both, tokenizer, DEVICE), batch)
    views = make_views(
        batch.images.to(DEVICE), batch.sizes, config.views, config.seed, 0, needs=CROPS
    )
    mine = {name: value.item() for name, value in train_step(ours, batch).items()}
    tolerance = 1e-4 if config.precision == "fp32" else 2e-2
    for name, theirs in plain.step(views).items():
        print(f"{name} of the first step: {mine[name]:.6f}, plain {theirs:.6f}")
        assert abs(mine[name] - theirs) <= tolerance * abs(theirs), (
            f"{name} differs: two things would be compared"
        )
    taken, towers, their_views = alternate(
        [lambda: train_step(ours, batch), lambda: plain.step(views), plain.make_views], repeats
    )
    ratios = [
        (tower + view) / our for our, tower, view in zip(taken, towers, their_views, strict=True)
    ]
    print(
        (
            f"ours {spread(taken)} s a step; plain {spread(towers)} s and its views "
            f"{spread(their_views)} s; "
        ),
        end="",
    )
    print(f"RATIO {spread(ratios)} (goal: 1.5)")
    alone = [tower / our for our, tower in zip(taken, towers, strict=True)]
    print(f"if the plain step's views cost nothing: {spread(alone)}", flush=True)


def compare_views(config: Config, batch: Batch, repeats: int) -> None:
    recipe = ViewsConfig(global_size=config.views.global_size, local_size=config.views.local_size)
    images, single = batch.images.to(DEVICE), PerSampleViews(batch.images, recipe, batches=1)
    batched, per_sample = alternate(
        [lambda: make_views(images, batch.sizes, recipe, 0, 0, needs=CROPS), single.one_batch],
        repeats,
    )
    rates = [[len(images) / second for second in seconds] for seconds in (batched, per_sample)]
    ratios = [theirs / ours for ours, theirs in zip(batched, per_sample, strict=True)]
    print(
        (
            f"views: {spread(rates[0])} images/s batched, {spread(rates[1])} one by one; "
            f"RATIO {spread(ratios)} (goal: 5)"
        ),
        flush=True,
    )


def compare_compiled(config: Config, tokenizer: Tokenizer, batch: Batch, repeats: int) -> None:
    eager, compiled = (
        TrainState.create(replace(config, compile=value), tokenizer, DEVICE)
        for value in ("false", "true")
    )
    start = time.perf_counter()
    for _ in range(2):
        train_step(compiled, batch)
    warm_up = time.perf_counter() - start
    plain, faster = alternate(
        [lambda state=state: train_step(state, batch) for state in (eager, compiled)], repeats
    )
    ratios = [theirs / ours for theirs, ours in zip(plain, faster, strict=True)]
    print(
        (
            f"compile=true: {spread(faster)} s a step against {spread(plain)}; "
            f"RATIO {spread(ratios)}; "
        ),
        end="",
    )
    print(f"its first two steps took {warm_up:.0f} s", flush=True)


def measure_run(config: Config, data: str, num_steps: int) -> None:
    """The last of four rows of a real run's log, and the peak of all of it."""
    config = replace(
        config,
        data=replace(
            config.data,
            source=data,
        ),
        samples=num_steps * config.batch_size,
        log_every=max(1, num_steps // 4),
        probe=replace(config.probe, every=0),
    )
    reset_peak(DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run_training(config, run, resume=False, device=DEVICE, console=Console(quiet=True))
        row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    print(
        (
            f"run: {row['images_per_second']:.0f} images/s, MFU {100 * row['mfu']:.1f} % of the "
            "measured rate of products, "
        ),
        end="",
    )
    print(
        (
            f"{peak(DEVICE) / 1e9:.2f} GB at the peak, {100 * row['data_wait_share']:.1f} % of "
            "the time waiting for data"
        ),
        flush=True,
    )


def count(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def alternate(steps: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each, taken in turn, after one round to warm up."""
    is_alone = DEVICE.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_alone else time.perf_counter
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, found in zip(steps, seconds, strict=True):
            start = clock()
            step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            found.append(clock() - start)
    return [found[1:] for found in seconds]


if __name__ == "__main__":
    main()
