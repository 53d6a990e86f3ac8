"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[Path, typer.Option(help="Folder of records.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
