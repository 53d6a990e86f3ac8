"""Named arrays and a header in one .npz file that notices when a part is missing or altered.

Flow: ``pack("outcomes/2", {"key": ...}, {"acc1": hits})`` -> bytes -> ``unpack`` -> the header and
the arrays, or ValueError.

Why not a plain .npz: the directory of a zip archive stands at its end, and one changed byte there
hides a member without any error. So our header says which arrays belong to the file, each with its
checksum. ``numpy.load`` opens the file too: the header is one more array, JSON as bytes.
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

from silc_bench.later import np
from silc_bench.system.checksums import checksums, differences

HEADER = "header"
SCHEMA = "schema"  # in the header: what kind of file it is
PARTS = "parts"  # in the header: name -> checksum
# What zipfile and numpy raise on a damaged file. MemoryError: a size that only the file claims.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
)


def pack(
    schema: str,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    is_compressed: bool = False,
) -> bytes:
    """The file's content. The same header and arrays give the same bytes."""
    parts = {name: _to_npy(array) for name, array in arrays.items()}
    header_json = json.dumps({SCHEMA: schema, **header, PARTS: checksums(parts)}).encode()
    members = {HEADER: _to_npy(np.frombuffer(header_json, np.uint8)), **parts}

    kind = zipfile.ZIP_DEFLATED if is_compressed else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, part in members.items():
            # A bare name would get the time of day; ZipInfo has a date that is always the same.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part, kind)
    return buffer.getvalue()


def unpack(
    schema: str, content: bytes, max_bytes: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What ``pack`` was given. No array is read before its checksum is that of the header.

    Raises:
        ValueError: another schema; it claims to unpack to more than ``max_bytes``; arrays are
            missing, foreign or altered, and are named.
        Exception: one of DAMAGE: it is no such archive.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()

        # Asked before anything is unpacked: a few bytes can claim to be gigabytes.
        size = sum(member.file_size for member in members)
        if size > max_bytes:
            raise ValueError(f"claims {size:,} bytes")
        parts = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}

    # zipfile would give the last of two members with one name, numpy too, and neither complains.
    counts = Counter(member.filename for member in members)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is there twice")
    if HEADER not in parts:
        raise ValueError("its header is missing")

    header = _read_header(schema, parts.pop(HEADER))
    if problem := differences(header.pop(PARTS, None), checksums(parts)):
        raise ValueError(problem)
    return header, {name: _from_npy(part) for name, part in parts.items()}


def header_of(schema: str, path: Path) -> dict[str, Any]:
    """The header alone, for callers that need no array. Raises as ``unpack`` does."""
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
    # Never a pickle: the file may come from anybody, and unpickling can execute code.
    return np.asarray(np.load(io.BytesIO(part), allow_pickle=False))
