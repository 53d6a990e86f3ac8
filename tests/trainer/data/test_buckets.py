"""Shards in a bucket: s3://, gs:// and hf:// as their file systems answer, and memory://."""

import importlib
import json
import logging
import sys

import pytest

fsspec = pytest.importorskip("fsspec", reason="the package fsspec is not installed")

from fsspec.asyn import AsyncFileSystem  # noqa: E402
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402
from pairs import numbered, numbers, source, take  # noqa: E402
from refusals import refused  # noqa: E402

from silc_bench.datasets.files import remote  # noqa: E402
from silc_bench.errors import RunError  # noqa: E402

# {scheme: file system}, of those asked for so far
REGISTRY = importlib.import_module("fsspec.registry")._registry
# what s3fs, gcsfs and huggingface_hub call it
VERSION_NAMES = {"s3": "ETag", "gs": "etag", "hf": "blob_id"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """30 pairs in 3 shards."""
    return numbered(tmp_path_factory.mktemp("shards"), 10, 10, 10)


pytestmark = pytest.mark.usefixtures("small_mirror")


class Bucket(AsyncFileSystem):
    """``files`` of a bucket behind an asynchronous file system, as s3fs is."""

    cachable = False

    async def _info(self, path, **kwargs):
        if path in self.files:
            data = self.files[path]
            entry = {"name": path, "size": len(data), "type": "file"}
            return {**entry, self.version_name: f"version {sum(data) % 1000}"}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    async def _ls(self, path, detail=True, **kwargs):
        self.listing_fault(path)
        above = f"{path.rstrip('/')}/".lstrip("/")
        names = {
            above + name.removeprefix(above).partition("/")[0]
            for name in self.files
            if name.startswith(above)
        }
        return [await self._info(name) for name in sorted(names)]

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        self.fault(path)
        return self.files[path][start:end]


@pytest.fixture
def bucket(files, monkeypatch):
    """``bucket(scheme)``: fsspec's file system for it, with the shards in SCHEME://place/set/.

    Its files are also what it returns. A fault, called with a path, may raise.
    """

    def install(scheme, fault=lambda path: None, listing_fault=lambda path: None):
        body = {
            "protocol": scheme,
            "files": {f"place/set/{name}": data for name, data in files.items()},
            "version_name": VERSION_NAMES[scheme],
            "fault": staticmethod(fault),
            "listing_fault": staticmethod(listing_fault),
        }
        monkeypatch.setitem(REGISTRY, scheme, type("Bucket", (Bucket,), body))
        return body["files"]

    return install


def failing(error, times=99):
    """A fault of the first ``times`` requests for each path, and the paths of all requests."""
    paths = []

    def fail(path):
        paths.append(path)
        if paths.count(path) <= times:
            raise error

    return fail, paths


def read(pattern, count=30, **fields):
    return numbers(take(source(pattern, shuffle_shards=2, **fields), 1, 0, count))


@pytest.mark.parametrize("scheme", VERSION_NAMES)
def test_braces_and_globs_name_the_same_shards(bucket, scheme):
    bucket(scheme)
    place = f"{scheme}://place/set"
    pairs = read(f"{place}/{{000..002}}.tar")
    assert sorted(pairs) == list(range(30))
    assert read(f"{place}/*.tar") == pairs
    assert remote.stamp_of(f"{place}/000.tar").etag.startswith("version ")


def test_what_is_not_there_is_the_users_error(bucket):
    bucket("s3")
    for pattern, about in (
        ("s3://place/set/{000..003}.tar", "s3://place/set/003.tar"),
        ("s3://place/other/*.tar", "s3://place/other/*.tar"),
        ("s3://place/set", "s3://place/set"),
        ("s3://place/**/000.tar", "s3://place/**/000.tar"),
    ):
        with refused(about):
            read(pattern)


# --- globs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("place/*/*.tar", ["other/000", "set/000", "set/001", "set/002"]),
        ("place/*/00[12].tar", ["set/001", "set/002"]),
        ("place/?et/000.tar", ["set/000"]),
        ("pl*/other/*.tar", ["other/000"]),
        ("place/*.tar", ["000"]),
        ("place/set/{000..001}.t*", ["set/000", "set/001"]),
    ],
)
def test_a_glob_names_files_at_its_depth(bucket, pattern, names):
    elsewhere = ("place/other/000.tar", "place/other/notes.txt", "place/000.tar")
    bucket("s3").update(dict.fromkeys(elsewhere, b""))
    assert remote.expand(f"s3://{pattern}") == [f"s3://place/{name}.tar" for name in names]


def test_a_listing_that_fails_is_asked_for_again_and_never_passed_over(bucket):
    """fsspec's own glob takes the folder for an empty one."""
    error = OSError("SlowDown: please reduce your request rate")
    fail_once, paths = failing(error, 1)
    bucket("s3", listing_fault=fail_once)
    assert len(remote.expand("s3://place/*/*.tar")) == 3
    assert paths.count("place/set") == 2

    bucket("s3", listing_fault=failing(error)[0])
    with refused("s3://place/*/*.tar", RunError):
        remote.expand("s3://place/*/*.tar")


