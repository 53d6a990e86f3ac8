"""Files behind a URL, each fetched whole and verified before it is read.

Whatever fsspec reads: http, s3, gs, hf.

Flow: ``expand(pattern)`` -> URLs -> ``stamp_of(url)`` (size and ETag) -> ``Mirror.read(url, stamp,
look)`` -> what ``look`` makes of a local copy. What has arrived stays where a connection drops,
stalls or ends early, and the next request goes on at that byte. Size and ETag are asked for again
at the end, so that two versions of a file are never joined. Nothing is passed over: a source that
gives up is an error that names the byte.

The mirror keeps the files used last, up to its limit. Any number of processes share it: one
fetches, the others wait.

A source that fails is asked again where that may help; otherwise an error says what to do:
``file_system(url)`` -> fsspec's -> ``ask(url, question)`` -> the answer, or ``raise_if_final`` or
RunError. Each file system raises what its own library does, and none of those libraries need be
installed. So their errors are told apart by HTTP status, by error code (S3), and by the name of
their class.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from silc_bench.datasets.files.shards import alternatives
from silc_bench.errors import RunError, UserError, first_line

# ---- versions and copies of files ----

CHUNK = 8 * 2**20  # bytes asked for at once; halved where they do not arrive, down to MIN_CHUNK
MIN_CHUNK = 64 * 2**10
STALL_SECONDS = 60.0  # for one request
AT_ONCE = 16  # sources asked for their stamps at the same time
READS = 5  # of a copy that other processes remove meanwhile
T = TypeVar("T")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True)
class Stamp:
    """Which version of a file: as much as the source tells."""

    size: int
    etag: str  # "" where the source gives none

    def key(self, url: str) -> str:
        """Names this version of this file: 16 hex digits."""
        return hashlib.sha256(f"{url}\n{self.size}\n{self.etag}".encode()).hexdigest()[:16]


def is_remote(pattern: str) -> bool:
    return _URL.match(pattern) is not None


def expand(pattern: str) -> list[str]:
    """URLs named by braces, and by globs where the source can be listed.

    Raises:
        UserError: a glob that finds nothing, or a source that cannot be listed.
        RunError: a listing that gets no answer.
    """
    urls: list[str] = []
    for url in alternatives(pattern):
        if not re.search(r"[*?\[]", url.partition("://")[2]):
            urls.append(url)
            continue
        if url.startswith("http"):
            fix = "name them by braces, as in {00000..00099}.tar"
            raise UserError("a web server has no list of its files", about=url, fix=fix)

        # fsspec lists names without the scheme
        matches = [f"{scheme_of(url)}://{name}" for name in _listed(url)]
        if not matches:
            fix = "check the name of the bucket and the folders"
            raise UserError("there is no such shard", about=url, fix=fix)
        urls += matches
    return urls


def _listed(url: str) -> list[str]:
    """The files that a glob names, in order.

    It goes folder by folder, because fsspec's own ``glob`` passes over a folder whose listing
    fails, and its shards with it.
    """
    fs, path = file_system(url)
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))

    folders = ["/".join(parts[:first])]
    files: list[str] = []
    for number, part in enumerate(parts[first:], first):
        if part == "**":
            fix = "name each level of folders by *"
            raise UserError("** is not understood here", about=url, fix=fix)

        # whoever lists a file gets that file itself, which does not lie below its own name
        above = {folder.strip("/") for folder in folders}
        entries = []
        for folder in folders:
            for entry in ask(url, partial(_entries, fs, folder)):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                if fnmatchcase(name, part):
                    entries.append(entry)

        # files count at the last level alone, folders lead to the next
        folders = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
        files = []
        if number == len(parts) - 1:
            files = [entry["name"] for entry in entries if entry["type"] != "directory"]
        files = [name for name in files if name.strip("/") not in above]
    return sorted(files)


def _entries(fs: Any, folder: str) -> list[dict[str, Any]]:
    """What lies in a folder, as the source says now; nothing where there is no such folder."""
    fs.invalidate_cache()
    try:
        entries: list[dict[str, Any]] = fs.ls(folder, detail=True)
    except FileNotFoundError as error:
        if error.__cause__ is not None:  # no bucket, say
            raise
        return []
    return entries


def stamps_of(urls: Sequence[str]) -> list[Stamp]:
    """``stamp_of`` each, several at a time."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(stamp_of, urls))


