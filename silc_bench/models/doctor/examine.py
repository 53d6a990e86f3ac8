"""Is this checkpoint loaded as it was trained: told on the CPU and without any data.

Flow of ``examine(load_model("open_clip:ViT-B-32/openai"))``: what was loaded (``subject``) ->
checks on generated images and texts (``checks``) -> what is known of a public checkpoint of that
name (``known``). Every check answers, and a failure names its likely cause and the fix. Whether a
model is any good is no question here: that takes data (`silc-bench eval`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from silc_bench.errors import first_line
from silc_bench.models.doctor import known
from silc_bench.models.doctor.checks import IMAGE_CHECKS, TEXT_CHECKS, ignores_case, text_tower
from silc_bench.models.doctor.subject import (
    FAILED,
    NOT_APPLICABLE,
    OK,
    Finding,
    Subject,
    activation_of,
    facts_of,
    pixel_hash,
)
from silc_bench.models.interface import ImageModel

Check = Callable[[Subject], Finding | list[Finding]]
KNOWN = "known checkpoint"  # what a report calls the comparison with the table
__all__ = ["FAILED", "NOT_APPLICABLE", "OK", "Examination", "Finding", "examine"]


@dataclass(frozen=True)
class Examination:
    """What was loaded, and what each check found."""

    facts: dict[str, Any]
    findings: list[Finding]
    seconds: float  # with loading

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == FAILED]

    def as_dict(self) -> dict[str, Any]:
        """JSON; a finding without cause and fix leaves them out."""
        findings = [
            {key: value for key, value in asdict(finding).items() if value}
            for finding in self.findings
        ]
        return {
            "facts": self.facts,
            "findings": findings,
            "passed": not self.failed,
            "seconds": round(self.seconds, 1),
        }


@torch.no_grad()
def examine(model: ImageModel, loading: float = 0.0) -> Examination:
    """All checks that apply to a model on the CPU; a ViT-B takes half a minute on two cores.

    Args:
        loading: seconds that loading it took; they are counted.
    """
    started = time.perf_counter()
    subject = Subject(model)
    facts: dict[str, Any] = {"name": model.name}

    # A check that has nothing to answer unless it raises, so that one place catches the errors.
    def read(subject: Subject) -> list[Finding]:
        digest = pixel_hash(model.preprocess)
        facts.update(facts_of(subject, digest, known.pipeline_named(digest)))
        return []

    # The text tower is asked about in any case; what it does, only where there is one.
    checks: dict[str, Check] = {"what was loaded": read, **IMAGE_CHECKS, "text tower": text_tower}
    if subject.reads:
        checks |= TEXT_CHECKS
    checks[KNOWN] = _compare

    findings = []
    for name, check in checks.items():
        findings += [replace(finding, check=name) for finding in _findings(check, subject)]
    return Examination(facts, findings, loading + time.perf_counter() - started)


def _findings(check: Check, subject: Subject) -> list[Finding]:
    """What a check says, or its error as a failure."""
    try:
        findings = check(subject)
        return findings if isinstance(findings, list) else [findings]
    # whatever a broken checkpoint or library raises is what this command is there to tell
    except Exception as error:
        cause = "the parts of this checkpoint do not fit each other"
        fix = "check that the weights, the configuration and the tokenizer are of the same model"
        return [Finding(FAILED, first_line(error), cause, fix)]


def _compare(subject: Subject) -> list[Finding]:
    """What is known of a public checkpoint of this name, against what is here."""
    model = subject.model
    entry = known.expectation(model.name)
    if entry is None:
        return [Finding(NOT_APPLICABLE, f"nothing is stored about {model.name}")]

    facts = {
        "parameters": model.num_params,
        "image_size": model.image_size,
        "activation": activation_of(subject),
    }
    for name in ("mean", "std", "resize", "interpolation"):
        facts[name] = model.image_protocol.get(name)
    if subject.reads:
        facts |= {
            "context_length": model.text_protocol.get("length"),
            "ignores_case": ignores_case(subject),
            "has_bias": model.logit_bias != 0,
            "logit_scale": model.logit_scale,
        }
    return known.compare(entry, facts)
