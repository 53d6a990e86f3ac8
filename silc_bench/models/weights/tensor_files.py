"""Readers of the two formats that hold nothing but arrays: safetensors and npz.

A safetensors file that was written here says in its header which tensors and texts belong to it,
with their checksums; the format itself has none. Both are compared whenever its tensors are read.

Both readers raise ValueError, BadZipFile or KeyError on what is damaged; ``weights.read_weights``
names the file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from silc_bench.models.weights.pickles import check_archive
from silc_bench.system.checksums import checksum, differences

CHECKSUMS = "silc_bench_checksums"  # the text of the header that has them, as JSON


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, in its own dtype.

    Raises:
        ValueError: damaged; names what differs from CHECKSUMS, where the header has them.
    """
    with _opened(path) as file:
        # copies, because the library's tensors are views of the file, which may be written anew
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}

    if CHECKSUMS in metadata:
        stated = json.loads(metadata.pop(CHECKSUMS))
        if problem := differences(stated, part_checksums(weights, metadata)):
            raise ValueError(problem)
    return weights


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; {} where there are none."""
    with _opened(path) as file:
        return file.metadata() or {}


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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The library's reader, which compares every size with the bytes that are there."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """One array of an npz; a pickle in it is refused."""
    with archive.open(member) as file:
        # NumPy reads a member in parts, so one that claims too much ends early and takes no memory
        array = np.lib.format.read_array(file, allow_pickle=False)

        # to the member's end, where zipfile compares the checksum
        if file.read(1):
            raise ValueError(f"{member.filename} is longer than its shape {list(array.shape)}")

    # torch takes bfloat16 by its bits; int16 has as many, and no value of them is special
    if array.dtype.str == "|V2":
        bits = np.ascontiguousarray(array.view(np.int16)).reshape(array.shape)
        return torch.from_numpy(bits).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{member.filename} is an array of {array.dtype}; only numbers are read")

    # torch takes the byte order of this machine only; reshape, as ascontiguousarray makes a single
    # number an array of one dimension
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
