"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[Path, typer.Option(help="Folder of records.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Arch = Annotated[
    str | None,
    typer.Option(help="Of a file of weights alone: open_clip:NAME, hf:NAME, silc:PRESET."),
]
