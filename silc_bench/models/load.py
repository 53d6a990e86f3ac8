"""A spec string -> a model, by one table of adapters.

Weights alone, without a configuration: ``--arch`` says what they belong to, and the adapter of that
library loads them.

Flow: FILE with ``--arch open_clip:NAME``, ``hf:FOLDER_OR_NAME`` (configuration and tokenizer come
from there) or ``silc:PRESET`` (tokenizer: the file's header, or tokenizer.json beside it) -> the
adapter. Without ``--arch`` nothing is guessed: the answer names the architectures that the shapes
fit.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.interface import ImageModel
from silc_bench.models.weights import architectures
from silc_bench.models.weights.read import metadata_of, read_weights

KINDS = {  # how a spec begins -> what follows the colon
    "open_clip": "ARCH/TAG, ARCH/PATH or ARCH/random",
    "hf": "NAME or FOLDER",
    "timm": "NAME, NAME/PATH or NAME/random",
    "big_vision": "FILE.npz",
}
ADAPTERS = {  # and the module that reads it, imported when it is asked for
    "open_clip": "silc_bench.models.adapters.open_clip.model",
    "hf": "silc_bench.models.adapters.huggingface.model",
    "timm": "silc_bench.models.adapters.timm",
    "big_vision": "silc_bench.models.adapters.big_vision",
    # a run's folder or checkpoint, which needs no prefix
    "silc": "silc_bench.trainer.checkpoints.model",
}


def load_model(spec: str, arch: str | None = None) -> ImageModel:
    """A checkpoint -> a model on the CPU, ready to be measured.

    Args:
        spec: ``KIND:...`` for the libraries in ``KINDS``, or a path: a run made by `silc-bench
        train` (also with ``:student``, ``:teacher`` or ``:average``), or a file of weights.
        arch: what a file of weights alone does not say: ``open_clip:NAME``, ``hf:NAME``,
        ``silc:PRESET``.

    Raises:
        UserError: nothing there, not a checkpoint, an architecture or branch that does not exist or
        does not fit.
    """
    if not spec:
        raise UserError(
            "an empty name is no checkpoint; name a run's folder, a file, or " + _kinds()
        )
    kind, colon, rest = spec.partition(":")
    if colon and kind in KINDS:
        if not rest:
            raise UserError(f"{spec!r} names no checkpoint; write {kind}:{KINDS[kind]}")
        if arch is not None and kind != "big_vision":
            raise UserError(
                f"--arch says what a file of weights alone does not; {spec!r} names its architecture itself"
            )
        return _load_kind(kind, rest, arch)
    path, branch = find_path(spec)
    return _load_path(path, branch, arch)


def find_path(spec: str) -> tuple[Path, str | None]:
    """A checkpoint that is there, and the branch asked for: "RUN:teacher" -> (RUN, "teacher"),
    "RUN" -> (RUN, None).

    Raises:
        UserError: nothing there.
    """
    path, _, named = spec.rpartition(":")
    branch: str | None = named
    if not os.path.exists(path) or os.path.exists(spec):  # the colon, if any, is part of the path
        path, branch = spec, None
    if not os.path.exists(path):
        _refuse_missing(spec)
    return Path(path), branch


def adapter(kind: str) -> Any:
    return importlib.import_module(ADAPTERS[kind])


def _load_kind(kind: str, rest: str, arch: str | None) -> ImageModel:
    return (
        adapter(kind).load(Path(rest), arch) if kind == "big_vision" else adapter(kind).load(rest)
    )


def _load_path(path: Path, branch: str | None, arch: str | None) -> ImageModel:
    silc = adapter("silc")
    if arch is None and silc.is_ours(path):
        return silc.load(path, branch)
    if branch is not None:
        raise UserError(
            f"{path}:{branch}: only checkpoints made by `silc-bench train` have branches, and this is none"
        )
    return load_raw(path, arch)


def _refuse_missing(spec: str) -> None:
    kind, _, rest = spec.partition(":")
    if (
        kind and rest and "/" not in kind and "." not in kind
    ):  # "openclip:ViT-B-32" is a misspelt kind, not a path
        raise unknown_name("kind of checkpoint", kind, KINDS)
    raise UserError(
        f"checkpoint {spec}: no such file or folder; checkpoints of other libraries are written {_kinds()}"
    )


def _kinds() -> str:
    return ", ".join(f"{kind}:{form.split(',')[0]}" for kind, form in KINDS.items())


ARCHS = {"open_clip": "open_clip:NAME", "hf": "hf:FOLDER_OR_NAME", "silc": "silc:PRESET"}
SHOWN = 8  # architectures that an answer names


def load_raw(path: Path, arch: str | None) -> ImageModel:
    """A file or folder of weights as a model of the architecture ``arch``.

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
    if metadata_of(path).get("format") == "silc-bench":
        raise UserError(
            f"checkpoint {path}: exported with its configuration and tokenizer; leave out --arch {arch}"
        )
    return (
        adapter("silc").load_state(path, name) if kind == "silc" else adapter(kind).load(name, path)
    )


def _unnamed(path: Path) -> UserError:
    """What to write instead of a path alone."""
    if path.is_dir():
        for kind, config in (("open_clip", "open_clip_config.json"), ("hf", "config.json")):
            if (path / config).is_file():
                return UserError(f"checkpoint {path}: a folder with {config}; write {kind}:{path}")
    shapes = {name: tuple(value.shape) for name, value in read_weights(path).items()}
    if any("/" in name for name in shapes):
        return UserError(
            f"checkpoint {path}: arrays in the layout of big_vision; write big_vision:{path}"
        )
    found = _fitting(shapes)
    says = f"checkpoint {path}: {len(shapes):,} tensors without a configuration; --arch must say what they belong to"
    if not found:
        forms = ", ".join(ARCHS.values())
        return UserError(
            f"{says} ({forms}); no architecture known here has tensors such as {_first(shapes)}"
        )
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    ask = (
        " (same shapes, other activations, sizes or tokenizers: ask whoever trained it which)"
        if len(found) > 1
        else ""
    )
    hint = f"; timm's are written timm:NAME/{path}" if found[0].startswith("timm:") else ""
    return UserError(f"{says}. By its shapes it fits {', '.join(found[:SHOWN])}{more}{ask}{hint}")


def _fitting(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [
        f"silc:{preset}" for preset in adapter("silc").fitting_presets(shapes)
    ] + architectures.fitting(shapes)


def _first(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name[:60]} {list(shape)}" for name, shape in list(shapes.items())[:3])
