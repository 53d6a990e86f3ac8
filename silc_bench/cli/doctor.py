"""``silc-bench doctor CKPT``: what was loaded, and whether it was loaded as it was trained. No data
needed.

Exit codes: 0 all checks passed, 1 a check failed, 2 nothing could be loaded.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from silc_bench.system.terminal import answering

if TYPE_CHECKING:
    from silc_bench.models.doctor.examine import Examination


@answering
def doctor(
    ckpt: Annotated[
        str,
        typer.Argument(
            help="As for eval: RUN, open_clip:ARCH/TAG, hf:NAME, timm:NAME, big_vision:FILE, FILE."
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(help="Of a file of weights alone: open_clip:NAME, hf:NAME, silc:PRESET."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what was loaded and check it: preprocessing, tokens, masks, embeddings, scale, dense
    path, known checkpoints.
    """
    started = time.perf_counter()
    from silc_bench.models.doctor.examine import examine
    from silc_bench.models.load import load_model

    model = load_model(ckpt, arch)
    examination = examine(model, loading=time.perf_counter() - started)
    if as_json:
        print(json.dumps(_finite(examination.as_dict()), indent=1))
    else:
        _show(examination)
    if examination.failed:
        raise typer.Exit(1)


def _show(examination: Examination) -> None:
    for name, value in examination.facts.items():
        print(_plain(f"{name:15} {_words(value)}"))
    print()
    for finding in examination.findings:
        print(_plain(f"{finding.verdict:15} {finding.check}: {finding.says}"))
        if finding.cause:
            print(_plain(f"{'':15} likely cause: {finding.cause}"))
            print(_plain(f"{'':15} fix: {finding.fix}"))
    count, total = len(examination.failed), len(examination.findings)
    verdict = f"{count} of {total} checks failed" if count else f"no fault found in {total} checks"
    print(f"\n{verdict}, {examination.seconds:.0f} s")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """JSON knows no NaN; it becomes a word."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(line: str) -> str:
    """Names in a checkpoint may hold anything: no terminal codes, one line."""
    return "".join(letter if letter.isprintable() else " " for letter in line)
