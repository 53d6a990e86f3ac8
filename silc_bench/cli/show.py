"""``silc-bench show CKPT IMAGE... --classes "cat,grass" --out x.png``: what a checkpoint sees, and
where.

Several checkpoints stand side by side: ``silc-bench show --ckpt A --ckpt B IMAGE... --classes
...``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from silc_bench.errors import UserError
from silc_bench.system.files import check_writable, write_text_atomic
from silc_bench.system.terminal import answering, console


@answering
def show(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[CKPT] IMAGE...",
            help="A checkpoint as for eval, unless --ckpt names it; pictures.",
        ),
    ],
    ckpt: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoints side by side; repeatable. All arguments are then pictures."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help='Class names with commas between: "cat,grass".')
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("show.png"),
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
            help="Put it, with a caption, among the pictures of this folder's leaderboard page."
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Of a file of weights alone: open_clip:NAME, hf:NAME, silc:PRESET."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
) -> None:
    """Draw what checkpoints see: zero-shot classes over pictures, a map for each class, PCA of
    patch features.
    """
    specs, paths = (ckpt, words) if ckpt else (words[:1], words[1:])
    target = _target(out, results)
    images = [Path(path) for path in paths]
    if any(path.exists() and target.exists() and path.samefile(target) for path in images):
        raise UserError(f"--out {target} is one of the pictures to show; choose another name")
    from silc_bench.models.load import load_model
    from silc_bench.show import look

    rule, class_names = look.choose_rule(protocol, dense_method), look.read_classes(classes)
    shown = look.read_pictures(images)
    looks = []
    for spec in specs:
        model = load_model(spec, arch)
        one = look.look(
            model,
            shown,
            class_names,
            rule=rule,
            device=device,
            precision=precision,
            progress=console.is_terminal,
        )
        looks.append(one)
        if one.missing:
            print(f"{model.name}: patch PCA only, for its patches meet no text ({one.missing})")
    for sentence in look.replaced(class_names):
        print(sentence)
    caption = look.caption(shown, looks, rule)
    width, height = look.draw(shown, looks, class_names, target, caption)
    print(f"wrote {target}, {width} x {height} pixels")
    if results is not None:
        named = f" Classes: {', '.join(class_names)}." if class_names else ""
        write_text_atomic(target.with_suffix(".txt"), f"{caption}{named}\n")
        print(f"on the page of: silc-bench leaderboard --results {results} --out {results}")


def _target(out: Path, results: Path | None) -> Path:
    """Where the picture goes. Raises UserError: it cannot be written there, or is no PNG."""
    if out.suffix != ".png":
        raise UserError(f"--out {out}: the picture is a PNG; let its name end in .png")
    if results is not None:
        if out.name != str(out):
            raise UserError(
                f"with --results the picture goes into {results / 'pictures'}; give --out a name without folders"
            )
        out = results / "pictures" / out
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; add the name of the picture")
    check_writable(out.parent)
    return out
