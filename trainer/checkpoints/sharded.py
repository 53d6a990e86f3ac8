"""The tensors of a checkpoint whose state is spread over several processes: each writes its parts.

A sharded checkpoint is a folder that torch.distributed.checkpoint (DCP) writes: ``__R_0.distcp``
holds what rank R has, ``.metadata`` says to DCP's own tools where each part lies. ``plain.pt``
beside them is ours: all that is not sharded, and as JSON the list of the parts with the checksum of
each (``silc_bench.trainer.checkpoints.file`` writes and reads it).

Flow: ``Copies(payload)`` -> ``write``, by all ranks at once. ``Parts.from_json(plain["parts"])`` ->
``check``, by each rank a share -> ``read``, by each rank what it holds: on any number of ranks, in
any layout, or whole.

DCP plans who writes and who reads what. Nothing it has written is unpickled: where the parts lie
comes from our list, and their numbers from the bytes of their archives. ``.metadata`` is a pickle
and is never read here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from silc_bench.errors import first_line
from silc_bench.system.checksums import checksum
from silc_bench.trainer.device import kept_on_host, reduced

Place: TypeAlias = tuple[str | int, ...]  # of a tensor within the payload: its names, outside in
FILE = re.compile(r"__\d{1,9}_\d{1,9}\.distcp")  # as DCP names them; no path leads elsewhere
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
}


class DamagedPartError(ValueError):
    """What is read is not what was written."""


# ---- writing ----


class Copies:
    """The state of this rank on the CPU, as it was when this was made.

    ``rest`` is the payload without its sharded tensors.
    """

    def __init__(self, payload: dict[str, Any], buffers: dict[str, Tensor] | None = None) -> None:
        """``buffers``: page-locked memory of the copies before, to be used again."""
        found: list[tuple[Place, DTensor]] = []
        rest = _without_sharded(payload, (), found)
        # DCP would write the summand of one rank: so are means over rows of a sharded gradient.
        sharded = [(place, reduced(tensor)) for place, tensor in found]
        self.rest: dict[str, Any] = tree_map_only(Tensor, kept_on_host, rest)
        self.places = {_name(place): place for place, _ in sharded}
        self.tensors = {_name(place): tensor for place, tensor in sharded}

        held = {name: tensor.to_local().detach() for name, tensor in self.tensors.items()}
        self.locals = on_host(held, {} if buffers is None else buffers)

    @property
    def num_bytes(self) -> int:
        """Of all tensors, over all ranks."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def on_host(tensors: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of each on the CPU.

    The host waits once for a GPU, which fills page-locked memory: ``buffers``, by name, which are
    made where they are not there yet.
    """
    copies = {}
    for name, tensor in tensors.items():
        if not tensor.is_cuda:
            copies[name] = tensor.to("cpu", copy=True).contiguous()
            continue

        buffer = buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory()
            buffers[name] = buffer
        buffer.copy_(tensor, non_blocking=True)
        copies[name] = buffer

    if buffers:
        arrived = torch.cuda.Event()
        arrived.record()
        arrived.synchronize()
    return copies


def write(
    folder: Path,
    copies: Copies,
    group: dist.ProcessGroup,
    begin: Callable[[], None],
    finish: Callable[[str], None],
) -> None:
    """Write the sharded tensors into ``folder``; every rank of ``group`` calls it.

    Args:
        begin: is called by the first rank before any rank writes.
        finish: is called by the first rank when all have written, with the list of the parts as
            JSON. What it raises, each rank raises.

    Raises:
        OSError, RuntimeError: it failed on some rank, which is named; on each rank the same.
    """
    writer = _Writer(folder, copies.places, begin, finish)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP's, of its own interfaces
            dcp.save(
                dict(copies.tensors),
                storage_writer=writer,
                planner=_SavePlanner(copies),
                process_group=group,
            )
    except CheckpointException as error:  # a BaseException
        number, (cause, _) = min(error.failures.items())
        where = f"on rank {number} of {group.size()}"
        if isinstance(cause, OSError):
            raise OSError(cause.errno, f"{cause.strerror} {where}") from None
        raise RuntimeError(f"{first_line(cause)} {where}") from None


class _SavePlanner(DefaultSavePlanner):
    """Plans by the tensors as they are spread, and writes the copies of them."""

    def __init__(self, copies: Copies) -> None:
        super().__init__()
        self._copies = copies

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        super().set_up_planner(*args, **kwargs)
        # Where DCP's own tools put each tensor when they make one file of the folder. A number
        # would be a place in a list to them.
        places = self._copies.places.items()
        self.mappings = {name: tuple(map(str, place)) for name, place in places}

    def lookup_object(self, index: Any) -> Tensor:
        return self._copies.locals[index.fqn]


class _Writer(dcp.FileSystemWriter):
    """DCP's, with checksums of all that is written and our own first and last act."""

    def __init__(
        self,
        folder: Path,
        places: dict[str, Place],
        begin: Callable[[], None],
        finish: Callable[[str], None],
    ) -> None:
        super().__init__(folder, overwrite=True)
        self._folder = folder
        self._places = places
        self._begin = begin
        self._finish = finish

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan  # the folder is made after ``begin``

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        self._begin()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: Any, planner: Any) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        results = super().write_data(plan, planner).wait()

        # Read again, from the memory of the file system: torch.save gives no checksum.
        described = []
        for result in results:
            info = result.storage_data
            with open(self._folder / info.relative_path, "rb") as file:
                file.seek(info.offset)
                digest = checksum(file.read(info.length))
            described.append(dataclasses.replace(result, storage_data=(info, digest)))
        answer: torch.futures.Future[list[Any]] = torch.futures.Future()
        answer.set_result(described)
        return answer

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        lies_at = {}
        bare = []
        for of_rank in results:
            for result in of_rank:
                info, digest = result.storage_data
                lies_at[result.index] = (info.relative_path, info.offset, info.length, digest)
            bare.append(
                [dataclasses.replace(one, storage_data=one.storage_data[0]) for one in of_rank]
            )
        super().finish(metadata, bare)

        tensors = []
        for name, place in self._places.items():
            tensor = metadata.state_dict_metadata[name]
            assert isinstance(tensor, TensorStorageMetadata)
            pieces = []
            for chunk in tensor.chunks:
                if not math.prod(chunk.sizes):
                    continue  # of a rank that has nothing of a small tensor
                at = lies_at[MetadataIndex(name, chunk.offsets)]
                pieces.append(Piece(*at, tuple(chunk.offsets), tuple(chunk.sizes)))
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            tensors.append(Entry(place, dtype, tuple(tensor.size), tuple(pieces)))
        self._finish(json.dumps(tensors))


