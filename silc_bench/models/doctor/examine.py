"""Is this checkpoint loaded as it was trained: told on the CPU and without any data.

Flow of ``examine(load_model("open_clip:ViT-B-32/openai"))``: what was loaded (``subject``) ->
checks on generated images and texts (``checks``) -> what is known of a public checkpoint of that
name (``known``). Every check answers, and a failure names its likely cause and the fix. Whether a
model is any good is no question here: that takes data (`silc-bench eval`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from silc_bench.models.doctor import known
from silc_bench.models.doctor.checks import IMAGE_CHECKS, TEXT_CHECKS, ignores_case, text_tower
from silc_bench.models.doctor.subject import (
    FAILED,
    NOT_APPLICABLE,
    OK,
    Answer,
    Finding,
    Subject,
    activation_of,
    facts_of,
    pixel_hash,
)
from silc_bench.models.interface import ImageModel

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
    facts, fault = _facts(subject)

    # The text tower is asked about in any case; what it does, only where there is one.
    checks = {**IMAGE_CHECKS, "text tower": text_tower}
    if subject.reads:
        checks |= TEXT_CHECKS

    findings = list(fault)
    for name, check in checks.items():
        findings += [_named(name, answer) for answer in _answers(check, subject)]
    findings += [_named(KNOWN, answer) for answer in _answers(_compare, subject)]

    return Examination(facts, findings, loading + time.perf_counter() - started)


def _named(check: str, answer: Answer) -> Finding:
    return Finding(**vars(answer), check=check)


def _facts(subject: Subject) -> tuple[dict[str, Any], list[Finding]]:
    """What was loaded; of a model that cannot say it, its name and what it raised."""
    facts: dict[str, Any] = {"name": subject.model.name}

    # A check that has nothing to answer unless it raises, so that one place catches the errors.
    def read(subject: Subject) -> list[Answer]:
        digest = pixel_hash(subject.model.preprocess)
        facts.update(facts_of(subject, digest, known.pipeline_named(digest)))
        return []

    return facts, [_named("what was loaded", answer) for answer in _answers(read, subject)]


def _compare(subject: Subject) -> list[Answer]:
    return known.compare(subject.model.name, _expected_facts(subject))


def _answers(check: Callable[[Subject], Answer | list[Answer]], subject: Subject) -> list[Answer]:
    """What a check answers, or its error as a failure."""
    try:
        answer = check(subject)
        return answer if isinstance(answer, list) else [answer]
    # whatever a broken checkpoint or library raises is what this command is there to tell
    except Exception as error:
        says = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        cause = "the parts of this checkpoint do not fit each other"
        fix = "check that the weights, the configuration and the tokenizer are of the same model"
        return [Answer(FAILED, says, cause, fix)]


def _expected_facts(subject: Subject) -> dict[str, Callable[[], Any]]:
    """How each word of the table of expectations is looked up."""
    model = subject.model
    protocol = model.image_protocol

    # Functions, because only what the table expects of this checkpoint is looked up.
    facts: dict[str, Callable[[], Any]] = {
        "parameters": lambda: model.num_params,
        "image_size": lambda: model.image_size,
    }
    for name in ("mean", "std", "resize", "interpolation"):
        facts[name] = functools.partial(protocol.get, name)
    facts["activation"] = lambda: activation_of(subject)

    if subject.reads:
        facts |= {
            "context_length": lambda: model.text_protocol.get("length"),
            "ignores_case": lambda: ignores_case(subject),
            "has_bias": lambda: model.logit_bias != 0,
            "logit_scale": lambda: model.logit_scale,
        }
    return facts
