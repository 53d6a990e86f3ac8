"""Named arrays and a header in one .npz, whose header says which arrays belong to it, with their
checksums.

Flow: ``pack("outcomes/2", {"key": ...}, {"acc1": hits})`` -> bytes -> ``unpack`` -> the header and
the arrays, or ValueError.

Why: the directory of a zip archive stands at its end, and one changed byte there hides a member
without a word.

``numpy.load`` opens the file too: the header is one more array, JSON as bytes.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.system.checksums import checksums, differences

HEADER = "header"
SCHEMA, PARTS = "schema", "parts"  # in the header: what kind of file it is; name -> checksum
# What zipfile and numpy raise on a damaged file. MemoryError: a size that only the file claims.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, MemoryError,
)  # fmt: skip


def pack(
    schema: str,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    is_compressed: bool = False,
) -> bytes:
    """The file's content. The same header and arrays give the same bytes."""
    parts = {name: _to_npy(array) for name, array in arrays.items()}
    words = json.dumps({SCHEMA: schema, **header, PARTS: checksums(parts)}).encode()
    kind = zipfile.ZIP_DEFLATED if is_compressed else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, part in {HEADER: _to_npy(np.frombuffer(words, np.uint8)), **parts}.items():
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy"), part, kind
            )  # ZipInfo: a date that is always the same
    return buffer.getvalue()


def unpack(
    schema: str, content: bytes, max_bytes: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What ``pack`` was given. No array is read before its checksum is that of the header.

    Raises:
        ValueError: another schema; it claims to unpack to more than ``max_bytes``; arrays are
        missing, foreign or altered, and are named.
        DAMAGE: it is no such archive.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > max_bytes:
            raise ValueError(f"claims {size:,} bytes")
        parts = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
    twice = [
        name for name, count in Counter(member.filename for member in members).items() if count > 1
    ]
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    if HEADER not in parts:
        raise ValueError("its header is missing")
    header = _read_header(schema, parts.pop(HEADER))
    if problem := differences(header.pop(PARTS, None), checksums(parts)):
        raise ValueError(problem)
    return header, {name: _from_npy(part) for name, part in parts.items()}


def header_of(schema: str, path: Path) -> dict[str, Any]:
    """The header alone, where nothing is asked of the arrays. Raises as ``unpack``."""
    with zipfile.ZipFile(path) as archive:
        return _read_header(schema, archive.read(f"{HEADER}.npy"))


def _read_header(schema: str, part: bytes) -> dict[str, Any]:
    header = json.loads(_from_npy(part).tobytes())
    if not isinstance(header, dict) or header.pop(SCHEMA, None) != schema:
        raise ValueError(f"not a {schema!r} file")
    return header


def _to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _from_npy(part: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(part), allow_pickle=False))
