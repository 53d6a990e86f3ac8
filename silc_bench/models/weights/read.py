"""Weights of any file or folder as {name: tensor}, read safely: nothing executed, nothing believed,
bounded in time and memory.

Flow: first bytes -> kind (``kind_of``) -> its reader (``pickles``, ``tensor_files``) -> the state
dict inside what programs save around it -> every tensor dense, of a dtype for weights, and finite.

What a file is, by its first bytes and never by its suffix - and, where it holds no weights, a
sentence that says so.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.weights import pickles, tensor_files
from silc_bench.system.checksums import check_manifest

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COUNTS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)  # buffers: indices, masks, counters
IN_FOLDER = (  # what a folder's weights are called, the first that is there
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
MAX_INDEX = 16 * 2**20  # bytes
READERS: dict[str, Callable[[Path], Any]] = {
    "torch": pickles.load_zip,
    "legacy": pickles.load_legacy,
    "safetensors": tensor_files.read_safetensors,
    "npz": tensor_files.read_npz,
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights on the CPU in the dtype of the file, which is told by its content and not by its
    suffix.

    Reads files of torch.save (old and new) through ``weights_only``, safetensors, npz (names as
    they are, two-byte voids as bfloat16), and folders with Hugging Face's file or shards.

    Around the state dict programs save more: of a map the first of ``CONTAINERS`` that is there is
    taken, again and again (so the weights trained, not an average of them saved beside). Then
    ``PREFIXES`` (DataParallel, torch.compile, Lightning) are cut off, as long as every name carries
    the same one; otherwise names stay as they are.

    Raises:
        UserError: not readable, damaged, forged, or no weights: names the file, what it is, and
        what was expected.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    kind, content = _read(path)
    weights = content if kind in ("safetensors", "npz") else _unwrap(path, content)
    check_tensors(path, weights)
    return weights if kind == "npz" else _without_prefixes(weights)


def metadata_of(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header; {} for a folder and for every other kind of file.

    Raises:
        UserError: as ``read_weights``, for what is no checkpoint at all.
    """
    if path.is_dir() or kind_of(path) != "safetensors":
        return {}
    try:
        return tensor_files.read_metadata(path)
    except (ValueError, RecursionError) as error:
        raise refused(path, f"damaged: {_first_line(error)}") from None


def load_into(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put ``weights`` into ``module`` as fp32: every parameter and buffer, and nothing left over.

    Raises:
        UserError: missing or unexpected names, other shapes; ``source`` says whose weights and
        which architecture.
    """
    wanted = module.state_dict()
    problems = [
        _some("missing", [name for name in wanted if name not in weights]),
        _some("unexpected", [name for name in weights if name not in wanted]),
        _some(
            "of another shape",
            [
                f"{name} {list(weights[name].shape)} instead of {list(value.shape)}"
                for name, value in wanted.items()
                if name in weights and weights[name].shape != value.shape
            ],
        ),
    ]
    if any(problems):
        raise UserError(f"{source}: its weights do not fit: {'; '.join(filter(None, problems))}")
    module.load_state_dict(dict(weights), assign=True)
    module.float()


def check_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Dense, of a dtype for weights, no larger than the file, finite.

    Raises:
        UserError: names the file and the first tensor that is not.
    """
    size = path.stat().st_size
    for name, value in weights.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise refused(
                path,
                f"{name} is not a plain tensor in memory ({value.layout}, {value.dtype}, {value.device})",
            )
        words = name.replace("/", ".").split(".")
        is_weight = value.ndim > 1 and words[-1] in (
            "weight",
            "kernel",
            "bias",
            "proj",
            "in_proj_weight",
        )
        if value.dtype not in FLOATS and (is_weight or value.dtype not in COUNTS):
            raise refused(
                path,
                f"{name} is of {str(value.dtype).removeprefix('torch.')}: weights of that kind are not read",
            )
        if value.numel() * value.element_size() > max(pickles.SMALL, pickles.MAX_RATIO * size):
            raise refused(
                path,
                f"{name} claims the shape {list(value.shape)}, more than {size:,} bytes can hold",
            )
        if value.dtype in FLOATS and not value.isfinite().all():
            bad = value.numel() - int(value.isfinite().sum())
            raise refused(
                path,
                f"{name} is not finite ({bad:,} of {value.numel():,} values are NaN or infinite)",
            )
    if not any(value.dtype in FLOATS for value in weights.values()):
        raise refused(
            path, f"no weights among its {len(weights)} tensors: none is of a floating-point dtype"
        )


def _some(what: str, names: list[str], shown: int = 3) -> str:
    """ "2 missing (a, b)", or "" where there are none."""
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} {what} ({', '.join(names[:shown])}{more})" if names else ""


def _read(path: Path) -> tuple[str, Any]:
    """Kind and content; whatever a damaged file makes its reader raise becomes the one sentence."""
    kind = kind_of(path)
    try:
        return kind, READERS[kind](path)
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        raise refused(
            path, f"refused, nothing was executed: {pickles.needed_global(error)}"
        ) from None
    except Exception as error:  # on a damaged file zipfile and the unpickler raise nearly anything
        raise refused(
            path, f"truncated or damaged ({path.stat().st_size:,} bytes: {_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in what was saved, at most four maps deep."""
    for _ in range(4):
        if not isinstance(content, dict):
            raise refused(path, f"a saved {type(content).__name__} and no state dict")
        inner = next(
            (content[name] for name in CONTAINERS if isinstance(content.get(name), dict)), None
        )
        if inner is None:
            break
        content = inner
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in content):
        held = ", ".join(
            f"{str(name)[:40]!r}: {type(content[name]).__name__}"
            for name in list(others or content)[:4]
        )
        raise refused(path, f"no state dict: it holds {held} ({len(content):,} entries)")
    return {name: value.detach() for name, value in content.items()}


