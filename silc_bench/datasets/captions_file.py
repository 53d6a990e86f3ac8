"""A list of pictures with captions, as people write it: ``.jsonl`` with an object a line, ``.csv`` or ``.tsv`` with a header.

A column names the picture (PICTURE_COLUMNS), relative to the list or to ``images/`` beside it; another holds the caption, or in
JSON the list of captions (CAPTION_COLUMNS). Rows of the same picture are its captions in order.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from silc_bench.datasets.picture_set import DataError, Picture
from silc_bench.errors import UserError

PICTURE_COLUMNS = ("file", "filepath", "filename", "file_name", "image", "image_path", "path")
CAPTION_COLUMNS = ("captions", "caption", "title", "text")
ENDINGS = (".jsonl", ".csv", ".tsv")


def read_captions_file(path: Path) -> tuple[list[Picture], list[str]]:
    """Pictures in the order of their first row, and notes.

    Raises:
        DataError: unknown columns, an unreadable line, a row without caption, pictures that are not there.
        UserError: no such file, or of an unknown kind.
    """
    text = read_text(path)
    captions: dict[Path, list[str]] = {}
    repeated = 0
    for number, name, own, _ in rows(path, text):
        picture = locate(path, name)
        known = captions.setdefault(picture, [])
        if not own or not all(own):
            raise DataError(f"{path}:{number}: {name} has an empty caption", "write one, or remove the row")
        repeated += len([caption for caption in own if caption in known])
        known += own
    if not captions:
        raise DataError(f"{path} lists no pictures", "add a row for each picture")
    missing = [picture for picture in captions if not picture.is_file()]
    if missing:
        problem = f"{len(missing):,} of the {len(captions):,} pictures of {path} are missing, such as {missing[0]}"
        raise DataError(problem, f"file names are relative to {path.parent} or to {path.parent / 'images'}")
    notes = [f"{repeated} rows repeat a caption of their picture"] if repeated else []
    return [
        Picture(picture, (0, picture.stat().st_size), str(picture), captions=tuple(own)) for picture, own in captions.items()
    ], notes


def read_text(path: Path) -> str:
    """Raises DataError for what is not UTF-8, UserError for no such file or one of an unknown kind."""
    kinds = ", ".join(ENDINGS)
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a list of pictures and captions ({kinds})")
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: a list of captions is a file {kinds}, not {path.suffix or 'one without ending'}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start:,})", f"iconv -f LATIN1 -t UTF-8 {path} > utf8{path.suffix}"
        ) from error


def rows(path: Path, text: str) -> Iterator[tuple[int, str, list[str], dict[str, Any]]]:
    """(line, name of the picture, captions, the whole row) of each row. Raises DataError as ``read_captions_file`` does."""
    found = _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)
    columns: tuple[str, str] | None = None
    for number, row in found:
        columns = columns or _columns(path, row)
        picture_column, caption_column = columns
        name, own = row.get(picture_column), row.get(caption_column)
        own = [own] if isinstance(own, str) else own
        if not isinstance(name, str) or not isinstance(own, list) or not all(isinstance(caption, str) for caption in own):
            fix = "every row has a file name and a caption, or a list of captions"
            raise DataError(f"{path}:{number}: {picture_column!r} or {caption_column!r} is missing or no text", fix)
        yield number, name.strip(), [caption.strip() for caption in own], row


def _columns(path: Path, row: dict[str, Any]) -> tuple[str, str]:
    found = []
    for what, known in (("picture", PICTURE_COLUMNS), ("caption", CAPTION_COLUMNS)):
        column = next((name for name in known if name in row), None)
        if column is None:
            has = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{path} has no column of {what}s: it has {has}", f"call it one of {', '.join(known)}")
        found.append(column)
    return found[0], found[1]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number} is not JSON: {error}", "write one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number} holds a {type(row).__name__}, not an object", "write one object a line")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    head = text.partition("\n")[0]
    is_tabbed = path.suffix.lower() == ".tsv" or ("\t" in head and "," not in head)  # open_clip's .csv are tabbed
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if is_tabbed else ",", strict=True)
    try:
        for row in rows:
            if None in row:
                fix = 'put captions that hold commas in double quotes: "a dog, running"'
                raise DataError(f"{path}:{rows.line_num} has more fields than the header", fix)
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num} cannot be read: {error}", "quote fields as CSV does") from error


def locate(path: Path, name: str) -> Path:
    """Where a list's picture lies: relative to the list, or to ``images/`` beside it."""
    direct = path.parent / name
    beside = path.parent / "images" / name
    return beside if not direct.is_file() and beside.is_file() else direct
