"""Pairs whose images are files: a list of captions (.jsonl, .csv, .tsv), or a folder with texts.

In a folder, ``NAME.txt`` or ``NAME.json`` beside ``NAME.jpg`` holds the captions. The columns of a
list are those of ``silc_bench.datasets.layouts``; an image may have several rows, or several
captions in one.

Flow: ``ListedReader.open(path, config, damage)`` reads all captions and looks which images there
are -> ``text(p)`` and ``image(p)``, which reads the image's file. Training from files in random
order is for thousands of images; ``silc-bench data pack`` writes shards of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.datasets import layouts
from silc_bench.datasets.files.folders import FILE_EXTENSIONS
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import UserError
from silc_bench.later import np
from silc_bench.system.processes import rank
from silc_bench.system.terminal import counted, say
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import (
    EpochReader,
    PassedOverError,
    UnreadableError,
    captions_of,
    columns_of,
    digits_of,
    no_pair,
    one_sample,
    parse,
    spread,
)


@dataclass(frozen=True, slots=True)
class Listed:
    """An image in a file of its own."""

    path: Path
    captions: tuple[str, ...]
    columns: dict[str, Any]  # the rest of its row, or its JSON

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise UnreadableError("missing image", str(self.path)) from error


class ListedReader(EpochReader):
    """Entries are epochs of all images of a list or a folder."""

    def __init__(
        self, pairs: list[Listed], path: Path, config: DataConfig, left_out: Counter[str]
    ) -> None:
        super().__init__(len(pairs), f"of {path}", config, left_out)
        self.pairs = pairs

    @classmethod
    def open(cls, path: Path, config: DataConfig, damage: Damage) -> ListedReader:
        """A list of captions, or a folder. Raises UserError where there is no pair in it."""
        filters = parse(config.filters)
        left_out = Counter[str]()
        kept = []
        for pair in read_pairs(path, damage):
            reason = filters.reason(pair.captions, pair.columns, pair.read)
            if reason is None:
                kept.append(pair)
            else:
                left_out[reason] += 1

        if not kept:
            raise no_pair(path, damage, left_out)
        return cls(kept, path, config, left_out)

    def captions(self, index: int) -> Sequence[str]:
        return self.pairs[index].captions

    def chosen(self, count: int) -> np.ndarray:
        # A list that is written anew in another order is the same data.
        by_name = sorted(range(len(self.pairs)), key=lambda index: self.pairs[index].path)
        return np.array(by_name)[spread(len(by_name), count)]

    def image_bytes(self, index: int) -> bytes:
        return self.pairs[index].read()

    def where(self, index: int) -> str:
        return str(self.pairs[index].path)

    def fingerprint(self) -> str:
        """Of all captions, and of the sizes of the images' files."""
        parts = []
        for pair in self.pairs:
            try:
                size = pair.path.stat().st_size
            except OSError:  # gone by now, which is said when the image is met
                size = -1
            parts.append(f"{size} {len(pair.captions)}".encode())
            parts += (caption.encode() for caption in pair.captions)
        return digits_of(parts)


def check_there(path: Path) -> None:
    """Raises UserError: there is no such list or folder."""
    if not path.exists():
        fix = "name a list of captions, or a folder of images"
        raise UserError("no such file or folder", about=path, fix=fix)


def read_pairs(path: Path, damage: Damage) -> list[Listed]:
    """All images that have a caption, in the order of the list or by name.

    The others are added to ``damage``.

    Raises:
        UserError: no such place, a list that cannot be read, or a folder of images without a single
            caption.
    """
    check_there(path)
    if not path.is_dir():
        return _from_list(path, damage)

    lists = sorted(file for file in path.iterdir() if file.suffix.lower() in layouts.ENDINGS)
    if len(lists) > 1:
        problem = f"it holds {len(lists)} lists of captions, such as {lists[0].name}"
        raise UserError(problem, about=path, fix="name one of them")
    return _from_list(lists[0], damage) if lists else _from_folder(path, damage)


