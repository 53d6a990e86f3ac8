"""Pictures in one folder a class, or a tar of such folders: labels from the folders' names, never
from their place in a sort.

``read_class_folders(listing, {"n01440764": 0, ...}, "imagenet1k")`` -> pictures sorted by label,
then by file name.

A list of pictures with captions, as people write it: ``.jsonl`` with an object a line, ``.csv`` or
``.tsv`` with a header.

A column names the picture (PICTURE_COLUMNS), relative to the list or to ``images/`` beside it;
another holds the caption, or in JSON the list of captions (CAPTION_COLUMNS). Rows of the same
picture are its captions in order.

Webdataset shards with labels or captions: ``.jpg .cls`` and ``.jpg .txt``, as clip_benchmark and
img2dataset write them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from silc_bench.datasets.files.folders import File, Listing, by_number, is_stray
from silc_bench.datasets.files.shards import IMAGE_EXTENSIONS, Sample, index_shard, read_member
from silc_bench.datasets.image_set import Picture
from silc_bench.errors import DataError, UserError, unknown_name


def read_class_folders(
    found: Listing, labels: Mapping[str, int], title: str, normalise: Callable[[str], str] = str
) -> tuple[list[Picture], list[str]]:
    """Pictures with labels, and notes on what was passed over.

    Args:
        labels: of each class, by the name of its folder after ``normalise``.

    Raises:
        DataError: a folder is missing, or two are one class. UserError: a folder is no class.
    """
    is_folder = found.path.is_dir()
    outside = [file for file in found.files if "/" not in file.name]
    by_key: dict[str, list[File]] = {key: [] for key in found.folders} if is_folder else {}
    for file in found.files:
        if "/" in file.name:
            by_key.setdefault(file.name.split("/")[0] if is_folder else file.folder, []).append(
                file
            )
    keys: dict[str, str] = {}
    for key in sorted(by_key):
        plain = normalise(key)
        if plain in keys:
            raise DataError(
                f"{found.path} has two folders for one class: {keys[plain]!r} and {key!r}",
                "keep one of them",
            )
        keys[plain] = key
    _check_keys(found, keys, labels, title)
    pictures = [
        Picture(file.path, file.place, file.where, labels[plain])
        for plain in sorted(keys, key=labels.__getitem__)
        for file in by_key[keys[plain]]
    ]
    notes = found.notes()
    if outside:
        notes.append(
            f"skipped {len(outside)} pictures outside the class folders, such as {outside[0].name}"
        )
    return pictures, notes


def _check_keys(
    found: Listing, keys: Mapping[str, str], labels: Mapping[str, int], title: str
) -> None:
    unknown = sorted(set(keys) - set(labels))
    if unknown and all(key.isdecimal() for key in unknown):
        problem = f"{found.path}: the class folders are numbered ({unknown[0]!r} ...), and a number alone is no class of {title}"
        raise DataError(problem, f"name them as the set does, such as {next(iter(labels))!r}")
    if unknown:
        raise unknown_name(f"class folder in {found.path}", unknown[0], labels)
    missing = sorted(set(labels) - set(keys), key=labels.__getitem__)
    if missing:
        problem = f"{found.path} lacks {len(missing)} of the {len(labels)} class folders, such as {missing[0]!r}"
        raise DataError(problem, f"fetch {title} again, or the folders that are missing")


PICTURE_COLUMNS = ("file", "filepath", "filename", "file_name", "image", "image_path", "path")
CAPTION_COLUMNS = ("captions", "caption", "title", "text")
ENDINGS = (".jsonl", ".csv", ".tsv")


def read_captions_file(path: Path) -> tuple[list[Picture], list[str]]:
    """Pictures in the order of their first row, and notes.

    Raises:
        DataError: unknown columns, an unreadable line, a row without caption, pictures that are not
        there. UserError: no such file, or of an unknown kind.
    """
    text = read_text(path)
    captions: dict[Path, list[str]] = {}
    repeated = 0
    for number, name, own, _ in rows(path, text):
        picture = locate(path, name)
        known = captions.setdefault(picture, [])
        if not own or not all(own):
            raise DataError(
                f"{path}:{number}: {name} has an empty caption", "write one, or remove the row"
            )
        repeated += len([caption for caption in own if caption in known])
        known += own
    if not captions:
        raise DataError(f"{path} lists no pictures", "add a row for each picture")
    missing = [picture for picture in captions if not picture.is_file()]
    if missing:
        problem = f"{len(missing):,} of the {len(captions):,} pictures of {path} are missing, such as {missing[0]}"
        raise DataError(
            problem, f"file names are relative to {path.parent} or to {path.parent / 'images'}"
        )
    notes = [f"{repeated} rows repeat a caption of their picture"] if repeated else []
    return [
        Picture(picture, (0, picture.stat().st_size), str(picture), captions=tuple(own))
        for picture, own in captions.items()
    ], notes


def read_text(path: Path) -> str:
    """Raises DataError for what is not UTF-8, UserError for no such file or one of an unknown
    kind.
    """
    kinds = ", ".join(ENDINGS)
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a list of pictures and captions ({kinds})")
    if path.suffix.lower() not in ENDINGS:
        raise UserError(
            f"{path}: a list of captions is a file {kinds}, not {path.suffix or 'one without ending'}"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start:,})",
            f"iconv -f LATIN1 -t UTF-8 {path} > utf8{path.suffix}",
        ) from error


def rows(path: Path, text: str) -> Iterator[tuple[int, str, list[str], dict[str, Any]]]:
    """(line, name of the picture, captions, the whole row) of each row. Raises DataError as
    ``read_captions_file`` does.
    """
    found = _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)
    columns: tuple[str, str] | None = None
    for number, row in found:
        columns = columns or _columns(path, row)
        picture_column, caption_column = columns
        name, own = row.get(picture_column), row.get(caption_column)
        own = [own] if isinstance(own, str) else own
        if (
            not isinstance(name, str)
            or not isinstance(own, list)
            or not all(isinstance(caption, str) for caption in own)
        ):
            fix = "every row has a file name and a caption, or a list of captions"
            raise DataError(
                f"{path}:{number}: {picture_column!r} or {caption_column!r} is missing or no text",
                fix,
            )
        yield number, name.strip(), [caption.strip() for caption in own], row


def _columns(path: Path, row: dict[str, Any]) -> tuple[str, str]:
    found = []
    for what, known in (("picture", PICTURE_COLUMNS), ("caption", CAPTION_COLUMNS)):
        column = next((name for name in known if name in row), None)
        if column is None:
            has = ", ".join(map(repr, row)) or "none"
            raise DataError(
                f"{path} has no column of {what}s: it has {has}",
                f"call it one of {', '.join(known)}",
            )
        found.append(column)
    return found[0], found[1]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}:{number} is not JSON: {error}", "write one object a line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{number} holds a {type(row).__name__}, not an object",
                "write one object a line",
            )
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    head = text.partition("\n")[0]
    is_tabbed = path.suffix.lower() == ".tsv" or (
        "\t" in head and "," not in head
    )  # open_clip's .csv are tabbed
    rows = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if is_tabbed else ",", strict=True
    )
    try:
        for row in rows:
            if None in row:
                fix = 'put captions that hold commas in double quotes: "a dog, running"'
                raise DataError(f"{path}:{rows.line_num} has more fields than the header", fix)
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{path}:{rows.line_num} cannot be read: {error}", "quote fields as CSV does"
        ) from error


def locate(path: Path, name: str) -> Path:
    """Where a list's picture lies: relative to the list, or to ``images/`` beside it."""
    direct = path.parent / name
    beside = path.parent / "images" / name
    return beside if not direct.is_file() and beside.is_file() else direct


