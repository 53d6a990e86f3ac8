"""Weights alone, without a configuration: ``--arch`` says what they belong to, and the adapter of that library loads them.

Flow: FILE with ``--arch open_clip:NAME``, ``hf:FOLDER_OR_NAME`` (configuration and tokenizer come from there) or
``silc:PRESET`` (tokenizer: the file's header, or tokenizer.json beside it) -> the adapter. Without ``--arch`` nothing is
guessed: the answer names the architectures that the shapes fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from silc_bench.errors import UserError, unknown_name
from silc_bench.models import architectures
from silc_bench.models.weights import metadata_of, read_weights

if TYPE_CHECKING:
    from silc_bench.models import ImageModel

ARCHS = {"open_clip": "open_clip:NAME", "hf": "hf:FOLDER_OR_NAME", "silc": "silc:PRESET"}
SHOWN = 8  # architectures that an answer names


def load_raw(path: Path, arch: str | None) -> ImageModel:
    """A file or folder of weights as a model of the architecture ``arch``.

    Raises:
        UserError: unreadable weights; no, an unknown or a wrong architecture; missing, unexpected or misshapen tensors.
    """
    if arch is None:
        raise _unnamed(path)
    kind, _, name = arch.partition(":")
    if kind == "timm" and name:
        raise UserError(f"--arch {arch}: timm's models are written with their weights, timm:{name}/{path}")
    if kind not in ARCHS:
        raise unknown_name("kind of architecture", kind, ARCHS)
    if not name:
        raise UserError(f"--arch {arch} names no architecture; write {ARCHS[kind]}")
    if metadata_of(path).get("format") == "silc-bench":
        raise UserError(f"checkpoint {path}: exported with its configuration and tokenizer; leave out --arch {arch}")
    if kind == "open_clip":
        from silc_bench.models import open_clip

        return open_clip.load(name, path)
    if kind == "hf":
        from silc_bench.models import hf

        return hf.load(name, path)
    from silc_bench.models import native

    return native.load_state(path, name)


def _unnamed(path: Path) -> UserError:
    """What to write instead of a path alone."""
    if path.is_dir():
        for kind, config in (("open_clip", "open_clip_config.json"), ("hf", "config.json")):
            if (path / config).is_file():
                return UserError(f"checkpoint {path}: a folder with {config}; write {kind}:{path}")
    shapes = {name: tuple(value.shape) for name, value in read_weights(path).items()}
    if any("/" in name for name in shapes):
        return UserError(f"checkpoint {path}: arrays in the layout of big_vision; write big_vision:{path}")
    found = _fitting(shapes)
    says = f"checkpoint {path}: {len(shapes):,} tensors without a configuration; --arch must say what they belong to"
    if not found:
        forms = ", ".join(ARCHS.values())
        return UserError(f"{says} ({forms}); no architecture known here has tensors such as {_first(shapes)}")
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    ask = " (same shapes, other activations, sizes or tokenizers: ask whoever trained it which)" if len(found) > 1 else ""
    hint = f"; timm's are written timm:NAME/{path}" if found[0].startswith("timm:") else ""
    return UserError(f"{says}. By its shapes it fits {', '.join(found[:SHOWN])}{more}{ask}{hint}")


def _fitting(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    from silc_bench.models import native

    return [f"silc:{preset}" for preset in native.fitting_presets(shapes)] + architectures.fitting(shapes)


def _first(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name[:60]} {list(shape)}" for name, shape in list(shapes.items())[:3])
