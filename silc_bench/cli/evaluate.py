"""What ``silc-bench eval`` parses, calls and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silc_bench.cli.options import Device, Results
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, table_of

if TYPE_CHECKING:
    from silc_bench.results.record import Record


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
    arch: Annotated[
        str | None,
        typer.Option(help="Of a file of weights alone: open_clip:NAME, hf:NAME, silc:PRESET."),
    ] = None,
    feature_point: Annotated[
        str, typer.Option(help="pooled, pre_projection or mean_patch.")
    ] = "pooled",
    protocol: Annotated[
        str,
        typer.Option(
            help="native, openai80, openai7, single, bigvision; of segmentation tcl, sclip, naclip or clearclip."
        ),
    ] = "native",
    dense_method: Annotated[
        str | None,
        typer.Option(
            help="Of zero-shot segmentation: plain, maskclip, sclip, naclip, clearclip; of probes: tokens:N, of N blocks."
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts per class instead: JSON {class: [prompt, ...]}.")
    ] = None,
    prompt_average: Annotated[
        str | None, typer.Option(help="Over the prompts of a class: embeddings or logits.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the datasets.")] = None,
    results: Results = Path("results"),
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures a split; such records are marked and never rank."),
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a forward pass.")] = 256,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that decode pictures; 0: in this one.")
    ] = 0,
    existing: Annotated[
        str, typer.Option(help="What to do with measurements that exist: skip, overwrite or error.")
    ] = "skip",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="torch.compile the picture tower; for thousands of pictures."
        ),
    ] = False,
    cache: Annotated[
        str | None, typer.Option(help="Folder that keeps embeddings between commands, or off.")
    ] = None,
) -> None:
    """Measure checkpoints on tasks; one record a task, written as soon as it ends."""
    from silc_bench.tasks.selection import measurable, select, words_of

    words = words_of(tasks)
    chosen, left_out = measurable(select(words), words, data_root)
    for reason in dict.fromkeys(left_out.values()):
        print(
            f"left out {reason}: {', '.join(name for name in left_out if left_out[name] == reason)}"
        )
    from silc_bench.evaluation.evaluate import evaluate
    from silc_bench.evaluation.features import choose_device
    from silc_bench.evaluation.prompts import read_per_class
    from silc_bench.evaluation.protocols import choose
    from silc_bench.models.load import load_model
    from silc_bench.system.cache import Store, default_folder
    from silc_bench.system.processes import joined, rank

    named = choose(
        protocol, read_per_class(prompts) if prompts else None, prompt_average, dense_method
    )
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


@answering
def list_tasks(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What can be measured."""
    from silc_bench.tasks.selection import all_tasks

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
