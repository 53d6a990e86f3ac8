"""One process at a time works in a folder.

Flow: ``with locked(folder, warn): ...``. A file in the folder says who works there (host, process,
since when), and the system locks that file for this process. The lock ends with the process,
however it ends and on whichever host it ran. So a file that is there and not locked was left
behind; it is taken over with a word.

Some network file systems lock nothing. There the file alone counts: a process of this host is
looked for by its number, and one of another host is taken to be alive.

The lock is one of ``fcntl.lockf``, which belongs to a process: its data workers do not inherit it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from silc_bench.errors import UserError

NAME = "running.json"
IS_LOCKED = (errno.EACCES, errno.EAGAIN)


@contextmanager
def locked(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Only this process works in ``folder``, which is made where it is missing.

    Args:
        warn: hears of a file that was left behind.

    Raises:
        UserError: another process works there, which is named; or nothing can be written there.
    """
    path = folder / NAME
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, left_behind = _taken(path)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError(problem, about=path, fix="choose another folder") from error

    if left_behind:
        warn(f"{path} was left by a process that has ended ({left_behind}); it is taken over")
    own = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
    # On a full disk the note is missing, and the lock holds.
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(own).encode(), 0)

    try:
        yield
    finally:
        # Removed while it is locked: nobody can have taken it in between.
        with suppress(OSError):
            path.unlink()
        os.close(handle)
        for place in made:
            with suppress(OSError):  # there are files in it by now
                place.rmdir()


def is_in_use(folder: Path) -> bool:
    """Whether another process works in ``folder``. Not for a folder that this one has locked."""
    try:
        handle = os.open(folder / NAME, os.O_RDONLY)
    except OSError:  # whoever ends removes the file
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno in IS_LOCKED or _is_alive(handle)
    finally:
        os.close(handle)


def _taken(path: Path) -> tuple[int, str]:
    """(an open file that this process has locked, who left it behind or "")."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        is_locking = True
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            is_locking = error.errno in IS_LOCKED
            if is_locking:
                raise _in_use(handle, path) from error

        # Who ended a moment ago has removed the file that was opened here.
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                if not is_locking and _is_alive(handle):
                    raise _in_use(handle, path)
                return handle, _owner(handle)
        os.close(handle)


def _in_use(handle: int, path: Path) -> UserError:
    owner = _owner(handle) or "which has not said its name"
    os.close(handle)
    return UserError(
        f"another process works there ({owner})",
        about=path.parent,
        fix=f"wait for its end, or choose another folder; {path.name} says who it is",
    )


def _note(handle: int) -> dict[str, object]:
    try:
        note = json.loads(os.pread(handle, 4096, 0))
    except ValueError:  # empty, or half-written
        return {}
    return note if isinstance(note, dict) else {}


def _owner(handle: int) -> str:
    """The process that wrote the file, for people; "" where it wrote nothing."""
    note = _note(handle)
    if not note:
        return ""
    return f"process {note.get('pid')} on {note.get('host')}, since {note.get('since')}"


def _is_alive(handle: int) -> bool:
    """Whether the process that wrote the file may be there still, where nothing can be locked."""
    note = _note(handle)
    pid = note.get("pid")
    if note.get("host") != socket.gethostname() or not isinstance(pid, int):
        return bool(note)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return pid != os.getpid()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
