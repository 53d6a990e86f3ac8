"""``silc-bench data check | stats | pack``: look at data before it is used, and pack your own.

``check`` says whether evaluation data is what it should be, ``stats`` what training data holds, and
``pack`` writes shards of your own images.

Exit codes of ``check``: 0 where the data can be measured, 2 where not; it prints the remedy.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from silc_bench.cli.command import App, shared
from silc_bench.cli.options import AsJson
from silc_bench.errors import UserError
from silc_bench.system.terminal import (
    answering,
    console,
    counted,
    one_line,
    print_json,
    shows_progress,
)
from silc_bench.system.terminal_table import Listing

app = App(
    help="Look at data before measuring or training on it; write shards.",
    no_args_is_help=True,
    examples=("silc-bench data check folder:photos", "silc-bench data pack photos shards"),
)


@app.callback()
def data() -> None:
    pass


@app.command(
    examples=(
        "silc-bench data check imagenet1k data",
        "silc-bench data check folder:photos --every-image",
        "silc-bench data check captions:captions.jsonl --json",
    )
)
@answering
def check(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="imagenet1k, voc20 ... or folder:PATH, captions:FILE, wds:PATTERN, seg:A,B,C.json."
        ),
    ],
    path: Annotated[
        Path | None, typer.Argument(help="Folder of a named set, or the data root it lies under.")
    ] = None,
    every_image: Annotated[
        bool, typer.Option("--every-image", help="Decode all images, not 500 a split.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is there (layout, classes, counts, fingerprint), what is wrong, and what mends it.

    Writes nothing.
    """
    from silc_bench.datasets import check as looking

    # A named set lies below the data root, where the user wrote one down.
    if path is None and ":" not in name:
        root = shared(ctx, "data_root")
        path = Path(root) if root else None
    report = looking.check(name, path, every_image)
    if as_json:
        print_json({"name": name, "is_ready": not report.problems, **asdict(report)})
    else:
        for line in report.found:
            print(one_line(line))
        for problem in report.problems:
            print(one_line(f"wrong: {problem.what}"))
            if problem.fix:
                print(one_line(f"fix:   {problem.fix}"))

    if report.problems:
        raise UserError("cannot be measured as it is", about=name, fix="mend what is wrong above")
    if not as_json:
        print("ready to be measured")


@app.command(
    examples=(
        "silc-bench data stats shapes --count 100",
        "silc-bench data stats 'shards/*.tar' --preset b16",
    )
)
@answering
def stats(
    source: Annotated[str, typer.Argument(help="What `silc-bench train --data` takes.")],
    count: Annotated[
        int, typer.Option(min=1, help="Pairs to look at, in the order of training.")
    ] = 1000,
    filters: Annotated[
        str, typer.Option(help='Conditions, as in --set data.filters="text>=5 side>=64".')
    ] = "",
    preset: Annotated[
        str, typer.Option(help="Of `silc-bench train`: whose tokens are counted.")
    ] = "shapes_tiny",
    as_json: AsJson = False,
) -> None:
    """Read training data as a run would, and say what it holds.

    Says how much there is, sizes, lengths of captions, and what is damaged, by cause.
    """
    from silc_bench.trainer.config.config import DataConfig
    from silc_bench.trainer.config.presets import make_preset
    from silc_bench.trainer.data.sources import check_there

    text = make_preset(preset).text
    check_there(source)

    # It counts tokens, which takes torch's seconds.
    from silc_bench.trainer.data.pack import QUANTILES, look

    # Larger than images are, so that the sizes are those of the files, not those of a run's
    # reduced decoding.
    config = DataConfig(source=source, filters=filters, decode_size=10_000)
    statistics = look(config, count, text, progress=shows_progress())
    if as_json:
        print_json(statistics)
        return

    print(one_line(statistics["source"]))
    heads = [f"{100 * quantile:g} %" for quantile in QUANTILES]
    table = Listing(f"of {statistics['looked_at']:,} looked at", *heads)
    for name, values in statistics["quantiles"].items():
        table.add_row(name, *(f"{value:g}" for value in values))
    console.print(table)

    # A text that many images share ("image", a file name) teaches nothing, and is easy to filter.
    caption = statistics["most_frequent_caption"]
    print(one_line(f"most frequent caption, {caption['times']:,} times: {caption['text'][:80]}"))

    if statistics["cut_off"]:
        print(one_line(f"preset {preset}: {statistics['cut_off']}"))

    for cause, number in statistics["damage"].items():
        first = statistics["damage_first"][cause]
        print(one_line(f"left out: {number:,} {cause}, first {first}"))
    for cause, number in statistics["changed"].items():
        first = statistics["changed_first"][cause]
        print(one_line(f"{number:,} {cause}, first {first}"))
    if not statistics["damage"]:
        print("nothing is damaged")


@app.command(
    examples=(
        "silc-bench data pack photos shards",
        "silc-bench data pack captions.jsonl shards --test 10% --per-shard 1000",
    )
)
@answering
def pack(
    source: Annotated[
        Path,
        typer.Argument(
            help="A list of captions, or a folder of images with NAME.txt beside NAME.jpg."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="A new folder for the shards.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Pairs a shard.")] = 10_000,
    test: Annotated[
        str,
        typer.Option(help="Hold out a share (10%) or a number of images, in shards test-*.tar."),
    ] = "",
) -> None:
    """Write webdataset shards of your own images.

    Every image is decoded, to see that it can be, and its bytes are kept. What --test holds out is
    decided by what the images show: equal images are on one side, and packing again, with more
    images too, moves none to the other side.
    """
    from silc_bench.trainer.data import lists

    lists.check_there(source)

    from silc_bench.trainer.data.pack import pack as write

    packed = write(source, out, per_shard, test=test, progress=shows_progress())
    uses = {"": "", "train-": " for training", "test-": " for testing"}
    for begin, count in packed.pairs.items():
        pairs, shards = counted(count, "pair"), counted(packed.shards[begin], "shard")
        print(one_line(f"wrote {pairs}{uses[begin]} in {shards} to {out}"))
    if packed.damage.total:
        print(one_line(f"left out: {packed.damage.summary()}"))
    if packed.num_near:
        print(
            one_line(
                f"left out: {packed.num_near:,} for testing that are nearly equal to one for"
                f" training (first: {packed.first_near})"
            )
        )
    if test:
        share = f"{100 * packed.share:.6g}%"
        print(f"the same sides when you pack again, with more images too: --test {share}")

    # Quoted, so that the lines can be typed as they stand, in a folder with a space too.
    begin = "train-" if test else ""
    shards = shlex.quote(f"{out}/{begin}*.tar")
    print(f"next: silc-bench data stats {shards}")
    print(f"      silc-bench train --preset cifar_tiny --data {shards} --out runs/own")
    if test:
        tasks = shlex.quote(f"wds:{out}/test-*.tar")
        print(f"      silc-bench eval --ckpt runs/own --tasks {tasks}")
