"""Weights of any file or folder as {name: tensor}: nothing executed, nothing believed.

Reading is bounded in time and memory.

Flow: first bytes -> kind (``kind_of``) -> its reader (``pickles``, ``tensor_files``) -> the state
dict inside what programs save around it (``_unwrap``), its names without those of wrappers
(``_unwrapped``) -> every tensor dense, of a dtype for weights, and finite.

A file is told by its first bytes and never by its suffix.

Of a file that holds several networks, or one as a part of another, ``FILE#PART`` is one of them:
"dino.pth#teacher.backbone" is what lies in its map "teacher" below names that begin "backbone.".
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.weights import peft, pickles, tensor_files
from silc_bench.models.weights.kind import IN_FOLDER, explained, kind_of, name_in, refused
from silc_bench.models.weights.parts import split_part
from silc_bench.models.weights.stand_ins import StandIn, Stored, entries
from silc_bench.system.checksums import check_manifest
from silc_bench.system.terminal import say

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params", "weights")
PREFIXES = ("module.", "model.")  # of DataParallel, averages and Lightning, where all names have it

# Of torch.compile, FSDP and activation checkpointing, around any part of a network.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
COUNTERS = ("n_averaged",)  # beside the weights of an average (torch.optim.swa_utils)

# What one process of several keeps of the weights: names, and classes of tensors.
FLAT = "_flat_param"
SHARDED = ("ShardedTensor", "DTensor")
MAX_DEPTH = 8  # maps within maps
MAX_NAMED = 6  # parts of a file that a sentence names
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Dtypes of buffers: indices, masks, counters. A weight of such a dtype is quantised.
COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
WEIGHT_NAMES = ("weight", "kernel", "bias", "proj", "in_proj_weight")

READERS: dict[str, Callable[[Path], Any]] = {
    "torch": functools.partial(pickles.load_zip, may_stand_in=True),
    "legacy": functools.partial(pickles.load_legacy, may_stand_in=True),
    "safetensors": tensor_files.read_safetensors,
    "npz": tensor_files.read_npz,
}

FETCH_FOLDER = "fetch the whole folder again"
WHOLE = (
    "save them whole: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True, cpu_offload=True)), on every process, and "
    "torch.save on the first"
)
EARLIER = "take an earlier checkpoint, from before it diverged"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights on the CPU in the dtype of the file, which is told by its content, not its suffix.

    Reads files of torch.save (old and new) through ``weights_only``, safetensors, npz (names as
    they are, two-byte voids as bfloat16), and folders with Hugging Face's file or shards.

    Around the state dict programs save more: of a map the first of ``CONTAINERS`` that is there is
    taken, again and again (so the weights trained, not an average of them saved beside: that one is
    named on the error stream), or the one state dict that it holds. ``WRAPPERS`` are cut out of all
    names, then ``PREFIXES`` off them, as long as every name carries the same one.

    Args:
        path: also FILE#PART, of what FILE holds.

    Raises:
        UserError: not readable, damaged, forged, or no weights: names the file, what is wrong, and
            what is read. Or several networks, or no such part: names those that are there.
    """
    place, part = split_part(path)
    weights, part = _read_folder(place, part) if place.is_dir() else _read_file(place, part)
    peft.refuse_names(place, weights)
    return _unwrapped(place, weights, part)


def say_passed_over(folder: Path, taken: str, names: Iterable[str]) -> None:
    """Says which other weights lie in a folder: they may be those that were meant."""
    others = [name for name in names if name != taken and (folder / name).exists()]
    if others:
        say(f"note: of {folder}, {taken} is read, not {', '.join(others)}")


