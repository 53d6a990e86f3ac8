"""Options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from silc_bench.errors import UserError, unknown_name

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


# formats that need a package beyond ours, and the extra of silc-bench that installs it
PACKAGES = {"parquet": ("pyarrow", "parquet"), "pdf": ("fpdf", "pdf")}


def formats_of(text: str, known: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The formats of ``--format``, each once; the usual ones if it is empty.

    Raises:
        UserError: an unknown format, or one whose package is not installed.
    """
    formats = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for kind in formats:
        if kind not in known:
            raise unknown_name("format", kind, known, about="--format")

        package, extra = PACKAGES.get(kind, ("", ""))
        if package and find_spec(package) is None:
            problem = f"{kind} needs the package {package}, which is not installed"
            raise UserError(problem, about="--format", fix=f"pip install 'silc-bench[{extra}]'")
    return formats or list(usual)
