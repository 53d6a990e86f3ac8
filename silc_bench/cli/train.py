"""``silc-bench train`` and ``silc-bench report``: what they parse, call and print.

``silc-bench report RUN``: a run's curves as one page that needs nothing else.

What ``silc-bench train`` says around a run: ``--dry-run``, ``--show-config``, and what to do next.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from silc_bench.cli.options import Device
from silc_bench.datasets.layouts import ENDINGS
from silc_bench.errors import UserError
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, table_of

if TYPE_CHECKING:
    from silc_bench.trainer.config.config import Config


@answering
def train(
    preset: Annotated[
        str,
        typer.Option(
            help="shapes_tiny, cifar_tiny, b16, l16, so400m, g16, siglip2_dense, tips, silc_star."
        ),
    ] = "shapes_tiny",
    data: Annotated[
        str | None,
        typer.Option(
            help='"shapes", shards ("DIR/{000..009}.tar", "s3://..."), LIST.jsonl, a folder, or "3 * A | 1 * B".'
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/PRESET-OBJECTIVE if not given.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="silc, contrastive+views or contrastive: the steps of the ablation.")
    ] = "silc",
    samples: Annotated[int | None, typer.Option(help="Images seen in the whole run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, views and data order.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights: RUN[:student|:teacher], FILE, hf:, open_clip:, big_vision:."
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
    if (show_config or dry_run) and os.environ.get(
        "RANK", "0"
    ) != "0":  # of torchrun's processes the first one speaks
        return
    if show_config:
        print_config(config)
        return
    from silc_bench.evaluation.features import choose_device
    from silc_bench.system.processes import joined, rank

    if dry_run:
        if config.init and not resume:  # which has its weights already
            print_start(config)
        print_estimate(
            config, choose_device(device), devices or int(os.environ.get("WORLD_SIZE", "1"))
        )
        return
    if devices is not None:
        raise UserError(
            "--devices belongs to --dry-run; torchrun --nproc-per-node N -m silc_bench train starts a run on N"
        )
    from silc_bench.system.limits import keep_freed_memory
    from silc_bench.trainer.loop import run_training

    run, chosen = out or Path("runs") / config.name, choose_device(device)
    check_writable(run)
    if chosen.type == "cpu":
        keep_freed_memory()
    with joined(chosen):
        said = console if rank() == 0 else Console(quiet=True)
        path = run_training(
            config,
            run,
            resume=resume,
            device=chosen,
            console=said,
            on_collapse=on_collapse,
            wandb=wandb,
        )
        if rank() == 0:
            print(f"done: {path}")
            print(
                f"next: silc-bench eval --ckpt {shlex.quote(str(run))} --tasks {tasks_for(config.data.source)}"
            )


@answering
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; RUN/report.html if not given.")
    ] = None,
) -> None:
    """Write a self-contained page with the curves of a run: losses, health, gradients, speed,
    probes.
    """
    from silc_bench.trainer.monitor.report import write_report

    print(f"wrote {write_report(run, out)}")


OF_MODEL = (
    "weights",
    "gradients",
    "optimiser state",
    "teacher",
    "average",
)  # parts of memory, whatever the batch


def print_estimate(config: Any, device: Any, devices: int = 1) -> None:
    """On ``devices`` like this one. UserError where they cannot share its batch."""
    from silc_bench.trainer.device import share_of
    from silc_bench.trainer.monitor.cost import REACHED, estimate, memory_of

    share_of(config.batch_size, devices, "devices")
    found = estimate(config, device, devices)
    where = "one device" if devices == 1 else f"{devices:,} devices"
    table = table_of(
        "of a step on one device" if devices == 1 else f"of a step on one of {where}",
        "",
        title=config.name,
    )
    for name, count in found.parameters.items():
        table.add_row(f"parameters, {name}", f"{count / 1e6:,.1f} M")
    for name, size in found.bytes_by_part.items():
        table.add_row(f"memory, {name}", _size(size))
    table.add_row("memory, all of it", _size(sum(found.bytes_by_part.values())))
    table.add_row("FLOPs a picture, counted", f"{found.flops_per_image / 1e9:,.2f} G")
    table.add_row(
        f"matrix products on {device}, measured", f"{found.matmul_rate / 1e12:,.3f} TFLOP/s"
    )
    for share in REACHED:
        speed = share * found.images_per_second
        rate = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        hours = found.hours / share
        words = (
            f"{hours:,.{0 if hours >= 100 else 1}f} hours"
            if hours >= 1
            else f"{60 * hours:.0f} minutes"
        )
        table.add_row(f"at {100 * share:.0f} % of that", f"{rate} images/s, {words} on {where}")
    console.print(table)
    if too_large := too_large_for(found.bytes_by_part, config, memory_of(device), devices):
        console.print(
            f"{too_large}.", style="yellow", markup=False, highlight=False, soft_wrap=True
        )


def print_start(config: Any) -> None:
    """What ``--init`` brings, as the run would say it. Raises UserError where it would be
    refused.
    """
    from silc_bench.trainer.checkpoints.init import read_start

    for sentence in read_start(config).said:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def too_large_for(
    bytes_by_part: dict[str, int], config: Config, room: int, devices: int = 1
) -> str | None:
    """In words, with what helps, that a step needs more than ``room`` bytes of each device; None
    where it does not.
    """
    needed, activations = sum(bytes_by_part.values()), bytes_by_part["activations"]
    if needed <= room:
        return None
    says = f"a step needs {_size(needed)} and this process may use {_size(room)}"
    of_model = sum(bytes_by_part.get(part, 0) for part in OF_MODEL)
    if of_model > room:
        return f"{says}, less than model and optimiser alone, {_size(of_model)}: it takes a larger device or a smaller model"
    rest, share = needed - activations, config.batch_size // devices
    if rest > room:
        return (
            f"{says}, less than the pictures and logits of {share:,} pairs and the model, {_size(rest)}: it takes more devices"
            " (--devices counts for them) or a smaller batch_size"
        )
    saves = "--set checkpointing=blocks needs less" if config.checkpointing == "none" else ""
    a_pair = activations / (config.micro_batch or share)
    pairs = int((0.9 * room - rest) / a_pair)  # the rest for what is not counted
    if pairs < 1:
        return f"{says}, not enough for one pair at a time{saves and ': ' + saves}"
    fits = f"--set micro_batch={2 ** (pairs.bit_length() - 1)} fits"
    return f"{says}: " + ", ".join(
        filter(None, [fits, saves, "a smaller batch_size needs less too"])
    )


def _size(num_bytes: int) -> str:
    return (
        f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
    )


def tasks_for(source: str) -> str:
    """What to measure first after training on ``source``: options of ``silc-bench eval``."""
    if source == "shapes":
        return "shapes"
    if source.lower().endswith(ENDINGS) and "|" not in source and "*" not in source:
        return shlex.quote(f"captions:{source}")
    return "zeroshot --data-root DIR"


def print_config(config: Any) -> None:
    from silc_bench.trainer.config.config import flatten
    from silc_bench.trainer.config.presets import provenance_of

    table = table_of("field", "value", "how sure the recipe is of it", title=config.name)
    is_recipe = config.preset not in ("shapes_tiny", "cifar_tiny")
    for field, value in flatten(config).items():
        table.add_row(
            field, Text(str(value)), provenance_of(field, config.preset) if is_recipe else ""
        )
    console.print(table)
