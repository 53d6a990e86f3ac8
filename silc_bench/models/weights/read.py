"""Weights of any file or folder as {name: tensor}: nothing executed, nothing believed.

Reading is bounded in time and memory.

Flow: first bytes -> kind (``kind_of``) -> its reader (``pickles``, ``tensor_files``) -> the state
dict inside what programs save around it -> every tensor dense, of a dtype for weights, and finite.

A file is told by its first bytes and never by its suffix. Where it holds no weights, one sentence
says what it is instead.
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
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Dtypes of buffers: indices, masks, counters. A weight of such a dtype is quantised.
COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
WEIGHT_NAMES = ("weight", "kernel", "bias", "proj", "in_proj_weight")

# What a folder's weights are called; the first that is there is read.
IN_FOLDER = (
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
EXPECTED = (
    "weights as .safetensors, .pt/.pth/.bin/.ckpt of torch.save, .npz, "
    "or a folder with model.safetensors"
)
HEAD = 4096  # bytes looked at

# First bytes of files that hold no weights we read -> what the error calls them.
MAGIC = {
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights on the CPU in the dtype of the file, which is told by its content, not its suffix.

    Reads files of torch.save (old and new) through ``weights_only``, safetensors, npz (names as
    they are, two-byte voids as bfloat16), and folders with Hugging Face's file or shards.

    Around the state dict programs save more: of a map the first of ``CONTAINERS`` that is there is
    taken, again and again (so the weights trained, not an average of them saved beside). Then
    ``PREFIXES`` are cut off, as long as every name carries the same one; otherwise names stay as
    they are.

    Raises:
        UserError: not readable, damaged, forged, or no weights: names the file, what it is, and
            what was expected.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)

    # The two formats of arrays alone hold nothing around the weights. An npz is big_vision's, whose
    # names begin with "params/" and carry no prefix of a wrapper.
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
    targets = module.state_dict()
    missing = [name for name in targets if name not in weights]
    unexpected = [name for name in weights if name not in targets]
    misshapen = [
        f"{name} {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in targets.items()
        if name in weights and weights[name].shape != value.shape
    ]

    problems = [
        _some("missing", missing),
        _some("unexpected", unexpected),
        _some("of another shape", misshapen),
    ]
    if any(problems):
        raise UserError(f"{source}: its weights do not fit: {'; '.join(filter(None, problems))}")

    # assign also fills a module on the meta device; it keeps the dtype of the file, so fp32 after
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
            what = f"{value.layout}, {value.dtype}, {value.device}"
            raise refused(path, f"{name} is not a plain tensor in memory ({what})")

        # An integer buffer is fine, an integer weight is not: it is quantised, and its values mean
        # nothing without the scales beside it.
        last_word = name.replace("/", ".").split(".")[-1]
        is_weight = value.ndim > 1 and last_word in WEIGHT_NAMES
        if value.dtype not in FLOATS and (is_weight or value.dtype not in COUNTS):
            dtype = str(value.dtype).removeprefix("torch.")
            raise refused(path, f"{name} is of {dtype}: weights of that kind are not read")

        # A stride of 0 lets one stored value claim any shape.
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


def kind_of(path: Path) -> str:
    """What a file is: "torch", "legacy" (torch.save before 1.6), "safetensors" or "npz".

    Raises:
        UserError: not a regular file, unreadable, empty, or of a kind that holds no weights; says
            which.
    """
    # The status first: opening a pipe would wait for its other end for ever.
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise refused(path, "a folder")
        if not stat.S_ISREG(status.st_mode):
            raise refused(path, "a device, pipe or socket and no file")
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None

    if not head:
        raise refused(path, "an empty file")
    if head[:2] == b"PK":
        return _kind_of_zip(path, status.st_size)

    # A pickle begins with PROTO and its version; a safetensors file with 8 bytes of length and then
    # a JSON object.
    if head[:1] == b"\x80" and head[1:2] and 2 <= head[1] <= 5:
        return "legacy"
    if head[8:9] == b"{":
        return "safetensors"
    raise refused(path, _name_of(head, status.st_size))


def refused(path: Path, what: str) -> UserError:
    """The error of every unreadable checkpoint: its name, what it is, what was expected."""
    return UserError(f"checkpoint {path}: {what}; expected {EXPECTED}")


def _some(what: str, names: list[str], shown: int = 3) -> str:
    """ "2 missing (a, b)", or "" where there are none."""
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} {what} ({', '.join(names[:shown])}{more})" if names else ""


def _read(path: Path) -> tuple[str, Any]:
    """Kind and content; whatever a damaged file makes its reader raise becomes the one error."""
    kind = kind_of(path)
    try:
        return kind, READERS[kind](path)
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        reason = pickles.needed_global(error)
        raise refused(path, f"refused, nothing was executed: {reason}") from None
    # on a damaged file zipfile and the unpickler raise nearly anything
    except Exception as error:
        size = path.stat().st_size
        reason = _first_line(error)
        raise refused(path, f"truncated or damaged ({size:,} bytes: {reason})") from None


def _first_line(error: Exception) -> str:
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in what was saved, at most four maps deep."""
    for _ in range(4):
        if not isinstance(content, dict):
            raise refused(path, f"a saved {type(content).__name__} and no state dict")
        inner = [content[name] for name in CONTAINERS if isinstance(content.get(name), dict)]
        if not inner:
            break
        content = inner[0]

    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in content):
        shown = list(others or content)[:4]
        held = ", ".join(f"{str(name)[:40]!r}: {type(content[name]).__name__}" for name in shown)
        raise refused(path, f"no state dict: it holds {held} ({len(content):,} entries)")

    return {name: value.detach() for name, value in content.items()}


