"""Which named parts a file or folder is made of: a missing, foreign or altered one is named
(standard library only).

Flow: whoever writes puts ``checksums(parts)`` into the header; whoever reads asks
``differences(stated, parts)`` before it believes a part. One kind of checksum everywhere: SHA-256,
the first 16 hex digits. The standard library has it, processors compute it in hardware (1 to 2 GB a
second), and unlike a CRC it does not fit damage by chance. It guards against accidents: whoever
alters a part on purpose can write its checksum too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from silc_bench.errors import UserError

Bytes = bytes | memoryview
DIGITS = 16
CHECKSUMS = "checksums"  # in a JSON object: of its other fields
MANIFEST = "silc_bench_export.json"  # of a folder
MANIFEST_FORMAT = "silc-bench-export/1"
NOT_READ = (".md",)  # files that may be added to a folder: they are for people


def checksum(*contents: Bytes) -> str:
    """16 hex digits over the bytes, one content after the other."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:DIGITS]


def checksums(parts: Mapping[str, Bytes]) -> dict[str, str]:
    return {name: checksum(content) for name, content in parts.items()}


def json_checksums(fields: Mapping[str, Any]) -> dict[str, str]:
    """Of decoded JSON, field by field: neither indentation nor the order of names counts."""
    texts = {name: json.dumps(value, sort_keys=True).encode() for name, value in fields.items()}
    return checksums(texts)


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksums of its own fields."""
    return {**fields, CHECKSUMS: json_checksums(fields)}


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The fields that were ``sealed``; None where the file is missing or damaged."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        is_whole = isinstance(fields, dict) and not differences(
            fields.pop(CHECKSUMS, None), json_checksums(fields)
        )
    except (OSError, ValueError, RecursionError):
        return None
    return fields if is_whole else None


def differences(stated: Any, found: Mapping[str, str]) -> str:
    """What is missing, foreign or altered, as "acc1 is missing, labels is altered"; "" where
    nothing is.

    Args:
        stated: what the header says (not believed: whatever its JSON holds), as ``checksums`` gave
        it. found: ``checksums`` of the parts that are there.
    """
    if not isinstance(stated, Mapping):
        return "its header does not say which parts belong to it"
    problems = [f"{name} is missing" for name in stated if name not in found]
    problems += [f"{name} does not belong to it" for name in found if name not in stated]
    problems += [
        f"{name} is altered"
        for name, digits in found.items()
        if name in stated and stated[name] != digits
    ]
    return ", ".join(problems[:4]) + (f" and {len(problems) - 4} more" if len(problems) > 4 else "")


def write_manifest(folder: Path) -> None:
    """MANIFEST: the files that belong to ``folder``, which are all that are in it now."""
    content = {
        "format": MANIFEST_FORMAT,
        "note": "silc-bench refuses this folder if a file differs from its checksum. If you change one, delete this file.",
        "files": _files_in(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Where ``folder`` has a MANIFEST: exactly those files are there. Without one it is anybody's
    folder, and not checked.

    Raises:
        UserError: names the files that are missing, foreign or altered, and says how to go on.
    """
    path = folder / MANIFEST
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problem = (
            ""
            if content["format"] == MANIFEST_FORMAT
            else f"{MANIFEST} is not of format {MANIFEST_FORMAT}"
        )
        problem = problem or differences(content["files"], _files_in(folder))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    if problem:
        raise UserError(
            f"{folder}: not as `silc-bench export` wrote it: {problem}; export it again, or delete {path} if you changed the"
            " folder on purpose"
        )


def _files_in(folder: Path) -> dict[str, str]:
    """What a library could read; folders within count as files, since an export has none."""
    return {path.name: _file_checksum(path) for path in _visible(folder.iterdir())}


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        p
        for p in paths
        if p.name != MANIFEST and p.suffix not in NOT_READ and not p.name.startswith(".")
    )


def _file_checksum(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
