"""Is this checkpoint loaded as it was trained:
``examine(load_model("open_clip:ViT-B-32/openai"))``, without any data.

Flow: what was loaded (``subject``) -> checks on generated pictures and texts (``checks``) -> what
is known of a public checkpoint of that name (``known``). Every check answers, and a failure names
its likely cause and the fix. Whether a model is any good is no question here: that takes data
(`silc-bench eval`).
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

KNOWN = "known checkpoint"
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
        """JSON."""
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
    found, fault = _facts(subject)
    checks = {**IMAGE_CHECKS, "text tower": text_tower, **(TEXT_CHECKS if subject.reads else {})}
    findings = [
        _named(name, answer)
        for name, check in checks.items()
        for answer in _answers(check, subject)
    ]
    findings += [_named(KNOWN, answer) for answer in _answers(_compare, subject)]
    findings = fault + findings
    return Examination(found, findings, loading + time.perf_counter() - started)


def _named(check: str, answer: Answer) -> Finding:
    return Finding(**vars(answer), check=check)


def _facts(subject: Subject) -> tuple[dict[str, Any], list[Finding]]:
    """What was loaded; of a model that cannot say it, its name and what it raised."""
    found: dict[str, Any] = {"name": subject.model.name}

    def read(subject: Subject) -> list[Answer]:
        digest = pixel_hash(subject.model.preprocess)
        found.update(facts_of(subject, digest, known.pipeline_named(digest)))
        return []

    return found, [_named("what was loaded", answer) for answer in _answers(read, subject)]


def _compare(subject: Subject) -> list[Answer]:
    return known.compare(subject.model.name, _expected_facts(subject))


def _answers(check: Callable[[Subject], Answer | list[Answer]], subject: Subject) -> list[Answer]:
    try:
        found = check(subject)
        return found if isinstance(found, list) else [found]
    # whatever a broken checkpoint or library raises is what this command is there to tell
    except Exception as error:
        says = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        fix = "check that the weights, the configuration and the tokenizer are of the same model"
        return [Answer(FAILED, says, "the parts of this checkpoint do not fit each other", fix)]


def _expected_facts(subject: Subject) -> dict[str, Callable[[], Any]]:
    """How each word of the table of expectations is looked up."""
    model, pixels = subject.model, subject.model.image_protocol
    found: dict[str, Callable[[], Any]] = {
        "parameters": lambda: model.num_params,
        "image_size": lambda: model.image_size,
        **{
            name: functools.partial(pixels.get, name)
            for name in ("mean", "std", "resize", "interpolation")
        },
        "activation": lambda: activation_of(subject),
    }
    if subject.reads:
        found |= {
            "context_length": lambda: model.text_protocol.get("length"),
            "ignores_case": lambda: ignores_case(subject),
            "has_bias": lambda: model.logit_bias != 0,
            "logit_scale": lambda: model.logit_scale,
        }
    return found