def stamp_of(url: str) -> Stamp:
    """What the source says of a file now.

    Raises:
        UserError: no such file, no permission, or a source that tells no size, so that nothing
            could be verified.
        RunError: no answer after several attempts.
    """
    fs, path = file_system(url)

    def question() -> dict[str, Any]:
        # what fsspec remembers of a file may be what it was before
        fs.invalidate_cache()
        return fs.info(path)

    info = ask(url, question)
    if info.get("type") == "directory":
        fix = f"name the shards in it, as in {url.rstrip('/')}/*.tar"
        raise UserError("it is a folder", about=url, fix=fix)
    if not isinstance(info.get("size"), int):
        problem = "the source does not say how large the file is, which nothing can then verify"
        raise UserError(problem, about=url, fix="fetch the shards yourself, and name the files")

    # what S3, the web, the hub, Google and old web servers call it
    names = ("ETag", "etag", "blob_id", "md5Hash", "Last-Modified")
    etag = next((str(info[name]) for name in names if info.get(name)), "")
    return Stamp(info["size"], etag)


@dataclass(frozen=True)
class Mirror:
    """Local copies below ``folder``: the files used last, at most ``limit`` bytes of them."""

    folder: Path
    limit: int

    def path(self, url: str, stamp: Stamp) -> Path:
        """A whole, verified local copy of exactly this version. Safe in threads and processes.

        Raises:
            UserError: the file is gone, or is another version by now.
            RunError: it could not be fetched completely; says how far it came.
        """
        path = self.folder / f"{stamp.key(url)}-{_name_of(url)}"

        # asked twice: whoever waited for the lock may find that another process has fetched it
        if not path.exists():
            with _locked(self.folder / f".{path.name}.lock"):
                if not path.exists():
                    fetch(url, stamp, path)
                    self._make_room(path)
        return path

    def read(self, url: str, stamp: Stamp, look: Callable[[Path], T]) -> T:
        """What ``look`` makes of the local copy.

        The file is fetched again where another process removes the copy before ``look`` ends.

        Raises:
            UserError: as ``path``; what ``look`` complains of, in the name of the URL; a copy that
                never stays.
            RunError: as ``path``.
        """
        for _ in range(READS):
            path = self.path(url, stamp)
            try:
                return look(path)
            except UserError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    about = error.about.replace(str(path), url)
                    raise UserError(error.problem, about=about, fix=error.fix) from error
        problem = (
            f"its copy in {self.folder} was removed {READS} times while it was read,"
            " to make room for other shards"
        )
        fix = "raise data.mirror_gb of all runs that share the folder"
        raise UserError(problem, about=url, fix=fix)

    def fetch_ahead(self, files: Sequence[tuple[str, Stamp]]) -> None:
        """Begin to fetch in the background.

        What fails is left to ``path``, which is asked for the file when it is needed.
        """

        def run() -> None:
            for url, stamp in files:
                try:
                    self.path(url, stamp)
                except (UserError, RunError, OSError):
                    return

        threading.Thread(target=run, name="fetch-ahead", daemon=True).start()

    def _make_room(self, newest: Path) -> None:
        """Remove what was fetched first; ``read`` fetches it again where it is missed."""
        with _locked(self.folder / ".room.lock"):
            files = [path for path in self.folder.glob("*-*") if not path.name.startswith(".")]
            files.sort(key=lambda path: path.stat().st_mtime_ns)
            total = sum(path.stat().st_size for path in files)

            # the newest stays even where it is larger than the limit: somebody waits for it
            for path in files:
                if total <= self.limit or path == newest:
                    continue
                total -= path.stat().st_size
                path.unlink()


