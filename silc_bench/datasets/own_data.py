"""The user's own data: ``folder:PATH``, ``captions:FILE``, ``wds:PATTERN`` and ``seg:``, with as
little to learn as possible.

    folder:pets                 pets/<class>/*.jpg, or pets/test/<class>/... with
    pets/train/<class>/... wds:pets                    pets/test/*.tar with pets/train/*.tar
    (clip_benchmark's layout), or pets/*.tar wds:'a/{000..009}.tar'      these shards; .cls is a
    label, and where there is none .txt holds captions, one a line captions:list.csv           see
    captions_file.py seg:images,masks,names.json see own_masks.py

Classes are named after their folders ("_" is a space), or by ``classnames.txt`` (one a line, in
label order) or ``classnames.json`` (a list, or {folder: name}) beside them;
``zeroshot_classification_templates.txt`` there gives the prompts.

The user's own pictures with masks: ``seg:IMAGES,MASKS,CLASSES.json``.

    seg:town/images,town/masks,town/classes.json      each picture has the mask of its name:
    images/a/1.jpg, masks/a/1.png IMAGES/test, IMAGES/train, MASKS/test ...          with a train/
    folder in both, what is learned too

CLASSES.json is a list of names in label order, or an object:

    {"names": ["background", "road", "tree"],   of the values 0, 1, 2 in the masks; or {"7": "road",
    "8": "tree"}: of these "background": true,                         whether the first is all that
    no name says; it is when called background "ignore": [255],                            values of
    pixels that are not scored; else 255, or 65535 from 255 classes on "synonyms": {"tree": ["tree",
    "bush"]}}     words to ask for instead of the name
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.files.folders import (
    TEST,
    TRAIN,
    Listing,
    by_number,
    listing,
    split_folders,
)
from silc_bench.datasets.files.shards import expand
from silc_bench.datasets.image_set import Found, PictureSet
from silc_bench.datasets.layouts import (
    has_member,
    read_captioned,
    read_captions_file,
    read_class_folders,
    read_labelled,
    read_names,
    shards_in,
)
from silc_bench.datasets.masks import MOST_IN_8_BITS, MaskRule, check_names
from silc_bench.datasets.public.segmentation import found_of, read_pairs
from silc_bench.errors import DataError, UserError, unknown_name

KINDS = ("folder", "captions", "wds", "seg")
TEMPLATES = "zeroshot_classification_templates.txt"
_SAYS_NOTHING = (
    "meta",
    "metadata",
    "captions",
    "annotations",
    "test",
    "val",
    "validation",
    "train",
    "images",
    "data",
    "img",
)


@dataclass(frozen=True)
class OwnData:
    """One set of the user's; equal words give equal sets."""

    kind: str
    where: str

    @property
    def word(self) -> str:
        return f"{self.kind}:{self.where}"

    @property
    def name(self) -> str:
        return name_of(self.where)

    @property
    def path(self) -> Path:
        return Path(self.where).expanduser()

    def splits(self) -> dict[str, Path]:
        """Folders of "test" and, where there is one, "train". Raises UserError: nothing there, or a
        train folder alone.
        """
        if self.kind == "captions" or not self.path.is_dir():
            if self.kind == "folder":
                raise UserError(
                    f"{self.word}: no such folder; give one that holds a folder a class"
                )
            return {"test": self.path}
        return split_folders(self.path, may_hold_others=self.kind != "folder")

    def has_labels(self) -> bool:
        """Whether pictures have classes; else they have captions."""
        return self.kind == "folder" or (
            self.kind == "wds" and has_member(self._shards("test"), "cls")
        )

    def templates(self) -> tuple[str, ...]:
        """Prompts that lie beside the data, "{c}" for the class name; empty where none do."""
        path = next(
            (home / TEMPLATES for home in self._homes() if (home / TEMPLATES).is_file()), None
        )
        return tuple(read_names(path)) if path else ()

    def load(self, split: str, limit: int | None = None) -> PictureSet:
        """ "test" or "train", hashed when its fingerprint is asked for. Raises UserError for
        whatever is wrong.
        """
        return PictureSet(self.name, split, self.read(split), limit)

    def read(self, split: str) -> Found:
        if self.kind == "captions":
            pictures, notes = read_captions_file(self.path)
            return Found(pictures, self.path, f"list of captions {self.path.suffix}", notes=notes)
        return self._from_folders(split) if self.kind == "folder" else self._from_shards(split)

    def _from_folders(self, split: str) -> Found:
        places = self.splits()
        found = {role: listing(path) for role, path in places.items()}
        folders = found["train" if "train" in places else "test"].folders
        if len(folders) < 2:
            raise DataError(
                f"{self.path} holds {len(folders)} class folders",
                "a class is a folder of pictures; two are needed",
            )
        ordered = sorted(
            folders, key=by_number if all(name.isdecimal() for name in folders) else None
        )
        labels = {folder: label for label, folder in enumerate(ordered)}
        mine = found[split]
        absent = sorted(set(labels) - set(mine.folders)) if split == "test" else []
        mine = Listing(mine.path, mine.files, [*mine.folders, *absent], mine.stray, mine.other)
        pictures, notes = read_class_folders(mine, labels, self.word)
        empty = sorted(
            set(labels.values())
            - {picture.label for picture in pictures if picture.label is not None}
        )
        for label in empty:
            if ordered[label] not in absent:
                raise DataError(
                    f"{mine.path / ordered[label]} holds no pictures",
                    "fill the class or remove its folder",
                )
        if absent:
            notes.append(
                f"{len(absent)} classes to learn are not scored: {absent[0]} has no pictures in {mine.path}"
            )
        names = self._names(ordered) or tuple(folder.replace("_", " ") for folder in ordered)
        return Found(pictures, mine.path, "class folders", names, self.templates(), notes)

    def _shards(self, split: str) -> list[Path]:
        path = self.splits()[split]
        paths = shards_in(path) if path.is_dir() else expand(self.where)
        if not paths:
            raise DataError(
                f"{path} holds no *.tar", f"give wds:PATTERN, such as 'wds:{path}/{{000..009}}.tar'"
            )
        return paths

    def _from_shards(self, split: str) -> Found:
        paths = self._shards(split)
        names: tuple[str, ...] = ()
        if not self.has_labels():
            pictures, layout = read_captioned(paths), "webdataset shards with captions"
        else:
            given = self._names(None)
            if given is None:
                fix = "write the names of the classes in label order, one a line, into classnames.txt beside the shards"
                raise DataError(
                    f"{self.word} has labels, which are numbers, and no names for them", fix
                )
            pictures, layout, names = (
                read_labelled(paths, len(given)),
                "webdataset shards with labels",
                given,
            )
        if not pictures:
            raise DataError(
                f"{self.word} holds no samples",
                "a sample is a picture with a .cls or a .txt of the same name",
            )
        return Found(pictures, paths[0].parent, layout, names, self.templates())

    def _homes(self) -> list[Path]:
        """Folders in which lists beside the data may lie."""
        if self.path.is_dir():
            return (
                [self.path, self.path.parent] if self.path.name in (*TRAIN, *TEST) else [self.path]
            )
        folder = expand(self.where)[0].parent
        return [folder, folder.parent]

    def _names(self, folders: list[str] | None) -> tuple[str, ...] | None:
        for home in self._homes():
            for path in (home / "classnames.json", home / "classnames.txt"):
                if path.is_file():
                    return _names_from(path, folders)
        return None


