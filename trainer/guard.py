"""Does a run that started from other weights destroy what they could do without training: zero-shot and retrieval.

Flow: before the first step ``remembered`` keeps the start's probe scores with the run (in its checkpoints); after each later
probe ``destroyed`` gives a sentence where one of them has fallen.

The rule: a metric has fallen when start - now > 2 * sqrt(s0^2 + s1^2), s0 and s1 its two standard errors over the probe's
pictures. Both are measured on the same pictures, whose errors go together, so the true error of the difference is smaller: a
fall that is named is real, a smaller one may be too.
"""

from __future__ import annotations

import math
from typing import Any

from trainer.config import OptimConfig

ERRORS = 2.0  # standard errors of the difference


def remembered(found: dict[str, float], errors: dict[str, float]) -> dict[str, dict[str, float]]:
    """What is kept of the start: of each zero-shot probe its score and standard error."""
    return {name: {"score": found[name], "stderr": errors[name]} for name in found if name in errors and is_zeroshot(name)}


def is_zeroshot(name: str) -> bool:
    """Of "probe/DATASET/FAMILY", whether the family asks what was never trained for it."""
    family = name.rpartition("/")[2]
    return "zeroshot" in family or family == "retrieval"


def destroyed(
    start: dict[str, Any] | None, found: dict[str, float], errors: dict[str, float], optim: OptimConfig
) -> str | None:
    """A sentence for the deepest fall below the start, with the settings to change; None where nothing fell by the rule."""
    falls = {}
    for name, before in (start or {}).get("probes", {}).items():
        if name in found and name in errors:
            allowed = ERRORS * math.hypot(before["stderr"], errors[name])
            if before["score"] - found[name] > allowed:
                falls[name] = (before["score"] - found[name], allowed, before["score"])
    if not falls:
        return None
    name, (fall, allowed, score) = max(falls.items(), key=lambda item: item[1][0])
    lock = "" if optim.locked else ", lock a tower (--set optim.locked=text)"
    return (
        f"{name.removeprefix('probe/')} fell from {100 * score:.1f} % at the start to {100 * (score - fall):.1f} %, and its"
        f" standard errors allow {100 * allowed:.1f} points: fine-tuning destroys what the source could do; lower optim.lr (now"
        f" {optim.lr:g}){lock}, or lower optim.layer_decay (now {optim.layer_decay:g})"
    )