def fetch(url: str, stamp: Stamp, path: Path) -> None:
    """The file at ``url``, whole, at ``path``.

    It is fetched by ranges into a file beside ``path``, and goes on where an earlier attempt or
    process stopped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    fs, remote_path = file_system(url)
    chunk = 2 * CHUNK
    with open(part, "ab") as file:

        def question() -> bytes:
            # a slow source may bring a smaller range in time
            nonlocal chunk
            chunk = max(MIN_CHUNK, chunk // 2)
            return _read_range(fs, remote_path, have, min(chunk, stamp.size - have), stamp.size)

        while (have := file.tell()) < stamp.size:
            where = f"byte {have:,} of {stamp.size:,} was reached, and then there was "
            file.write(ask(url, question, where, patience=math.inf))
            chunk = min(2 * CHUNK, 4 * chunk)

        # on the disk before it gets its name, so that a name always means a whole file
        file.flush()
        os.fsync(file.fileno())

    now = stamp_of(url)
    if now != stamp or part.stat().st_size != stamp.size:
        part.unlink()
        problem = (
            f"it was changed while it was in use (size {stamp.size:,} -> {now.size:,},"
            f" ETag {stamp.etag or 'none'} -> {now.etag or 'none'})"
        )
        raise UserError(problem, about=url, fix="start anew on the version that is there")
    os.replace(part, path)


def _read_range(fs: Any, path: str, start: int, count: int, size: int) -> bytes:
    """At least one byte and at most ``count`` bytes from ``start``.

    Fewer than ``count`` are what came of a connection that ended early.
    """
    from fsspec.asyn import sync

    # fsspec's inner function: the only way to give any file system a limit of time
    end = start + count
    if fs.async_impl:
        data = sync(fs.loop, fs._cat_file, path, start=start, end=end, timeout=STALL_SECONDS)
    else:
        data = fs.cat_file(path, start=start, end=end)

    if len(data) == size > count:  # a server that knows no ranges sends everything
        data = data[start:end]
    if not 0 < len(data) <= count:
        raise OSError(f"{len(data):,} bytes came for a range of {count:,}")
    return data


def _name_of(url: str) -> str:
    # for people who look into the folder; the key before it makes the name unique
    return re.sub(r"[^A-Za-z0-9._-]", "_", url.rpartition("/")[2])[-80:] or "file"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One thread of one process at a time; freed by the system where its process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- asking, and asking again ----

ATTEMPTS = 6  # requests in a row that bring nothing new
PATIENCE_SECONDS = 60.0  # for one answer: some libraries try for longer than that in each attempt
WAIT_SECONDS = 1.0  # after the first failure in a row, doubled after each
SAID_EVERY = 1.0  # seconds between two lines: many shards may wait for the same source

# by scheme: the package that reads it, and our extra that brings it
PACKAGES = {
    "http": ("aiohttp", "remote"),
    "https": ("aiohttp", "remote"),
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "hf"),
}

# by scheme: how they are given, and how to do without
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE;"
    " FSSPEC_S3_ANON=true reads a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file;"
    " FSSPEC_GS_TOKEN=anon reads a public bucket",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file;"
    " FSSPEC_GCS_TOKEN=anon reads a public bucket",
    "hf": "set HF_TOKEN",
}

# classes of botocore and google-auth
NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
)
_said = -math.inf  # when the last line about an attempt was printed
_saying = threading.Lock()


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        UserError: its package is missing, or the URL cannot be parsed.
    """
    import fsspec

    # gcsfs logs a traceback of each attempt, which we get as an error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = scheme_of(url)
        package, extra = PACKAGES.get(scheme, (scheme, None))
        line = f"pip install 'silc-bench[{extra}]'" if extra else f"pip install {package}"
        problem = f"reading {scheme}:// needs the package {package}"
        raise UserError(problem, about=url, fix=line) from error
    except ValueError as error:
        raise UserError(first_line(error), about=url, fix="check how the address begins") from None


