"""Public sets with as many images as a test can write, and what is refused of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from refusals import refused

from silc_bench.datasets.public.load import SETS, load
from silc_bench.errors import DataError


@pytest.fixture
def small(monkeypatch):
    """``small("cifar10", test=10)``: its test split has 10 images, as many of each class."""

    def set_counts(name, **counts):
        for split, count in counts.items():
            known = SETS[name].splits[split]
            per_class = count // known.classes if known.per_class else 0
            changed = replace(known, images=count, per_class=per_class, content="")
            monkeypatch.setitem(SETS[name].splits, split, changed)

    return set_counts


@pytest.fixture
def refuses():
    """``refuses("cifar10", root, about)``: the set is refused, also where a part is asked for."""

    def check(name, root, about, split="test", kind=DataError, is_kept=True):
        with refused(about=about, kind=kind, is_kept=is_kept) as caught:
            load(name, split, root, limit=1)
        return caught.value

    return check