def name_of(where: str) -> str:
    """The last part of a path that says something, in letters that a record's name may have."""
    parts = [
        part for part in Path(where).expanduser().absolute().parts if not set(part) & set("*?[{")
    ]
    stems = [
        Path(part).stem if Path(part).suffix in (".jsonl", ".csv", ".tsv", ".tar") else part
        for part in parts
    ]
    stem = next((stem for stem in reversed(stems) if stem.lower() not in _SAYS_NOTHING), "own")
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", stem).lstrip("_.+-") or "own"


def _names_from(path: Path, folders: list[str] | None) -> tuple[str, ...]:
    content = None
    if path.suffix == ".json" and folders is not None:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise DataError(
                f"{path} is not JSON: {error}", "write {folder: name}, or a list in label order"
            ) from error
    if isinstance(content, dict):
        assert folders is not None
        lacking = [folder for folder in folders if not isinstance(content.get(folder), str)]
        if lacking:
            raise DataError(f"{path} names no class for the folder {lacking[0]!r}", "add it")
        return tuple(content[folder] for folder in folders)
    names = tuple(read_names(path))
    if folders is not None and len(names) != len(folders):
        raise DataError(
            f"{path} names {len(names)} classes, and there are {len(folders)} folders",
            "name each folder's class",
        )
    return names


def parse(word: str) -> OwnData | OwnMasks | None:
    """The set that a word such as "folder:/data/pets" names, None for other words. Raises UserError
    for an empty path.
    """
    kind, colon, where = word.partition(":")
    if not colon or kind not in KINDS:
        return None
    if kind == "seg":
        paths = [Path(path.strip()).expanduser() for path in where.split(",") if path.strip()]
        if len(paths) != 3:
            raise UserError(f"{word!r} names {len(paths)} of three paths; write {WRITTEN}")
        images, masks, classes = paths
        return OwnMasks(images, masks, classes, name_of(str(images)))
    if not where:
        raise UserError(
            f"{word!r} names no data; write {kind}:{'FILE' if kind == 'captions' else 'PATH'}"
        )
    return OwnData(kind, where)


WRITTEN = "seg:IMAGES,MASKS,CLASSES.json"
FIELDS = ("names", "background", "ignore", "synonyms")
IGNORE_16 = 65535


@dataclass(frozen=True)
class Classes:
    """What CLASSES.json says."""

    rule: MaskRule
    words: tuple[tuple[str, ...], ...] | None  # of each label; None: its name


