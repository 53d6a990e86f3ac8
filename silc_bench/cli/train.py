"""``silc-bench train`` and ``silc-bench report``: what they parse, call and print.

``silc-bench train`` trains a preset, or says what a run would be: ``--show-config`` prints its
fields, ``--dry-run`` what a step costs on this machine and whether it fits. After a run it prints
the command that measures it. ``silc-bench report RUN [RUN ...]`` writes the curves of runs as one
page that needs nothing else.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from silc_bench.cli.options import Device
from silc_bench.errors import UserError
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, lasting_output, say, warn
from silc_bench.system.terminal_table import Listing

if TYPE_CHECKING:
    from silc_bench.trainer.config.config import Config


@answering
def train(
    preset: Annotated[
        str,
        typer.Option(
            help="shapes_tiny, cifar_tiny, places_tiny, b16, l16, so400m, g16, siglip2_dense, tips,"
            " silc_star."
        ),
    ] = "shapes_tiny",
    data: Annotated[
        str | None,
        typer.Option(
            help='"shapes", "places:num_pairs=4096", shards ("DIR/{000..009}.tar", "s3://..."),'
            ' LIST.jsonl, a folder, or "3 * A | 1 * B".'
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/PRESET-OBJECTIVE if not given.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="silc, contrastive+views or contrastive: the steps of the ablation;"
            " silc+frozen, silc+shuffled: its controls."
        ),
    ] = "silc",
    samples: Annotated[int | None, typer.Option(help="Images seen in the whole run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, views and data order.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights: RUN[:student|:teacher], FILE, hf:, open_clip:,"
            " big_vision:."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value, as in optim.lr=3e-4; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, bit for bit.")
    ] = False,
    device: Device = "auto",
    on_collapse: Annotated[
        str, typer.Option(help="warn or stop, when the run's health says that it has collapsed.")
    ] = "warn",
    wandb: Annotated[
        str | None, typer.Option(help="[ENTITY/]PROJECT of W&B, which gets the log's rows too.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check --init, print what it costs here, and stop.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Of --dry-run: so many share each batch.")
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every field, how sure it is, and stop.")
    ] = False,
) -> None:
    """Train SILC, or a step of its ablation."""
    from silc_bench.trainer.config.presets import configure

    config = configure(
        preset, objective, data=data, samples=samples, seed=seed, init=init, sets=set_ or ()
    )

    # Where nothing is trained the processes do not join: the first of torchrun's speaks.
    if (show_config or dry_run) and os.environ.get("RANK", "0") != "0":
        return
    if show_config:
        print_config(config)
        return

    # What needs no tensor is refused at once, before torch is imported.
    from silc_bench.evaluation.settings import check_device
    from silc_bench.trainer.checkpoints.early import check_begun, check_init
    from silc_bench.trainer.data.sources import check_there
    from silc_bench.trainer.monitor.bounds import check_on_collapse

    check_device(device)
    check_on_collapse(on_collapse)
    if config.init and not resume:
        check_init(config.init)
    if not dry_run:
        if config.data.source:
            check_there(config.data.source)
        check_begun(out or Path("runs") / config.name, resume)

    from silc_bench.evaluation.features import choose_device
    from silc_bench.system.processes import joined, rank

    if dry_run:
        # A resumed run has its weights already.
        if config.init and not resume:
            from silc_bench.trainer.checkpoints.init import read_start

            # What --init brings, as the run would say it; what the run would refuse is refused.
            for sentence in read_start(config).said:
                say(sentence, console)
        num_devices = devices or int(os.environ.get("WORLD_SIZE", "1"))
        print_estimate(config, choose_device(device), num_devices)
        return
    if devices is not None:
        raise UserError(
            "belongs to --dry-run",
            about="--devices",
            fix="torchrun --nproc-per-node N -m silc_bench train starts a run on N devices",
        )

    from silc_bench.system.limits import keep_freed_memory
    from silc_bench.trainer.loop import run_training

    run = out or Path("runs") / config.name
    chosen_device = choose_device(device)
    check_writable(run)
    if chosen_device.type == "cpu":
        keep_freed_memory()

    with lasting_output(), joined(chosen_device):
        is_first = rank() == 0
        run_console = console if is_first else Console(quiet=True)
        path = run_training(
            config,
            run,
            resume=resume,
            device=chosen_device,
            console=run_console,
            on_collapse=on_collapse,
            wandb=wandb,
        )
        if is_first:
            # Quoted, so that the line can be typed as it stands.
            spec = shlex.quote(str(run))
            tasks = tasks_for(config.data.source)
            print(f"done: {path}")
            print(f"next: silc-bench eval --ckpt {spec} --tasks {tasks}")


@answering
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, for one page.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page; RUN/report.html, or ./report.html of several runs."),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of records: scores of its checkpoints over steps; repeatable."),
    ] = None,
) -> None:
    """Write a self-contained page with the curves of a run, or of several in the same charts.

    They are losses, health, gradients, speed and probes, and with --results what was measured of
    student and teacher.
    """
    from silc_bench.trainer.monitor.report.page import write_report

    print(f"wrote {write_report(runs, out, results or ())}")


# Parts of memory that stay the same whatever the batch.
OF_MODEL = ("weights", "gradients", "optimiser state", "teacher", "average")


def print_estimate(config: Any, device: Any, devices: int) -> None:
    """What a step costs on ``devices`` like this one.

    Raises:
        UserError: they cannot share its batch.
    """
    from silc_bench.trainer.device import share_of
    from silc_bench.trainer.monitor.cost import REACHED, estimate, memory_of

    share_of(config.batch_size, devices, "devices")
    cost = estimate(config, device, devices)

    where = "one device" if devices == 1 else f"{devices:,} devices"
    head = where if devices == 1 else f"one of {where}"
    table = Listing(f"of a step on {head}", "", title=config.name)

    for name, count in cost.parameters.items():
        table.add_row(f"parameters, {name}", f"{count / 1e6:,.1f} M")
    for name, size in cost.bytes_by_part.items():
        table.add_row(f"memory, {name}", _size(size))
    table.add_row("memory, all of it", _size(sum(cost.bytes_by_part.values())))
    table.add_row("FLOPs an image, counted", f"{cost.flops_per_image / 1e9:,.2f} G")
    matmul_rate = f"{cost.matmul_rate / 1e12:,.3f} TFLOP/s"
    table.add_row(f"matrix products on {device}, measured", matmul_rate)

    # No step reaches the rate of bare matrix products; which share it reaches is only known after
    # a run, so the time is given for several shares.
    for share in REACHED:
        speed = share * cost.images_per_second
        rate = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        duration = _duration(cost.hours / share)
        table.add_row(f"at {100 * share:.0f} % of that", f"{rate} images/s, {duration} on {where}")
    console.print(table)

    too_large = too_large_for(cost.bytes_by_part, config, memory_of(device), devices)
    if too_large:
        warn(f"{too_large}.", console)


def too_large_for(
    bytes_by_part: dict[str, int], config: Config, room: int, devices: int = 1
) -> str | None:
    """A sentence that says that a step does not fit into a device, and what helps; None if it fits.

    Args:
        room: bytes of each device that this process may use.
    """
    needed = sum(bytes_by_part.values())
    if needed <= room:
        return None

    share = config.batch_size // devices
    activations = bytes_by_part["activations"]
    rest = needed - activations
    of_model = sum(bytes_by_part.get(part, 0) for part in OF_MODEL)
    bytes_per_pair = activations / (config.micro_batch or share)
    pairs = int((0.9 * room - rest) / bytes_per_pair)  # 0.1 for what is not counted
    saves = "--set checkpointing=blocks needs less" if config.checkpointing == "none" else ""

    # First what no option mends.
    if of_model > room:
        advice = (
            f", less than model and optimiser alone, {_size(of_model)}:"
            " it takes a larger device or a smaller model"
        )
    elif rest > room:
        # The contrastive loss needs the images and logits of the whole share at once, in however
        # many micro-batches the towers take them.
        advice = (
            f", less than the images and logits of {share:,} pairs and the model, {_size(rest)}:"
            " it takes more devices (--devices counts for them) or a smaller batch_size"
        )
    elif pairs < 1:
        advice = ", not enough for one pair at a time" + (f": {saves}" if saves else "")
    else:
        # The largest power of two that fits divides the usual batch sizes.
        fits = f"--set micro_batch={2 ** (pairs.bit_length() - 1)} fits"
        remedies = [fits, saves, "a smaller batch_size needs less too"]
        advice = f": {', '.join(filter(None, remedies))}"
    return f"a step needs {_size(needed)} and this process may use {_size(room)}{advice}"


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:,.0f} hours" if hours >= 100 else f"{hours:,.1f} hours"


def _size(num_bytes: int) -> str:
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.2f} GiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def tasks_for(source: str) -> str:
    """What to measure first after training on ``source``: options of ``silc-bench eval``."""
    if source == "shapes":
        return "shapes"

    # Brings numpy, which --help needs not.
    from silc_bench.datasets.layouts import ENDINGS

    # A single list of captions can be measured by retrieval; a mixture or a pattern cannot.
    if source.lower().endswith(ENDINGS) and "|" not in source and "*" not in source:
        return shlex.quote(f"captions:{source}")
    return "zeroshot --data-root DIR"


def print_config(config: Any) -> None:
    """Every field with its value, and how sure the recipe is of it."""
    from silc_bench.trainer.config.config import flatten
    from silc_bench.trainer.config.presets import provenance_of

    table = Listing("field", "value", "how sure the recipe is of it", title=config.name)
    # The tiny presets are ours, made for tests and the demo: no paper gives their fields.
    is_recipe = config.preset not in ("shapes_tiny", "cifar_tiny")
    for field, value in flatten(config).items():
        provenance = provenance_of(field, config.preset) if is_recipe else ""
        table.add_row(field, str(value), provenance)
    console.print(table)
