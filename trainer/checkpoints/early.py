"""What of a run, of ``--init`` and of an export can be refused before torch is loaded.

Flow: a command asks these first -> then what computes (``loop``, ``init``, ``export``) does its
work, and asks them again where it is called by a program.
"""

from __future__ import annotations

import os
from pathlib import Path

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.load import check_spec, find_path, kinds
from silc_bench.models.load import checkpoints_of as all_in
from silc_bench.system.files import check_writable

# Of an export: two folders for other libraries, and one file.
TARGETS = ("open_clip", "hf", "safetensors")
SUFFIX = ".safetensors"


def check_begun(run: Path, resume: bool) -> None:
    """Raises UserError: the folder holds a run already, or none to resume; its name is no text."""
    try:
        str(run).encode()
    except UnicodeEncodeError:
        raise UserError(
            "its name holds bytes that are no UTF-8, which TensorBoard cannot write",
            about=run,
            fix="choose another --out",
        ) from None
    has_begun = bool(all_in(run))
    if has_begun and not resume:
        raise UserError(
            "already holds a run",
            about=run,
            fix="continue it with --resume, or choose another --out",
        )
    if resume and not has_begun:
        raise UserError(
            "holds no checkpoints/step_* to continue from",
            about=run,
            fix="leave --resume out to start anew",
        )


def check_init(spec: str) -> None:
    """Raises UserError: nothing there, or no checkpoint by its first bytes."""
    try:
        check_spec(spec)
    except UserError as error:
        raise placed(error, f"--init {spec}") from None


def check_tokenizer(path: str) -> None:
    """Raises UserError: no such file."""
    if not Path(path).is_file():
        raise UserError(
            "there is no such file",
            about=f"--tokenizer {path}",
            fix="name a sentencepiece .model or a tokenizer.json",
        )


def placed(error: UserError, place: str | Path) -> UserError:
    """The same error, which says too where the thing stands that it is about."""
    about = f"{place}, {error.about}" if error.about else place
    return UserError(error.problem, about=about, fix=error.fix)


def check_target(target: str, out: Path) -> None:
    """Before any work: ``target`` exists and ``out`` is free.

    Raises:
        UserError: says what is in the way. An earlier export is not overwritten.
    """
    if target not in TARGETS:
        raise unknown_name("target of an export", target, TARGETS, about="--to")
    if target == "safetensors" and out.suffix != SUFFIX:
        raise UserError(
            f"--to safetensors writes one file, and {out} does not end in {SUFFIX}",
            about="--out",
            fix=f"write --out {out.with_suffix(SUFFIX)}",
        )

    # An empty folder may be taken; lexists sees broken links too.
    is_free_folder = target != "safetensors" and out.is_dir() and not any(out.iterdir())
    if os.path.lexists(out) and not is_free_folder:
        raise UserError(
            "exists already and is not overwritten",
            about=out,
            fix="remove it, or choose another --out",
        )
    check_writable(out.parent)


def check_trained(spec: str) -> None:
    """Raises UserError: nothing there, or a checkpoint that surely was not trained here."""
    # "hf:NAME" names another library's model, unless somebody has a folder of that name.
    kind = spec.partition(":")[0]
    if kind in kinds() and not os.path.exists(spec):
        raise foreign(spec, f"{kind}: names a model of another library")

    find_path(spec)
    try:
        check_spec(spec)
    except UserError:
        raise foreign(spec) from None


def foreign(spec: str, reason: str = "this is no checkpoint of `silc-bench train`") -> UserError:
    return UserError(
        f"{reason}, and only models trained here can be exported",
        about=spec,
        fix="name the folder of a run",
    )
