"""Files behind a URL (http, s3, gs, hf: whatever fsspec reads), each fetched whole and verified before it is read.

Flow: ``expand(word)`` -> URLs -> ``stamp_of(url)`` (size and ETag) -> ``Mirror.path(url, stamp)`` -> a local file, to be read
as any other. What has arrived stays where a connection drops, stalls or ends early, and the next request goes on at that byte;
size and ETag are asked for again at the end, so that two versions of a file are never joined. Nothing is passed over: a source
that gives up is an error that names the byte.

The mirror keeps the files used last, up to its limit. Any number of processes share it: one fetches, the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.datasets.shards import alternatives
from silc_bench.errors import RunError, UserError

CHUNK = 8 * 2**20  # bytes asked for at once; halved where they do not arrive, down to MIN_CHUNK
MIN_CHUNK = 64 * 2**10
ATTEMPTS = 6  # requests in a row that bring no new byte
STALL_SECONDS = 60.0  # for one request
WAIT_SECONDS = 1.0  # after the first failure in a row, doubled after each
AT_ONCE = 16  # sources asked for their stamps at the same time
PACKAGES = {  # by scheme, with our extra that brings it
    "http": ("aiohttp", "remote"),
    "https": ("aiohttp", "remote"),
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "hf"),
}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True)
class Stamp:
    """Which version of a file: as much as the source tells."""

    size: int
    etag: str  # "" where the source gives none

    def key(self, url: str) -> str:
        return hashlib.sha256(f"{url}\n{self.size}\n{self.etag}".encode()).hexdigest()[:16]


def is_remote(word: str) -> bool:
    return _URL.match(word) is not None


def expand(word: str) -> list[str]:
    """URLs named by braces, and by globs where the source can be listed. Raises UserError where a glob finds nothing."""
    urls: list[str] = []
    for url in alternatives(word):
        if not re.search(r"[*?\[]", url.partition("://")[2]):
            urls.append(url)
            continue
        if url.startswith("http"):
            raise UserError(f"{url}: a web server has no list of its files; name them by braces, as in {{00000..00099}}.tar")
        fs, path = _file_system(url)
        found = [f"{url.partition('://')[0]}://{name}" for name in sorted(fs.glob(path))]
        if not found:
            raise UserError(f"no shard found: there is no {url}")
        urls += found
    return urls


def stamps_of(urls: Sequence[str]) -> list[Stamp]:
    """``stamp_of`` each, several at a time."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(stamp_of, urls))


def stamp_of(url: str) -> Stamp:
    """What the source says of a file now.

    Raises:
        UserError: no such file, no permission, or a source that tells no size, so that nothing could be verified.
        RunError: no answer after several attempts.
    """
    fs, path = _file_system(url)
    for attempt in range(ATTEMPTS):
        try:
            fs.invalidate_cache()
            info = fs.info(path)
        except Exception as error:  # each file system raises what its own library does
            _raise_if_final(url, error)
            if attempt == ATTEMPTS - 1:
                raise RunError(f"{url}: no answer in {ATTEMPTS} attempts (last: {_words(error)})") from error
            time.sleep(WAIT_SECONDS * 2**attempt)
            continue
        if not isinstance(info.get("size"), int):
            raise UserError(f"{url}: the source does not tell how large the file is, so what arrives cannot be verified")
        etag = next((str(info[name]) for name in ("ETag", "etag", "blob_id", "md5Hash", "Last-Modified") if info.get(name)), "")
        return Stamp(info["size"], etag)
    raise AssertionError("the last attempt returns or raises")


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
        if not path.exists():
            with _locked(self.folder / f".{path.name}.lock"):
                if not path.exists():
                    fetch(url, stamp, path)
                    self._make_room(path)
        return path

    def fetch_ahead(self, files: Sequence[tuple[str, Stamp]]) -> None:
        """Begin to fetch in the background. What fails is left to ``path``, which is asked for the file when it is needed."""

        def run() -> None:
            for url, stamp in files:
                try:
                    self.path(url, stamp)
                except (UserError, RunError, OSError):
                    return

        threading.Thread(target=run, name="fetch-ahead", daemon=True).start()

    def _make_room(self, newest: Path) -> None:
        """Remove what was fetched first; a reader that misses it fetches it again."""
        with _locked(self.folder / ".room.lock"):
            files = [path for path in self.folder.glob("*-*") if not path.name.startswith(".")]
            files.sort(key=lambda path: path.stat().st_mtime_ns)
            total = sum(path.stat().st_size for path in files)
            for path in files:
                if total <= self.limit or path == newest:
                    continue
                total -= path.stat().st_size
                path.unlink()


