"""``silc-bench cache ls | prune``: see what is kept between commands, and make room.

Kept are embeddings, fingerprints of data and indexes of training shards.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from silc_bench.cli.command import App
from silc_bench.cli.options import AsJson
from silc_bench.errors import UserError
from silc_bench.system.terminal import answering, console, counted, print_json
from silc_bench.system.terminal_table import Listing

if TYPE_CHECKING:
    from silc_bench.system.cache import Listed

app = App(
    help="Embeddings, fingerprints of data and indexes of shards, kept between commands.",
    no_args_is_help=True,
    examples=("silc-bench cache ls", "silc-bench cache prune --max-size 5GB"),
)
Folder = Annotated[
    Path | None, typer.Option("--cache", help="What eval --cache keeps there, and nothing else.")
]
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@app.command(examples=("silc-bench cache ls", "silc-bench cache ls --json"))
@answering
def ls(cache: Folder = None, as_json: AsJson = False) -> None:
    """List what is kept, the least recently used first."""
    from silc_bench.system.cache import default_folder, least_used_first
    from silc_bench.trainer.data.shard_index import by_source

    features, indexes = _kept(cache)
    # Of thousands of shards each has an index; by source they are one row.
    rows = least_used_first([*features, *by_source(indexes)])
    if as_json:
        print_json([_as_json(listed) for listed in rows])
        return

    table = Listing("model", "what", "size", "last used")
    for listed in rows:
        age = time.strftime("%Y-%m-%d %H:%M", time.localtime(listed.used))
        model = str(listed.description.get("model", "any"))
        table.add_row(model, _what(listed.description), decimal(listed.bytes), age)
    console.print(table)

    places = str(cache or default_folder())
    if indexes:
        places += f" and {indexes[0].path.parent}"
    print(f"{_sum([*features, *indexes])} in {places}")


@app.command(
    examples=(
        "silc-bench cache prune --max-size 5GB",
        "silc-bench cache prune --max-size 0 --cache scratch/features",
    )
)
@answering
def prune(
    max_size: Annotated[str, typer.Option(help="What may stay, as in 500MB or 5GB; 0: nothing.")],
    cache: Folder = None,
) -> None:
    """Remove the least recently used until at most --max-size is left."""
    from silc_bench.system import cache as store

    features, indexes = _kept(cache)
    print(f"removed {_sum(store.prune([*features, *indexes], _bytes(max_size)))}")


def _kept(cache: Path | None) -> tuple[list[Listed], list[Listed]]:
    """(Embeddings and fingerprints, indexes of shards).

    Indexes lie in the default folder only: with another folder there are none.
    """
    from silc_bench.system.cache import Store, default_folder, shards_folder
    from silc_bench.trainer.data import shard_index as kept_indexes

    features = Store(cache or default_folder()).listing()
    indexes = [] if cache else kept_indexes.listing(shards_folder())
    return features, indexes


def _as_json(listed: Listed) -> dict[str, Any]:
    return {
        "path": str(listed.path),
        "model": listed.description.get("model"),
        "what": _what(listed.description),
        "bytes": listed.bytes,
        "last_used": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(listed.used)),
    }


def _what(description: dict[str, Any]) -> str:
    """What an entry holds, in a few words.

    For example "cifar100/test pooled, fp32", "texts, fp32", "fingerprint of cifar100 test" or
    "100 indexes of shards in /data".
    """
    if description.get("kind") == "indexes":
        count = description["count"]
        what = counted(count, "index of a shard", "indexes of shards")
        return f"{what} in {description['source'] or 'a place that is not known'}"
    if description.get("kind") == "fingerprint":
        return f"fingerprint of {description.get('title')}"

    # Pooled features name the point they were taken at; dense ones have a kind; texts no dataset.
    data = description.get("dataset")
    place = description.get("feature_point") or description.get("kind")
    what = f"{data['name']}/{data['split']} {place}" if data else "texts"
    return f"{what}, {description.get('precision')}"


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip().upper())

    # "500B" is surely a slip: nobody limits a store to 500 bytes.
    if match is None or match[2] == "B":
        raise UserError(f"{text!r} is not a size", about="--max-size", fix="write 500MB, 5GB or 0")
    return int(float(match[1]) * UNITS[match[2] or ""])


def _sum(entries: list[Listed]) -> str:
    count = counted(len(entries), "entry", "entries")
    return f"{count}, {decimal(sum(listed.bytes for listed in entries))}"