def _from_list(path: Path, damage: Damage) -> list[Listed]:
    not_columns = (*layouts.IMAGE_COLUMNS, *layouts.CAPTION_COLUMNS)
    pairs: dict[Path, Listed] = {}
    quoted: list[str] = []  # where a caption has quotes that may not be meant
    for row in layouts.raw_rows(path):
        if row.error is not None:
            damage.add("line that is no row", row.where)
            continue
        if not isinstance(row.name, str):
            damage.add("row without the name of an image", row.where)
            continue

        # A name may hold what no file system takes, such as a zero byte.
        where = f"{row.where}: {row.name.strip()}"
        try:
            with one_sample(where):
                image = layouts.locate(path, row.name.strip())
                if not image.is_file():
                    raise UnreadableError("missing image", where)
                captions = _captions_in(row.captions, where, damage)
        except UnreadableError as error:
            damage.add(error.cause, error.where)
            continue

        if path.suffix.lower() == ".tsv":
            quoted += [row.where for caption in captions if layouts.is_quoted(caption)]

        # A further row of an image adds captions; the other columns stay those of the first.
        columns = {name: value for name, value in row.fields.items() if name not in not_columns}
        first = pairs.get(image, Listed(image, (), columns))
        pairs[image] = Listed(image, first.captions + captions, first.columns)

    if quoted and rank() == 0:
        say(layouts.QUOTED.format(counted(len(quoted), "caption"), quoted[0]))
    return list(pairs.values())


def _captions_in(value: Any, where: str, damage: Damage) -> tuple[str, ...]:
    """The captions of a row; what is none beside others is added to ``damage``."""
    listed = value if isinstance(value, list) else ["" if value is None else value]
    skipped: list[PassedOverError] = []
    captions = captions_of(None, {"captions": listed}, where, skipped)
    for each in skipped:
        damage.add(each.cause, each.where)
    return tuple(captions)


def _from_folder(path: Path, damage: Damage) -> list[Listed]:
    files = _files_below(path, damage)
    images = [file for file in files if _ending(file) in FILE_EXTENSIONS]

    # "UP.JPG" and "UP.TXT" belong together, and so do "up.jpg" and "up.TXT".
    texts = {
        (file.parent, file.stem, _ending(file)): file
        for file in files
        if _ending(file) in ("txt", "json")
    }
    pairs = []
    for image in images:
        text_file = texts.get((image.parent, image.stem, "txt"))
        json_file = texts.get((image.parent, image.stem, "json"))
        if text_file is None and json_file is None:
            damage.add("image without a text", str(image))
            continue

        skipped: list[PassedOverError] = []
        try:
            with one_sample(str(text_file or json_file)):
                columns = columns_of(json_file.read_bytes(), str(json_file)) if json_file else None
                text = text_file.read_bytes() if text_file else None
                captions = captions_of(text, columns, str(text_file or json_file), skipped)
        except UnreadableError as error:
            damage.add(error.cause, error.where)
            continue
        pairs.append(Listed(image, tuple(captions), columns or {}))
        for each in skipped:
            damage.add(each.cause, each.where)

    # What has a text and is no image that we read was meant as one: "cat.gif" beside "cat.txt".
    for file in files:
        if _ending(file) in _NO_IMAGES or _ending(file) in FILE_EXTENSIONS:
            continue
        if (file.parent, file.stem, "txt") in texts:
            endings = ", ".join(FILE_EXTENSIONS)
            damage.add(f"file with a text that is none of {endings}", str(file))

    if pairs:
        return pairs
    if not images:
        reasons = f" ({damage.summary()})" if damage.total else ""
        problem = f"the folder holds nothing to learn from{reasons}"
        fix = "name a folder that holds images, shards (*.tar) or a list of captions"
        raise UserError(problem, about=path, fix=fix)
    problem = f"it holds {len(images):,} images and no caption of any"
    fix = (
        "write NAME.txt beside NAME.jpg, a caption a line, or a captions.jsonl in the folder:"
        ' {"file": "NAME.jpg", "caption": "..."}'
    )
    raise UserError(problem, about=path, fix=fix)


_NO_IMAGES = ("txt", "json", "jsonl", "csv", "tsv", "")


def _ending(file: Path) -> str:
    return file.suffix.lower().lstrip(".")


def _files_below(path: Path, damage: Damage) -> list[Path]:
    """By name, so that the order does not depend on how the disk lists the folder.

    Folders behind links belong to it, each once: a link may lead back to where it lies.
    """
    files: list[Path] = []
    seen = set()

    def unreadable(error: OSError) -> None:
        damage.add(f"folder that cannot be read ({error.strerror})", str(error.filename))

    for folder, folders, names in os.walk(path, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            damage.add("folder that is linked twice", folder)
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        files += (Path(folder) / name for name in names)
    return sorted(files)