# ---- what lies where ----


class Piece(NamedTuple):
    """A block of a tensor, and where it lies."""

    file: str
    start: int  # of the archive that torch.save made of it, in bytes
    length: int
    checksum: str  # of these bytes
    offsets: tuple[int, ...]  # of its first number within the tensor, by dimension
    sizes: tuple[int, ...]


class Entry(NamedTuple):
    """A tensor."""

    place: Place
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class Parts:
    """The sharded tensors of a checkpoint, still in its folder."""

    def __init__(self, folder: Path, entries: Iterable[Entry]) -> None:
        self.folder = folder
        self.entries = {_name(entry.place): entry for entry in entries}

    @classmethod
    def from_json(cls, folder: Path, text: str) -> Self:
        """The list that ``write`` gave. None of it is believed.

        Raises:
            DamagedPartError: it is no such list, or claims more than the files hold.
        """
        try:
            entries = [_entry(row) for row in json.loads(text)]
            parts = cls(folder, entries)
            if len(parts.entries) != len(entries):
                raise ValueError("two tensors of one name")
            parts._check_sizes()
        except DamagedPartError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise DamagedPartError(
                f"its list of parts cannot be read ({first_line(error)})"
            ) from None
        return parts

    def check(self, index: int, count: int) -> None:
        """Read share ``index`` of ``count`` and compare it with its checksums.

        Raises:
            DamagedPartError: a piece is missing, cut off or altered.
        """
        pieces = sorted({piece for entry in self.entries.values() for piece in entry.pieces})
        share = slice(index * len(pieces) // count, (index + 1) * len(pieces) // count)
        for piece in pieces[share]:
            _bytes_of(self.folder, piece)

    def whole(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU. Raises as ``read``."""
        tensors = {}
        for name, entry in self.entries.items():
            # zeros, because a list that claims to cover the tensor may lie
            tensors[name] = torch.zeros(entry.shape, dtype=DTYPES[entry.dtype])
        self.read(tensors)
        return tensors

    @torch.no_grad()
    def read(self, tensors: dict[str, Tensor]) -> None:
        """Fill each of ``tensors`` in place; of a sharded one, what this rank holds.

        Only the pieces that are needed are read. No rank waits for another.

        Raises:
            DamagedPartError: a piece is missing, cut off or altered.
            RuntimeError, ValueError: a tensor is not there, or of another shape.
        """
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        planner.set_up_planner(dict(tensors), self._metadata(), is_coordinator=True)
        items = planner.create_local_plan().items

        # Items of one piece follow each other, in the order of the file.
        by_place = {
            (name, piece.offsets): piece
            for name, entry in self.entries.items()
            for piece in entry.pieces
        }
        wanted: dict[Piece, list[Any]] = {}
        for item in items:
            place = item.storage_index.fqn, tuple(item.storage_index.offset or ())
            wanted.setdefault(by_place[place], []).append(item)
        for piece in sorted(wanted):
            values = None
            for item in wanted[piece]:
                if values is None:
                    dtype = self.entries[item.storage_index.fqn].dtype
                    values = _values(self.folder, piece, DTYPES[dtype])
                part = values
                for dim, (start, size) in enumerate(
                    zip(item.storage_offsets, item.lengths, strict=True)
                ):
                    part = part.narrow(dim, start, size)
                planner.resolve_tensor(item).detach().copy_(part)

    def _metadata(self) -> Metadata:
        """What DCP's planner asks of its own file."""
        tensors: dict[str, Any] = {}
        for name, entry in self.entries.items():
            chunks = [
                ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes))
                for piece in entry.pieces
            ]
            properties = TensorProperties(dtype=DTYPES[entry.dtype])
            tensors[name] = TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)
        return Metadata(tensors)

    def _check_sizes(self) -> None:
        """Raises ValueError where numbers are claimed that no file could hold."""
        claimed: dict[str, int] = {}
        for name, entry in self.entries.items():
            size = DTYPES[entry.dtype].itemsize
            blocks = [math.prod(piece.sizes) for piece in entry.pieces]
            if sum(blocks) != math.prod(entry.shape):
                raise ValueError(f"the pieces of {name} do not add up to it")
            for piece, numel in zip(entry.pieces, blocks, strict=True):
                ends = [a + b for a, b in zip(piece.offsets, piece.sizes, strict=True)]
                is_within = all(a <= b for a, b in zip(ends, entry.shape, strict=True))
                if not is_within or piece.length < numel * size:
                    raise ValueError(f"a piece of {name} is none")
                claimed[piece.file] = claimed.get(piece.file, 0) + piece.length

        for file, length in claimed.items():
            try:
                there = (self.folder / file).stat().st_size
            except OSError:
                raise DamagedPartError(f"{file} is missing") from None
            if length > there:
                raise DamagedPartError(f"{file} is truncated ({there:,} bytes of {length:,})")


