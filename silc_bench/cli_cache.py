"""``silc-bench cache ls | prune``: what the feature store holds - embeddings, fingerprints of data - and making room."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from silc_bench.errors import UserError
from silc_bench.terminal import answering, console, table_of

app = typer.Typer(help="Embeddings, and fingerprints of data, kept between commands.", no_args_is_help=True)
Folder = Annotated[Path | None, typer.Option("--cache", help="The folder; the one that eval uses if not given.")]
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@app.command()
@answering
def ls(cache: Folder = None) -> None:
    """List what is kept, the least recently used first."""
    from silc_bench.store import Store, default_folder

    store = Store(cache or default_folder())
    entries = store.listing()
    table = table_of("model", "what", "size", "last used")
    for listed in entries:
        age = time.strftime("%Y-%m-%d %H:%M", time.localtime(listed.used))
        model = str(listed.description.get("model", "any"))
        table.add_row(Text(model), Text(_what(listed.description)), _size(listed.bytes), age)
    console.print(table)
    print(f"{len(entries)} entries, {_size(sum(listed.bytes for listed in entries))} in {store.folder}")


@app.command()
@answering
def prune(
    max_size: Annotated[str, typer.Option(help="What may stay, as in 500MB or 5GB; 0: nothing.")],
    cache: Folder = None,
) -> None:
    """Remove the least recently used until at most --max-size is left."""
    from silc_bench.store import Store, default_folder

    removed = Store(cache or default_folder()).prune(_bytes(max_size))
    print(f"removed {len(removed)} entries, {_size(sum(listed.bytes for listed in removed))}")


def _what(description: dict[str, Any]) -> str:
    """ "cifar100/test pooled, fp32", "texts, fp32", "fingerprint of cifar100 test"."""
    if description.get("kind") == "fingerprint":
        return f"fingerprint of {description.get('title')}"
    data = description.get("dataset")
    place = description.get("feature_point") or description.get("kind")
    what = f"{data['name']}/{data['split']} {place}" if data else "texts"
    return f"{what}, {description.get('precision')}"


def _bytes(words: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", words.strip().upper())
    if match is None or match[2] == "B":
        raise UserError(f"--max-size {words!r} is not a size; write 500MB, 5GB or 0")
    return int(float(match[1]) * UNITS[match[2] or ""])


def _size(number: int) -> str:
    unit = next((name for name, factor in reversed(UNITS.items()) if name and number >= factor), "KB")
    return f"{number / UNITS[unit]:.1f} {unit}"