def fetch(url: str, stamp: Stamp, path: Path) -> None:
    """The file at ``url``, whole, at ``path``: by ranges beside it, going on where an earlier attempt or process stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    fs, inner = _file_system(url)
    chunk, failures = CHUNK, 0
    with open(part, "ab") as file:
        while (have := file.tell()) < stamp.size:
            wanted = min(chunk, stamp.size - have)
            try:
                data = _read_range(fs, inner, have, wanted, stamp.size)
            except Exception as error:  # each file system raises what its own library does
                _raise_if_final(url, error)
                failures, chunk = failures + 1, max(MIN_CHUNK, chunk // 2)
                if failures == ATTEMPTS:
                    raise RunError(
                        f"{url}: stopped at byte {have:,} of {stamp.size:,} after {ATTEMPTS} attempts that brought nothing"
                        f" (last: {_words(error)}); what has arrived is kept, and the run goes on from there"
                    ) from error
                time.sleep(WAIT_SECONDS * 2 ** (failures - 1))
                continue
            file.write(data)
            failures, chunk = 0, min(CHUNK, 2 * chunk)
        file.flush()
        os.fsync(file.fileno())
    now = stamp_of(url)
    if now != stamp or part.stat().st_size != stamp.size:
        part.unlink()
        raise UserError(
            f"{url} was changed while it was in use (size {stamp.size:,} -> {now.size:,}, ETag {stamp.etag or 'none'} ->"
            f" {now.etag or 'none'}); start anew on the version that is there"
        )
    os.replace(part, path)


def _read_range(fs: Any, path: str, start: int, count: int, size: int) -> bytes:
    """At least one byte and at most ``count`` from ``start``; what came of a connection that ended early counts."""
    from fsspec.asyn import sync

    if fs.async_impl:  # the only way to give any of them a limit of time
        data = sync(fs.loop, fs._cat_file, path, start=start, end=start + count, timeout=STALL_SECONDS)
    else:
        data = fs.cat_file(path, start=start, end=start + count)
    if len(data) == size > count:  # a server that knows no ranges sends everything
        data = data[start : start + count]
    if not 0 < len(data) <= count:
        raise OSError(f"{len(data):,} bytes came for a range of {count:,}")
    return data


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        package, extra = PACKAGES.get(scheme, (scheme, None))
        line = f"pip install 'silc-bench[{extra}]'" if extra else f"pip install {package}"
        raise UserError(f"{url}: reading {scheme}:// needs the package {package}; {line}") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None


def _raise_if_final(url: str, error: Exception) -> None:
    """Errors that no second attempt mends. fsspec calls a web server's every failure "not found"; its cause knows better."""
    cause = error.__cause__ or error
    status = getattr(cause, "status", None)
    if status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError)):
        raise UserError(f"{url}: there is no such file") from error
    if isinstance(error, PermissionError) or status in (401, 403):
        raise UserError(f"{url}: the source does not let you read it ({_words(error)}); check your credentials") from error


def _words(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__


def _name_of(url: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", url.rpartition("/")[2])[-80:] or "file"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One thread of one process at a time; freed by the system where its process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
