"""A record made of its parts, none of which was computed."""

from types import SimpleNamespace

import pytest

from silc_bench.results.protocol import Protocol
from silc_bench.results.record import Record
from silc_bench.task import Scores

MODEL = {
    "name": "shapes_tiny-silc:student",
    "revision": "0123456789abcdef",
    "num_params": 1_600_000,
    "image_size": 64,
    "image_protocol": {"size": 64},
    "text_protocol": {"length": 32},
}
TASK = {
    "name": "shapes/retrieval",
    "version": 2,
    "group": "retrieval",
    "main_metric": "acc1",
    "requires": frozenset({"image", "text"}),
    "protocol": lambda: {"captions": 5},
}
DATA = SimpleNamespace(name="shapes", split="val", fingerprint="fedcba9876543210")


def make_record(metrics, stderr=None, details=None, *, n=1000, limit=None, main=None, **model):
    """A record of ``metrics``, the first of them its main metric if none is named."""
    measured = SimpleNamespace(**MODEL | model)
    task = SimpleNamespace(**TASK | {"main_metric": main or next(iter(metrics))})
    protocol = Protocol.of(measured, task, "fp32")
    scores = Scores(metrics, stderr or {}, n, 0.001, details or {})
    how = {"model_source": "runs/a", "device": "cpu", "limit": limit, "seconds": 3.25}
    return Record.create(measured, task, DATA, scores, protocol, **how)


@pytest.fixture(scope="session")
def make():
    return make_record
