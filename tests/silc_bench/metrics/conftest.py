"""What tests of metrics share."""

import importlib.util
import sys
import types

import pytest


@pytest.fixture(scope="session")
def clip_benchmark():
    """Its metrics; they import ``requests`` for downloads, which need not be installed."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("requests") is None:
            patch.setitem(sys.modules, "requests", types.ModuleType("requests"))
        from clip_benchmark import metrics
        from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval  # noqa: F401
    return metrics
