"""ImageNet's classes: WordNet numbers in label order and OpenAI's names, as the installed clip_benchmark carries them.

They are read as data (its modules are parsed, not run) and compared with committed hashes, so that a label can never silently
mean another class. ``wnids("imagenet_a")`` are the 200 of ImageNet-A, in the order in which that set numbers its labels.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from functools import cache
from pathlib import Path

from silc_bench.datasets.expected import checked_order

_SUBSETS = {"imagenet_a": "imagenet_a_wnids", "imagenet_r": "imagenet_r_wnids"}


@cache
def wnids(name: str) -> tuple[str, ...]:
    """Of "imagenet_a" and "imagenet_r" their 200, of any other set all 1,000; label order, which is sorted order."""
    lists = _lists()
    if name in _SUBSETS:
        return checked_order(f"{name} wnids", tuple(sorted(lists[_SUBSETS[name]])))
    return checked_order("imagenet wnids", lists["all_imagenet_wordnet_ids"])


@cache
def class_names(name: str) -> tuple[str, ...]:
    """Names of the labels of a set of the ImageNet family."""
    path = _folder() / "en_classnames.json"
    names = checked_order("imagenet names", tuple(json.loads(path.read_text(encoding="utf-8"))["imagenet1k"]))
    own = set(wnids(name))
    return tuple(text for wnid, text in zip(wnids("imagenet1k"), names, strict=True) if wnid in own)


def _folder() -> Path:
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None, "clip-benchmark is a dependency of silc-bench"
    return Path(str(spec.origin)).parent / "datasets"


@cache
def _lists() -> dict[str, tuple[str, ...]]:
    """The lists of wnids in builder.py, by variable."""
    wanted = {*_SUBSETS.values(), "all_imagenet_wordnet_ids"}
    found = {}
    for node in ast.walk(ast.parse((_folder() / "builder.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in wanted:
            found[node.targets[0].id] = tuple(ast.literal_eval(node.value))
    return found
