"""The layouts in which people keep labels and captions: class folders, lists and shards.

- Class folders: one folder a class, or a tar of such folders. A label comes from the folder's
  name, never from its place in a sort. ``read_class_folders(listing, {"n01440764": 0, ...},
  "imagenet1k")`` -> images sorted by label, then by file name.
- A list of captions, as people write it: ``.jsonl`` with an object a line, ``.json`` with a list
  of objects or in COCO's form (``images`` and ``annotations``), or ``.csv`` or ``.tsv`` with a
  header; in a .tsv quotes are letters. One column (IMAGE_COLUMNS) names the image, relative to the
  list or to ``images/`` beside it; another (CAPTION_COLUMNS) holds the caption, or in JSON
  the list of captions. Rows of the same image are its captions, in order.
- Webdataset shards: ``.jpg .cls`` and ``.jpg .txt``, as clip_benchmark and img2dataset write them.

Each reader gives ``ImageFile``s and decodes none of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from silc_bench.datasets.files.folders import (
    FILE_EXTENSIONS,
    File,
    Listing,
    by_number,
    ending_of,
    is_stray,
)
from silc_bench.datasets.files.images import IMAGE_EXTENSIONS, SAVE_AS
from silc_bench.datasets.files.shards import (
    Sample,
    check_whole,
    index_shard,
    read_member,
)
from silc_bench.datasets.files.texts import (
    decode_text,
    lines_of,
    numbered_lines,
    read_text,
)
from silc_bench.datasets.image_set import ImageFile, image_file
from silc_bench.errors import DataError, UserError, first_line, unknown_name
from silc_bench.system.terminal import counted

# ---- class folders ----


def read_class_folders(
    content: Listing, labels: Mapping[str, int], title: str, normalise: Callable[[str], str] = str
) -> tuple[list[ImageFile], list[str]]:
    """Images with labels, and notes on what was passed over.

    Args:
        content: the files of the folder or tar.
        labels: of each class, by the name of its folder after ``normalise``.

    Raises:
        DataError: a folder is missing, or two are one class.
        UserError: a folder is no class.
    """
    # in a folder the class is the first level, so that a class may have subfolders; in a tar it
    # is the last, because a tar may be packed with folders above the classes
    is_folder = content.path.is_dir()

    # a folder without files is listed too: an empty class is a class
    files_of: dict[str, list[File]] = {}
    if is_folder:
        files_of = {folder: [] for folder in content.folders}

    outside = []
    for file in content.files:
        if "/" not in file.name:
            outside.append(file)
            continue
        folder = file.name.split("/")[0] if is_folder else file.folder
        files_of.setdefault(folder, []).append(file)

    # two spellings of one class ("007" and "7") would be scored as one, without a word
    folder_of: dict[str, str] = {}
    for folder in sorted(files_of):
        key = normalise(folder)
        if key in folder_of:
            problem = f"{folder_of[key]!r} and {folder!r} are two folders of one class"
            raise DataError(problem, about=content.path, fix="keep one of them")
        folder_of[key] = folder
    _check_keys(content, folder_of, labels, title)

    images = []
    for key in sorted(folder_of, key=labels.__getitem__):
        for file in files_of[folder_of[key]]:
            images.append(ImageFile(file.path, file.place, file.where, labels[key]))

    notes = content.notes()
    if outside:
        first = outside[0].name
        notes.append(
            f"skipped {counted(len(outside), 'image')} outside the class folders, such as {first}"
        )
    return images, notes


def _check_keys(
    content: Listing, keys: Mapping[str, str], labels: Mapping[str, int], title: str
) -> None:
    """Raise where the class folders (``keys``) and the classes (``labels``) are not the same."""
    unknown = sorted(set(keys) - set(labels))

    # which class a number means depends on who numbered them: that is never guessed
    if unknown and all(key.isdecimal() for key in unknown):
        problem = (
            f"the class folders are numbered ({unknown[0]!r} ...),"
            f" and a number alone is no class of {title}"
        )
        fix = f"name them as the set does, such as {next(iter(labels))!r}"
        raise DataError(problem, about=content.path, fix=fix)
    if unknown:
        raise unknown_name("class folder", unknown[0], labels, about=content.path)

    missing = sorted(set(labels) - set(keys), key=labels.__getitem__)
    if missing:
        problem = (
            f"{len(missing)} of the {len(labels)} class folders are missing, such as {missing[0]!r}"
        )
        fix = f"fetch {title} again, or the folders that are missing"
        raise DataError(problem, about=content.path, fix=fix)


# ---- lists of captions ----

IMAGE_COLUMNS = ("file", "filepath", "filename", "file_name", "image", "image_path", "path")
CAPTION_COLUMNS = ("captions", "caption", "title", "text")
ENDINGS = (".jsonl", ".csv", ".tsv")
LIST_ENDINGS = (*ENDINGS, ".json")  # of a list that is named; beside images a .json is one image's
ONE_OBJECT = "write one object a line"


def read_captions_file(path: Path) -> tuple[list[ImageFile], list[str]]:
    """Images in the order of their first row, and notes.

    Raises:
        DataError: unknown columns, an unreadable line, a row without caption, images that are not
            there.
        UserError: no such file, or one of an unknown kind.
    """
    captions: dict[Path, list[str]] = {}
    num_repeated = 0
    quoted: list[str] = []
    for where, name, row_captions, _ in rows(path):
        if not row_captions or not all(row_captions):
            problem = f"the caption of {name} is empty"
            raise DataError(problem, about=where, fix="write one, or remove the row")
        try:
            image = locate(path, name)
        except OSError as error:  # a name of a thousand letters, such as a caption in its place
            problem = f"{name[:60]!r} can be no file ({error.strerror})"
            fix = "write where the image lies, relative to the list"
            raise DataError(problem, about=where, fix=fix) from error
        known = captions.setdefault(image, [])
        num_repeated += sum(caption in known for caption in row_captions)
        known += row_captions
        if path.suffix.lower() == ".tsv":
            quoted += [where for caption in row_captions if is_quoted(caption)]

    if not captions:
        raise DataError("the list names no image", about=path, fix="add a row for each image")

    missing = [image for image in captions if not image.is_file()]
    if missing:
        problem = (
            f"{len(missing):,} of the {len(captions):,} images are missing, such as {missing[0]}"
        )
        fix = "give file names that are relative to the list, or to images/ beside it"
        raise DataError(problem, about=path, fix=fix)

    repeated = counted(num_repeated, "row repeats", "rows repeat")
    notes = [f"{repeated} a caption of the same image"] if num_repeated else []
    if quoted:
        notes.append(QUOTED.format(counted(len(quoted), "caption"), quoted[0]))
    images = [
        image_file(image, captions=tuple(image_captions))
        for image, image_captions in captions.items()
    ]
    return images, notes


def rows(path: Path) -> Iterator[tuple[str, str, list[str], dict[str, Any]]]:
    """(file:line, name of the image, captions, the whole row) of each row of a list of captions.

    Raises:
        DataError: as ``read_captions_file`` does.
        UserError: no such file, or one of an unknown kind.
    """
    for row in raw_rows(path):
        if row.error is not None:
            raise row.error
        captions = [row.captions] if isinstance(row.captions, str) else row.captions

        is_whole = isinstance(row.name, str) and isinstance(captions, list)
        if not is_whole or not all(isinstance(caption, str) for caption in captions):
            problem = f"{row.image_column!r} or {row.caption_column!r} is missing or no text"
            fix = "give every row a file name and a caption, or a list of captions"
            raise DataError(problem, about=row.where, fix=fix)
        captions = [caption.strip() for caption in captions]
        yield row.where, row.name.strip(), captions, row.fields


class RawRow(NamedTuple):
    """A line of a list as it is: whether its parts mean anything is the reader's to say."""

    where: str  # file:line
    error: DataError | None  # why the line is no row; then the rest says nothing
    name: Any  # of the image
    captions: Any
    fields: dict[str, Any]
    image_column: str
    caption_column: str


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Every line of a list of captions.

    Raises:
        DataError: not UTF-8, unknown columns, quotes that are never closed.
        UserError: no such file, or one of an unknown kind.
    """
    kinds = ", ".join(LIST_ENDINGS)
    if not path.exists():
        fix = f"name a list of images and captions ({kinds})"
        raise UserError("no such file", about=path, fix=fix)
    if path.suffix.lower() not in LIST_ENDINGS:
        problem = "it has not the ending of a list of captions"
        raise UserError(problem, about=path, fix=f"name a file that ends in one of {kinds}")

    text = read_text(path)
    read_rows = {".jsonl": _json_rows, ".json": _listed_rows}.get(path.suffix.lower(), _csv_rows)
    columns: tuple[str, str] | None = None
    for number, fields in read_rows(path, text):
        where = f"{path}:{number}"
        if isinstance(fields, DataError):
            yield RawRow(where, fields, None, None, {}, "", "")
            continue

        # the first row decides, so that a list means one thing from its first to its last line
        columns = columns or _columns(path, fields)
        name, captions = (fields.get(column) for column in columns)
        yield RawRow(where, None, name, captions, fields, *columns)


def _columns(path: Path, row: dict[str, Any]) -> tuple[str, str]:
    """Names of the columns of images and of captions."""
    columns = []
    for kind, known in (("image", IMAGE_COLUMNS), ("caption", CAPTION_COLUMNS)):
        column = next((name for name in known if name in row), None)
        if column is None:
            names = ", ".join(map(repr, row)) or "none"
            problem = f"the list has no column of {kind}s: it has {names}"
            raise DataError(problem, about=path, fix=f"call it one of {', '.join(known)}")
        columns.append(column)
    return columns[0], columns[1]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    for number, line in numbered_lines(text):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter for brackets within brackets
            problem = f"it is not JSON ({first_line(error)})"
            yield number, DataError(problem, about=f"{path}:{number}", fix=ONE_OBJECT)
            continue
        if not isinstance(row, dict):
            problem = f"it holds a {type(row).__name__}, not an object"
            yield number, DataError(problem, about=f"{path}:{number}", fix=ONE_OBJECT)
            continue
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    # open_clip's .csv are tabbed, and quoted as pandas writes them
    is_tsv = path.suffix.lower() == ".tsv"
    lines = [line for _, line in numbered_lines(text)]
    is_tabbed = is_tsv or ("\t" in lines[0] and "," not in lines[0])
    delimiter = "\t" if is_tabbed else ","

    # newline="": the csv module must see line ends itself, as a quoted caption may hold them. The
    # lines of a .tsv are its rows: a quote that is never closed would swallow those behind it.
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if twice:
            problem = f"it has two columns called {twice[0]!r}"
            raise DataError(problem, about=path, fix="rename one")

        last = reader.line_num
        for row in reader:
            while not lines[last]:
                last += 1  # the reader passes over empty lines
            row_lines = lines[last : reader.line_num]
            images = _lines_with_images(row_lines, delimiter, row) if len(row_lines) > 1 else []
            if len(images) > 1:
                problem = f"a quoted field goes on through {images[1][:60]!r}, which is another row"
                fix = "close the quote, or double it where it is a letter of the caption"
                raise DataError(problem, about=f"{path}:{last + 1}", fix=fix)
            last = reader.line_num

            # DictReader keeps the fields beyond the header under None
            if None in row:
                problem = "it has more fields than the header"
                fix = 'put captions that hold commas in double quotes: "a dog, running"'
                where = f"{path}:{reader.line_num}"
                yield reader.line_num, DataError(problem, about=where, fix=fix)
                continue
            yield reader.line_num, row
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        fix = "quote fields as CSV does"
        raise DataError(f"it is not CSV ({first_line(error)})", about=where, fix=fix) from error


def _lines_with_images(lines: list[str], delimiter: str, columns: Iterable[str]) -> list[str]:
    """Lines that have a name of an image where the column of images is.

    Of the lines of one row one has: a caption of several lines has no such name there.
    """
    places = [place for place, name in enumerate(columns) if name in IMAGE_COLUMNS]
    found = []
    for line in lines:
        fields = line.split(delimiter)
        names = [fields[place].strip(' "') for place in places if place < len(fields)]
        if any(ending_of(name) in FILE_EXTENSIONS for name in names):
            found.append(line)
    return found


def _listed_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a list, or COCO's captions, numbered from 1."""
    fix = 'write [{"image": "a.jpg", "caption": "..."}], or name a file of COCO\'s captions'
    content = _parsed(text, path, fix)
    if isinstance(content, dict):
        content = _coco_rows(content, path, fix)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError("it is no list of objects", about=path, fix=fix)
    yield from enumerate(content, start=1)


