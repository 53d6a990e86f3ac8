"""The command line: parses, calls, prints. ``silc-bench train | eval | leaderboard | compare | ...``.

Exit codes: 0 done, 1 the run failed, 2 the user's input was wrong. Torch is imported by the commands that compute, not here.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from silc_bench import __version__, cli_cache, cli_compare, cli_data, cli_doctor, cli_export, cli_report, cli_show, cli_train
from silc_bench.atomic import check_writable
from silc_bench.errors import UserError
from silc_bench.terminal import answering, console, table_of

if TYPE_CHECKING:
    from silc_bench.results import Record

app = typer.Typer(
    help="How good is this image-text checkpoint, exactly - and does SILC help on my data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Results = Annotated[Path, typer.Option(help="Folder of records.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"silc-bench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
@answering
def train(
    preset: Annotated[
        str, typer.Option(help="shapes_tiny, cifar_tiny, b16, l16, so400m, g16, siglip2_dense, tips, silc_star.")
    ] = "shapes_tiny",
    data: Annotated[
        str | None,
        typer.Option(help='"shapes", shards ("DIR/{000..009}.tar", "s3://..."), LIST.jsonl, a folder, or "3 * A | 1 * B".'),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/PRESET-OBJECTIVE if not given.")] = None,
    objective: Annotated[str, typer.Option(help="silc, contrastive+views or contrastive: the steps of the ablation.")] = "silc",
    samples: Annotated[int | None, typer.Option(help="Images seen in the whole run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, views and data order.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Start from these weights: RUN[:student|:teacher], FILE, hf:, open_clip:, big_vision:.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="field=value, as in optim.lr=3e-4; may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, bit for bit.")] = False,
    device: Device = "auto",
    on_collapse: Annotated[str, typer.Option(help="warn or stop, when the run's health says that it has collapsed.")] = "warn",
    wandb: Annotated[str | None, typer.Option(help="[ENTITY/]PROJECT of W&B, which gets the log's rows too.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check --init, print what it costs here, and stop.")] = False,
    devices: Annotated[int | None, typer.Option(min=1, help="Of --dry-run: so many share each batch.")] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print every field, how sure it is, and stop.")] = False,
) -> None:
    """Train SILC, or a step of its ablation."""
    from trainer.presets import configure

    config = configure(preset, objective, data=data, samples=samples, seed=seed, init=init, sets=set_ or ())
    if (show_config or dry_run) and os.environ.get("RANK", "0") != "0":  # of torchrun's processes the first one speaks
        return
    if show_config:
        cli_train.print_config(config)
        return
    from silc_bench.features import choose_device
    from silc_bench.ranks import joined, rank

    if dry_run:
        if config.init and not resume:  # which has its weights already
            cli_train.print_start(config)
        cli_train.print_estimate(config, choose_device(device), devices or int(os.environ.get("WORLD_SIZE", "1")))
        return
    if devices is not None:
        raise UserError("--devices belongs to --dry-run; torchrun --nproc-per-node N -m silc_bench train starts a run on N")
    from trainer.host_memory import keep_freed_memory
    from trainer.loop import run_training

    run, chosen = out or Path("runs") / config.name, choose_device(device)
    check_writable(run)
    if chosen.type == "cpu":
        keep_freed_memory()
    with joined(chosen):
        said = console if rank() == 0 else Console(quiet=True)
        path = run_training(config, run, resume=resume, device=chosen, console=said, on_collapse=on_collapse, wandb=wandb)
        if rank() == 0:
            print(f"done: {path}")
            print(f"next: silc-bench eval --ckpt {shlex.quote(str(run))} --tasks {cli_train.tasks_for(config.data.source)}")


@app.command("eval")
@answering
def evaluate_command(
    ckpt: Annotated[
        list[str],
        typer.Option(
            help="RUN[:student|:teacher|:average], open_clip:ARCH/TAG, hf:NAME, timm:NAME, big_vision:FILE, FILE; repeatable."
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Names, families, datasets, groups, globs, or folder:PATH, captions:FILE, wds:PATTERN,"
            " seg:IMAGES,MASKS,CLASSES.json; commas between."
        ),
    ],
    arch: Annotated[str | None, typer.Option(help="Of a file of weights alone: open_clip:NAME, hf:NAME, silc:PRESET.")] = None,
    feature_point: Annotated[str, typer.Option(help="pooled, pre_projection or mean_patch.")] = "pooled",
    protocol: Annotated[
        str,
        typer.Option(help="native, openai80, openai7, single, bigvision; of segmentation tcl, sclip, naclip or clearclip."),
    ] = "native",
    dense_method: Annotated[
        str | None,
        typer.Option(
            help="Of zero-shot segmentation: plain, maskclip, sclip, naclip, clearclip; of probes: tokens:N, of N blocks."
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts per class instead: JSON {class: [prompt, ...]}.")] = None,
    prompt_average: Annotated[str | None, typer.Option(help="Over the prompts of a class: embeddings or logits.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the datasets.")] = None,
    results: Results = Path("results"),
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures a split; such records are marked and never rank.")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a forward pass.")] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode pictures; 0: in this one.")] = 0,
    existing: Annotated[str, typer.Option(help="What to do with measurements that exist: skip, overwrite or error.")] = "skip",
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the picture tower; for thousands of pictures.")
    ] = False,
    cache: Annotated[str | None, typer.Option(help="Folder that keeps embeddings between commands, or off.")] = None,
) -> None:
    """Measure checkpoints on tasks; one record a task, written as soon as it ends."""
    from silc_bench.registry import measurable, select, words_of

    words = words_of(tasks)
    chosen, left_out = measurable(select(words), words, data_root)
    for reason in dict.fromkeys(left_out.values()):
        print(f"left out {reason}: {', '.join(name for name in left_out if left_out[name] == reason)}")
    from silc_bench.evaluate import evaluate
    from silc_bench.features import choose_device
    from silc_bench.models import load_model
    from silc_bench.ranks import joined, rank
    from silc_bench.store import Store, default_folder
    from tasks.prompts import read_per_class
    from tasks.protocols import choose

    named = choose(protocol, read_per_class(prompts) if prompts else None, prompt_average, dense_method)
    store = None if cache == "off" else Store(Path(cache) if cache else default_folder())
    check_writable(results)
    if store is not None:
        check_writable(store.folder)
    with joined(choose_device(device)):
        models = [(spec, load_model(spec, arch)) for spec in ckpt]
        for spec, model in models:
            evaluate(
                model,
                chosen,
                model_source=spec,
                data_root=data_root,
                results_dir=results,
                limit=limit,
                device=device,
                precision=precision,
                feature_point=feature_point,
                protocol=named,
                batch_size=batch_size,
                num_workers=workers,
                existing=existing,
                progress=console.is_terminal and rank() == 0,
                store=store,
                is_compiled=compiled,
                on_result=_print_record if rank() == 0 else lambda record, is_new: None,
            )
        if rank() == 0:
            print(f"records in {results}; silc-bench leaderboard --results {results}")


def _print_record(record: Record, is_new: bool) -> None:
    name = record.task.main_metric
    error = f" ± {100 * record.stderr[name]:.1f}" if name in record.stderr else ""
    known = "" if is_new else "  (known, not measured again)"
    limited = f"  (limited to {record.limit}, never ranks)" if record.limit else ""
    print(
        f"{record.model.name:34} {record.task.name:28} {name} {100 * record.metrics[name]:5.1f}{error} %"
        f"  chance {100 * record.task.chance:.1f} %  n {record.n:,}{limited}{known}",
        flush=True,
    )


@app.command()
@answering
def leaderboard(
    results: Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Also write leaderboard.md, .csv and .html here.")] = None,
    across_protocols: Annotated[
        bool,
        typer.Option("--across-protocols", help="One column a task; each value is marked with its protocol, none is best."),
    ] = False,
) -> None:
    """Tables from the records; with --out also as Markdown, CSV and a self-contained page."""
    from silc_bench import leaderboard as boards

    if out:
        check_writable(out)
    board = boards.build(results, across_protocols=across_protocols)
    console.print(boards.to_terminal(board))
    for path in boards.write(board, out) if out else ():
        print(f"wrote {path}")


@app.command("tasks")
@answering
def list_tasks(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What can be measured."""
    from silc_bench.registry import all_tasks

    known = all_tasks().values()
    if as_json:
        rows = [
            {
                "name": t.name,
                "version": t.version,
                "group": t.group,
                "main_metric": t.main_metric,
                "requires": sorted(t.requires),
            }
            for t in known
        ]
        print(json.dumps(rows, indent=1))
        return
    table = table_of("task", "group", "main metric", "needs")
    for task in known:
        table.add_row(task.name, task.group, task.main_metric, " ".join(sorted(task.requires)))
    console.print(table)


@app.command()
@answering
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs, records, pictures and the page; demo, or demo/fast, if not given.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A minute: every part runs, the numbers mean little.")] = False,
) -> None:
    """Train SILC and its contrastive twin on generated scenes, evaluate both, and show what self-distillation changed."""
    from silc_bench.demo import run_demo

    folder = out or Path("demo/fast" if fast else "demo")
    check_writable(folder)
    run_demo(folder, is_fast=fast, console=console, on_result=_print_record)


app.add_typer(cli_cache.app, name="cache")
app.add_typer(cli_data.app, name="data")
app.command()(cli_compare.compare)
app.command()(cli_doctor.doctor)
app.command()(cli_export.export)
app.command()(cli_show.show)
app.command()(cli_report.report)


def main() -> None:
    app(prog_name="silc-bench")
