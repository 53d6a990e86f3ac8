"""Readers of the two formats that hold nothing but arrays: safetensors and npz.

Every size is checked before memory is taken.

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
    """Every tensor of the file, in its own dtype.

    Raises:
        ValueError: damaged; names what differs from CHECKSUMS, where the header has them.
    """
    metadata = read_metadata(path)
    stated = json.loads(metadata.pop(CHECKSUMS)) if CHECKSUMS in metadata else None

    with open(path, "rb") as file:
        # 8 bytes of length, the header, then the tensors one after another
        size, header = _header(path)
        start = 8 + size
        places = _places(header, path.stat().st_size - start)

        weights = {}
        for name, (dtype, shape, begin, end) in places.items():
            buffer = bytearray(end - begin)
            file.seek(start + begin)
            if file.readinto(buffer) != len(buffer):
                raise ValueError(f"{name} ends before its {len(buffer):,} bytes")

            # torch refuses an empty buffer, and tensors without values exist
            if buffer:
                weights[name] = torch.frombuffer(buffer, dtype=dtype).reshape(shape)
            else:
                weights[name] = torch.empty(shape, dtype=dtype)

    if stated is not None and (problem := differences(stated, part_checksums(weights, metadata))):
        raise ValueError(problem)
    return weights


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; {} where there are none."""
    metadata = _header(path)[1].get("__metadata__", {})
    is_map = isinstance(metadata, dict)
    if not is_map or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata is not a map of texts")
    return metadata


def part_checksums(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> dict[str, str]:
    """{name: checksum} of everything that a safetensors file holds."""
    checksums = {f"text {name}": checksum(text.encode()) for name, text in texts.items()}
    for name, value in tensors.items():
        # by bytes, because NumPy has no bfloat16
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        described = f"{value.dtype} {list(value.shape)} ".encode()
        checksums[name] = checksum(described, content.numpy().data)
    return checksums


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


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Length in bytes and content."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        available = path.stat().st_size - 8
        if size > min(available, MAX_HEADER):
            raise ValueError(
                f"its safetensors header claims {size:,} bytes, "
                f"{available:,} are there and {MAX_HEADER:,} allowed"
            )
        text = file.read(size)

    # JSON itself lets a name come twice, and the second one would hide the first.
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its safetensors header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError("its safetensors header is not a map")
    return size, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("its safetensors header names something twice")
    return content


def _places(
    header: dict[str, Any], available: int
) -> dict[str, tuple[torch.dtype, list[int], int, int]]:
    """{name: (dtype, shape, begin, end)} in the order of the bytes.

    Raises:
        ValueError: an overlap, a gap, or something beyond the end.
    """
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{name} is of dtype {str(entry['dtype'])[:20]!r}, "
                f"which is not one of {', '.join(DTYPES)}"
            )

        shape = entry["shape"]
        offsets = entry["data_offsets"]
        if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
            raise ValueError(
                f"{name} has shape {str(shape)[:40]} at {str(offsets)[:40]}: "
                "sizes must be whole and not negative"
            )

        # torch allows at most 64 dimensions
        dtype = DTYPES[entry["dtype"]]
        if len(shape) > 64 or math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
            raise ValueError(
                f"{name} has shape {str(shape)[:40]} of {entry['dtype']}, "
                f"but bytes {offsets[0]} to {offsets[1]}"
            )
        places[name] = (dtype, shape, *offsets)

    # One after another without a gap, so that no byte is read twice and none is hidden.
    places = dict(sorted(places.items(), key=lambda item: item[1][2:]))
    reached = 0
    for name, (_, _, begin, end) in places.items():
        if begin != reached:
            raise ValueError(
                f"{name} begins at byte {begin:,} and not at {reached:,}: "
                "overlapping tensors or a gap"
            )
        reached = end
    if reached != available:
        raise ValueError(
            f"its tensors take {reached:,} bytes, {available:,} are there: "
            "truncated or longer than it says"
        )
    return places


def _whole(numbers: Any) -> bool:
    """Whether this is a list of whole numbers that 64 bits hold; True and False are none."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**62 for n in numbers)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """One array of an npz; its header is read by hand, because np.load believes what it says."""
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(
                f"{name} is of NumPy's array format {version}, which no array of numbers needs"
            )

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

    # torch takes bfloat16 by its bits; int16 has as many, and no value of them is special
    if is_bfloat16:
        bits = np.ascontiguousarray(array.view(np.int16)).reshape(shape)
        return torch.from_numpy(bits).view(torch.bfloat16)

    # torch takes the byte order of this machine only; reshape, as ascontiguousarray makes a single
    # number an array of one dimension
    native = np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)
    return torch.from_numpy(native)