def _coco_rows(content: dict[str, Any], path: Path, fix: str) -> list[dict[str, Any]]:
    """A row each image, with all its captions, in the order of ``images``."""
    try:
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        return [
            {"file_name": image["file_name"], "captions": captions[image["id"]]}
            for image in content["images"]
        ]
    except (KeyError, TypeError) as error:
        problem = f"it holds no captions in COCO's form ({first_line(error)})"
        raise DataError(problem, about=path, fix=fix) from error


# a caption that begins and ends with a quote, as if they did not belong to it
QUOTED = "{} in quotes, which are letters in a .tsv, the first: {}"


def is_quoted(caption: str) -> bool:
    return len(caption) > 1 and caption[0] == caption[-1] == '"'


def locate(path: Path, name: str) -> Path:
    """Where a list's image lies: relative to the list, or to ``images/`` beside it.

    COCO's lists lie in ``annotations/``, and their images in ``val2017/`` beside it, as the end of
    ``captions_val2017.json`` says.
    """
    direct = path.parent / name
    if direct.is_file():
        return direct
    split = path.stem.rpartition("_")[2]
    homes = [path.parent / "images"]
    if path.suffix.lower() == ".json":
        homes += [path.parent / split, path.parent.parent / split]
        homes.append(path.parent.parent / "images" / split)
    return next((home / name for home in homes if (home / name).is_file()), direct)


