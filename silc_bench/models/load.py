"""A spec string -> a model, by one table of adapters.

Flow: ``load_model(spec)`` -> "KIND:..." goes to the adapter of that library; a path goes to the
trainer's own checkpoints, or, where it holds weights alone, to ``load_raw``.

Weights alone come without a configuration, so ``--arch`` must say what they belong to:
``open_clip:NAME``, ``hf:FOLDER_OR_NAME`` (configuration and tokenizer come from there) or
``silc:PRESET`` (tokenizer: the file's header, or tokenizer.json beside it). Without ``--arch``
nothing is guessed.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.interface import ImageModel
from silc_bench.models.weights.read import metadata_of, read_weights

# How a spec begins -> what follows the colon.
KINDS = {
    "open_clip": "ARCH/TAG, ARCH/PATH or ARCH/random",
    "hf": "NAME or FOLDER",
    "timm": "NAME, NAME/PATH or NAME/random",
    "big_vision": "FILE.npz",
}

# The module that reads each kind. It is imported when it is asked for, because the libraries behind
# the adapters take seconds to import and need not all be installed.
ADAPTERS = {
    "open_clip": "silc_bench.models.adapters.open_clip.model",
    "hf": "silc_bench.models.adapters.huggingface.model",
    "timm": "silc_bench.models.adapters.timm",
    "big_vision": "silc_bench.models.adapters.big_vision",
    # a run's folder or checkpoint, which needs no prefix
    "silc": "silc_bench.trainer.checkpoints.model",
}

# What --arch may say of weights alone.
ARCHS = {"open_clip": "open_clip:NAME", "hf": "hf:FOLDER_OR_NAME", "silc": "silc:PRESET"}


def load_model(spec: str, arch: str | None = None) -> ImageModel:
    """A checkpoint -> a model on the CPU, ready to be measured.

    Args:
        spec: ``KIND:...`` for the libraries in ``KINDS``, or a path: a run made by `silc-bench
            train` (also with ``:student``, ``:teacher`` or ``:average``), or a file of weights.
        arch: what a file of weights alone does not say: ``open_clip:NAME``, ``hf:NAME``,
            ``silc:PRESET``.

    Raises:
        UserError: nothing there, not a checkpoint, or an architecture or branch that does not exist
            or does not fit.
    """
    if not spec:
        raise UserError(
            "an empty name is no checkpoint; name a run's folder, a file, or " + _kinds()
        )

    kind, colon, rest = spec.partition(":")
    if colon and kind in KINDS:
        if not rest:
            raise UserError(f"{spec!r} names no checkpoint; write {kind}:{KINDS[kind]}")

        # of big_vision the architecture follows from the shapes; there --arch checks it
        if arch is not None and kind != "big_vision":
            raise UserError(
                "--arch says what a file of weights alone does not; "
                f"{spec!r} names its architecture itself"
            )
        return _load_kind(kind, rest, arch)

    path, branch = find_path(spec)
    return _load_path(path, branch, arch)


def find_path(spec: str) -> tuple[Path, str | None]:
    """A checkpoint that is there, and its branch: "RUN:teacher" -> (RUN, "teacher").

    "RUN" -> (RUN, None).

    Raises:
        UserError: nothing there.
    """
    path, _, suffix = spec.rpartition(":")
    branch: str | None = suffix

    # A path may hold colons of its own, so what is on the disk decides what the last one means.
    if not os.path.exists(path) or os.path.exists(spec):
        path, branch = spec, None
    if not os.path.exists(path):
        _refuse_missing(spec)
    return Path(path), branch


def load_raw(path: Path, arch: str | None) -> ImageModel:
    """A file or folder of weights alone as a model of the architecture ``arch``.

    Raises:
        UserError: unreadable weights; no, an unknown or a wrong architecture; missing, unexpected
            or misshapen tensors.
    """
    if arch is None:
        raise _unnamed(path)

    kind, _, name = arch.partition(":")
    if kind == "timm" and name:
        raise UserError(
            f"--arch {arch}: timm's models are written with their weights, timm:{name}/{path}"
        )
    if kind not in ARCHS:
        raise unknown_name("kind of architecture", kind, ARCHS)
    if not name:
        raise UserError(f"--arch {arch} names no architecture; write {ARCHS[kind]}")

    # An export of ours says what it is; a second statement could only contradict it.
    if metadata_of(path).get("format") == "silc-bench":
        raise UserError(
            f"checkpoint {path}: exported with its configuration and tokenizer; "
            f"leave out --arch {arch}"
        )

    if kind == "silc":
        return adapter("silc").load_state(path, name)
    return adapter(kind).load(name, path)


def adapter(kind: str) -> Any:
    """The module that loads checkpoints of this kind, imported now."""
    return importlib.import_module(ADAPTERS[kind])


def _load_kind(kind: str, rest: str, arch: str | None) -> ImageModel:
    if kind == "big_vision":
        return adapter(kind).load(Path(rest), arch)
    return adapter(kind).load(rest)


def _load_path(path: Path, branch: str | None, arch: str | None) -> ImageModel:
    silc = adapter("silc")
    if arch is None and silc.is_ours(path):
        return silc.load(path, branch)

    if branch is not None:
        raise UserError(
            f"{path}:{branch}: only checkpoints made by `silc-bench train` have branches, "
            "and this is none"
        )
    return load_raw(path, arch)


def _refuse_missing(spec: str) -> None:
    # "openclip:ViT-B-32" is a misspelt kind and no path: a kind holds neither slash nor dot.
    kind, _, rest = spec.partition(":")
    if kind and rest and "/" not in kind and "." not in kind:
        raise unknown_name("kind of checkpoint", kind, KINDS)
    raise UserError(
        f"checkpoint {spec}: no such file or folder; "
        f"checkpoints of other libraries are written {_kinds()}"
    )


def _kinds() -> str:
    """One form of each kind, for errors: "open_clip:ARCH/TAG, hf:NAME or FOLDER, ..."."""
    return ", ".join(f"{kind}:{form.split(',')[0]}" for kind, form in KINDS.items())


def _unnamed(path: Path) -> UserError:
    """What to write instead of a path alone."""
    # A folder of another library has a configuration, so its prefix is all that is missing.
    if path.is_dir():
        for kind, config in (("open_clip", "open_clip_config.json"), ("hf", "config.json")):
            if (path / config).is_file():
                return UserError(f"checkpoint {path}: a folder with {config}; write {kind}:{path}")

    # big_vision separates the parts of a name by slashes, the torch libraries by dots
    shapes = {name: tuple(value.shape) for name, value in read_weights(path).items()}
    if any("/" in name for name in shapes):
        return UserError(
            f"checkpoint {path}: arrays in the layout of big_vision; write big_vision:{path}"
        )

    # Of our own presets the shapes tell; of other libraries only whoever trained the weights knows.
    presets = adapter("silc").fitting_presets(shapes)
    hint = f" (they fit silc:{', silc:'.join(presets)})" if presets else ""
    forms = ", ".join(ARCHS.values())
    return UserError(
        f"holds {len(shapes):,} tensors without a configuration, as {_first(shapes)}",
        about=path,
        fix=f"say what they belong to by --arch {forms}{hint}, or write timm:NAME/{path}",
    )


def _first(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name[:60]} {list(shape)}" for name, shape in list(shapes.items())[:3])