def _without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that every one of them carries, however many there are."""
    while prefix := next((p for p in PREFIXES if _carries(p, weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _carries(prefix: str, weights: dict[str, Tensor]) -> bool:
    return all(name.startswith(prefix) and name != prefix for name in weights)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder: one file, or the shards that its index names."""
    check_manifest(folder)
    name = next((name for name in IN_FOLDER if (folder / name).exists()), None)
    if name is None:
        raise refused(
            folder,
            "a folder without checkpoints/step_*.pt of a run, "
            f"or {', '.join(IN_FOLDER[:2])} or {IN_FOLDER[3]}",
        )
    if not name.endswith(".json"):
        return read_weights(folder / name)

    index = folder / name
    shards = _shards(index)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        path = folder / shard
        if not path.is_file():
            raise refused(folder, f"{name} names {shard}, which is not there; fetch it too")
        kind, content = _read(path)
        part = content if kind in ("safetensors", "npz") else _unwrap(path, content)
        check_tensors(path, part)
        weights |= part

    # Shards of two downloads may lie in one folder, so names are compared both ways.
    differ = sorted(shards.keys() ^ weights.keys())
    if differ:
        listed = ", ".join(differ[:3])
        raise refused(index, f"the index and its shards name different tensors ({listed})")

    # Prefixes only now: one shard alone may carry one by chance.
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

    shards: Any = content.get("weight_map") if isinstance(content, dict) else None
    is_map = isinstance(shards, dict) and bool(shards)
    if not is_map or not all(isinstance(shard, str) for shard in shards.values()):
        raise refused(index, "an index without a weight_map of tensors to files")

    # "../other/file" would read outside the folder that the user named
    outside = next((shard for shard in shards.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise refused(index, f"an index that names {outside!r}, which is not a file beside it")
    return shards


def _kind_of_zip(path: Path, size: int) -> str:
    """Of the formats that are zip archives, which one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # a damaged directory makes zipfile raise nearly anything
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:100]
        raise refused(
            path, f"a truncated or damaged zip archive ({size:,} bytes: {reason}); fetch it again"
        ) from None

    # TorchScript before torch.save, because a TorchScript archive has a data.pkl as well.
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise refused(
            path,
            "a TorchScript program (as OpenAI's own CLIP files), which would have to be executed; "
            "where you trust it, save torch.jit.load(FILE).state_dict() and name that",
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"

    held = ", ".join(names[:3]) or "nothing"
    raise refused(path, f"a zip archive that is no checkpoint (it holds {held})"[:200])


def _name_of(head: bytes, size: int) -> str:
    """What a file that holds no weights is, in a few words."""
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and name what is in it"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer in place of the file; fetch the file itself (git lfs pull)"

    # a pickle of protocol 0 is text, and begins with the name that it would import
    match = re.match(rb"c([\w.]+)\n([\w.]+)\n", head)
    if match is not None:
        needed = f"{match[1].decode()}.{match[2].decode()}"
        return f"refused, nothing was executed: a pickle of text that names GLOBAL {needed}"

    if not head.strip(b"\0"):
        return (
            f"{size:,} bytes that begin with nothing but zeros, as an interrupted download does; "
            "fetch it again"
        )

    # What hosts answer with in place of a file: a page to sign in, or an error as JSON.
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "a web page saved in place of the file; "
            "fetch the file itself (the page may ask to sign in)"
        )
    if text[:1] in (b"{", b"["):
        return "a JSON text; a model with a JSON index is named by its folder"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"a text file that begins {head[:24].decode().split(chr(10))[0]!r}"

    first_bytes = head[:8].hex(" ")
    return f"truncated, damaged or of an unknown kind ({size:,} bytes that begin {first_bytes})"