# ---- webdataset shards ----


def shards_in(folder: Path) -> list[Path]:
    """The ``*.tar`` directly in a folder, "9.tar" before "10.tar".

    Raises:
        DataError: another number of them than the ``nshards.txt`` beside them promises.
    """
    tars = [path for path in folder.glob("*.tar") if not is_stray(path.name)]
    tars.sort(key=lambda path: by_number(path.name))

    # clip_benchmark's export writes nshards.txt: a download that broke off shows by it
    promise = folder / "nshards.txt"
    if tars and promise.exists():
        text = promise.read_text(encoding="utf-8", errors="replace").strip()
        if text != str(len(tars)):
            problem = f"it promises {text[:20]} shards, and {len(tars)} are there"
            raise DataError(problem, about=promise, fix="fetch the missing shards")
    return tars


def read_labelled(
    paths: Sequence[Path], num_classes: int | None, with_captions: bool = False
) -> list[ImageFile]:
    """Images with the label of their ``.cls``, in the order of the shards.

    ``num_classes`` bounds the labels; None leaves them open above.

    Raises:
        UserError: a damaged shard, a sample without image or label, a label that is none.
    """
    images = []
    for image, sample, text in _samples(paths, "cls", "label"):
        # read as bytes: bytes.isdigit() takes ASCII digits only, and no sign
        text = text.strip()
        label = int(text) if text.isdigit() and len(text) < 8 else -1
        if label < 0 or (num_classes is not None and label >= num_classes):
            last = "up" if num_classes is None else f"to {num_classes - 1}"
            fix = f"give a number from 0 {last}"
            raise UserError(f"{text[:20]!r} is no label", about=image.where, fix=fix)

        captions: tuple[str, ...] = ()
        if with_captions and "txt" in sample.members:
            data = read_member(image.path, sample.members["txt"])
            captions = (decode_text(data, image.where).strip(),)
        images.append(replace(image, label=label, captions=captions))
    return images


