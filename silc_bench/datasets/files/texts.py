"""Texts that people wrote, read alike everywhere: lists, names, prompts, captions in shards.

A text is UTF-8, with or without the mark that Windows writes before it, or UTF-16 and UTF-32 with
such a mark. Anything else is refused, because letters that were guessed wrongly would be asked and
scored without a word. A line ends with LF, CR LF or CR: the other ends that Python's
``splitlines`` knows (U+2028, U+0085, VT ...) are letters of a caption.

Flow: ``decode_text(data, path)`` -> ``lines_of(text)``. Training counts what cannot be read and
goes on: it asks ``text_of``.
"""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

from silc_bench.errors import DataError

# UTF-32 first: its mark begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile("\r\n|\r|\n")
_NOT_ASCII = re.compile(rb"[\x80-\xff]+")
MARK = "\ufeff"


def text_of(data: bytes) -> str:
    """The text without the mark at its start. Raises UnicodeDecodeError for another encoding."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    return data.decode(encoding)


def decode_text(data: bytes, about: object, path: Path | None = None) -> str:
    """As ``text_of``; what it raises is a sentence.

    Args:
        about: where the text lies, for people.
        path: the file that holds nothing else; None: a member of a shard.

    Raises:
        DataError: another encoding. The fix names it where its bytes tell.
    """
    try:
        return text_of(data)
    except UnicodeDecodeError as error:
        name = likely_encoding(data)
        problem = f"it is not UTF-8 (byte {error.start:,})"
        problem += f", but looks like {name}" if name else ""
        if path is None:
            fix = "write the texts as UTF-8"
        else:
            file, new = shlex.quote(str(path)), shlex.quote(f"{path}.utf8")
            fix = f"iconv -f {name or 'ENCODING'} -t UTF-8 {file} > {new} && mv {new} {file}"
            fix += "" if name else ", where ENCODING may be GB18030, SHIFT_JIS or WINDOWS-1251"
        raise DataError(problem, about=about, fix=fix) from error


def read_text(path: Path) -> str:
    """The text of a file. Raises DataError as ``decode_text`` does, OSError where it is gone."""
    return decode_text(path.read_bytes(), path, path)


def lines_of(text: str) -> list[str]:
    """Its lines, stripped, without empty ones."""
    # files that were put together have a mark at the start of each
    lines = (line.strip().lstrip(MARK).strip() for line in _LINE_END.split(text))
    return [line for line in lines if line]


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """(number from 1, line as it is) of all lines."""
    return list(enumerate(_LINE_END.split(text), start=1))


def likely_encoding(data: bytes) -> str | None:
    """What bytes that are no UTF-8 may be, as ``iconv`` calls it; None where they do not tell."""
    # of letters from Western languages every second byte is zero
    for start, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        half = data[start::2]
        if half and half.count(0) > len(half) // 2:
            return name

    # in Western languages letters with accents stand between plain ones; elsewhere they are words
    runs = _NOT_ASCII.findall(data)
    is_western = bool(runs) and sum(map(len, runs)) <= 1.5 * len(runs)
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        is_western = False
    return "WINDOWS-1252" if is_western else None
