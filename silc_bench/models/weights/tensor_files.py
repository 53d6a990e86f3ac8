"""Readers of the two formats that hold nothing but arrays: safetensors and npz. Every size is
checked before memory is taken.

A safetensors file that was written here says in its header which tensors and texts belong to it,
with their checksums; the format itself has none. Both are compared whenever its tensors are read.

Both readers raise ValueError, BadZipFile or KeyError on what is damaged; ``weights.read_weights``
names the file.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from silc_bench.models.weights.pickles import check_archive
from silc_bench.system.checksums import checksum, differences

# bytes; the format allows 100 million, a model of 10,000 tensors and a tokenizer takes 3
MAX_HEADER = 25_000_000
CHECKSUMS = "silc_bench_checksums"  # the text of the header that has them, as JSON
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, in its own dtype. ValueError names what differs from CHECKSUMS,
    where the header has them.
    """
    metadata = read_metadata(path)
    stated = json.loads(metadata.pop(CHECKSUMS)) if CHECKSUMS in metadata else None
    with open(path, "rb") as file:
        size, header = _header(path)
        start = 8 + size
        places = _places(header, path.stat().st_size - start)
        weights = {}
        for name, (dtype, shape, begin, end) in places.items():
            buffer = bytearray(end - begin)
            file.seek(start + begin)
            if file.readinto(buffer) != len(buffer):
                raise ValueError(f"{name} ends before its {len(buffer):,} bytes")
            weights[name] = (
                torch.frombuffer(buffer, dtype=dtype).reshape(shape)
                if buffer
                else torch.empty(shape, dtype=dtype)
            )
    if stated is not None and (problem := differences(stated, part_checksums(weights, metadata))):
        raise ValueError(problem)
    return weights


def part_checksums(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> dict[str, str]:
    """Of everything that a safetensors file holds, by name."""
    found = {f"text {name}": checksum(text.encode()) for name, text in texts.items()}
    for name, value in tensors.items():
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found[name] = checksum(f"{value.dtype} {list(value.shape)} ".encode(), content.numpy().data)
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; {} where there are none."""
    metadata = _header(path)[1].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in metadata.values()
    ):
        raise ValueError("its metadata is not a map of texts")
    return metadata


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Length in bytes and content."""
    with open(path, "rb") as file:
        size, available = int.from_bytes(file.read(8), "little"), path.stat().st_size - 8
        if size > min(available, MAX_HEADER):
            raise ValueError(
                f"its safetensors header claims {size:,} bytes, {available:,} are there and {MAX_HEADER:,} allowed"
            )
        text = file.read(size)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its safetensors header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError("its safetensors header is not a map")
    return size, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its safetensors header names something twice")
    return found


def _places(
    header: dict[str, Any], available: int
) -> dict[str, tuple[torch.dtype, list[int], int, int]]:
    """{name: (dtype, shape, begin, end)} in the order of the bytes: no overlap, no gap, nothing
    beyond the end.
    """
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{name} is of dtype {str(entry['dtype'])[:20]!r}, which is not one of {', '.join(DTYPES)}"
            )
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
            raise ValueError(
                f"{name} has shape {str(shape)[:40]} at {str(offsets)[:40]}: sizes must be whole and not negative"
            )
        dtype = DTYPES[entry["dtype"]]
        if len(shape) > 64 or math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
            raise ValueError(
                f"{name} has shape {str(shape)[:40]} of {entry['dtype']}, but bytes {offsets[0]} to {offsets[1]}"
            )
        places[name] = (dtype, shape, *offsets)
    places = dict(sorted(places.items(), key=lambda item: item[1][2:]))
    reached = 0
    for name, (_, _, begin, end) in places.items():
        if begin != reached:
            raise ValueError(
                f"{name} begins at byte {begin:,} and not at {reached:,}: overlapping tensors or a gap"
            )
        reached = end
    if reached != available:
        raise ValueError(
            f"its tensors take {reached:,} bytes, {available:,} are there: truncated or longer than it says"
        )
    return places


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**62 for n in numbers)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Every array of the file, under its own name ("params/img/pos_embedding").

    Two-byte voids ("V2") are bfloat16: NumPy knows no such dtype, and that is how JAX programs
    leave it in an npz.
    """
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size, may_deflate=True)
        return {
            member.filename.removesuffix(".npy"): _array(archive, member)
            for member in archive.infolist()
        }


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(
                f"{name} is of NumPy's array format {version}, which no array of numbers needs"
            )
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(
                f"{name} is an array of Python objects, which are pickles; only numbers are read"
            )
        is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None
        if not is_bfloat16 and dtype.kind not in "fiub":
            raise ValueError(f"{name} is an array of {dtype}; only numbers are read")
        if len(shape) > 32 or not _whole(list(shape)):
            raise ValueError(f"{name} has shape {str(shape)[:40]}")
        stated = math.prod(shape) * dtype.itemsize
        left = member.file_size - file.tell()
        if stated != left:
            raise ValueError(
                f"{name} claims {stated:,} bytes in shape {str(shape)[:40]}, {left:,} are there"
            )
        data = bytearray(file.read(stated))  # to its end: zipfile compares the checksum there
    array = np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")
    if is_bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array.view(np.int16)).reshape(shape)).view(
            torch.bfloat16
        )
    native = np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)
    return torch.from_numpy(native)