def shards_in(folder: Path) -> list[Path]:
    """The ``*.tar`` directly in a folder, "9.tar" before "10.tar".

    Raises:
        DataError: another number of them than the ``nshards.txt`` beside them promises.
    """
    paths = sorted(
        (path for path in folder.glob("*.tar") if not is_stray(path.name)),
        key=lambda path: by_number(path.name),
    )
    promise = folder / "nshards.txt"
    if paths and promise.exists():
        text = promise.read_text(encoding="utf-8", errors="replace").strip()
        if text != str(len(paths)):
            raise DataError(
                f"{promise} promises {text[:20]} shards, and {len(paths)} are there",
                "fetch the missing shards",
            )
    return paths


def read_labelled(
    paths: Sequence[Path], num_classes: int | None, with_captions: bool = False
) -> list[Picture]:
    """Pictures with the label of their ``.cls``, in the order of the shards.

    ``num_classes`` bounds the labels; None leaves them open above.

    Raises:
        UserError: a damaged shard, a sample without picture or label, a label that is none.
    """
    return [
        _labelled(path, sample, num_classes, with_captions)
        for path in paths
        for sample in _samples(path)
    ]


def read_captioned(paths: Sequence[Path]) -> list[Picture]:
    """Pictures with the captions of their ``.txt``, one a line. Raises UserError as
    ``read_labelled`` does.
    """
    pictures = []
    for path in paths:
        for sample in _samples(path):
            picture, where = _picture(path, sample, "txt", "caption")
            text = read_member(path, sample.members["txt"]).decode("utf-8", errors="replace")
            captions = tuple(line.strip() for line in text.splitlines() if line.strip())
            if not captions:
                raise DataError(
                    f"{where} has an empty caption",
                    "a sample to be retrieved needs words; remove it",
                )
            pictures.append(Picture(path, picture, where, captions=captions))
    return pictures


