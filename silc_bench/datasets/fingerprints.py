"""What exactly is scored, hashed; and remembered between commands: the files of a set rarely change and take minutes to read.

Flow: ``fingerprint(names, pictures, title)`` reads everything. ``with remembered(store): ...`` around it: ``known_fingerprint``
looks the files up by what the file system says of them - path, device, inode, size, times of the last change of content and
of the file's own entry (which no program can set back) - and reads only what it has not seen in exactly this state.

What was not read is not known to be whole: ``data check`` always reads. Not remembered: pixels that were read already; files
changed in the last seconds, which can change again within a tick of the clock. Masks that are remembered were right when they
were read, under the same rule of what their values mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress

from silc_bench.errors import UserError
from silc_bench.store import Store

if TYPE_CHECKING:
    from silc_bench.datasets.picture_set import Picture

LONG = 256 << 20  # bytes: to hash more takes a second or longer, and says so
VERSION = 1  # of what is hashed, and of how files are looked up
SETTLED = 2.0  # seconds since its last change after which a file that changes again shows it
_STORE: ContextVar[Store | None] = ContextVar("fingerprints", default=None)


@contextmanager
def remembered(store: Store | None) -> Iterator[None]:
    """While it lasts, fingerprints are looked up in ``store`` and kept there; None: they are not."""
    token = _STORE.set(store)
    try:
        yield
    finally:
        _STORE.reset(token)


def known_fingerprint(names: Iterable[str], pictures: Sequence[Picture], title: str) -> str:
    """`fingerprint`, without reading the files where ``remembered`` knows them as they are now."""
    names, store = list(names), _STORE.get()
    if store is None or not pictures or any(picture.pixels is not None for picture in pictures):
        return fingerprint(names, pictures, title)
    before = _state(pictures)
    entry = None
    if before is not None:
        files = _digest(names, pictures, before)
        entry = store.entry({"kind": "fingerprint", "version": VERSION, "title": title, "files": files})
        if known := entry.word():
            return known
    found = fingerprint(names, pictures, title)
    if entry is not None and _state(pictures) == before:  # nothing changed while it was read
        entry.save_word(found)
    return found


def fingerprint(names: Iterable[str], pictures: Sequence[Picture], title: str) -> str:
    """16 hex digits over names, labels, captions, encoded pictures and what their masks say, in order.

    File names and layout do not count, nor how masks are stored. Pictures are read at the speed of the disk; masks are decoded,
    and so each is checked. A progress bar on the error stream where that takes a while.

    Raises:
        DataError: a mask that cannot be read, has a value without a class, or is not of its picture's size.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    for picture in _with_progress(pictures, f"hashing {title}"):
        content = picture.read()
        # a single caption is written as itself, none as null
        captions = list(picture.captions) if len(picture.captions) > 1 else next(iter(picture.captions), None)
        digest.update(json.dumps([picture.label, captions, len(content)]).encode())
        digest.update(content)
        if picture.mask is not None:
            labels = picture.labels()
            digest.update(json.dumps([labels.shape, labels.dtype.name]).encode())
            digest.update(np.ascontiguousarray(labels, labels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def _state(pictures: Sequence[Picture]) -> dict[Path, list[int]] | None:
    """What the file system says of each file; None where one changed a moment ago.

    Raises:
        UserError: a file is gone.
    """
    state = {}
    now = time.time()
    masks = [picture.mask.path for picture in pictures if picture.mask is not None]
    for path in dict.fromkeys([*(picture.path for picture in pictures), *masks]):
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if now - max(stat.st_mtime, stat.st_ctime) < SETTLED:
            return None
        state[path] = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return state


def _digest(names: Sequence[str], pictures: Sequence[Picture], state: dict[Path, list[int]]) -> str:
    """Of all that the fingerprint follows from, with the state of the files in place of their content."""
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    rules = dict.fromkeys(picture.mask.rule for picture in pictures if picture.mask is not None)
    digest.update("".join(map(repr, rules)).encode())
    for picture in pictures:
        own = [picture.label, picture.captions, picture.place, os.path.abspath(picture.path), state[picture.path]]
        if picture.mask is not None:
            own += [picture.mask.where, os.path.abspath(picture.mask.path), state[picture.mask.path]]
        digest.update(json.dumps(own).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _with_progress(pictures: Sequence[Picture], title: str) -> Iterator[Picture]:
    console = Console(stderr=True)
    total = sum(picture.num_bytes for picture in pictures)
    with Progress(console=console, transient=True, disable=total < LONG or not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        for picture in pictures:
            yield picture
            bar.advance(task, picture.num_bytes)
