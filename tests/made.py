"""Made-up records, as if a model had been measured."""

from dataclasses import replace
from types import SimpleNamespace

from silc_bench.models.interface import Training
from silc_bench.results import outcomes, record
from silc_bench.results.question import Question
from silc_bench.results.setup import Setup
from silc_bench.task import Scores

N = 400  # samples scored, if nothing else is asked for


def record_of(
    model,
    metrics,
    task="shapes/zeroshot",
    *,
    main=None,
    stderr=0.01,
    group="zero-shot",
    chance=0.02,
    n=N,
    limit=None,
    version=1,
    fingerprint="0" * 16,
    revision=None,
    details=None,
    protocol="native",
    asks=None,
    precision="fp32",
    source="x",
    created=None,
    training=None,
    text=None,
    **image,
):
    """A record. ``metrics``: of all, the main one first, or the main metric alone; ``asks``: of
    the question; ``text`` and ``image``: the model's own preprocessing.
    """
    if not isinstance(metrics, dict):
        metrics = {main or "acc1": metrics}
    image = {"size": 64, **image}
    measured = SimpleNamespace(
        name=model,
        revision=revision or f"{sum(model.encode()):016x}"[::-1],
        num_params=1_640_000,
        image_size=image["size"],
        image_protocol=image,
        text_protocol=dict(text or {}),
        training=training,
    )
    of_task = SimpleNamespace(
        name=task,
        version=version,
        group=group,
        main_metric=main or next(iter(metrics)),
        requires=frozenset(),
        protocol=lambda: dict(asks or {}),
    )
    data = SimpleNamespace(
        name=task.split("/")[0], split="test", fingerprint=fingerprint, class_names=()
    )
    errors = {} if stderr is None else dict.fromkeys(metrics, stderr)
    made = record.Record.create(
        measured,
        of_task,
        Scores(metrics, errors, n, chance, details or {}),
        Question.of(of_task, {"test": data}, limit=limit, protocol=protocol),
        Setup.of(measured, precision=precision, device="cpu"),
        model_source=source,
        seconds=1,
    )
    return replace(made, created=created) if created else made


def put(folder, *args, arrays=None, **more):
    """Write ``record_of(...)`` and, if there are any, its outcomes."""
    made = record_of(*args, **more)
    if arrays is not None:
        outcomes.save(outcomes.pack(arrays, made), made, folder)
    record.save(made, folder)
    return made


def trained(objective="silc", **changes):
    """What the record of a model says that was trained here."""
    known = {"preset": "tiny", "branch": "student", "data": "d/*.tar", "seed": 1, "step": 2000}
    return Training(**{**known, "objective": objective, **changes})