def has_member(paths: Sequence[Path], extension: str) -> bool:
    """Whether the first sample has a member of this extension."""
    samples = index_shard(paths[0]).samples
    return bool(samples) and extension in samples[0].members


def read_names(path: Path) -> list[str]:
    """Class names in label order, from classnames.txt (one a line) or .json (a list). Raises
    UserError for anything else.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path} must hold a list of class names in label order")
    return names


def _samples(path: Path) -> Sequence[Sample]:
    shard = index_shard(path)
    if shard.damage.total:
        raise DataError(
            f"a damaged shard cannot be scored: {shard.damage.summary()}",
            f"fetch {path.name} again",
        )
    return shard.samples


def _picture(
    path: Path, sample: Sample, other: str, other_name: str
) -> tuple[tuple[int, int], str]:
    """Place of the picture, and its name for messages."""
    where = f"{path}:{sample.key}"
    picture = next((sample.members[ext] for ext in IMAGE_EXTENSIONS if ext in sample.members), None)
    if picture is None or other not in sample.members:
        has = ", ".join(f".{ext}" for ext in sample.members)
        raise UserError(
            f"{where} needs a picture ({', '.join(IMAGE_EXTENSIONS)}) and a {other_name} (.{other}); it has {has}"
        )
    return picture, where


def _labelled(path: Path, sample: Sample, num_classes: int | None, with_captions: bool) -> Picture:
    picture, where = _picture(path, sample, "cls", "label")
    text = read_member(path, sample.members["cls"]).strip()
    label = int(text) if text.isdigit() and len(text) < 8 else -1
    if label < 0 or (num_classes is not None and label >= num_classes):
        last = "up" if num_classes is None else f"to {num_classes - 1}"
        raise UserError(f"{where} has the label {text[:20]!r}; a label is a number from 0 {last}")
    captions: tuple[str, ...] = ()
    if with_captions and "txt" in sample.members:
        captions = (
            read_member(path, sample.members["txt"]).decode("utf-8", errors="replace").strip(),
        )
    return Picture(path, picture, where, label, captions)