def _entry(row: Any) -> Entry:
    place, dtype, shape, pieces = row
    is_place = bool(place) and all(type(name) in (str, int) for name in place)
    if type(dtype) is not str or dtype not in DTYPES or not is_place:
        raise ValueError("a tensor without a place or a type")
    entry = Entry(tuple(place), dtype, _numbers(shape), tuple(map(_piece, pieces)))
    if len({piece.offsets for piece in entry.pieces}) != len(entry.pieces):
        raise ValueError("two pieces in one place")
    return entry


def _piece(row: Any) -> Piece:
    file, start, length, digest, offsets, sizes = row
    if not FILE.fullmatch(file) or type(digest) is not str:
        raise ValueError("a piece in no file of DCP")
    start, length = _numbers([start, length])
    return Piece(file, start, length, digest, _numbers(offsets), _numbers(sizes))


def _numbers(values: Any) -> tuple[int, ...]:
    # type(), because True is an int to isinstance
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise ValueError("a number that is none")
    return tuple(values)


def _bytes_of(folder: Path, piece: Piece) -> bytes:
    try:
        with open(folder / piece.file, "rb") as file:
            file.seek(piece.start)
            content = file.read(piece.length)
    except OSError as error:
        raise DamagedPartError(f"{piece.file} cannot be read ({error.strerror or error})") from None
    if len(content) < piece.length:
        raise DamagedPartError(f"{piece.file} is truncated")
    if checksum(content) != piece.checksum:
        raise DamagedPartError(f"{piece.file} is altered (a checksum in plain.pt differs)")
    return content


