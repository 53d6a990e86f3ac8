"""Checksums of the parts of a file or folder: a missing, foreign or altered part is named.

Flow: whoever writes puts ``checksums(parts)`` into the header; whoever reads asks
``differences(stated, checksums(parts))`` before it believes a part. Standard library only.

One kind of checksum everywhere: SHA-256, the first 16 hex digits. The standard library has it,
processors compute it in hardware (1 to 2 GB a second), and unlike a CRC it does not fit damage by
chance. It guards against accidents: whoever alters a part on purpose can write its checksum too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from silc_bench.errors import DataError, first_line

Bytes = bytes | memoryview
DIGITS = 16
CHECKSUMS = "checksums"  # in a JSON object: of its other fields
MANIFEST = "silc_bench_export.json"  # of a folder
MANIFEST_FORMAT = "silc-bench-export/1"
NOT_READ = (".md",)  # files that may be added to a folder: they are for people
_SORTED = json.JSONEncoder(sort_keys=True)  # made once: thousands of records are read
MAX_NAMED = 4  # problems that a message names; it counts the others


def checksum(*contents: Bytes) -> str:
    """16 hex digits over the bytes, one content after the other."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:DIGITS]


def checksums(parts: Mapping[str, Bytes]) -> dict[str, str]:
    """The checksum of each part, by its name."""
    return {name: checksum(content) for name, content in parts.items()}


def json_texts(fields: Mapping[str, Any]) -> dict[str, str]:
    """Each field of decoded JSON as one text: neither indentation nor the order of names counts."""
    return {name: _SORTED.encode(value) for name, value in fields.items()}


def json_checksums(texts: Mapping[str, str]) -> dict[str, str]:
    """Of ``json_texts``, field by field."""
    return checksums({name: text.encode() for name, text in texts.items()})


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksums of its own fields."""
    return {**fields, CHECKSUMS: json_checksums(json_texts(fields))}


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The fields that were ``sealed``; None where the file is missing or damaged."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            return None

        stated = fields.pop(CHECKSUMS, None)
        problem = differences(stated, json_checksums(json_texts(fields)))
    except (OSError, ValueError, RecursionError):  # RecursionError: JSON nested without end
        return None
    return None if problem else fields


def differences(stated: Any, present: Mapping[str, str]) -> str:
    """What is missing, foreign or altered, as "acc1 is missing, labels is altered"; or "".

    Args:
        stated: what the header says, as ``checksums`` gave it. It is not believed: it may be
            whatever JSON can hold.
        present: ``checksums`` of the parts that are there.
    """
    if not isinstance(stated, Mapping):
        return "its header does not say which parts belong to it"

    problems = [f"{name} is missing" for name in stated if name not in present]
    problems += [f"{name} does not belong to it" for name in present if name not in stated]
    shared = [name for name in present if name in stated]
    problems += [f"{name} is altered" for name in shared if stated[name] != present[name]]

    named = ", ".join(problems[:MAX_NAMED])
    num_others = len(problems) - MAX_NAMED
    return f"{named} and {num_others} more" if num_others > 0 else named


def write_manifest(folder: Path) -> None:
    """Write MANIFEST: the files that belong to ``folder``, which are all that are in it now."""
    content = {
        "format": MANIFEST_FORMAT,
        "note": (
            "silc-bench refuses this folder if a file differs from its checksum."
            " If you change one, delete this file."
        ),
        "files": _files_in(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Where ``folder`` has a MANIFEST: exactly the files of that list are there.

    Without a list the folder may be anybody's, and is not checked.

    Raises:
        DataError: names the files that are missing, foreign or altered, and says how to go on.
    """
    path = folder / MANIFEST
    if not path.exists():
        return

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problem = ""
        if content["format"] != MANIFEST_FORMAT:
            problem = f"{MANIFEST} is not of format {MANIFEST_FORMAT}"
        problem = problem or differences(content["files"], _files_in(folder))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{MANIFEST} cannot be read ({first_line(error)})"

    if problem:
        raise DataError(
            f"not as `silc-bench export` wrote it: {problem}",
            about=folder,
            fix=f"export it again, or delete {path} if you changed the folder on purpose",
        )


def _files_in(folder: Path) -> dict[str, str]:
    """What a library could read; folders within count as files, since an export has none."""
    files = {}
    for path in sorted(folder.iterdir()):
        # Left out: notes for people, and what file managers and editors leave (.DS_Store, .swp).
        is_read = path.suffix not in NOT_READ and not path.name.startswith(".")
        if is_read and path.name != MANIFEST:
            files[path.name] = _file_checksum(path)
    return files


def _file_checksum(path: Path) -> str:
    # "" is no checksum: a folder, a pipe or a broken link in the place of a file is an alteration.
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
