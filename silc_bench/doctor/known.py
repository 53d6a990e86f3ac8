"""What is known of public pipelines and checkpoints: ``pixels.json`` and ``expected.json``, both written by ``tables.py``.

A checkpoint is recognised by its name alone, so a file that bears a famous name is held to it: to its configuration, its
size and its logit scale. No hash of published weights is stored, so that other weights of the same architecture pass.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from silc_bench.doctor.subject import FAILED, NOT_APPLICABLE, OK, Answer

SCALE_AND_BIAS = 2  # parameters: adapters count them or not
TOLERANCE = {"logit_scale": 0.01}
CAUSES = {
    "parameters": "the file holds another architecture than its name says; load it under the architecture it has",
    "image_size": "the tower or its preprocessing is of another resolution; bring the configuration published with the weights",
    "mean": "preprocessing of another family; bring the preprocessor configuration published with the weights",
    "interpolation": "preprocessing of another library; bring the preprocessor configuration published with the weights",
    "resize": "preprocessing of another family; bring the preprocessor configuration published with the weights",
    "context_length": "the tokenizer pads or cuts to another length than in training; set it to the trained one",
    "activation": "QuickGELU and GELU share their weights; load with the architecture or tag that names the right one",
    "ignores_case": "the cleaning of texts was lost (do_lower_case ...); bring the published tokenizer_config.json",
    "logit_scale": "the weights are not the published ones, or their scale was trained on or lost",
    "has_bias": "the sigmoid's bias was lost when the weights were converted; convert logit_bias (big_vision: b) too",
}
CAUSES["std"] = CAUSES["mean"]


@cache
def read_table(name: str) -> dict[str, Any]:
    """``pixels`` or ``expected``."""
    return json.loads((files("silc_bench.doctor") / f"{name}.json").read_text(encoding="utf-8"))


def pipeline_named(digest: str) -> str | None:
    """The public preprocessing that gives these pixels."""
    return next((name for name, known in read_table("pixels")["pipelines"].items() if known["hash"] == digest), None)


def hash_declared(protocol: dict[str, Any]) -> str | None:
    """The hash that pixels of such an ``image_protocol`` have; None where it is not in the table."""
    known = read_table("pixels")["pipelines"].values()
    return next((entry["hash"] for entry in known if entry["pipeline"] == protocol), None)


def expectation(name: str) -> dict[str, Any] | None:
    """The entry of a model's name ("open_clip:ViT-B-32/openai", also with a file's suffix), upper and lower case alike."""
    entries = read_table("expected")["checkpoints"]
    name = re.sub(r"\.(safetensors|bin|pth|pt)$", "", name)
    return next((e for e in entries if any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in e["names"])), None)


def compare(name: str, found: dict[str, Callable[[], Any]]) -> list[Answer]:
    """One answer, or one for each difference. ``found``: how to look up what the table may expect, as far as there is any."""
    entry = expectation(name)
    if entry is None:
        return [Answer(NOT_APPLICABLE, f"nothing is stored about {name}")]
    answers = []
    expect = {key: value for key, value in entry["expect"].items() if key in found}
    for key, expected in expect.items():
        value = found[key]()
        if not _fits(key, value, expected):
            shown = f"{value:.6g}" if isinstance(value, float) else value
            says = f"{key.replace('_', ' ')} is {shown}, expected {expected} of {entry['names'][0]} ({entry['source']})"
            cause, _, fix = CAUSES[key].partition("; ")
            answers.append(Answer(FAILED, says, cause, fix or "compare the file with the one published"))
    says = f"configuration as expected of {entry['names'][0]}: {', '.join(expect).replace('_', ' ')}; weights not compared"
    return answers or [Answer(OK, says)]


def _fits(key: str, value: Any, expected: Any) -> bool:
    if key == "parameters":
        return abs(value - expected) <= SCALE_AND_BIAS
    if key == "activation":
        return expected in value.split(", ")
    if key in TOLERANCE:
        return abs(value - expected) <= TOLERANCE[key]
    return bool(value == expected)