def ask(url: str, question: Callable[[], T], before: str = "", patience: float | None = None) -> T:
    """What ``question()`` returns, asked anew where the source fails.

    Args:
        before: begins the sentence "no answer in 6 attempts".
        patience: seconds, PATIENCE_SECONDS if not given.

    Raises:
        UserError: what no second attempt mends.
        RunError: no answer after several attempts.
    """
    end = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    for attempt in range(ATTEMPTS):
        try:
            return question()
        except Exception as error:  # each file system raises what its own library does
            raise_if_final(url, error)
            if attempt == ATTEMPTS - 1 or time.monotonic() > end:
                problem = f"{before}no answer in {attempt + 1} attempts (last: {first_line(error)})"
                fix = (
                    "see that the address is right and that the source is up, then give the command"
                    " again (train: with --resume); what has arrived is kept"
                )
                raise RunError(problem, about=url, fix=fix) from error
            wait(url, error, attempt)
    raise AssertionError("the last attempt returns or raises")


def wait(url: str, error: Exception, failures: int) -> None:
    """Sleep before the next attempt, and say so, for one of several at a time.

    ``failures``: so many in a row before the last one.
    """
    from silc_bench.system.terminal import warn

    global _said
    seconds = WAIT_SECONDS * 2**failures

    with _saying:  # several threads may wait for the same source
        if time.monotonic() - _said > SAID_EVERY:
            _said = time.monotonic()
            attempt = f"attempt {failures + 2} of {ATTEMPTS} in {seconds:.0f} s"
            warn(f"{url}: {first_line(error)}; {attempt}")
    time.sleep(seconds)


def raise_if_final(url: str, error: Exception) -> None:
    """Raise UserError for errors that no second attempt mends."""
    # fsspec calls a web server's every failure "not found"; the cause knows better
    cause = error.__cause__ or error
    status, code = _status_and_code(cause)
    is_missing = status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError))

    # gcsfs says 403 by words alone
    says_forbidden = type(error) is OSError and str(error).startswith("Forbidden:")
    is_forbidden = isinstance(error, PermissionError) or status in (401, 403) or says_forbidden

    reason = first_line(cause)
    advice = CREDENTIALS.get(scheme_of(url), "check your credentials")
    check = "check the names of the host or bucket, of the folder and of the file"
    if scheme_of(url) == "s3":
        check += "; and AWS_ENDPOINT_URL if it is set"
    finals = (
        (code == "NoSuchBucket", "there is no such bucket", check),
        (is_missing, "there is no such file", check),
        (type(cause).__name__ in NO_CREDENTIALS, f"you have no credentials ({reason})", advice),
        (is_forbidden, f"the source does not let you read it ({reason})", advice),
        # An endpoint, or a bucket's name. An answer that cannot be parsed raises a class below
        # ValueError, and may come right at the next attempt.
        (type(cause) is ValueError, f"nobody can be asked for it ({reason})", check),
    )
    for is_final, problem, fix in finals:
        if is_final:
            raise UserError(problem, about=url, fix=fix) from error


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def _status_and_code(error: BaseException) -> tuple[int | None, str | None]:
    """The HTTP status that an error of a library carries, and what S3 calls the error."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        metadata = response.get("ResponseMetadata", {})
        return metadata.get("HTTPStatusCode"), response.get("Error", {}).get("Code")

    # aiohttp, gcsfs, requests
    places = ((error, "status"), (error, "code"), (response, "status_code"))
    values = (getattr(holder, name, None) for holder, name in places)
    return next((value for value in values if isinstance(value, int)), None), None