@dataclass(frozen=True)
class OwnMasks:
    """One set of the user's; equal words give equal sets."""

    images: Path
    masks: Path
    classes: Path
    name: str

    @property
    def word(self) -> str:
        return f"seg:{self.images},{self.masks},{self.classes}"

    def splits(self) -> dict[str, Path]:
        """Folders of pictures: "test" and, where there is one, "train". Raises UserError for what
        is not there.
        """
        for path, what in ((self.images, "pictures"), (self.masks, "masks")):
            if not path.is_dir():
                raise UserError(f"{self.word}: {path} is no folder; give one that holds the {what}")
        if not self.classes.is_file():
            raise UserError(
                f"{self.word}: {self.classes} is no file; give one that names the classes, as docs/datasets.md says"
            )
        found = split_folders(self.images)
        for folder in found.values():
            if folder != self.images and not (self.masks / folder.name).is_dir():
                raise DataError(
                    f"{folder} holds pictures, and {self.masks / folder.name} is missing",
                    "put their masks there",
                )
        return found

    def load(self, split: str, limit: int | None = None) -> PictureSet:
        """ "test" or "train". Raises UserError for whatever is wrong with the data."""
        return PictureSet(self.name, split, self.read(split), limit).hashed()

    def read(self, split: str) -> Found:
        folder = self.splits()[split]
        masks = self.masks if folder == self.images else self.masks / folder.name
        rule = read_classes(self.classes).rule
        return found_of(
            read_pairs(folder, masks, rule),
            folder,
            f"pictures, masks of the same names in {masks},",
            rule,
        )


def read_classes(path: Path) -> Classes:
    """CLASSES.json. Raises UserError for what it does not say, or says wrongly, naming the
    field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not JSON: {error}", 'write a list of names, such as ["road", "tree"]'
        ) from error
    fields: dict[str, Any] = {"names": content} if isinstance(content, list) else content
    if not isinstance(fields, dict):
        raise DataError(
            f"{path} holds a {type(fields).__name__}",
            "write a list of names, or an object with a field names",
        )
    for field in fields:
        if field not in FIELDS:
            raise unknown_name(f"field of {path}:", field, FIELDS)
    names, stored = _names(fields.get("names"), path)
    background = fields.get("background", names[0] == "background")
    if not isinstance(background, bool):
        raise DataError(
            f"{path}: background is {background!r}",
            "write true where the first name is all that no name says, or false",
        )
    ignored = _ignored(fields.get("ignore"), names, stored, path)
    fix = f"name the value in {path}, or list it there under ignore"
    shown = ", ".join(map(str, ignored)) or "nothing"
    rule = MaskRule(
        names, background, stored, ignored, f"values {shown}" if ignored else shown, fix
    )
    return Classes(rule, _words(fields.get("synonyms", {}), names, path))


def _names(names: Any, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names in label order, and the values of their pixels where those are not 0, 1, 2 ..."""
    stored: tuple[int, ...] = ()
    if isinstance(names, dict):
        wrong = [value for value in names if not (value.isdecimal() and int(value) < IGNORE_16)]
        if wrong:
            raise DataError(
                f"{path} names the value {wrong[0]!r}", "a mask holds numbers from 0 to 65534"
            )
        stored = tuple(sorted(map(int, names)))
        if len(set(stored)) != len(names):
            raise DataError(f"{path} names a value twice", "write each number in one way")
        named = {int(value): name for value, name in names.items()}
        names = [named[value] for value in stored]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fix = 'write ["road", "tree"] in the order of the values 0, 1 ..., or {"7": "road", "8": "tree"}'
        raise DataError(f"{path} has no names", fix)
    return check_names(names, str(path)), stored


def _ignored(
    ignored: Any, names: tuple[str, ...], stored: tuple[int, ...], path: Path
) -> tuple[int, ...]:
    values = stored or tuple(range(len(names)))
    if ignored is None:
        usual = IGNORE if len(names) <= MOST_IN_8_BITS else IGNORE_16
        return (usual,) if usual not in values else ()
    if not isinstance(ignored, list) or not all(
        isinstance(value, int) and 0 <= value <= IGNORE_16 for value in ignored
    ):
        raise DataError(
            f"{path}: ignore is {ignored!r:.60}", "write a list of values, such as [255], or []"
        )
    both = next((value for value in ignored if value in values), None)
    if both is not None:
        named = names[values.index(both)]
        raise DataError(
            f"{path}: the value {both} is {named!r} and is ignored",
            "take it out of ignore, or out of names",
        )
    return tuple(sorted(ignored))


def _words(synonyms: Any, names: tuple[str, ...], path: Path) -> tuple[tuple[str, ...], ...] | None:
    if not isinstance(synonyms, dict):
        raise DataError(f"{path}: synonyms is {synonyms!r:.60}", 'write {"tree": ["tree", "bush"]}')
    for name, words in synonyms.items():
        if name not in names:
            raise unknown_name(f"class in the synonyms of {path}:", name, names)
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(word, str) and word.strip() for word in words)
        ):
            raise DataError(
                f"{path}: the synonyms of {name!r} are {words!r:.60}",
                "write a list of words, which replaces the name",
            )
    if not synonyms:
        return None
    return tuple(tuple(word.strip() for word in synonyms.get(name, [name])) for name in names)
