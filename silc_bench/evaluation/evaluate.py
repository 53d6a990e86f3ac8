"""Measure one model on some tasks, and save each record as soon as it exists.

The order: refuse first, skip what is known, encode once.

Flow: ``evaluate(load_model("runs/a:teacher"), select(["zeroshot", "dense"]), ...)`` -> check what
the model can do -> load and fingerprint all data -> drop the measurements that ``results_dir``
already holds -> for each task left: encode what is not encoded yet, score, save. Whatever can be
wrong with the input is found before the first image is encoded. Several models are one after the
other in `silc_bench.evaluation.sweep`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from silc_bench.datasets.dataset import ImageDataset, is_cut
from silc_bench.datasets.image_set import notes_on, remembered
from silc_bench.errors import ExplainedError, RunError, UserError, first_line, unknown_name
from silc_bench.evaluation.dense_features import window_pipeline
from silc_bench.evaluation.features import (
    Extractor,
    SharedExtractor,
    choose_device,
    choose_precision,
)
from silc_bench.evaluation.protocols import NATIVE
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.interface import DenseModel, ImageModel, lacking_of
from silc_bench.models.patch_features import check_methods
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.results import outcomes
from silc_bench.results import record as results
from silc_bench.results.question import Question
from silc_bench.results.record import Record
from silc_bench.results.setup import Setup
from silc_bench.system.processes import meet, num_ranks, rank
from silc_bench.system.terminal import counted, detail, say, timed
from silc_bench.task import Task

Data = Mapping[str, ImageDataset]  # of a task, by role of the split
Load = Callable[[Task], Data]

_METHODS = {
    "image": ("preprocess", "encode_image"),
    "text": ("tokenize", "encode_text"),
    "dense": ("preprocess", "encode_dense"),
}


def evaluate(
    model: ImageModel,
    tasks: Sequence[Task],
    settings: EvalSettings,
    *,
    model_source: str,
    data_root: Path | None,
    results_dir: Path,
    also_known_in: Sequence[Path] = (),
    on_result: Callable[[Record, bool], None] = lambda record, is_new: None,
    load: Load | None = None,
    on_plan: Callable[[Extractor, Sequence[Data]], None] = lambda extract, data: None,
) -> list[Record]:
    """The records of all ``tasks``, in their order; those that were known are read, not measured.

    Args:
        model_source: what the user asked for, kept in the records.
        results_dir: where records are written.
        also_known_in: other folders of records: what is known there is not measured again.
        on_result: called with each record and whether it was measured now.
        load: gives a task's data in place of ``task.load``.
        on_plan: called before the first image is encoded, with the data of each task that is not
            known.

    Raises:
        UserError: the model cannot do a task, data is missing or damaged, an option is unknown,
            ``existing="error"``.
        RunError: some tasks failed. As after a damaged image (UserError), the records of the
            other tasks are saved.
    """
    # two processes that write one store would overwrite each other: the first rank has it alone
    device = choose_device(settings.device)
    settings = replace(
        settings,
        device=device,
        precision=choose_precision(settings.precision, device),
        store=settings.store if rank() == 0 else None,
    )

    # refuse before any data is read: to hash a dataset can take minutes
    for task in tasks:
        check_supported(model, task.under(settings.protocol), settings.feature_point)
    plans: list[_Plan] = []
    with remembered(settings.store):
        for task in tasks:
            with timed(f"read the data of {task.name}"):
                data = load(task) if load else task.load(data_root, settings.limit)
            for split in data.values():
                detail(f"{split.name}/{split.split}: {counted(len(split), 'sample')}")
            plans.append(_plan(model, task, data, settings, (results_dir, *also_known_in)))

    # said here, because nobody has to ask `data check` before they measure
    if rank() == 0:
        for note in dict.fromkeys(note for plan in plans for note in plan.notes):
            say(note)

    # every rank has looked for known records before the first rank saves a new one; otherwise the
    # ranks could disagree on what is left to do, and wait for each other for ever
    meet()
    known_names = [plan.task.name for plan in plans if plan.known]
    if settings.existing == "error" and known_names:
        problem = f"already measured: {', '.join(known_names)}"
        raise UserError(problem, about=results_dir, fix="use --existing skip or overwrite")

    extract = (Extractor if num_ranks() == 1 else SharedExtractor)(model, settings)

    # announced before the first task runs, so that one pass over the images serves all dense tasks
    plans_to_measure = [plan for plan in plans if plan.known is None or settings.existing != "skip"]
    for plan in plans_to_measure:
        extract.expect(plan.task, plan.data)
    on_plan(extract, [plan.data for plan in plans_to_measure])

    records: list[Record] = []
    failures: dict[str, Exception] = {}
    for plan in plans:
        record = plan.known
        is_new = plan in plans_to_measure
        if is_new:
            try:
                with timed(f"measured {plan.task.name}"):
                    record, samples = _measure(model, plan, extract, model_source)
            except Exception as error:
                # whatever it is, the measurements of the other tasks are not lost over it
                failures[plan.task.name] = error
                continue
            if rank() == 0:
                # samples first: no record without its samples
                outcomes.save(samples, record, results_dir)
                results.save(record, results_dir)

        assert record is not None
        records.append(record)
        on_result(record, is_new)
    if failures:
        raise _summary(failures, len(plans)) from next(iter(failures.values()))
    return records


def _summary(failures: Mapping[str, Exception], num_tasks: int) -> UserError | RunError:
    # a sentence that was written for people stands alone; any other error goes with its class
    reasons: list[str] = []
    for name, error in failures.items():
        reason = str(error) if isinstance(error, ExplainedError) else first_line(error)
        reasons.append(reason if reason.startswith(name) else f"{name}: {reason}")

    # a defect of ours among the failures outweighs input that the user can mend
    is_input = all(isinstance(error, UserError) for error in failures.values())
    return (UserError if is_input else RunError)(
        "; ".join(reasons),
        about=f"{len(failures)} of {num_tasks} tasks failed",
        fix="the other records are saved: mend these, and start the command again",
    )


def check_supported(model: ImageModel, task: Task, feature_point: str = "pooled") -> None:
    """Raises UserError when the model lacks what the task asks for, and names it."""
    lacking = lacking_of(model)
    for capability in sorted(task.requires):
        methods = _METHODS[capability]
        missing = [method for method in methods if not callable(getattr(model, method, None))]
        if missing:
            reason = lacking.get(capability, f"no {' and no '.join(missing)}")
            problem = f"{model.name} cannot give {capability} features ({reason})"
            raise UserError(problem, about=task.name, fix="leave this task out")

    needs = task.dense_needs().values()
    if needs:
        needed_methods = sorted({method for methods in needs for method in methods})
        known_methods = model.dense_methods  # type: ignore[attr-defined]
        check_methods(f"{task.name}: {model.name}", needed_methods, known_methods, lacking)

    if feature_point not in model.feature_points:
        raise unknown_name("feature point", feature_point, model.feature_points, about=model.name)

    # the text tower was trained against the pooled embedding alone
    if feature_point != "pooled" and {"image", "text"} <= task.requires:
        problem = f"images meet text at the feature point 'pooled' alone, not at {feature_point!r}"
        raise UserError(problem, about=task.name, fix="leave this task out")


@dataclass(frozen=True, eq=False)
class _Plan:
    task: Task
    data: Data
    question: Question
    setup: Setup
    pipeline: ImagePipeline | None  # instead of the model's own preprocessing
    known: Record | None  # measured before, under the same key
    notes: list[str]  # on the data


def _plan(
    model: ImageModel,
    task: Task,
    data: Data,
    settings: EvalSettings,
    known_in: Sequence[Path],
) -> _Plan:
    # a task that the named protocol would not change is called native, so that nothing is measured
    # twice under two names
    named = settings.protocol if settings.protocol.changes(task) else NATIVE
    task = task.under(named)
    is_dense = "dense" in task.requires
    if is_dense:
        window_pipeline(cast(DenseModel, model))  # refuses a model that takes no windows
    # a limit that no split reaches leaves nothing out: that is a measurement of the whole set
    limit = settings.limit if any(map(is_cut, data.values())) else None
    question = Question.of(
        task,
        data,
        limit=limit,
        protocol=named.name,
        protocol_version=named.version,
        image=named.images(task),
    )

    compiled = ", compiled" if settings.is_compiled else ""
    setup = Setup.of(
        model,
        precision=f"{settings.precision}{compiled}",
        device=_name_of(torch.device(settings.device)),
        feature_point="patches" if is_dense else settings.feature_point,
    )
    key = results.key(question, setup)
    known = None
    for folder in known_in:
        if known is None:
            known = results.find(folder, model.name, model.revision, task.name, key)
    return _Plan(task, data, question, setup, named.pipeline(model, task), known, notes_on(data))


def _name_of(device: torch.device) -> str:
    """As a reader would name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _measure(
    model: ImageModel, plan: _Plan, extract: Extractor, model_source: str
) -> tuple[Record, bytes]:
    """The record, and what each sample scored, packed."""
    # encoding and fitting; what another task has encoded before is not paid for again
    started = time.perf_counter()
    features = extract(plan.data, plan.pipeline)
    scores = plan.task.score(features)
    seconds = time.perf_counter() - started

    # a single sample has no spread: 0.0 would promise that the number is exact
    if scores.n < 2 and scores.stderr:
        scores = replace(
            scores, stderr={}, notes=(*scores.notes, "one sample was scored: no standard error")
        )

    # what the data had to say, then what the model did not read
    notes = [*plan.notes, *features.notes()]
    record = Record.create(
        model,
        plan.task,
        scores,
        plan.question,
        plan.setup,
        model_source=model_source,
        seconds=seconds,
        notes=notes,
    )
    return record, outcomes.pack(scores.outcomes, record)
