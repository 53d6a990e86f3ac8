"""From Python what the commands do: measure, compare, tabulate, train.

    import silc_bench

    results = silc_bench.evaluate("runs/own", "zeroshot", data_root="data")
    results.to_frame()

Everything here is a name of ``silc_bench`` itself, imported when it is first asked for, so that
``import silc_bench`` stays light. What a command says on its error stream is said here too, and a
mistake is the same ``UserError``. Defaults are those of the commands; files of defaults
(silc-bench.toml) count for commands alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.load import load_model
from silc_bench.results.record import Record
from silc_bench.system.files import check_writable
from silc_bench.system.terminal import console, say, shows_progress, warn

if TYPE_CHECKING:
    import pandas as pd

    from silc_bench.models.interface import ImageModel
    from silc_bench.reports.comparison.compare import Comparison
    from silc_bench.reports.tables import Board

__all__ = ["Results", "compare", "evaluate", "leaderboard", "load_model", "train"]

Place: TypeAlias = "str | Path"
Model: TypeAlias = "str | Path | ImageModel"
DATA_ROOT = "SILC_BENCH_DATA_ROOT"
SHOWN = 20  # records that a Results prints


@dataclass(frozen=True, repr=False)
class Results:
    """The records of an evaluation; it is a sequence of them."""

    records: tuple[Record, ...]  # of each model in turn, by the name of the task
    left_out: Mapping[str, str]  # task -> why it was not measured, as a clause
    failures: Mapping[str, str]  # of several models: what was asked for -> why it has no records
    folder: Path | None  # where the records lie; None: nowhere

    def to_frame(self) -> pd.DataFrame:
        """A row for each record and metric, with the columns of ``load_results``.

        Values are fractions; a rank counts from 1.
        """
        from silc_bench.reports.forms.frame import frame_of

        return frame_of(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, place: int | slice) -> Record | tuple[Record, ...]:
        return self.records[place]

    def __repr__(self) -> str:
        """A line a record: model, task, main metric in percent with its standard error."""
        where = f" in {self.folder}" if self.folder else ", kept nowhere"
        lines = [f"<Results: {len(self.records)} record{'s' * (len(self.records) != 1)}{where}"]
        for record in self.records[:SHOWN]:
            metric = record.task.main_metric
            error = record.stderr.get(metric)
            spread = "" if error is None else f" ± {100 * error:.1f}"
            limited = f", limited to {record.limit}" if record.limit else ""
            lines.append(
                f"  {record.model.name}@{record.model.revision[:8]}  {record.task.name}"
                f"  {metric} {100 * record.metrics[metric]:.1f}{spread} %  n {record.n:,}{limited}"
            )
        if len(self.records) > SHOWN:
            lines.append(f"  and {len(self.records) - SHOWN} more")
        for source, reason in self.failures.items():
            lines.append(f"  failed: {source}: {reason}")
        if self.left_out:
            lines.append(f"  left out: {len(self.left_out)} tasks; see .left_out")
        return "\n".join(lines) + ">"


def evaluate(
    models: Model | Sequence[Model],
    tasks: str | Iterable[str],
    *,
    data_root: Place | None = None,
    results: Place | Sequence[Place] | None = "results",
    arch: str | None = None,
    name: str = "",
    limit: int | None = None,
    protocol: str = "native",
    dense_method: str | None = None,
    prompts: Place | None = None,
    feature_point: str = "pooled",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    existing: str = "skip",
    compiled: bool = False,
    cache: Place | None = None,
) -> Results:
    """Measure models on tasks; as ``silc-bench eval``, with the same records.

    Of several models each is loaded when its turn comes and freed before the next; one that fails
    stands in ``Results.failures`` and the others go on.

    Args:
        models: what ``--ckpt`` takes (a run, a file, "open_clip:ARCH/TAG", a glob, "RUN@all" ...),
            a model of ``load_model`` or ``wrap``, or a sequence of these.
        tasks: what ``--tasks`` takes: names, families, datasets, groups, globs, own data; with
            commas between, or one a word.
        data_root: folder of the named sets; $SILC_BENCH_DATA_ROOT if it is None. A family means
            what can be measured there.
        results: where records are written; of several folders the first, and what another one holds
            is not measured again. None: they are kept in memory alone.
        arch: of a file of weights alone, "open_clip:NAME" for example.
        name: what records call the one model that is named by a spec.
        limit: images a split; such records are marked and never rank.
        protocol: "native", or another set of prompts and crops (``--protocol``).
        dense_method: how zero-shot segmentation reads patches.
        prompts: a JSON file with the prompts of each class.
        feature_point: "pooled", "pre_projection" or "mean_patch".
        device: "auto", "cpu" or "cuda"; "auto" leaves a module in memory where it is.
        precision: "auto", "fp32" or "bf16".
        batch_size: images a forward pass.
        workers: processes that decode images; 0: in this one.
        existing: "skip", "overwrite" or "error", for measurements that exist.
        compiled: whether the image tower goes through torch.compile.
        cache: folder that keeps embeddings between calls, or "off". Of a module in memory none are
            kept, but for modules of open_clip and transformers: its code may change.

    Raises:
        UserError: nothing there, an unknown name, data that is missing or damaged, a model that
            cannot do a task.
        RunError: some tasks failed; the records of the others are saved.
    """
    from silc_bench.tasks.selection import (
        check_data_root,
        left_out_lines,
        measurable,
        select,
        words_of,
    )

    root_given = data_root or os.environ.get(DATA_ROOT)
    root = Path(root_given) if root_given else None
    check_data_root(root)
    given = _each(models)
    words = words_of(tasks) if isinstance(tasks, str) else list(tasks)
    chosen, left_out = measurable(select(words), words, root)
    checkpoints = _checkpoints(given, arch, name)
    for line in left_out_lines(left_out):
        say(line)
    for task in chosen:
        task.find(root)

    import torch

    from silc_bench.evaluation.features import choose_device
    from silc_bench.evaluation.prompts import read_per_class
    from silc_bench.evaluation.protocols import choose
    from silc_bench.evaluation.settings import EvalSettings
    from silc_bench.evaluation.sweep import Checkpoint, sweep
    from silc_bench.system.cache import Store, default_folder
    from silc_bench.system.processes import joined

    store = None if cache == "off" else Store(Path(cache) if cache else default_folder())
    folders = _folders(results)
    per_class = read_per_class(Path(prompts)) if prompts else None
    settings = EvalSettings(
        limit=limit,
        protocol=choose(protocol, per_class, dense_method),
        feature_point=feature_point,
        device=_device_of(given, device),
        precision=precision,
        batch_size=batch_size,
        num_workers=workers,
        is_compiled=compiled,
        store=None if any(map(_may_change, given)) else store,
        existing=existing,
        progress=shows_progress(),
    )
    for folder in folders[:1]:
        check_writable(folder)
    if settings.store is not None:
        check_writable(settings.store.folder)

    # a training program of several processes has joined them already
    is_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    group = nullcontext() if is_joined else joined(choose_device(settings.device))
    nowhere = tempfile.TemporaryDirectory(prefix="silc-bench-results-")
    with nowhere as unkept, group:
        found = sweep(
            [Checkpoint(source, load) for source, load in checkpoints],
            chosen,
            settings,
            data_root=root,
            results_dir=folders[0] if folders else Path(unkept),
            also_known_in=folders[1:],
            on_result=_say_notes,
        )
    if found.failures:
        warn(str(found.error(len(checkpoints))))
    where = folders[0] if folders else None
    return Results(tuple(found.records), left_out, found.failures, where)


def compare(
    *models: Model,
    results: Place | Sequence[Place] = "results",
    tasks: str | Iterable[str] = "",
    group_seeds: bool = False,
) -> Comparison:
    """Is each further model better than the first; as ``silc-bench compare``.

    Args:
        models: what ``evaluate`` took, names as in the leaderboard, or NAME@REVISION; the first is
            the baseline.
        results: folders of records.
        tasks: names, families, datasets, groups or globs; all if empty.
        group_seeds: compare methods: all seeds of each run's method, paired by seed.

    Returns:
        ``.results``: one for each task, metric and pair, with its paired test; ``.to_frame()``;
        ``.omissions``: what was not compared, and why.

    Raises:
        UserError: no such folder, an unknown or ambiguous model, fewer than two models.
    """
    from silc_bench.reports.comparison import compare as comparing
    from silc_bench.tasks.selection import words_of

    words = words_of(tasks) if isinstance(tasks, str) else list(tasks)
    names = [_asked(model) for model in models]
    found = comparing.compare(_folders(results), names, words, has_seeds_grouped=group_seeds)
    for sentence in found.remarks:
        warn(sentence)
    return found


def leaderboard(
    results: Place | Sequence[Place] = "results",
    *,
    out: Place | None = None,
    formats: Sequence[str] = (),
    tasks: str | Iterable[str] = "",
    models: str | Iterable[str] = "",
    sort: str = "",
    group_by: str = "family",
    limit: int | None = None,
    group_seeds: bool = False,
) -> Board:
    """Tables from the records; as ``silc-bench leaderboard``.

    Args:
        results: folders of records.
        out: folder that leaderboard.md, .csv, .json and .html are written to; None: none is.
        formats: of ``out``: "md", "csv", "json", "html", "tex", "parquet".
        tasks, models: which are shown, as in the command; all if empty.
        sort: "name", "params", "TASK" or "TASK:METRIC".
        group_by: "family", "dataset" or "protocol".
        limit: rows of a table.
        group_seeds: one row a method, the mean over its seeds.

    Returns:
        ``.scores``: a frame with one row for each record and metric, unrounded.

    Raises:
        UserError: no such folder, nothing to show, an unknown word.
    """
    from silc_bench.reports import leaderboard as boards
    from silc_bench.reports.view import View
    from silc_bench.tasks.selection import current_version, words_of

    task_words, model_words = (
        words_of(words) if isinstance(words, str) else list(words) for words in (tasks, models)
    )
    if out is not None:
        check_writable(Path(out))
    elif formats:
        problem = "there is no folder to write to"
        raise UserError(problem, about="leaderboard(formats=...)", fix="give out=FOLDER, too")
    view = View(task_words, model_words, sort, group_by, limit, group_seeds)
    board = boards.build(_folders(results), view, current_version=current_version)
    for sentence in board.remarks:
        warn(sentence)
    if out is not None:
        boards.write(board, Path(out), tuple(formats) or boards.USUAL_FORMATS)
    return board


def train(
    preset: str = "shapes_tiny",
    *,
    data: str | None = None,
    out: Place | None = None,
    objective: str = "silc",
    samples: int | None = None,
    seed: int | None = None,
    init: str | None = None,
    changes: Mapping[str, object] | None = None,
    resume: bool | Literal["auto"] = False,
    timeout_minutes: float = 30.0,
    device: str = "auto",
    on_collapse: str = "warn",
    force: bool = False,
) -> Path:
    """Train SILC, or a step of its ablation; as ``silc-bench train``.

    Args:
        preset: "shapes_tiny", "b16" ...
        data: shards, a list, a folder or a mixture; None: what the preset brings, or generated
            scenes.
        out: folder of the run; runs/PRESET-OBJECTIVE if None.
        objective: "silc", "contrastive+views" or "contrastive"; also the controls.
        samples: images seen in the whole run.
        seed: of weights, views and data.
        init: weights to start from.
        changes: fields of the configuration, as {"optim.lr": 3e-4} (``--set``); also
            {"parallel": "fsdp"} and {"tokenizer": "c4_en.model"}.
        resume: True continues the run in ``out``, bit for bit; "auto" starts it if there is none.
        timeout_minutes: how long several processes wait for one that hangs, before all end.
        device: "auto", "cpu" or "cuda".
        on_collapse: "warn" or "stop".
        force: starts although a step seems not to fit into memory.

    Returns:
        The run's folder, which ``evaluate`` takes.

    Raises:
        UserError: an unknown name or field, a folder that holds another run, a step that does not
            fit.
        RunError: the run failed; its checkpoints are saved.
    """
    from silc_bench.evaluation.features import choose_device
    from silc_bench.system.processes import joined, rank
    from silc_bench.trainer.config.presets import configure

    if resume not in (True, False, "auto"):
        raise unknown_name("value", str(resume), ("True", "False", "auto"), about="resume")
    sets = [f"{field}={value}" for field, value in (changes or {}).items()]
    config = configure(
        preset, objective, data=data, samples=samples, seed=seed, init=init, sets=sets
    )
    run = Path(out) if out is not None else Path("runs") / config.name
    check_writable(run)

    from rich.console import Console

    from silc_bench.trainer.loop import run_training

    chosen_device = choose_device(device)
    with joined(chosen_device, timeout_minutes):
        run_training(
            config,
            run,
            resume=resume,
            device=chosen_device,
            console=console if rank() == 0 else Console(quiet=True),
            on_collapse=on_collapse,
            force=force,
        )
    return run


# ---- what was given ----


def _each(models: Model | Sequence[Model]) -> list[Model]:
    if isinstance(models, Sequence) and not isinstance(models, str):
        return list(models)
    return [models]


def _checkpoints(
    given: Sequence[Model], arch: str | None, name: str
) -> list[tuple[str, Callable[[], ImageModel]]]:
    """(what was asked for, how it is loaded) of each; a model that is there is loaded."""
    from silc_bench.models.specs import specs_of

    found: list[tuple[str, Callable[[], ImageModel]]] = []
    for model in given:
        if not isinstance(model, str | Path):
            found.append((f"{_model_of(model).name} in memory", partial(_refreshed, model)))
            continue
        named = specs_of([str(model)])
        for remark in named.remarks:
            say(remark)
        found += [(spec, partial(load_model, spec, arch, name)) for spec in named.specs]

    if not found:
        raise UserError("no model is named", about="evaluate", fix="name one or more")
    if (name or arch) and (len(found) > 1 or not isinstance(given[0], str | Path)):
        about = "evaluate(name=...)" if name else "evaluate(arch=...)"
        fix = "leave it out, or call evaluate for each model"
        raise UserError("belongs to one model that is named by a spec", about=about, fix=fix)
    return found


def _model_of(given: Any) -> ImageModel:
    """UserError for what is no model, such as a module that nobody wrapped."""
    needed = ("name", "revision", "preprocess", "encode_image")
    lacking = [name for name in needed if not hasattr(given, name)]
    if lacking:
        problem = f"a {type(given).__name__} has no {', no '.join(lacking)}"
        fix = "give a spec, or silc_bench.wrap(module, preprocess, tokenizer, name=...)"
        raise UserError(problem, about="evaluate", fix=fix)
    return given


def _refreshed(model: Any) -> ImageModel:
    """A module in memory may have been trained on since it was wrapped."""
    return model.refreshed() if hasattr(model, "refreshed") else model


def _may_change(model: Any) -> bool:
    """Whether its embeddings hang on code that no revision knows."""
    return getattr(model, "has_own_code", False)


def _device_of(given: Sequence[Model], device: str) -> Any:
    """ "auto" leaves the one module in memory where it is."""
    if device == "auto" and len(given) == 1 and hasattr(given[0], "refreshed"):
        return given[0].device  # type: ignore[union-attr]
    return device


def _asked(model: Any) -> str:
    if isinstance(model, str | Path):
        return str(model)
    known = _model_of(_refreshed(model))
    return f"{known.name}@{known.revision}"


def _folders(results: Place | Sequence[Place] | None) -> list[Path]:
    if results is None:
        return []
    return [Path(one) for one in ([results] if isinstance(results, str | Path) else results)]


def _say_notes(record: Record, is_new: bool) -> None:
    for note in record.notes if is_new else ():
        say(f"{record.task.name}: {note}")
