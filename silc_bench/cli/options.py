"""Options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[
    list[Path],
    typer.Option("--results", help="Folder of records; repeatable. The first one is written to."),
]
RESULTS = [Path("results")]  # without the option
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Arch = Annotated[
    str | None,
    typer.Option(help="Of a file of weights alone: open_clip:NAME, hf:NAME, silc:PRESET."),
]


def as_typed(results: Sequence[Path]) -> str:
    """``--results`` for a command that the user may type next."""
    return " ".join(f"--results {shlex.quote(str(folder))}" for folder in results)