def _values(folder: Path, piece: Piece, dtype: torch.dtype) -> Tensor:
    """The numbers of a piece. Its pickle is left alone: shape and type stand in our list."""
    try:
        with zipfile.ZipFile(io.BytesIO(_bytes_of(folder, piece))) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            order = "little"
            if "byteorder" in members:
                order = archive.read(members["byteorder"]).decode("ascii", "replace")
            if order != sys.byteorder:
                raise ValueError(f"its byte order is {order!r}")
            numel = math.prod(piece.sizes)
            content = bytearray(archive.read(members["data/0"])) if numel else bytearray()
    except DamagedPartError:
        raise
    except Exception as error:  # on a damaged file zipfile raises nearly anything
        raise DamagedPartError(
            f"{piece.file} holds what torch.save did not write ({first_line(error)})"
        ) from None

    if len(content) != numel * dtype.itemsize:
        raise DamagedPartError(f"{piece.file}: a piece of {numel:,} numbers has other bytes")
    if not numel:
        return torch.empty(piece.sizes, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(piece.sizes)


# ---- from and to a payload ----


def joined(rest: dict[str, Any], parts: Parts, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The payload: ``rest`` with the sharded tensors in their places.

    Raises:
        DamagedPartError: a place is taken.
    """
    payload = _nested_copy(rest)
    for name, tensor in tensors.items():
        *steps, last = parts.entries[name].place
        place = payload
        for step in steps:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise DamagedPartError(f"{name} has no place")
        if last in place:
            raise DamagedPartError(f"{name} is there twice")
        place[last] = tensor
    return payload


def fitted(
    payload: dict[str, Any], held: dict[str, dict[str, Tensor]], parameters: list[Tensor]
) -> dict[str, Any]:
    """``payload`` with each tensor spread over the ranks as the state is. No rank waits.

    Args:
        payload: of a checkpoint that is whole, or with its ``Parts`` at "parts". Of these each rank
            reads what it holds; weights go where they are held, without a copy.
        held: the state dicts of student, teacher and average, by these names.
        parameters: the optimiser's, in the order of its groups, by which its state is numbered.

    Raises:
        DamagedPartError: as ``Parts.read``.
        KeyError, RuntimeError, ValueError: it is the checkpoint of another model.
    """

    def like(place: Place) -> Tensor:
        if place[0] != "optimizer":
            return held[str(place[0])][str(place[1])]
        number = place[2]
        if type(number) is not int or number >= len(parameters):
            raise KeyError(f"optimizer has no parameter {number}")
        return parameters[number]

    def fit(value: Any, place: Place) -> Any:
        if isinstance(value, dict):
            return {name: fit(inner, (*place, name)) for name, inner in value.items()}
        is_spread = isinstance(value, Tensor) and value.ndim > 0
        return laid_out(value, like(place)) if is_spread else value

    payload = dict(payload)
    parts = payload.pop("parts", None)
    for name in (*held, "optimizer"):
        if name in payload:
            payload[name] = fit(payload[name], (name,))
    if parts is None:
        return payload

    tensors: dict[str, Tensor] = {}
    for name, entry in parts.entries.items():
        template = like(entry.place).detach()
        dtype = DTYPES[entry.dtype]
        if template.shape != entry.shape:
            tensors[name] = laid_out(torch.zeros(entry.shape, dtype=dtype), template)
        elif entry.place[0] == "optimizer" or template.dtype != dtype:
            tensors[name] = torch.zeros_like(template, dtype=dtype)
        else:
            tensors[name] = template
    parts.read(tensors)
    return joined(payload, parts, tensors)


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """``value``, whole on each rank, as ``like`` is spread over them.

    Where ``like`` is of another shape (the second moments of Adafactor are those of rows and of
    columns), a dimension of the same size is spread alike, and any other one is whole on each rank.
    """
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value

    placements: list[Placement] = []
    for placement in like.placements:
        is_kept = False
        if isinstance(placement, Shard) and value.ndim == like.ndim:
            is_kept = value.shape[placement.dim] == like.shape[placement.dim]
        placements.append(placement if is_kept else Replicate())
    spread = distribute_tensor(value, like.device_mesh, placements, src_data_rank=None)
    return spread.clone()  # a part of its own: the whole would stay in memory behind a view


def _without_sharded(value: Any, path: Place, found: list[tuple[Place, DTensor]]) -> Any:
    """Maps without their sharded tensors, which are added to ``found``; a list keeps its items."""
    if not isinstance(value, dict):
        leaves = tree_leaves(value)
        assert not any(isinstance(leaf, DTensor) for leaf in leaves), f"in a list: {_name(path)}"
        return value
    rest = {}
    for name, inner in value.items():
        if isinstance(inner, DTensor):
            found.append(((*path, name), inner))
        else:
            rest[name] = _without_sharded(inner, (*path, name), found)
    return rest


def _nested_copy(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _nested_copy(inner) for name, inner in value.items()}


def _name(path: Place) -> str:
    return ".".join(map(str, path))
