"""Weights of any file or folder as {name: tensor}: nothing executed, nothing believed.

Reading is bounded in time and memory.

Flow: first bytes -> kind (``kind_of``) -> its reader (``pickles``, ``tensor_files``) -> the state
dict inside what programs save around it -> every tensor dense, of a dtype for weights, and finite.

A file is told by its first bytes and never by its suffix.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError, first_line
from silc_bench.models.weights import peft, pickles, tensor_files
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
READERS: dict[str, Callable[[Path], Any]] = {
    "torch": pickles.load_zip,
    "legacy": pickles.load_legacy,
    "safetensors": tensor_files.read_safetensors,
    "npz": tensor_files.read_npz,
}

# What to do about a file: where it is of another kind, where it is damaged, where it is of no use.
NAME_WEIGHTS = (
    "name weights as .safetensors, .pt/.pth/.bin/.ckpt of torch.save, .npz, "
    "or a folder with model.safetensors"
)
FETCH = "fetch it again"
FETCH_FOLDER = "fetch the whole folder again"
EARLIER = "take an earlier checkpoint, from before it diverged"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights on the CPU in the dtype of the file, which is told by its content, not its suffix.

    Reads files of torch.save (old and new) through ``weights_only``, safetensors, npz (names as
    they are, two-byte voids as bfloat16), and folders with Hugging Face's file or shards.

    Around the state dict programs save more: of a map the first of ``CONTAINERS`` that is there is
    taken, again and again (so the weights trained, not an average of them saved beside). Then
    ``PREFIXES`` are cut off, as long as every name carries the same one; otherwise names stay as
    they are.

    Raises:
        UserError: not readable, damaged, forged, or no weights: names the file, what is wrong, and
            what is read.
    """
    path = Path(path)
    weights = _read_folder(path) if path.is_dir() else _read_file(path)
    peft.refuse_names(path, weights)
    while prefix := next((prefix for prefix in PREFIXES if _carry(prefix, weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def metadata_of(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header; {} for a folder and for every other kind of file.

    Raises:
        UserError: as ``read_weights``, for what is no checkpoint at all.
    """
    if path.is_dir():
        return {}
    with _explained(path):
        return tensor_files.read_metadata(path) if kind_of(path) == "safetensors" else {}


def load_into(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put ``weights`` into ``module`` as fp32: every parameter and buffer, and nothing left over.

    Raises:
        UserError: missing or unexpected names, other shapes; ``source`` says whose weights and
            which architecture.
    """
    targets = module.state_dict()
    problems = {
        "missing": [name for name in targets if name not in weights],
        "unexpected": [name for name in weights if name not in targets],
        "of another shape": [
            f"{name} {list(weights[name].shape)} instead of {list(value.shape)}"
            for name, value in targets.items()
            if name in weights and weights[name].shape != value.shape
        ],
    }
    listed = [_listed(kind, names) for kind, names in problems.items() if names]
    if listed:
        raise UserError(
            f"its weights do not fit: {', '.join(listed)}",
            about=source,
            fix="name the architecture that they were trained in",
        )

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
        if problem := _problem(name, value, size):
            raise refused(path, f"{name} {problem}")

        # nothing is wrong with such a file: what is wrong is the training behind it
        if value.dtype in FLOATS and not value.isfinite().all():
            bad = value.numel() - int(value.isfinite().sum())
            count = f"{bad:,} of {value.numel():,} values are NaN or infinite"
            raise refused(path, f"{name} is not finite ({count}): its training diverged", EARLIER)

    if not any(value.dtype in FLOATS for value in weights.values()):
        raise refused(
            path, f"none of its {len(weights)} tensors holds weights: floating-point numbers"
        )


def kind_of(path: Path) -> str:
    """What a file is: "torch", "legacy" (torch.save before 1.6), "safetensors" or "npz".

    Raises:
        OSError: it cannot be read.
        UserError: not a regular file, or of a kind that is not read.
    """
    # The status first: opening a pipe would wait for its other end for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise refused(path, "is no regular file")
    with open(path, "rb") as file:
        head = file.read(24)
    if head[:2] == b"PK":
        return _kind_of_zip(path)

    # A pickle begins with PROTO and its version; a safetensors file with 8 bytes of length and then
    # a JSON object.
    if head[:1] == b"\x80" and head[1:2] and 2 <= head[1] <= 5:
        return "legacy"
    if head[8:9] == b"{":
        return "safetensors"
    begin = f"{path.stat().st_size:,} bytes that begin {head!r}"
    raise refused(path, f"is no checkpoint that silc-bench reads ({begin})")


def refused(path: Path, problem: str, fix: str = NAME_WEIGHTS) -> UserError:
    """The error of every checkpoint that is not read."""
    return UserError(problem, about=path, fix=fix)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its reader raise becomes an error of ours."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise refused(
            path,
            f"cannot be read ({error.strerror or error})",
            "check its permissions and its disk",
        ) from None
    except pickle.UnpicklingError as error:
        raise refused(path, f"nothing was executed: {pickles.needed_global(error)}") from None
    # on a damaged file zipfile and the unpickler raise nearly anything
    except Exception as error:
        size = path.stat().st_size
        problem = f"is truncated or damaged ({size:,} bytes; {first_line(error)})"
        raise refused(path, problem, FETCH) from None


def _kind_of_zip(path: Path) -> str:
    """Of the formats that are zip archives, which one."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()

    # TorchScript before torch.save, because a TorchScript archive has a data.pkl as well.
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise refused(
            path,
            "is a TorchScript program (as OpenAI's own CLIP files), which would be executed",
            "where you trust it, save torch.jit.load(FILE).state_dict() and name that",
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    held = ", ".join(names[:3])[:100] or "nothing"
    raise refused(path, f"is a zip archive of no weights (it holds {held})")


def _read_file(path: Path) -> dict[str, Tensor]:
    with _explained(path):
        weights = _unwrap(path, READERS[kind_of(path)](path))
        check_tensors(path, weights)
    return weights


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in what was saved, at most four maps deep."""
    for _ in range(4):
        if not isinstance(content, dict):
            raise refused(path, f"holds a saved {type(content).__name__} and no state dict")
        inner = [content[name] for name in CONTAINERS if isinstance(content.get(name), dict)]
        if not inner:
            break
        content = inner[0]

    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in content):
        shown = list(others or content)[:4]
        held = ", ".join(f"{str(name)[:40]!r}: {type(content[name]).__name__}" for name in shown)
        raise refused(path, f"holds no state dict but {held} ({len(content):,} entries)")

    return {name: value.detach() for name, value in content.items()}


def _problem(name: str, value: Tensor, size: int) -> str:
    """Why a tensor in a file of ``size`` bytes is no weight; "" where it is one."""
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return f"is not a plain tensor in memory ({value.layout}, {value.dtype}, {value.device})"

    # An integer buffer is fine, an integer weight is not: it is quantised, and its values mean
    # nothing without the scales beside it.
    last_word = name.replace("/", ".").split(".")[-1]
    is_weight = value.ndim > 1 and last_word in WEIGHT_NAMES
    if value.dtype not in FLOATS and (is_weight or value.dtype not in COUNTS):
        return f"is of {value.dtype}, and weights of that kind are not read"

    # A stride of 0 lets one stored value claim any shape.
    if value.numel() * value.element_size() > max(pickles.SMALL, pickles.MAX_RATIO * size):
        return f"claims the shape {list(value.shape)}, more than {size:,} bytes can hold"
    return ""


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder: one file, or the shards that its index names."""
    peft.refuse_adapter(folder)
    check_manifest(folder)
    name = next((name for name in IN_FOLDER if (folder / name).exists()), None)
    if name is None:
        named = f"checkpoints/step_*.pt of a run, {', '.join(IN_FOLDER[:2])} or {IN_FOLDER[3]}"
        raise refused(folder, f"holds none of {named}")
    if not name.endswith(".json"):
        return _read_file(folder / name)

    index = folder / name
    with _explained(index):
        shards = _shards(index)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        weights |= _read_file(folder / shard)

    # Shards of two downloads may lie in one folder, so names are compared both ways.
    differ = sorted(shards.keys() ^ weights.keys())
    if differ:
        raise refused(
            index, _listed("tensors differ between it and its shards", differ), FETCH_FOLDER
        )
    return weights


def _shards(index: Path) -> dict[str, str]:
    """{tensor: file beside the index}."""
    content = json.loads(index.read_text(encoding="utf-8"))
    shards: Any = content.get("weight_map") if isinstance(content, dict) else None
    is_map = isinstance(shards, dict) and bool(shards)
    if not is_map or not all(isinstance(shard, str) for shard in shards.values()):
        raise refused(index, "has no weight_map of tensors to files", FETCH_FOLDER)

    # "../other/file" would read outside the folder that the user named
    for shard in shards.values():
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise refused(index, f"names {shard!r}, which is no file beside it", FETCH_FOLDER)
    return shards


def _listed(kind: str, names: list[str]) -> str:
    """ "2 missing (a, b)", or "5 missing (a, b, c, ...)"."""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {kind} ({', '.join(names[:3])}{more})"


def _carry(prefix: str, weights: dict[str, Tensor]) -> bool:
    return all(name.startswith(prefix) and name != prefix for name in weights)