def metadata_of(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header; {} for a folder and for every other kind of file.

    Raises:
        UserError: as ``read_weights``, for what is no checkpoint at all.
    """
    path, _ = split_part(path)
    if path.is_dir():
        return {}
    with explained(path):
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
            fix=part_fix(weights, targets) or "name the architecture that they were trained in",
        )

    # assign also fills a module on the meta device; it keeps the dtype of the file, so fp32 after
    module.load_state_dict(dict(weights), assign=True)
    module.float()


def part_fix(weights: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> str:
    """What to write where a part of ``weights`` fits ``targets``, name by name; else ""."""
    first = next(iter(targets), "")
    parts = [name.removesuffix(f".{first}") for name in weights if name.endswith(f".{first}")]
    fitting = [
        part
        for part in parts
        if all(
            getattr(weights.get(f"{part}.{name}"), "shape", None) == value.shape
            for name, value in targets.items()
        )
    ]
    if not fitting:
        return ""
    named = " or ".join(f"#{part}" for part in fitting[:MAX_NAMED])
    return f"what lies below a name of it fits: write {named} behind it (.NAME behind a #PART)"


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


def _read_file(path: Path, part: str = "") -> tuple[dict[str, Tensor], str]:
    """The state dict of a file, and what of ``part`` has to be looked for in its names."""
    with explained(path):
        held, part = _unwrap(path, READERS[kind_of(path)](path), part)
        weights = {
            name: value.load() if isinstance(value, Stored) else value.detach()
            for name, value in held.items()
        }
        check_tensors(path, weights)
    return weights, part


def _unwrap(path: Path, content: Any, part: str) -> tuple[dict[str, Any], str]:
    """As ``_read_file``, of what was saved."""
    held: dict[Any, Any] | None = None
    for _ in range(MAX_DEPTH):
        held = entries(content)
        if held is None:
            raise refused(path, f"holds a saved {_kind(content)} and no state dict")

        inner = {name: value for name, value in held.items() if entries(value) is not None}
        asked = [name for name in inner if f"{part}.".startswith(f"{name}.")]
        networks = [name for name, value in inner.items() if _is_network(value)]
        chosen = asked or [name for name in CONTAINERS if name in inner]
        if not chosen and any(isinstance(value, Tensor | Stored) for value in held.values()):
            break
        if not chosen and len(networks) > 1:
            fix = f"name one of them, as {path}#{networks[0]}"
            raise refused(path, f"holds several networks ({_counted(inner, networks)})", fix)
        if not chosen and not networks:
            break

        # what lies beside it was not asked for, and nobody would know of it
        name = (chosen or networks)[0]
        others = [network for network in networks if network != name]
        if others and not asked:
            beside = _counted(inner, others)
            say(f"note: of {path}, {name} is read, not {beside}; {path}#{others[0]} would be that")
        if asked:
            part = part[len(str(name)) + 1 :]
        content = inner[name]

    assert held is not None
    others = [name for name, value in held.items() if not isinstance(value, Tensor | Stored)]
    if any(_kind(held[name]).endswith(SHARDED) for name in others):
        raise refused(path, "holds one process's shards of its weights (FSDP)", WHOLE)
    if others or not held or not all(isinstance(name, str) for name in held):
        shown = list(others or held)[:4]
        listed = ", ".join(f"{str(name)[:40]!r}: {_kind(held[name])}" for name in shown)
        raise refused(path, f"holds no state dict but {listed} ({len(held):,} entries)")
    return held, part


def _unwrapped(path: Path, weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors by the names of the network itself, or of its ``part``."""
    if flat := [name for name in weights if name.endswith(FLAT)]:
        problem = f"holds one process's flattened shards of its weights (FSDP: {flat[0]:.80})"
        raise refused(path, problem, WHOLE)

    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        if name in named:
            raise refused(path, f"holds {name} twice, within a wrapper and without")
        named[name] = value

    counted = {name: value for name, value in named.items() if name not in COUNTERS}
    if any(_carry(prefix, counted) for prefix in PREFIXES):
        named = counted
    while prefix := next((prefix for prefix in PREFIXES if _carry(prefix, named)), None):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    if not part:
        return named

    below = {
        name.removeprefix(f"{part}."): value
        for name, value in named.items()
        if name.startswith(f"{part}.")
    }
    if not below:
        parts = dict.fromkeys(name.partition(".")[0] for name in named)
        fix = f"name one of its parts: {', '.join(list(parts)[:MAX_NAMED])}"
        problem = f"none of its {len(named)} tensors is below that name"
        raise UserError(problem, about=f"{path}#{part}", fix=fix)
    return below


def _is_network(value: Any) -> bool:
    """A map of names to tensors."""
    held = entries(value) or {}
    return bool(held) and all(
        isinstance(name, str) and isinstance(tensor, Tensor | Stored)
        for name, tensor in held.items()
    )


def _counted(held: Mapping[Any, Any], names: list[Any]) -> str:
    """ "student (150 tensors), teacher (150 tensors)"."""
    named = [f"{name} ({len(entries(held[name]) or ())} tensors)" for name in names[:MAX_NAMED]]
    return ", ".join(named)


def _kind(value: Any) -> str:
    """The class of what was saved, as the file names it."""
    return value.kind or value.named if isinstance(value, StandIn) else type(value).__name__


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


def _read_folder(folder: Path, part: str = "") -> tuple[dict[str, Tensor], str]:
    """The weights of a folder: one file, or the shards that its index names; ``_read_file``."""
    peft.refuse_adapter(folder)
    check_manifest(folder)
    name = name_in(folder)
    say_passed_over(folder, name, IN_FOLDER)
    if not name.endswith(".json"):
        return _read_file(folder / name, part)

    index = folder / name
    with explained(index):
        shards = _shards(index)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        weights |= _read_file(folder / shard)[0]

    # Shards of two downloads may lie in one folder, so names are compared both ways.
    differ = sorted(shards.keys() ^ weights.keys())
    if differ:
        raise refused(
            index, _listed("tensors differ between it and its shards", differ), FETCH_FOLDER
        )
    return weights, part


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
