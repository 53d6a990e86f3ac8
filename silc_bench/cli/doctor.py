"""``silc-bench doctor CKPT``: what was loaded, and whether it was loaded as it was trained.

No data is needed.

Exit codes: 0 all checks passed, 1 a check failed, 2 nothing could be loaded.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from silc_bench.cli.options import Arch, AsJson
from silc_bench.system.terminal import answering, one_line

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
    arch: Arch = None,
    as_json: AsJson = False,
) -> None:
    """Say what was loaded, and check that it was loaded as it was trained.

    Looks at preprocessing, tokens, masks, embeddings, scale, dense path and known checkpoints.
    """
    # Started before the imports: torch and the model's library are part of the loading time.
    started = time.perf_counter()
    from silc_bench.models.load import check_spec, load_model

    # before torch is imported
    check_spec(ckpt, arch)
    from silc_bench.models.doctor.examine import examine

    model = load_model(ckpt, arch)
    examination = examine(model, loading=time.perf_counter() - started)

    if as_json:
        # JSON knows no NaN and no infinity: they become words.
        text = json.dumps(examination.as_dict())
        content = json.loads(text, parse_constant=lambda word: str(float(word)))
        print(json.dumps(content, indent=1))
    else:
        _show(examination)
    if examination.failed:
        raise typer.Exit(1)


def _show(examination: Examination) -> None:
    for name, value in examination.facts.items():
        print(one_line(f"{name:15} {_in_words(value)}"))
    print()

    for finding in examination.findings:
        print(one_line(f"{finding.verdict:15} {finding.check}: {finding.says}"))
        if finding.cause:
            print(one_line(f"{'':15} likely cause: {finding.cause}"))
            print(one_line(f"{'':15} fix: {finding.fix}"))

    num_failed = len(examination.failed)
    total = len(examination.findings)
    verdict = f"no fault found in {total} checks"
    if num_failed:
        verdict = f"{num_failed} of {total} checks failed"
    print(f"\n{verdict}, {examination.seconds:.0f} s")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)

    # To Python True is an int, and would be printed as 1.
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
