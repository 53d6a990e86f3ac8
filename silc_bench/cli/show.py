"""``silc-bench show CKPT IMAGE... --classes "cat,grass" --out x.png``: what a checkpoint sees.

Several checkpoints stand side by side:

    silc-bench show --ckpt A --ckpt B IMAGE... --classes "cat,grass"
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from silc_bench.cli.command import shared
from silc_bench.cli.options import Arch, Device, Precision
from silc_bench.errors import UserError
from silc_bench.system.files import check_writable, write_text_atomic
from silc_bench.system.terminal import answering, shows_progress


@answering
def show(
    ctx: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[CKPT] IMAGE...",
            help="A checkpoint as for eval, or a name of the leaderboard, unless --ckpt names it;"
            " images.",
        ),
    ],
    ckpt: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoints side by side; repeatable. All arguments are then images."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help='Class names with commas between: "cat,grass".')
    ] = None,
    out: Annotated[Path, typer.Option(help="The image to write, a PNG.")] = Path("show.png"),
    protocol: Annotated[
        str,
        typer.Option(help="Windows, prompts and method: native, tcl, sclip, naclip or clearclip."),
    ] = "native",
    dense_method: Annotated[
        str | None,
        typer.Option(
            help="Instead of the protocol's: plain, maskclip, sclip, naclip or clearclip."
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Put it, with a caption, among the images of this folder's leaderboard page."
        ),
    ] = None,
    arch: Arch = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Draw zero-shot classes over images, a map for each class, and PCA of patch features."""
    # Without --ckpt the first argument is the checkpoint.
    specs = ckpt or arguments[:1]
    paths = arguments if ckpt else arguments[1:]
    target = _target(out, results)

    # samefile, because a link or another way of writing the path would hide that they are one.
    images = [Path(path) for path in paths]
    if any(path.exists() and target.exists() and path.samefile(target) for path in images):
        problem = f"{target} is one of the images to show"
        raise UserError(problem, about="--out", fix="choose another name")

    # What needs no tensor is refused at once, before torch is imported.
    from silc_bench.evaluation.settings import check_device, check_precision
    from silc_bench.models.load import check_spec, load_model
    from silc_bench.show.asked import choose_rule, read_classes, read_images

    check_device(device)
    check_precision(precision)
    rule = choose_rule(protocol, dense_method)
    class_names = read_classes(classes)
    shown = read_images(images)
    # --results draws into a folder; names are looked up in it, or where records usually are.
    folder = results or Path(shared(ctx, "results") or "results")
    all_measured = [_measured(spec, folder) for spec in specs]
    for spec, measured in zip(specs, all_measured, strict=True):
        check_spec(measured.source if measured else spec, arch)

    from silc_bench.show import look

    looks = []
    for spec, measured in zip(specs, all_measured, strict=True):
        model = load_model(measured.source if measured else spec, arch)
        if measured and model.revision != measured.revision:
            raise UserError(
                f"{measured.source} holds other weights ({model.revision[:8]}) than were measured"
                f" ({measured.revision[:8]})",
                about=spec,
                fix="name the checkpoint itself, or measure it again",
            )
        model_look = look.look(
            model,
            shown,
            class_names,
            rule=rule,
            device=device,
            precision=precision,
            progress=shows_progress(),
        )
        looks.append(model_look)
        if model_look.missing:
            reason = model_look.missing
            print(f"{model.name}: patch PCA only, for its patches meet no text ({reason})")

    for sentence in look.replaced(class_names):
        print(sentence)
    caption = look.caption(shown, looks, rule)
    width, height = look.draw(shown, looks, class_names, target, caption)
    print(f"wrote {target}, {width} x {height} pixels")

    # The leaderboard page shows every image of that folder with the text beside it.
    if results is not None:
        classes_note = f" Classes: {', '.join(class_names)}." if class_names else ""
        write_text_atomic(target.with_suffix(".txt"), f"{caption}{classes_note}\n")
        print(f"on the page of: silc-bench leaderboard --results {results} --out {results}")


class _Measured(NamedTuple):
    """A model of the records."""

    source: str  # what eval --ckpt took
    revision: str


def _measured(spec: str, results: Path) -> _Measured | None:
    """The model that a name of the leaderboard means; None where ``spec`` is a checkpoint itself.

    Raises:
        UserError: a name that several models bear.
    """
    from silc_bench.models.load import is_there, kinds
    from silc_bench.results.folders import read
    from silc_bench.results.names import Models

    if is_there(spec) or not results.is_dir():
        return None
    models = Models(read([results]).records)
    is_checkpoint = spec.partition(":")[0] in kinds() or "/" in spec
    if is_checkpoint and not models.knows(spec):
        return None

    row = models.find(spec)
    return _Measured(models.source(row), row[1])


def _target(out: Path, results: Path | None) -> Path:
    """Where the image goes. Raises UserError: it cannot be written there, or is no PNG."""
    if out.suffix != ".png":
        raise UserError(f"{out} is no PNG", about="--out", fix="let its name end in .png")

    if results is not None:
        folder = results / "pictures"
        if out.name != str(out):
            problem = f"with --results the image goes into {folder}"
            raise UserError(problem, about="--out", fix="give a name without folders")
        out = folder / out

    if out.is_dir():
        raise UserError(f"{out} is a folder", about="--out", fix="add the name of the image")
    check_writable(out.parent)
    return out
