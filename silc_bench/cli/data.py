"""``silc-bench data check | stats | pack``: is evaluation data what it should be; what training
data holds; own shards.

Exit codes of ``check``: 0 yes, 2 no, with the line that mends it.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from silc_bench.errors import UserError
from silc_bench.system.terminal import answering, console, table_of

app = typer.Typer(
    help="Look at data before measuring or training on it; write shards.", no_args_is_help=True
)


@app.callback()
def data() -> None:
    pass


@app.command()
@answering
def check(
    name: Annotated[
        str,
        typer.Argument(
            help="imagenet1k, voc20 ... or folder:PATH, captions:FILE, wds:PATTERN, seg:A,B,C.json."
        ),
    ],
    path: Annotated[
        Path | None, typer.Argument(help="Folder of a named set, or the data root it lies under.")
    ] = None,
    every_picture: Annotated[
        bool, typer.Option("--every-picture", help="Decode all pictures, not 500 a split.")
    ] = False,
) -> None:
    """Say what is there (layout, classes, counts, fingerprint), what is wrong, and what mends it.
    Writes nothing.
    """
    from silc_bench.datasets import check as looking

    report = looking.check(name, path, every_picture)
    for line in report.found:
        print(_plain(line))
    for problem in report.problems:
        print(_plain(f"wrong: {problem.what}"))
        if problem.fix:
            print(_plain(f"fix:   {problem.fix}"))
    if report.problems:
        raise UserError(f"{name} cannot be measured as it is")
    print("ready to be measured")


@app.command()
@answering
def stats(
    source: Annotated[str, typer.Argument(help="What `silc-bench train --data` takes.")],
    count: Annotated[
        int, typer.Option(min=1, help="Pairs to look at, in the order of training.")
    ] = 1000,
    filters: Annotated[
        str, typer.Option(help='Conditions, as in --set data.filters="text>=5 side>=64".')
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Read training data as a run would: how much there is, sizes, lengths of captions, and what is
    damaged, by cause.
    """
    from silc_bench.trainer.config.config import DataConfig
    from silc_bench.trainer.data.pack import QUANTILES, look

    found = look(
        DataConfig(source=source, filters=filters, decode_size=10_000),
        count,
        progress=console.is_terminal,
    )
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(_plain(found["source"]))
    table = table_of(f"of {found['looked_at']:,} looked at", *(f"{100 * q:g} %" for q in QUANTILES))
    for name, values in found["quantiles"].items():
        table.add_row(name, *(f"{value:g}" for value in values))
    console.print(table)
    caption = found["most_frequent_caption"]
    print(_plain(f"most frequent caption, {caption['times']:,} times: {caption['text'][:80]}"))
    for cause, number in found["damage"].items():
        print(_plain(f"left out: {number:,} {cause}, first {found['damage_first'][cause]}"))
    if not found["damage"]:
        print("nothing is damaged")


@app.command()
@answering
def pack(
    source: Annotated[
        Path,
        typer.Argument(
            help="A list of captions, or a folder of pictures with NAME.txt beside NAME.jpg."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="A new folder for the shards.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Pairs a shard.")] = 10_000,
) -> None:
    """Write webdataset shards of own pictures; every picture is decoded once, and its bytes are
    kept.
    """
    from silc_bench.trainer.data.pack import pack as write

    count, num_shards, damage = write(source, out, per_shard, progress=console.is_terminal)
    print(f"wrote {count:,} pairs in {num_shards:,} shard{'' if num_shards == 1 else 's'} to {out}")
    if damage.total:
        print(_plain(f"left out: {damage.summary()}"))
    print(f"next: silc-bench data stats {shlex.quote(f'{out}/*.tar')}")


def _plain(line: str) -> str:
    """File names may hold anything: no terminal codes, one line."""
    return "".join(letter if letter.isprintable() else " " for letter in line)