def read_captioned(paths: Sequence[Path]) -> list[ImageFile]:
    """Images with the captions of their ``.txt``, one a line.

    Raises:
        UserError: as ``read_labelled`` does.
    """
    images = []
    for image, _, text in _samples(paths, "txt", "caption"):
        # a line a caption: a set for retrieval has several of each image
        captions = tuple(lines_of(decode_text(text, image.where)))
        if not captions:
            raise DataError("its caption is empty", about=image.where, fix="remove the sample")
        images.append(replace(image, captions=captions))
    return images


def _samples(
    paths: Sequence[Path], extension: str, content: str
) -> Iterator[tuple[ImageFile, Sample, bytes]]:
    """Each sample: its image, its members, and the bytes of the member that is asked for."""
    for path in paths:
        shard = index_shard(path)
        check_whole(path, shard.damage)
        for sample in shard.samples:
            where = f"{path}:{sample.key}"
            place = sample.image
            if place is None or extension not in sample.members:
                members = ", ".join(f".{ext}" for ext in sample.members)
                endings = ", ".join(f".{ext}" for ext in IMAGE_EXTENSIONS)
                fix = f"give it an image ({endings}) and a {content} (.{extension})"
                if place is None and sample.unread:
                    fix = f"its .{sample.unread} is not read: save it {SAVE_AS}"
                raise UserError(f"the sample has only {members}", about=where, fix=fix)
            data = read_member(path, sample.members[extension])
            yield ImageFile(path, place, where), sample, data


def has_member(paths: Sequence[Path], extension: str) -> bool:
    """Whether the first sample has a member of this extension."""
    samples = index_shard(paths[0]).samples
    return bool(samples) and extension in samples[0].members


def read_names(path: Path) -> list[str]:
    """Class names in label order, from classnames.txt (one a line) or .json (a list).

    Raises:
        UserError: the file holds anything else.
    """
    if path.suffix == ".txt":
        return lines_of(read_text(path))

    names = read_json(path, NAMES_IN_ORDER)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError("it is no list of names", about=path, fix=NAMES_IN_ORDER)
    return names


NAMES_IN_ORDER = "write a list of the class names in label order"


def read_json(path: Path, fix: str) -> Any:
    """What a file of JSON holds. Raises DataError with this fix where it holds none."""
    try:
        text = read_text(path)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
        raise DataError(problem, about=path, fix=fix) from error
    return _parsed(text, path, fix)


def _parsed(text: str, path: Path, fix: str) -> Any:
    """JSON; of a name that stands twice in an object, json would keep the last without a word."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = Counter(name for name, _ in pairs)
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            problem = f"an object in it has the name {twice!r} twice"
            raise DataError(problem, about=path, fix="write each name once")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is not JSON ({first_line(error)})", about=path, fix=fix) from error
