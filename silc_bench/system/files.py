"""Files and folders that are either the old one or the new one, never half of each.

Flow: ``check_writable(folder)`` before long work; after it ``with atomic_path(path) as temporary``
or ``with atomic_folder(path) as temporary``: write into ``temporary``, and a clean exit moves it
into place. Standard library only.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import quote

from silc_bench.errors import UserError

# What the names of a record may not hold: control characters and halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_writable(folder: Path) -> None:
    """Before work whose result goes into ``folder``: one can write there, or could make it.

    Makes nothing itself.

    Raises:
        UserError: a file is in its place or above it, or nothing may be written there; names what
            is in the way.
    """
    # lexists, not exists: a link that points nowhere is in the way too.
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))

    problem = ""
    if not nearest.is_dir():
        problem = f"cannot be written, because {nearest} is not a folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problem = f"cannot be written, because you may not write in {nearest}"
    if problem:
        raise UserError(problem, about=folder, fix="choose another folder")


def atomic_path(path: Path) -> AbstractContextManager[Path]:
    """A temporary path beside ``path``; a clean exit flushes it and moves it into place.

    On any error the temporary file is removed and ``path`` is untouched: a full disk costs the new
    file, not the old one.
    """
    # Unlike tempfile's, with the permissions that the user's umask gives a file.
    return _moved_into_place(Path(path), Path.touch)


def atomic_folder(path: Path) -> AbstractContextManager[Path]:
    """The same for a folder of files, where ``path`` is missing or empty.

    On any error nothing of it is left.

    Raises:
        OSError: also where ``path`` has got files of its own in the meantime.
    """
    return _moved_into_place(Path(path), Path.mkdir)


@contextmanager
def _moved_into_place(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)

    # Beside it, because only a move within one file system is atomic.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        make(temporary)
        yield temporary

        # The content must be on the disk before the name is: after a power failure the new name
        # could otherwise stand for an empty file.
        files = temporary.iterdir() if temporary.is_dir() else ()
        for file in (*files, temporary):
            flush(file)

        # POSIX lets a folder take the place of an empty one; where ``path`` is not empty, the
        # system refuses.
        os.replace(temporary, path)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        _name(error, temporary, path)
        raise

    # The move itself is an entry of the folder, which is flushed on its own.
    flush(path.parent)


def _name(error: BaseException, temporary: Path, path: Path) -> None:
    """Let the error be about ``path``.

    A failed write to a full disk names no file, and other errors name a temporary file that is gone
    by the time the user reads about it.
    """
    if not isinstance(error, OSError) or not error.errno:
        return

    is_full = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or str(error.filename).startswith(str(temporary)):
        error.filename = str(path)
        error.filename2 = None


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def printable(name: str) -> str:
    """A name as text that every terminal, record and table can hold.

    Control characters, and bytes that are no UTF-8, become %XX; everything else stays.
    """
    return _UNPRINTABLE.sub(lambda match: quote(match[0], errors="surrogatepass"), name)


def write_text_atomic(path: Path, text: str) -> None:
    """``text`` as the whole content of ``path``, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path, max_bytes: int) -> str:
    """As ``read_bytes``, in UTF-8; UnicodeDecodeError where it is no text."""
    return read_bytes(path, max_bytes).decode("utf-8")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file that anybody may have put there.

    Raises:
        OSError: also where it is no regular file (to open a pipe is to wait for a writer), or is
            larger than ``max_bytes``.
    """
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    if state.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"has more than {max_bytes:,} bytes", str(path))
    return Path(path).read_bytes()
