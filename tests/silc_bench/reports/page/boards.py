"""Small boards for the tests of the page: records in, HTML out."""

from dataclasses import replace

from made import record_of

from silc_bench.reports.page.document import Difference, Ranked, Row, document
from silc_bench.reports.page.render import render
from silc_bench.reports.titles import GROUPS, title
from silc_bench.results.published import ReportedRow

CLASSES = ["apple", "bear", "cup"]


def made(model, metrics, task="cifar100/zeroshot", *, params=1_000_000, scores=None, **more):
    """A record of ``model``; ``scores``: of each class; ``more``: of ``record_of``."""
    details = more.pop("details", {})
    if scores is not None:
        details = {**details, "acc1_by_class": list(zip(CLASSES, scores, strict=True))}
    defaults = {
        "main": "acc1" if not isinstance(metrics, dict) else next(iter(metrics)),
        "chance": 0.0,
        "revision": "1" * 16,
        "details": details,
        "created": "2026-11-25T17:20:43Z",
        "source": f"runs/{model}",
        "asks": {"templates": ["a photo of a {c}.", "a drawing of a {c}."]},
    }
    record = record_of(model, metrics, task, **defaults | more)
    return replace(record, model=replace(record.model, params=params))


def published(model, values, **more):
    """Values: {task: {metric: value}}."""
    url = more.get("url", "https://arxiv.org/abs/2310.13355")
    params = more.get("params", 2_000_000)
    return ReportedRow("papers", model, params, url, "table 1", more.get("note", ""), values)


def ranked(best=()):
    """``best``: records that are best of their question or tied with it, in every metric."""

    def row(record):
        label = "" if record.setup.precision == "fp32" else record.setup.precision
        return Row(record.model.name, record.model.revision, label)

    def best_of(question, metric):
        return [row(record) for record in best if record.question.hash == question]

    return Ranked(
        title=lambda record, metric: title(record.task.name, metric),
        row=row,
        best=best_of,
        published=lambda task, metric: ("zero-shot", title(task, metric)),
    )


def document_of(records, reported=(), best=(), **more):
    return document(records, list(reported), ranked(best), families=GROUPS, **more)


def page_of(records, reported=(), best=(), **more):
    return render(document_of(records, reported, best, **more))


def typical():
    """Three models on two families, one of them half measured; a published one; twins; an image."""
    shots = {"acc1_10shot": 0.5, "acc1_1shot": 0.2, "acc1_5shot": 0.4}
    few = {"task": "cifar100/fewshot", "group": "few-shot"}
    middle = {"params": 30_000_000}
    a = made("alpha", 0.6, scores=[0.9, 0.6, 0.3], chance=0.2)
    b = made("beta", 0.5, scores=[0.4, 0.6, None], chance=0.2, **middle)
    c = made("gamma", 0.7, scores=[0.7, 0.7, 0.7], chance=0.2, params=400_000_000)
    more = [
        made("alpha", shots, **few),
        made("beta", shots | {"acc1_10shot": 0.6}, **few, **middle),
    ]
    records = [a, b, c, *more]
    reported = [
        published(
            "paper",
            {"cifar100/zeroshot": {"acc1": 0.8}, "imagenet1k/zeroshot": {"acc1": 0.76}},
        ),
    ]
    return page_of(
        records,
        reported,
        best=[c, a],
        unranked=[(made("delta", 0.9, limit=10), "measured with --limit 10")],
        changes={"twins": [Difference("CIFAR-100 zero-shot, top-1", 0.5, 0.6, 0.05, 0.15)]},
        images=[{"title": "masks", "caption": "truth and prediction", "uri": PIXEL}],
    )


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwAD"
    "hgGAWjR9awAAAABJRU5ErkJggg=="
)