def _without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next(
        (p for p in PREFIXES if all(name.startswith(p) and name != p for name in weights)), None
    ):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _read_folder(folder: Path) -> dict[str, Tensor]:
    check_manifest(folder)
    name = next((name for name in IN_FOLDER if (folder / name).exists()), None)
    if name is None:
        raise refused(
            folder,
            f"a folder without checkpoints/step_*.pt of a run, or {', '.join(IN_FOLDER[:2])} or {IN_FOLDER[3]}",
        )
    if not name.endswith(".json"):
        return read_weights(folder / name)
    index = folder / name
    shards = _shards(index)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        if not (folder / shard).is_file():
            raise refused(folder, f"{name} names {shard}, which is not there; fetch it too")
        kind, content = _read(folder / shard)
        part = content if kind in ("safetensors", "npz") else _unwrap(folder / shard, content)
        check_tensors(folder / shard, part)
        weights |= part
    differ = sorted(shards.keys() ^ weights.keys())
    if differ:
        raise refused(
            index, f"the index and its shards name different tensors ({', '.join(differ[:3])})"
        )
    return _without_prefixes(weights)


def _shards(index: Path) -> dict[str, str]:
    """{tensor: file beside the index}."""
    try:
        if index.stat().st_size > MAX_INDEX:
            raise refused(index, f"an index of more than {MAX_INDEX:,} bytes")
        content = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise refused(index, f"cannot be read ({error.strerror or error})") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise refused(index, f"an index that is not JSON ({_first_line(error)})") from None
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(shard, str) for shard in shards.values())
    ):
        raise refused(index, "an index without a weight_map of tensors to files")
    outside = next((shard for shard in shards.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise refused(index, f"an index that names {outside!r}, which is not a file beside it")
    return shards


EXPECTED = "weights as .safetensors, .pt/.pth/.bin/.ckpt of torch.save, .npz, or a folder with model.safetensors"
HEAD = 4096  # bytes looked at
MAGIC = {  # of files that hold no weights we read
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file (Keras); convert its weights to .safetensors",
    b"GGUF": "a GGUF file of quantised weights",
    b"\x93NUMPY": "one NumPy array (.npy); put the named arrays of a model into an .npz",
    b"\x1f\x8b": "a gzip file; unpack it and name what is in it",
    b"BZh": "a bzip2 file; unpack it and name what is in it",
    b"\xfd7zXZ": "an xz file; unpack it and name what is in it",
    b"\x28\xb5\x2f\xfd": "a zstandard file; unpack it and name what is in it",
    b"7z\xbc\xaf": "a 7z archive; unpack it and name what is in it",
    b"Rar!": "a RAR archive; unpack it and name what is in it",
    b"\x7fELF": "a program",
    b"SQLite": "an SQLite database",
}


def refused(path: Path, what: str) -> UserError:
    """The one sentence that every unreadable checkpoint is answered with: its name, what it is,
    what was expected.
    """
    return UserError(f"checkpoint {path}: {what}; expected {EXPECTED}")


def kind_of(path: Path) -> str:
    """ "torch", "legacy" (torch.save before 1.6), "safetensors" or "npz".

    Raises:
        UserError: not a regular file, unreadable, empty, or of a kind that holds no weights; says
        which.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise refused(
                path,
                "a folder"
                if stat.S_ISDIR(status.st_mode)
                else "a device, pipe or socket and no file",
            )
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None
    if not head:
        raise refused(path, "an empty file")
    if head[:2] == b"PK":
        return _kind_of_zip(path, status.st_size)
    if head[:1] == b"\x80" and head[1:2] and 2 <= head[1] <= 5:
        return "legacy"
    if head[8:9] == b"{":
        return "safetensors"
    raise refused(path, _name_of(head, status.st_size))


def _kind_of_zip(path: Path, size: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # a damaged directory makes zipfile raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:100]
        raise refused(
            path, f"a truncated or damaged zip archive ({size:,} bytes: {reason}); fetch it again"
        ) from None
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise refused(
            path,
            "a TorchScript program (as OpenAI's own CLIP files), which would have to be executed; where you trust it, save"
            " torch.jit.load(FILE).state_dict() and name that",
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise refused(
        path,
        f"a zip archive that is no checkpoint (it holds {', '.join(names[:3]) or 'nothing'})"[:200],
    )


def _name_of(head: bytes, size: int) -> str:
    """What a file that holds no weights is, in a few words."""
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and name what is in it"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer in place of the file; fetch the file itself (git lfs pull)"
    if (found := re.match(rb"c([\w.]+)\n([\w.]+)\n", head)) is not None:
        return f"refused, nothing was executed: a pickle of text that names GLOBAL {found[1].decode()}.{found[2].decode()}"
    if not head.strip(b"\0"):
        return f"{size:,} bytes that begin with nothing but zeros, as an interrupted download does; fetch it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page saved in place of the file; fetch the file itself (the page may ask to sign in)"
    if text[:1] in (b"{", b"["):
        return "a JSON text; a model with a JSON index is named by its folder"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"a text file that begins {head[:24].decode().split(chr(10))[0]!r}"
    return (
        f"truncated, damaged or of an unknown kind ({size:,} bytes that begin {head[:8].hex(' ')})"
    )
