"""Features that are encoded once and found again by content.

Whoever encodes the same data with the same weights in the same way finds them here.

Flow: ``store = Store(folder)``; ``entry = store.entry({...what decides the numbers...})``. Then
``entry.rows(n, width)`` says what is there and ``entry.save(start, rows)`` adds a finished part;
likewise ``grids``, ``grid`` and ``save_grid`` for dense features, ``texts`` and ``save_texts``, and
``word`` and ``save_word`` for what is as short as a fingerprint. ``silc-bench cache ls | prune``
looks at the store and empties it.

An entry is a folder, named by the hash of its description (``entry.json``); each part in it is a
``.npy`` file, written whole or not at all. Because of the parts an interrupted extraction can go
on: each part that was finished counts, whoever wrote it. Two processes with the same work write the
same bytes to the same names.

At the end of a part stands the checksum of its entry's description, its name and its content: a
part that was altered, renamed or brought from another entry is not served. What is damaged, or
vanishes because another process prunes, is encoded again: the store can lose, never lie.

Shapes: N samples, D features, gh x gw cells of a grid.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.system.checksums import DIGITS, Bytes, checksum
from silc_bench.system.files import atomic_path, write_text_atomic

# Part of every description; raised when the same description would mean other numbers or another
# layout of the files.
VERSION = 3
DESCRIPTION = "entry.json"
LIMIT = 20 * 2**30  # bytes
# Seconds: an entry of which a part was read or written since then is not pruned to make room.
IN_USE = 3600.0
_ROWS = re.compile(r"rows-(\d{9})-(\d{9})\.npy")
_TEXTS = re.compile(r"texts-\w+\.npy")
_GRID = re.compile(r"grid-(\d{9})-(\d+)x(\d+)\.npy")


def default_folder() -> Path:
    """``$SILC_BENCH_CACHE``, or silc-bench/features in the user's cache folder.

    The latter is that of the XDG base directory specification.
    """
    chosen = os.environ.get("SILC_BENCH_CACHE")
    if chosen:
        return Path(chosen)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user_cache / "silc-bench" / "features"


def shards_folder() -> Path:
    """Training's copies of remote shards, and indexes of all shards.

    Below a folder that the user chose, because a folder "shards" beside it may be the user's own.
    """
    folder = default_folder()
    return (folder if os.environ.get("SILC_BENCH_CACHE") else folder.parent) / "shards"


@dataclass(frozen=True)
class Store:
    """Entries below ``folder``, at most ``limit`` bytes of them."""

    folder: Path
    limit: int = LIMIT

    def entry(self, description: Mapping[str, Any]) -> Entry:
        """The entry of exactly this work. Nothing is written yet.

        Args:
            description: all that decides its numbers, as JSON.
        """
        text = json.dumps({"store": VERSION, **description}, sort_keys=True, indent=1)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Entry(self, self.folder / name, text)

    def listing(self) -> list[Listed]:
        """All entries, the least recently used first.

        Folders of other programs are left alone and not listed.
        """
        entries = []
        for path in self.folder.glob(f"*/{DESCRIPTION}"):
            # Another process may prune an entry at any moment; and the file may not be ours.
            with contextlib.suppress(OSError, ValueError):
                description = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(description, dict) or "store" not in description:
                    continue

                size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
                entries.append(Listed(path.parent, description, size, path.stat().st_mtime))
        return least_used_first(entries)

    def trim(self) -> None:
        """Keep the limit; entries in use stay."""
        prune(self.listing(), self.limit, keep_used_after=time.time() - IN_USE)


@dataclass(frozen=True)
class Listed:
    """What is kept in one place, as ``silc-bench cache`` lists and prunes it."""

    path: Path  # a folder, or a file
    description: dict[str, Any]
    bytes: int
    used: float  # seconds since the epoch


def least_used_first(entries: Iterable[Listed]) -> list[Listed]:
    """By when they were used last, not how often."""
    return sorted(entries, key=lambda listed: (listed.used, listed.path))


def prune(entries: Iterable[Listed], limit: int, keep_used_after: float = math.inf) -> list[Listed]:
    """Remove the least recently used entries until at most ``limit`` bytes are left.

    Args:
        keep_used_after: time (seconds since the epoch); entries used later stay, whatever the
            limit.

    Returns:
        What was removed.
    """
    entries = least_used_first(entries)
    size = sum(listed.bytes for listed in entries)

    removed = []
    for listed in entries:
        if size <= limit or listed.used > keep_used_after:
            break

        # A writer may add a part while its folder is removed. The folder then stays without its
        # description, which the entry's next write puts back.
        if listed.path.is_dir():
            shutil.rmtree(listed.path, ignore_errors=True)
        else:
            listed.path.unlink(missing_ok=True)
        size -= listed.bytes
        removed.append(listed)
    return removed


@dataclass(frozen=True)
class Entry:
    """The features of one piece of work, in parts."""

    store: Store
    folder: Path
    description: str  # JSON text

    # ---- pooled features ----

    def rows(self, num_rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """What is known: features [N, D] fp32 with NaN in the gaps, and which rows [N] bool."""
        features = np.full((num_rows, width), np.nan, dtype=np.float32)
        is_known = np.zeros(num_rows, dtype=bool)

        for match in self._parts(_ROWS):
            start, stop = int(match[1]), int(match[2])
            part = self._load(match[0])
            if part is not None and part.shape == (stop - start, width) and stop <= num_rows:
                features[start:stop] = part
                is_known[start:stop] = True
        return features, is_known

    def save(self, start: int, rows: np.ndarray) -> None:
        """Rows [n, D] from ``start`` on. Raises UserError when the store cannot be written."""
        name = f"rows-{start:09d}-{start + len(rows):09d}.npy"
        self._write(name, rows.astype(np.float32, copy=False))

    # ---- dense features ----

    def grids(self) -> dict[int, tuple[int, int]]:
        """Images whose dense features are there -> the (height, width) each was resized to."""
        matches = self._parts(_GRID)
        return {int(match[1]): (int(match[2]), int(match[3])) for match in matches}

    def grid(self, index: int, sides: tuple[int, int]) -> np.ndarray | None:
        """fp16 [gh, gw, D] of an image; None where it is not there whole."""
        part = self._load(_grid_name(index, sides), "float16")
        return part if part is not None and part.ndim == 3 else None

    def save_grid(self, index: int, sides: tuple[int, int], grid: np.ndarray) -> None:
        """fp16 [gh, gw, D] of an image. Raises UserError when the store cannot be written."""
        assert grid.dtype == np.float16, grid.dtype
        self._write(_grid_name(index, sides), grid)

    # ---- texts and words ----

    def texts(self, width: int) -> dict[str, np.ndarray]:
        """Hash of a text (``text_hash``) -> its embedding [D] fp32."""
        row_type = _text_row(width)
        known: dict[str, np.ndarray] = {}
        for match in self._parts(_TEXTS):
            part = self._load(match[0], row_type)
            if part is not None:
                hashes = [digits.decode() for digits in part["hash"].tolist()]
                known.update(zip(hashes, part["features"], strict=True))
        return known

    def save_texts(self, texts: Sequence[str], rows: np.ndarray) -> None:
        """Embeddings [n, D] of n texts. Raises UserError when the store cannot be written."""
        hashes = [text_hash(text) for text in texts]
        part = np.empty(len(texts), dtype=_text_row(rows.shape[1]))
        part["hash"] = [digits.encode() for digits in hashes]
        part["features"] = rows

        # Named by its texts, so that two processes with the same texts write the same file.
        self._write(f"texts-{text_hash(' '.join(hashes))}.npy", part)

    def word(self) -> str | None:
        """What ``save_word`` kept; None where nothing was, or it is damaged."""
        part = self._load("word.npy", np.dtype("S64"))
        return None if part is None or part.shape != () else part.item().decode()

    def save_word(self, word: str) -> None:
        """Up to 64 ASCII characters. Raises UserError when the store cannot be written."""
        self._write("word.npy", np.array(word.encode(), dtype="S64"))

    # ---- files ----

    def _parts(self, kind: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """The names of the files of one kind, in order."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if match := kind.fullmatch(path.name):
                    yield match

    def _touch(self) -> None:
        """Used now: whoever makes room takes others first, and none that is in use."""
        with contextlib.suppress(OSError):  # pruned meanwhile
            os.utime(self.folder / DESCRIPTION)

    def _write(self, name: str, part: np.ndarray) -> None:
        try:
            if not (self.folder / DESCRIPTION).exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text_atomic(self.folder / DESCRIPTION, self.description + "\n")

            buffer = io.BytesIO()
            np.save(buffer, part, allow_pickle=False)
            with atomic_path(self.folder / name) as temporary:
                temporary.write_bytes(buffer.getvalue() + self._checksum(name, buffer.getbuffer()))
            self._touch()
        except OSError as error:
            raise UserError(
                f"the feature store cannot be written ({error.strerror or error})",
                about=self.store.folder,
                fix="make room (silc-bench cache prune), give --cache another folder,"
                " or --cache off",
            ) from None

    def _load(self, name: str, dtype: np.dtype | str = "float32") -> np.ndarray | None:
        """The array, or None where the part is gone, damaged, another's, or of another type."""
        self._touch()
        try:
            content = memoryview((self.folder / name).read_bytes())
        except OSError:
            return None

        # Compared before numpy parses anything, so that numpy never sees a damaged file.
        if self._checksum(name, content[:-DIGITS]) != content[-DIGITS:]:
            return None
        part = np.load(io.BytesIO(content[:-DIGITS]), allow_pickle=False)
        return part if part.dtype == dtype else None

    def _checksum(self, name: str, content: Bytes) -> bytes:
        """What stands at the end of a part."""
        return checksum(f"{self.description}\n{name}\n".encode(), content).encode()


def releases(*names: str) -> dict[str, str]:
    """Releases of installed distributions, "none" where one is not installed.

    They belong to a description, because another release may give other pixels, tokens or
    embeddings.
    """
    release_of = {}
    for name in names:
        release_of[name] = "none"
        with contextlib.suppress(PackageNotFoundError):
            release_of[name] = version(name)
    return release_of


def text_hash(text: str) -> str:
    """32 hex digits."""
    # surrogatepass: a caption may hold half a character, which strict UTF-8 refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _text_row(width: int) -> np.dtype:
    """A text's hash beside its embedding, in one row of a part."""
    return np.dtype([("hash", "S32"), ("features", np.float32, (width,))])


def _grid_name(index: int, sides: tuple[int, int]) -> str:
    return f"grid-{index:09d}-{sides[0]}x{sides[1]}.npy"
