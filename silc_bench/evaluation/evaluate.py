"""Measure one model on some tasks, and save each record as soon as it exists.

The order: refuse first, skip what is known, encode once.

Flow: ``evaluate(load_model("runs/a:teacher"), select(["zeroshot", "dense"]), ...)`` -> check what
the model can do -> load and fingerprint all data -> drop the measurements that ``results_dir``
already holds -> for each task left: encode what is not encoded yet, score, save. Whatever can be
wrong with the input is found before the first image is encoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from silc_bench.datasets.dataset import ImageDataset
from silc_bench.datasets.image_set import remembered
from silc_bench.errors import RunError, UserError, unknown_name
from silc_bench.evaluation.dense_features import image_protocol
from silc_bench.evaluation.features import (
    Extractor,
    SharedExtractor,
    choose_device,
    choose_precision,
)
from silc_bench.evaluation.protocols import NamedProtocol
from silc_bench.models.interface import FEATURE_POINTS, DenseModel, ImageModel
from silc_bench.models.patch_features import check_methods
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.results import outcomes
from silc_bench.results import record as results
from silc_bench.results.protocol import Protocol
from silc_bench.results.record import Record
from silc_bench.system.cache import Store
from silc_bench.system.processes import meet, num_ranks, rank
from silc_bench.task import DenseTask, Task

EXISTING = ("skip", "overwrite", "error")
_METHODS = {
    "image": ("preprocess", "encode_image"),
    "text": ("tokenize", "encode_text"),
    "dense": ("preprocess", "encode_dense"),
}


def evaluate(
    model: ImageModel,
    tasks: Sequence[Task],
    *,
    model_source: str,
    data_root: Path | None,
    results_dir: Path,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    feature_point: str = "pooled",
    protocol: NamedProtocol | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    existing: str = "skip",
    progress: bool = False,
    store: Store | None = None,
    is_compiled: bool = False,
    on_result: Callable[[Record, bool], None] = lambda record, is_new: None,
) -> list[Record]:
    """The records of all ``tasks``, in their order; those that were known are read, not measured.

    Args:
        model_source: what the user asked for, kept in the records.
        limit: images a split, evenly spread; the records say so and never rank.
        feature_point: where image embeddings are read (models.FEATURE_POINTS); tasks that compare
            them with text need "pooled".
        protocol: whose prompts and preprocessing; None: native.
        existing: what to do about a measurement that is known: "skip" it, "overwrite" it, or
            "error" before any work.
        store: where embeddings, and fingerprints of data, outlive the command.
        is_compiled: images through torch.compile, which changes last bits at most.
        on_result: called with each record and whether it was measured now.

    Raises:
        UserError: the model cannot do a task, data is missing or damaged, an option is unknown,
            ``existing="error"``.
        RunError: some tasks failed. As after a damaged image (UserError), the records of the
            other tasks are saved.
    """
    if existing not in EXISTING:
        raise unknown_name("--existing", existing, EXISTING)
    if batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {batch_size}")

    # two processes that write one store would overwrite each other: the first rank has it alone
    store = store if rank() == 0 else None
    chosen_device = choose_device(device)
    chosen_precision = choose_precision(precision, chosen_device)
    choices = _Choices(chosen_precision, feature_point, protocol, limit)

    # refuse before any data is read: to hash a dataset can take minutes
    for task in tasks:
        check_supported(model, choices.task(task), feature_point)
    with remembered(store):
        plans = [
            _plan(model, task, task.load(data_root, limit), choices, results_dir) for task in tasks
        ]

    # every rank has looked for known records before the first rank saves a new one; otherwise the
    # ranks could disagree on what is left to do, and wait for each other for ever
    meet()
    known_names = [plan.task.name for plan in plans if plan.known]
    if existing == "error" and known_names:
        raise UserError(
            f"already measured in {results_dir}: {', '.join(known_names)};"
            " use --existing skip or overwrite"
        )

    extractor_class = Extractor if num_ranks() == 1 else SharedExtractor
    extract = extractor_class(
        model,
        device=chosen_device,
        precision=choices.precision,
        feature_point=feature_point,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        store=store,
        is_compiled=is_compiled,
    )

    # announced before the first task runs, so that one pass over the images serves all dense tasks
    plans_to_measure = [plan for plan in plans if plan.known is None or existing != "skip"]
    for plan in plans_to_measure:
        extract.expect(plan.task, plan.data)

    def save(record: Record, samples: bytes) -> None:
        if rank() > 0:
            return

        # samples first: no record without its samples
        outcomes.save(samples, record, results_dir)
        results.save(record, results_dir)

    def measure(plan: _Plan) -> tuple[Record, bytes]:
        return _measure(model, plan, extract, model_source=model_source, limit=limit)

    return _each(plans, plans_to_measure, measure, save, on_result)


def _each(
    plans: Sequence[_Plan],
    plans_to_measure: Sequence[_Plan],
    measure: Callable[[_Plan], tuple[Record, bytes]],
    save: Callable[[Record, bytes], None],
    on_result: Callable[[Record, bool], None],
) -> list[Record]:
    """Records in the order of ``plans``, each saved as soon as it exists.

    A task that fails stops no other.
    """
    records: list[Record] = []
    failures: dict[str, Exception] = {}

    for plan in plans:
        if plan not in plans_to_measure:
            assert plan.known is not None
            records.append(plan.known)
            on_result(plan.known, False)
            continue

        try:
            record, samples = measure(plan)
        except Exception as error:
            # whatever it is, the measurements of the other tasks are not lost over it
            failures[plan.task.name] = error
            continue

        save(record, samples)
        records.append(record)
        on_result(record, True)

    if failures:
        reasons = "; ".join(f"{name}: {_reason(error)}" for name, error in failures.items())
        summary = f"{len(failures)} of {len(plans)} tasks failed - {reasons}"

        # a defect of ours among the failures outweighs input that the user can mend
        is_input = all(isinstance(error, UserError) for error in failures.values())
        kind = UserError if is_input else RunError
        raise kind(summary) from next(iter(failures.values()))
    return records


def _reason(error: Exception) -> str:
    """A sentence that was written for people stands alone; any other error goes with its kind."""
    if isinstance(error, UserError | RunError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def check_supported(model: ImageModel, task: Task, feature_point: str = "pooled") -> None:
    """Raises UserError when the model lacks what the task asks for, and names it."""
    lacking: Mapping[str, str] = getattr(model, "lacking", {})
    for capability in sorted(task.requires):
        methods = _METHODS[capability]
        missing = [method for method in methods if not callable(getattr(model, method, None))]
        if missing:
            reason = lacking.get(capability, f"no {' and no '.join(missing)}")
            raise UserError(
                f"{task.name} needs {capability} features, which {model.name} cannot give"
                f" ({reason}); leave this task out"
            )

    if isinstance(task, DenseTask):
        needs = task.dense_needs().values()
        needed_methods = sorted({method for methods in needs for method in methods})
        known_methods = model.dense_methods  # type: ignore[attr-defined]
        check_methods(f"{task.name}: {model.name}", needed_methods, known_methods, lacking)

    if feature_point not in FEATURE_POINTS:
        raise unknown_name("feature point", feature_point, FEATURE_POINTS)
    if feature_point not in model.feature_points:
        raise UserError(
            f"{model.name} has no feature point {feature_point!r};"
            f" it has {', '.join(model.feature_points)}"
        )

    # the text tower was trained against the pooled embedding alone
    if feature_point != "pooled" and {"image", "text"} <= task.requires:
        raise UserError(
            f"{task.name} compares pictures with text, which only the feature point 'pooled'"
            f" allows, not {feature_point!r}; leave this task out"
        )


@dataclass(frozen=True)
class _Choices:
    precision: str
    feature_point: str
    protocol: NamedProtocol | None
    limit: int | None

    def task(self, task: Task) -> Task:
        """The task in the words of the protocol."""
        return task if self.protocol is None else self.protocol.task(task)


@dataclass(frozen=True, eq=False)
class _Plan:
    task: Task
    data: Mapping[str, ImageDataset]
    protocol: Protocol
    pipeline: ImagePipeline | None  # instead of the model's own preprocessing
    known: Record | None  # measured before, under the same key


def _plan(
    model: ImageModel,
    task: Task,
    data: Mapping[str, ImageDataset],
    choices: _Choices,
    results_dir: Path,
) -> _Plan:
    named = choices.protocol
    pipeline: ImagePipeline | None = None
    fields: dict[str, Any] = {}

    # a measurement that the named protocol would not change is called native, so that nothing is
    # measured twice under two names
    if named is not None and named.changes(model, task):
        task = choices.task(task)
        pipeline = named.pipeline(model, task)
        image = pipeline.as_dict() if pipeline else None
        fields = {"name": named.name, "version": named.version, "image": image}
    if isinstance(task, DenseTask):
        fields["image"] = image_protocol(cast(DenseModel, model), task.view)

    test = data["test"]
    is_dense = "dense" in task.requires
    fields["class_names"] = test.mask_names if is_dense else test.class_names
    protocol = Protocol.of(
        model, task, choices.precision, feature_point=choices.feature_point, **fields
    )

    # the record names the scored data; what was learned from is part of how it was measured
    data_fields: dict[str, Any] = {}
    pools = {role: pool.fingerprint for role, pool in data.items() if role != "test"}
    masks = dict(test.mask_policy) if is_dense else {}
    if pools:
        data_fields["pools"] = pools
    if masks:
        data_fields["masks"] = masks
    protocol = replace(protocol, task={**protocol.task, **data_fields})

    key = results.key(task.name, task.version, protocol.hash, test.fingerprint, choices.limit)
    known = results.find(results_dir, model.name, model.revision, task.name, key)
    return _Plan(task, data, protocol, pipeline, known)


def _measure(
    model: ImageModel, plan: _Plan, extract: Extractor, *, model_source: str, limit: int | None
) -> tuple[Record, bytes]:
    """The record, and what each sample scored, packed."""
    # encoding and fitting; what another task has encoded before is not paid for again
    started = time.perf_counter()
    scores = plan.task.score(extract(plan.data, plan.pipeline))
    seconds = time.perf_counter() - started

    record = Record.create(
        model,
        plan.task,
        plan.data["test"],
        scores,
        plan.protocol,
        model_source=model_source,
        device=_device_name(extract.device),
        limit=limit,
        seconds=seconds,
    )
    return record, outcomes.pack(scores.outcomes, record)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
