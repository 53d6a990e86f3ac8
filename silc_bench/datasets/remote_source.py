"""A source behind a URL, and what its errors mean: asked again where that may help, else one sentence with what mends it.

Flow: ``file_system(url)`` -> fsspec's -> ``ask(url, question)`` -> the answer, or ``raise_if_final`` / RunError.

Each file system raises what its own library does, and none of those libraries need be installed: their errors are told by
HTTP status, by error code (S3), and by the name of their class.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from silc_bench.errors import RunError, UserError

ATTEMPTS = 6  # requests in a row that bring nothing new
PATIENCE_SECONDS = 60.0  # for one answer: some libraries try for longer than that in each attempt
WAIT_SECONDS = 1.0  # after the first failure in a row, doubled after each
SAID_EVERY = 1.0  # seconds between two lines about attempts: many shards may wait for the same source
PACKAGES = {  # by scheme, with our extra that brings it
    "http": ("aiohttp", "remote"),
    "https": ("aiohttp", "remote"),
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "hf"),
}
CREDENTIALS = {  # by scheme: how they are given, and how to do without
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; FSSPEC_S3_ANON=true reads a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file; FSSPEC_GS_TOKEN=anon reads a public bucket",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file; FSSPEC_GCS_TOKEN=anon reads a public bucket",
    "hf": "set HF_TOKEN",
}
NO_CREDENTIALS = (  # classes of botocore and google-auth
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
)
Answer = TypeVar("Answer")
_said = -math.inf  # when the last line about an attempt was printed
_saying = threading.Lock()


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises UserError where its package is missing."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # logs a traceback of each attempt, which we get as an error
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = scheme_of(url)
        package, extra = PACKAGES.get(scheme, (scheme, None))
        line = f"pip install 'silc-bench[{extra}]'" if extra else f"pip install {package}"
        raise UserError(f"{url}: reading {scheme}:// needs the package {package}; {line}") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None


def ask(url: str, question: Callable[[], Answer]) -> Answer:
    """What ``question()`` returns, asked anew where the source fails.

    Raises:
        UserError: what no second attempt mends.
        RunError: no answer after several attempts.
    """
    start = time.monotonic()
    for attempt in range(ATTEMPTS):
        try:
            return question()
        except Exception as error:  # each file system raises what its own library does
            raise_if_final(url, error)
            if attempt == ATTEMPTS - 1 or time.monotonic() - start > PATIENCE_SECONDS:
                raise RunError(
                    f"{url}: no answer in {attempt + 1} attempts (last: {words_of(error)});"
                    " see that the address is right and that the source is up, then give the command again"
                ) from error
            wait(url, error, attempt)
    raise AssertionError("the last attempt returns or raises")


def wait(url: str, error: Exception, failures: int) -> None:
    """Before the next attempt, after so many failures in a row before the last one. Says so, for one of several at a time."""
    from silc_bench.terminal import notes

    global _said
    seconds = WAIT_SECONDS * 2**failures
    with _saying:  # several threads may wait for the same source
        if time.monotonic() - _said > SAID_EVERY:
            _said = time.monotonic()
            line = f"{url}: {words_of(error)}; attempt {failures + 2} of {ATTEMPTS} in {seconds:.0f} s"
            notes.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    time.sleep(seconds)


def raise_if_final(url: str, error: Exception) -> None:
    """Raise UserError for errors that no second attempt mends."""
    cause = error.__cause__ or error  # fsspec calls a web server's every failure "not found"; the cause knows better
    status, code = _status(cause), _code(cause)
    if code == "NoSuchBucket":
        raise UserError(f"{url}: there is no bucket {url.split('/')[2]}; check its name, and AWS_ENDPOINT_URL if it is set")
    if status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError)):
        raise UserError(
            f"{url}: there is no such file; check the name of the bucket or host, the folder, and the numbers"
        ) from error
    advice = CREDENTIALS.get(scheme_of(url), "check your credentials")
    if type(cause).__name__ in NO_CREDENTIALS:
        raise UserError(f"{url}: no credentials to read it with ({words_of(cause)}); {advice}") from error
    is_forbidden = type(error) is OSError and str(error).startswith("Forbidden:")  # gcsfs's words for 403
    if isinstance(error, PermissionError) or status in (401, 403) or is_forbidden:
        raise UserError(
            f"{url}: the source does not let you read it ({words_of(error)}); check your credentials: {advice}"
        ) from error
    if type(cause) is ValueError:  # an endpoint, a bucket's name; what cannot be parsed of an answer is a class below it
        raise UserError(
            f"{url}: cannot be asked for ({words_of(cause)}); check the name, and AWS_ENDPOINT_URL if it is set"
        ) from error


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def words_of(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, gcsfs, requests or botocore carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        response = response.get("ResponseMetadata", {})
        return response.get("HTTPStatusCode")
    found = getattr(error, "status", None) or getattr(error, "code", None) or getattr(response, "status_code", None)
    return found if isinstance(found, int) else None


def _code(error: BaseException) -> str | None:
    """What S3 calls the error."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
