"""How tests ask for an error: by its class, by what it is about, and by its giving a fix.

The sentences themselves stand in one file, `tests/messages.txt`, by the test that asks for each
one, so that a tone is mended without touching a test. After a change, `make messages` rewrites the
file; its diff is read before it is committed.
"""

import os
import re
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from silc_bench.errors import UserError

TESTS = Path(__file__).parent
MESSAGES = TESTS / "messages.txt"
HEAD = (
    "# What each error says, by the test that asks for it. `make messages` rewrites this file;\n"
    "# folders, ports and the like stand in capitals.\n"
)
rewritten = {}  # the sentences of this process, where they are to be rewritten
places = {}  # folder -> the word for it in the file; conftest knows them
_asked = {}  # test -> how many errors it has asked for in this run


@contextmanager
def refused(about, kind=UserError, is_kept=True):
    """The lines inside raise ``kind``, which is about ``about`` and says what to do.

    Yields what ``pytest.raises`` yields.

    Args:
        about: a part of ``error.about``.
        is_kept: whether the sentence stands in `tests/messages.txt`. Not where it depends on the
            machine or on the version of a library.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind, f"a {type(error).__name__}: {error}"
    assert str(about), "say what the error has to be about"
    assert str(about) in error.about, f"not about {about}: {error!r}"
    assert error.fix, f"says not what to do: {error}"
    if is_kept:
        check_sentence(str(error))


def check_sentence(sentence):
    """``sentence`` is what `tests/messages.txt` holds for this test."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0].removeprefix("tests/")
    _asked[test] = count = _asked.get(test, 0) + 1
    key = test if count == 1 else f"{test} #{count}"
    assert not any(folder in key for folder in places), f"a path of this machine in {key}"
    sentence = _without_places(sentence)
    if "SILC_BENCH_REWRITE_MESSAGES" in os.environ:
        rewritten[key] = sentence
        return
    assert sentence == sentences().get(key), f"tests/messages.txt has another sentence for {key}"


def _without_places(sentence):
    # the longest first, because a folder may lie in another one
    for folder in sorted(places, key=len, reverse=True):
        # pytest numbers the folders of a test
        number = r"/[\w.-]*?\d+(?![\w.-])" if places[folder] == "TMP" else ""
        sentence = re.sub(re.escape(folder) + number, places[folder], sentence)
    sentence = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", sentence)
    # what a library says is its own affair, as is how large a file it writes: the next release
    # says it otherwise
    sentence = re.sub(r"\([\d,]+ bytes([;:])", r"(N bytes\1", sentence)
    return re.sub(r"\b([A-Z]\w*(?:Error|File|Exception)): .*?(?=[;)]|$)", r"\1: ...", sentence)


@cache
def sentences():
    """{test: sentence} of the file."""
    lines = MESSAGES.read_text(encoding="utf-8").splitlines() if MESSAGES.exists() else []
    lines = [line for line in lines if not line.startswith("#")]
    return dict(zip(lines[::2], (line.strip() for line in lines[1::2]), strict=True))


def write(seen):
    """Write the file: what was seen now, and what other tests said before, as far as they exist."""
    kept = {key: sentence for key, sentence in sentences().items() if _is_there(key)}
    ran = {_test(key) for key in seen}
    kept = {key: sentence for key, sentence in kept.items() if _test(key) not in ran}
    entries = [f"{key}\n    {sentence}\n" for key, sentence in sorted((kept | seen).items())]
    MESSAGES.write_text(HEAD + "".join(entries), encoding="utf-8")


def _test(key):
    return key.rpartition(" #")[0] or key


def _is_there(key):
    file, _, name = key.partition("::")
    name = re.split(r"[\[ ]", name.rpartition("::")[2])[0]
    path = TESTS / file
    return path.exists() and f"def {name}(" in path.read_text(encoding="utf-8")
