"""What ``silc-bench eval`` and ``silc-bench tasks`` parse, call and print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silc_bench.cli.options import RESULTS, Arch, AsJson, Device, Precision, Results, as_typed
from silc_bench.errors import UserError
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import answering, console, one_line, print_json, shows_progress
from silc_bench.system.terminal_table import Listing

if TYPE_CHECKING:
    from silc_bench.results.record import Record


@answering
def evaluate_command(
    tasks: Annotated[
        str,
        typer.Option(
            help="Names, families, datasets, groups, globs, or folder:PATH, captions:FILE,"
            " wds:PATTERN, seg:IMAGES,MASKS,CLASSES.json; commas between."
        ),
    ],
    ckpt: Annotated[
        list[str] | None,
        typer.Option(
            help="RUN[:student|:teacher|:average], open_clip:ARCH/TAG, hf:NAME, timm:NAME,"
            " big_vision:FILE, FILE, a glob, RUN@all (its checkpoints) or @LIST (a file with one a"
            " line); repeatable."
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="CKPT", help="The same as --ckpt, as after --ckpt runs/*."),
    ] = None,
    arch: Arch = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="What records and tables call it, instead of the name of its folder;"
            " once for each checkpoint, in their order."
        ),
    ] = None,
    feature_point: Annotated[
        str, typer.Option(help="pooled, pre_projection or mean_patch.")
    ] = "pooled",
    protocol: Annotated[
        str,
        typer.Option(
            help="native, openai80, openai7, single, bigvision;"
            " of segmentation tcl, sclip, naclip or clearclip."
        ),
    ] = "native",
    dense_method: Annotated[
        str | None,
        typer.Option(
            help="Of zero-shot segmentation: plain, maskclip, sclip, naclip, clearclip;"
            " of probes: tokens:N, of N blocks."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A JSON file with the prompts of each class: an object of lists."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the datasets.")] = None,
    results: Results = RESULTS,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Images a split; such records are marked and never rank."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 256,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images; 0: in this one; if not given, one a core for many"
            " images in files.",
        ),
    ] = None,
    existing: Annotated[
        str, typer.Option(help="What to do with measurements that exist: skip, overwrite or error.")
    ] = "skip",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="torch.compile the image tower; for thousands of images."),
    ] = False,
    cache: Annotated[
        str | None, typer.Option(help="Folder that keeps embeddings between commands, or off.")
    ] = None,
) -> None:
    """Measure checkpoints on tasks; one record a task, written as soon as it ends."""
    # what needs no tensor is refused at once, before torch is imported
    from silc_bench.models.load import check_spec, load_model
    from silc_bench.models.specs import specs_of
    from silc_bench.tasks.selection import (
        check_data_root,
        left_out_lines,
        measurable,
        select,
        words_of,
    )

    check_data_root(data_root)
    patterns = words_of(tasks)
    chosen, left_out = measurable(select(patterns), patterns, data_root)
    named = specs_of([*(ckpt or []), *(more or [])])
    own_names = _names(name or [], named.specs)
    # of several, one that cannot be loaded does not stop the others
    if len(named.specs) == 1:
        check_spec(named.specs[0], arch)

    for remark in named.remarks:
        print(one_line(remark))
    for line in left_out_lines(left_out):
        print(line)

    for task in chosen:
        task.find(data_root)

    from silc_bench.evaluation.prompts import read_per_class
    from silc_bench.evaluation.protocols import choose
    from silc_bench.evaluation.settings import EvalSettings
    from silc_bench.system.cache import Store, default_folder

    store = None
    if cache != "off":
        store = Store(Path(cache) if cache else default_folder())
    settings = EvalSettings(
        limit=limit,
        protocol=choose(protocol, read_per_class(prompts) if prompts else None, dense_method),
        feature_point=feature_point,
        device=device,
        precision=precision,
        batch_size=batch_size,
        num_workers=workers,
        is_compiled=compiled,
        store=store,
        existing=existing,
        progress=shows_progress(),
    )

    # Both folders are checked before hours of work, not after them.
    check_writable(results[0])
    if store is not None:
        check_writable(store.folder)

    from silc_bench.evaluation.features import choose_device
    from silc_bench.evaluation.sweep import Checkpoint, sweep
    from silc_bench.system.processes import joined, rank

    with joined(choose_device(device)):
        # Of several processes the first one speaks.
        is_first = rank() == 0
        found = sweep(
            [
                Checkpoint(spec, partial(load_model, spec, arch, own_name))
                for spec, own_name in zip(named.specs, own_names, strict=True)
            ],
            chosen,
            replace(settings, progress=settings.progress and is_first),
            data_root=data_root,
            results_dir=results[0],
            also_known_in=results[1:],
            on_result=_print_record if is_first else lambda record, is_new: None,
            tell=lambda sentence: print(one_line(sentence), flush=True),
        )
        if is_first:
            print(found.counts())
            print(f"records in {results[0]}; silc-bench leaderboard {as_typed(results)}")
        if found.failures:
            raise found.error(len(named.specs))


def _names(names: Sequence[str], specs: Sequence[str]) -> Sequence[str]:
    """The name that is asked for each checkpoint; "" where none is.

    Raises:
        UserError: not one for each, or one without a letter.
    """
    if names and len(names) != len(specs):
        raise UserError(
            f"{len(names)} for {len(specs)} checkpoints",
            about="--name",
            fix="give it once for each of them, in their order, or not at all",
        )
    for name in names:
        if not name.strip():
            raise UserError(f"{name!r} is no name", about="--name", fix="give it a letter")
    return names or [""] * len(specs)


def _print_record(record: Record, is_new: bool) -> None:
    metric = record.task.main_metric
    value = f"{metric} {100 * record.metrics[metric]:5.1f}"
    if metric in record.stderr:
        value += f" ± {100 * record.stderr[metric]:.1f}"

    remarks = ""
    # checkpoints of one run share its name
    if record.model.training:
        remarks += f"  step {record.model.training.step:,}"
    if record.limit:
        remarks += f"  (limited to {record.limit}, never ranks)"
    if not is_new:
        remarks += "  (known, not measured again)"

    # With the revision, because other commands take NAME@REVISION. Flushed, because a log file of
    # a long evaluation is watched while it grows.
    model = f"{one_line(record.model.name)}@{record.model.revision[:8]}"
    print(
        f"{model:43} {record.task.name:28} {value} %"
        f"  chance {100 * record.task.chance:.1f} %  n {record.n:,}{remarks}",
        flush=True,
    )
    for note in record.notes:
        print(f"  note: {note}", flush=True)


@answering
def list_tasks(as_json: AsJson = False) -> None:
    """What can be measured."""
    from silc_bench.tasks.selection import all_tasks

    known = all_tasks().values()
    if as_json:
        rows = []
        for task in known:
            row = {
                name: getattr(task, name) for name in ("name", "version", "group", "main_metric")
            }
            rows.append({**row, "requires": sorted(task.requires)})
        print_json(rows)
        return

    table = Listing("task", "group", "main metric", "needs")
    for task in known:
        table.add_row(task.name, task.group, task.main_metric, " ".join(sorted(task.requires)))
    console.print(table)