# --- what the libraries raise ---------------------------------------------------------------------


def named(name, words, **fields):
    return type(name, (Exception,), fields)(words)


def s3_error(status, code):
    """botocore's, as far as it is looked at; s3fs makes it the cause of its own."""
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return named("ClientError", f"{status} {code}", response=response)


def because(error, status, code):
    error.__cause__ = s3_error(status, code)
    return error


# (scheme, the error, a word of the sentence)
FINAL = [
    ("s3", because(FileNotFoundError("gone"), 404, "NoSuchBucket"), "bucket"),
    ("s3", because(FileNotFoundError("gone"), 404, "NoSuchKey"), "no such file"),
    ("s3", because(PermissionError("Forbidden"), 403, "403"), "AWS_ACCESS_KEY_ID"),
    ("s3", named("NoCredentialsError", "Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
    ("s3", named("ProfileNotFound", "The config profile (me) could not be found"), "(me)"),
    ("s3", ValueError("Invalid endpoint: nonsense"), "AWS_ENDPOINT_URL"),
    ("s3", PermissionError("Access Denied"), "Access Denied"),
    ("gs", OSError("Forbidden: https://place\nno access"), "GOOGLE_APPLICATION_CREDENTIALS"),
    (
        "gs",
        named("HttpError", "Invalid Credentials, 401", code=401),
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    ("gs", named("DefaultCredentialsError", "not found"), "GOOGLE_APPLICATION_CREDENTIALS"),
]


@pytest.mark.parametrize(("scheme", "error", "word"), FINAL, ids=[str(row[1]) for row in FINAL])
def test_a_mistake_is_one_sentence_at_the_first_attempt(bucket, scheme, error, word):
    fail, paths = failing(error)
    for shards, faults in (("000.tar", {"fault": fail}), ("*.tar", {"listing_fault": fail})):
        bucket(scheme, **faults)
        with refused(f"{scheme}://place/set/{shards}", is_kept=False) as caught:
            read(f"{scheme}://place/set/{shards}")
        assert word in str(caught.value)
    assert len(paths) == 2


@pytest.mark.parametrize(
    "error",
    [
        s3_error(503, "SlowDown"),
        named("HttpError", "backend, 503", code=503),
        json.JSONDecodeError("cut", "{", 1),
        OSError("SlowDown: please reduce your request rate"),
    ],
)
def test_what_may_pass_is_asked_for_again(bucket, error):
    bucket("s3", failing(error, 1)[0])
    assert sorted(read("s3://place/set/*.tar")) == list(range(30))


def test_a_library_that_tries_for_long_by_itself_is_not_asked_six_times(bucket, monkeypatch):
    """And what it logs of each attempt is no output of ours."""
    fail, paths = failing(OSError("connection refused"))
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", -1.0)
    bucket("gs", listing_fault=fail)
    with refused("gs://place/set/*.tar", RunError):
        remote.expand("gs://place/set/*.tar")
    assert len(paths) == 1
    assert not logging.getLogger("gcsfs").isEnabledFor(logging.ERROR)


def test_a_shard_that_was_uploaded_in_part_is_counted(bucket, files):
    url = "s3://place/set/001.tar"
    bucket("s3")["place/set/001.tar"] = files["001.tar"][: len(files["001.tar"]) // 2]
    stream = source("s3://place/set/*.tar")
    assert 20 < stream.num_samples < 30
    assert stream.damage.total > 0
    assert all(url in where for where in stream.damage.first.values())


def test_memory_is_read_as_any_other(files, monkeypatch):
    """A file system that is not asynchronous and knows no versions."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    fsspec.filesystem("memory").pipe({f"/place/{name}": data for name, data in files.items()})
    for pattern in ("{000..002}", "*"):
        assert sorted(read(f"memory://place/{pattern}.tar")) == list(range(30))
    # a listing of a file is that file
    for pattern in ("memory://place/000.tar/*.tar", "memory://place/003.tar"):
        with refused(pattern):
            read(pattern)


@pytest.mark.parametrize(
    ("scheme", "module", "extra"),
    [
        ("s3", "s3fs", "s3"),
        ("gs", "gcsfs", "gs"),
        ("hf", "huggingface_hub", "hf"),
        ("https", "aiohttp", "remote"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    monkeypatch, scheme, module, extra
):
    monkeypatch.delitem(REGISTRY, scheme, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    with refused(f"{scheme}://place/000.tar") as caught:
        read(f"{scheme}://place/000.tar")
    assert module in caught.value.problem
    assert caught.value.fix == f"pip install 'silc-bench[{extra}]'"
