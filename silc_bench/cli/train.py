"""``silc-bench train`` and ``silc-bench report``: what they parse, call and print.

``silc-bench train`` trains a preset, or says what a run would be: ``--show-config`` prints its
fields, ``--dry-run`` what a step costs on this machine and whether it fits. After a run it prints
the command that measures it. ``silc-bench report RUN [RUN ...]`` writes the curves of runs as one
page that needs nothing else.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from silc_bench.cli.command import BARE
from silc_bench.cli.options import Device
from silc_bench.errors import UserError, unknown_name
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, lasting_output, print_json, tell
from silc_bench.system.terminal_table import Listing

if TYPE_CHECKING:
    from silc_bench.trainer.config.config import Config


@answering
def train(
    preset: Annotated[
        str,
        typer.Option(
            help="shapes_tiny, cifar_tiny, places_tiny; s16, b16_1k: for one GPU; b16, l16, so400m,"
            " g16, siglip2_dense, tips, silc_star: as the papers."
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
    parallel: Annotated[
        str | None,
        typer.Option(
            help="Under torchrun: ddp (each process holds all weights), fsdp (they share them) or"
            " hsdp (those of a node do)."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A sentencepiece .model or tokenizer.json; trained on the data's captions if not"
            " given.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value, as in optim.lr=3e-4; may be repeated."),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="[auto]",
            help="Continue the run in --out, bit for bit; auto: start it where there is none.",
        ),
    ] = "",
    timeout_minutes: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Under torchrun: how long processes wait for one that hangs, before all end.",
        ),
    ] = 30.0,
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
    on: Annotated[
        str | None,
        typer.Option(help="Of --dry-run: on what, as h100x64, by data sheets, unmeasured."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="Of --on: what one of them costs an hour.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start although a step seems not to fit into memory.")
    ] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every field, how sure it is, and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Of --dry-run and --show-config: as JSON.")
    ] = False,
) -> None:
    """Train SILC, or a step of its ablation."""
    from silc_bench.trainer.config.presets import configure

    sets = list(set_ or ())
    if parallel is not None:
        sets.append(f"parallel={parallel}")
    if tokenizer is not None:
        sets.append(f"tokenizer={tokenizer}")
    config = configure(
        preset, objective, data=data, samples=samples, seed=seed, init=init, sets=sets
    )

    is_told = show_config or dry_run  # and nothing is trained
    if as_json and not is_told:
        fix = "add --dry-run or --show-config; a run keeps its rows in log.jsonl"
        raise UserError("there is no document of a run", about="--json", fix=fix)
    # Where nothing is trained the processes do not join: the first of torchrun's speaks.
    if is_told and os.environ.get("RANK", "0") != "0":
        return
    if show_config:
        print_config(config, as_json)
        return

    # What needs no tensor is refused at once, before torch is imported.
    from silc_bench.evaluation.settings import check_device
    from silc_bench.system.processes import check_launcher, joined, rank
    from silc_bench.trainer.checkpoints.early import (
        all_in,
        check_begun,
        check_init,
        check_tokenizer,
    )
    from silc_bench.trainer.data.sources import check_there
    from silc_bench.trainer.monitor.bounds import check_on_collapse

    check_device(device)
    check_on_collapse(on_collapse)
    check_launcher()
    run = out or Path("runs") / config.name
    if resume and resume not in BARE["--resume"]:
        raise unknown_name("value", resume, BARE["--resume"], about="--resume")
    goes_on = resume == "yes" or (resume == "auto" and bool(all_in(run)))
    _check_cost_options(dry_run, devices, on, price)
    if config.init and not goes_on:
        check_init(config.init)
    if config.tokenizer and not goes_on:
        check_tokenizer(config.tokenizer)

    if dry_run:
        if not goes_on:  # a resumed run has its weights and its tokenizer already
            _read_start(config, as_json)
        if on is not None:
            _print_plan(config, on, price, sets, as_json)
        else:
            _print_cost(config, device, devices, as_json)
        return

    if config.data.source:
        check_there(config.data.source)
    check_begun(run, goes_on)

    from silc_bench.evaluation.features import choose_device
    from silc_bench.system.limits import keep_freed_memory
    from silc_bench.trainer.loop import run_training

    chosen_device = choose_device(device)
    check_writable(run)
    if chosen_device.type == "cpu":
        keep_freed_memory()

    with lasting_output(), joined(chosen_device, timeout_minutes):
        is_first = rank() == 0
        path = run_training(
            config,
            run,
            resume="auto" if resume == "auto" else goes_on,
            device=chosen_device,
            console=console if is_first else Console(quiet=True),
            on_collapse=on_collapse,
            wandb=wandb,
            force=force,
        )
        if is_first:
            # Quoted, so that the line can be typed as it stands.
            spec = shlex.quote(str(run))
            tasks = tasks_for(config.data.source)
            print(f"done: {path}")
            print(f"next: silc-bench eval --ckpt {spec} --tasks {tasks}")


def _check_cost_options(
    dry_run: bool, devices: int | None, on: str | None, price: float | None
) -> None:
    """UserError where an option of --dry-run stands without what it belongs to."""
    if devices is not None and not dry_run:
        raise UserError(
            "belongs to --dry-run",
            about="--devices",
            fix="torchrun --nproc-per-node N -m silc_bench train starts a run on N devices",
        )
    if on is not None and not dry_run:
        raise UserError("belongs to --dry-run", about="--on", fix="add --dry-run")
    if on is not None and devices is not None:
        fix = "leave --devices out: h100x64 says how many"
        raise UserError("--on counts them", about="--devices", fix=fix)
    if price is not None and on is None:
        raise UserError("belongs to --on", about="--price", fix="name accelerators: --on h100x64")


def _read_start(config: Config, as_json: bool) -> None:
    """Say what --init brings, as the run would; what the run would refuse is refused."""
    if config.init:
        from silc_bench.trainer.checkpoints.init import read_start

        for sentence in read_start(config).said:
            tell(sentence, as_json)
    if config.tokenizer:
        from silc_bench.trainer.silc.tokenizers import of_file

        of_file(Path(config.tokenizer), config.text)


def _print_plan(
    config: Config, on: str, price: float | None, sets: Sequence[str], as_json: bool
) -> None:
    """What the run would cost on other accelerators, by their data sheets."""
    from silc_bench.trainer.monitor.plan import cluster

    held = {change.partition("=")[0].strip() for change in sets}
    planned = cluster.plan(config, on, price, held)
    if as_json:
        print_json(cluster.as_dict(planned))
    else:
        cluster.show_plan(planned, console)


def _print_cost(config: Config, device: str, devices: int | None, as_json: bool) -> None:
    """What a step costs on this machine, and whether it fits."""
    from silc_bench.evaluation.features import choose_device
    from silc_bench.trainer.monitor.plan.fit import estimate_as_dict, show_estimate

    num_devices = devices or int(os.environ.get("WORLD_SIZE", "1"))
    if as_json:
        print_json(estimate_as_dict(config, choose_device(device), num_devices))
    else:
        show_estimate(config, choose_device(device), num_devices, console)


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


def tasks_for(source: str) -> str:
    """What to measure first after training on ``source``: options of ``silc-bench eval`` that need
    no other data.
    """
    if source.startswith("places"):
        return "places"

    # Brings numpy, which --help needs not.
    from silc_bench.datasets.layouts import ENDINGS

    # One list, or shards with captions and no labels, can be asked for retrieval; a mixture or a
    # remote shard cannot. Whatever was trained on, the generated scenes can be measured.
    if "|" in source or "://" in source:
        return "shapes"
    # `data pack --test` has held out what the run has not seen.
    path = Path(source)
    if path.name.startswith("train-") and any(path.parent.glob("test-*.tar")):
        return shlex.quote(f"wds:{path.with_name('test-*.tar')}")
    if source.lower().endswith(ENDINGS) and "*" not in source:
        return shlex.quote(f"captions:{source}")
    if source.endswith(".tar") and _have_captions_alone(source):
        return shlex.quote(f"wds:{source}")
    return "shapes"


def _have_captions_alone(pattern: str) -> bool:
    """Whether the first samples of local shards have captions, and no labels, which need names."""
    import tarfile

    from silc_bench.datasets.files.shards import expand

    with tarfile.open(expand(pattern)[0]) as shard:
        endings = {Path(member.name).suffix for member, _ in zip(shard, range(16), strict=False)}
    return ".txt" in endings and ".cls" not in endings


def print_config(config: Config, as_json: bool) -> None:
    """Every field with its value, and how sure the recipe is of it."""
    from silc_bench.trainer.config.config import flatten
    from silc_bench.trainer.config.presets import provenance_of

    if as_json:
        print_json(flatten(config))
        return

    table = Listing("field", "value", "how sure the recipe is of it", title=config.name)
    for field, value in flatten(config).items():
        table.add_row(field, str(value), provenance_of(field, config.preset))
    console.print(table)
