"""The user's own data: ``folder:PATH``, ``captions:FILE``, ``wds:PATTERN`` and ``seg:...``.

    folder:pets             pets/<class>/*.jpg, or pets/test/<class>/... with pets/train/<class>/...
    wds:pets                pets/test/*.tar with pets/train/*.tar (clip_benchmark's layout), or
                            pets/*.tar
    wds:'a/{000..009}.tar'  these shards; .cls is a label, and where there is none .txt holds
                            captions, one a line
    captions:list.csv       images with captions, see layouts.py
    seg:images,masks,names.json     images with masks, see below

Classes are named after their folders ("_" is a space), or by ``classnames.txt`` (one a line, in
label order) or ``classnames.json`` (a list, or {folder: name}) beside them. Prompts come from
``zeroshot_classification_templates.txt`` there.

Images with masks: ``seg:IMAGES,MASKS,CLASSES.json``.

    seg:town/images,town/masks,town/classes.json
        each image has the mask of its name: images/a/1.jpg, masks/a/1.png
    IMAGES/test, IMAGES/train, MASKS/test ...
        with a train/ folder in both, for tasks that learn

CLASSES.json is a list of names in label order, or an object:

    {"names": ["background", "road", "tree"],  of the values 0, 1, 2 in the masks; or
                                               {"7": "road", "8": "tree"}: of these values
     "background": true,                       whether the first is everything that no name says;
                                               without this field: where it is called background
     "ignore": [255],                          values of pixels that are not scored; else 255,
                                               or 65535 from 255 classes on
     "synonyms": {"tree": ["tree", "bush"]}}   words to ask for instead of the name

Flow: ``parse("folder:/data/pets")`` -> ``OwnData`` or ``OwnMasks`` -> ``.load("test")`` -> a
PictureSet.
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
from silc_bench.datasets.image_set import ImageFiles, ImageSplit
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

# parts of a path that name the role of a folder, and not the data in it
_SAYS_NOTHING = (
    *("meta", "metadata", "captions", "annotations"),
    *("test", "val", "validation", "train"),
    *("images", "data", "img"),
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
        """Folders of "test" and, where there is one, "train".

        Raises:
            UserError: nothing is there, or a train folder alone.
        """
        if self.kind == "captions" or not self.path.is_dir():
            if self.kind == "folder":
                raise UserError(
                    f"{self.word}: no such folder; give one that holds a folder a class"
                )
            return {"test": self.path}

        # beside class folders a third folder could be a class that was put in the wrong place;
        # beside shards anything may lie
        return split_folders(self.path, may_hold_others=self.kind != "folder")

    def has_labels(self) -> bool:
        """Whether images have classes; else they have captions."""
        if self.kind == "folder":
            return True
        return self.kind == "wds" and has_member(self._shards("test"), "cls")

    def templates(self) -> tuple[str, ...]:
        """Prompts that lie beside the data, "{c}" for the class name; empty where none do."""
        for home in self._homes():
            if (home / TEMPLATES).is_file():
                return tuple(read_names(home / TEMPLATES))
        return ()

    def load(self, split: str, limit: int | None = None) -> ImageFiles:
        """The split "test" or "train", hashed when somebody asks for its fingerprint.

        Raises:
            UserError: whatever is wrong with the data.
        """
        return ImageFiles(self.name, split, self.read(split), limit)

    def read(self, split: str) -> ImageSplit:
        """All images of a split, none of them decoded. Raises UserError as ``load`` does."""
        if self.kind == "captions":
            pictures, notes = read_captions_file(self.path)
            return ImageSplit(
                pictures, self.path, f"list of captions {self.path.suffix}", notes=notes
            )
        return self._from_folders(split) if self.kind == "folder" else self._from_shards(split)

    def _from_folders(self, split: str) -> ImageSplit:
        places = self.splits()
        listings = {role: listing(path) for role, path in places.items()}

        # what is learned sets the classes: both splits must number them alike
        folders = listings["train" if "train" in places else "test"].folders
        if len(folders) < 2:
            raise DataError(
                f"{self.path} holds {len(folders)} class folders",
                fix="a class is a folder of pictures; two are needed",
            )
        is_numbered = all(name.isdecimal() for name in folders)
        ordered = sorted(folders, key=by_number if is_numbered else None)
        labels = {folder: label for label, folder in enumerate(ordered)}

        # a class to learn may have nothing to score: its folder counts as there, and empty
        mine = listings[split]
        absent = sorted(set(labels) - set(mine.folders)) if split == "test" else []
        mine = Listing(mine.path, mine.files, [*mine.folders, *absent], mine.stray, mine.other)
        pictures, notes = read_class_folders(mine, labels, self.word)

        # any other empty class is a mistake, such as a folder that was not filled
        labels_here = {image.label for image in pictures if image.label is not None}
        for label in sorted(set(labels.values()) - labels_here):
            if ordered[label] not in absent:
                problem = f"{mine.path / ordered[label]} holds no pictures"
                raise DataError(problem, fix="fill the class or remove its folder")
        if absent:
            notes.append(
                f"{len(absent)} classes to learn are not scored:"
                f" {absent[0]} has no pictures in {mine.path}"
            )

        names = self._names(ordered) or tuple(folder.replace("_", " ") for folder in ordered)
        return ImageSplit(pictures, mine.path, "class folders", names, self.templates(), notes)

    def _shards(self, split: str) -> list[Path]:
        path = self.splits()[split]
        shards = shards_in(path) if path.is_dir() else expand(self.where)
        if not shards:
            fix = f"give wds:PATTERN, such as 'wds:{path}/{{000..009}}.tar'"
            raise DataError(f"{path} holds no *.tar", fix=fix)
        return shards

    def _from_shards(self, split: str) -> ImageSplit:
        shards = self._shards(split)
        names: tuple[str, ...] = ()
        if not self.has_labels():
            pictures = read_captioned(shards)
            layout = "webdataset shards with captions"
        else:
            listed_names = self._names(None)
            if listed_names is None:
                raise DataError(
                    f"{self.word} has labels, which are numbers, and no names for them",
                    fix="write the names of the classes in label order, one a line,"
                    " into classnames.txt beside the shards",
                )
            names = listed_names
            pictures = read_labelled(shards, len(names))
            layout = "webdataset shards with labels"

        if not pictures:
            raise DataError(
                f"{self.word} holds no samples",
                fix="a sample is a picture with a .cls or a .txt of the same name",
            )
        return ImageSplit(pictures, shards[0].parent, layout, names, self.templates())

    def _homes(self) -> list[Path]:
        """Folders in which lists beside the data may lie."""
        if not self.path.is_dir():
            folder = expand(self.where)[0].parent
            return [folder, folder.parent]
        # the folder of a split was given: the lists lie beside it
        if self.path.name in (*TRAIN, *TEST):
            return [self.path, self.path.parent]
        return [self.path]

    def _names(self, folders: list[str] | None) -> tuple[str, ...] | None:
        for home in self._homes():
            for path in (home / "classnames.json", home / "classnames.txt"):
                if path.is_file():
                    return _names_from(path, folders)
        return None


def name_of(where: str) -> str:
    """The last part of a path that says something, in letters that a record's name may have."""
    # a part with a wildcard or braces names many files, and none of them
    stems = []
    for part in Path(where).expanduser().absolute().parts:
        if not set(part) & set("*?[{"):
            is_file = Path(part).suffix in (".jsonl", ".csv", ".tsv", ".tar")
            stems.append(Path(part).stem if is_file else part)
    stem = next((stem for stem in reversed(stems) if stem.lower() not in _SAYS_NOTHING), "own")
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", stem).lstrip("_.+-") or "own"


def _names_from(path: Path, folders: list[str] | None) -> tuple[str, ...]:
    """Class names of a list, in the order of ``folders`` where there are any."""
    content = None
    if path.suffix == ".json" and folders is not None:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            problem = f"{path} is not JSON: {error}"
            raise DataError(
                problem, fix="write {folder: name}, or a list in label order"
            ) from error

    if isinstance(content, dict):
        assert folders is not None
        lacking = [folder for folder in folders if not isinstance(content.get(folder), str)]
        if lacking:
            raise DataError(f"{path} names no class for the folder {lacking[0]!r}", fix="add it")
        return tuple(content[folder] for folder in folders)

    names = tuple(read_names(path))
    if folders is not None and len(names) != len(folders):
        problem = f"{path} names {len(names)} classes, and there are {len(folders)} folders"
        raise DataError(problem, fix="name each folder's class")
    return names


def parse(word: str) -> OwnData | OwnMasks | None:
    """The set that a word such as "folder:/data/pets" names, None for other words.

    Raises:
        UserError: an empty path, or not three of them after "seg:".
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
        what = "FILE" if kind == "captions" else "PATH"
        raise UserError(f"{word!r} names no data; write {kind}:{what}")
    return OwnData(kind, where)


# ---- images with masks ----

WRITTEN = "seg:IMAGES,MASKS,CLASSES.json"
FIELDS = ("names", "background", "ignore", "synonyms")
IGNORE_16 = 65535  # in masks of 16 bits


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
        """Folders of images: "test" and, where there is one, "train".

        Raises:
            UserError: one of the three paths, or the masks of a split, are not there.
        """
        for path, what in ((self.images, "pictures"), (self.masks, "masks")):
            if not path.is_dir():
                raise UserError(f"{self.word}: {path} is no folder; give one that holds the {what}")
        if not self.classes.is_file():
            raise UserError(
                f"{self.word}: {self.classes} is no file;"
                " give one that names the classes, as docs/datasets.md says"
            )

        folders = split_folders(self.images)
        for folder in folders.values():
            masks = self.masks / folder.name
            if folder != self.images and not masks.is_dir():
                problem = f"{folder} holds pictures, and {masks} is missing"
                raise DataError(problem, fix="put their masks there")
        return folders

    def load(self, split: str, limit: int | None = None) -> ImageFiles:
        """The split "test" or "train". Raises UserError for whatever is wrong with the data."""
        return ImageFiles(self.name, split, self.read(split), limit).hashed()

    def read(self, split: str) -> ImageSplit:
        """All images of a split with their masks, none of them decoded."""
        folder = self.splits()[split]
        masks = self.masks if folder == self.images else self.masks / folder.name
        rule = read_classes(self.classes).rule
        layout = f"pictures, masks of the same names in {masks},"
        return found_of(read_pairs(folder, masks, rule), folder, layout, rule)


def read_classes(path: Path) -> Classes:
    """CLASSES.json, read and checked.

    Raises:
        UserError: what it does not say, or says wrongly; names the field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        fix = 'write a list of names, such as ["road", "tree"]'
        raise DataError(f"{path} is not JSON: {error}", fix=fix) from error

    fields: dict[str, Any] = {"names": content} if isinstance(content, list) else content
    if not isinstance(fields, dict):
        raise DataError(
            f"{path} holds a {type(fields).__name__}",
            fix="write a list of names, or an object with a field names",
        )
    for field in fields:
        if field not in FIELDS:
            raise unknown_name(f"field of {path}:", field, FIELDS)

    names, stored = _names(fields.get("names"), path)
    has_background = fields.get("background", names[0] == "background")
    if not isinstance(has_background, bool):
        raise DataError(
            f"{path}: background is {has_background!r}",
            fix="write true where the first name is all that no name says, or false",
        )

    ignored = _ignored(fields.get("ignore"), names, stored, path)
    not_scored = f"values {', '.join(map(str, ignored))}" if ignored else "nothing"
    fix = f"name the value in {path}, or list it there under ignore"
    rule = MaskRule(names, has_background, stored, ignored, not_scored, fix)
    return Classes(rule, _words(fields.get("synonyms", {}), names, path))


def _names(names: Any, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names in label order, and the values of their pixels where those are not 0, 1, 2 ..."""
    stored: tuple[int, ...] = ()
    if isinstance(names, dict):
        # 65535 is kept for pixels that are not scored
        wrong = [value for value in names if not (value.isdecimal() and int(value) < IGNORE_16)]
        if wrong:
            problem = f"{path} names the value {wrong[0]!r}"
            raise DataError(problem, fix="a mask holds numbers from 0 to 65534")

        # "7" and "07" are two keys of an object and one value of a mask
        name_of_value = {int(value): name for value, name in names.items()}
        stored = tuple(sorted(name_of_value))
        if len(stored) != len(names):
            raise DataError(f"{path} names a value twice", fix="write each number in one way")
        names = [name_of_value[value] for value in stored]

    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{path} has no names",
            fix='write ["road", "tree"] in the order of the values 0, 1 ...,'
            ' or {"7": "road", "8": "tree"}',
        )
    return check_names(names, str(path)), stored


def _ignored(
    ignored: Any, names: tuple[str, ...], stored: tuple[int, ...], path: Path
) -> tuple[int, ...]:
    """Values of pixels that are not scored: those of the field, else the usual one."""
    values = stored or tuple(range(len(names)))
    if ignored is None:
        usual = IGNORE if len(names) <= MOST_IN_8_BITS else IGNORE_16
        return (usual,) if usual not in values else ()

    is_list = isinstance(ignored, list)
    if not is_list or not all(
        isinstance(value, int) and 0 <= value <= IGNORE_16 for value in ignored
    ):
        problem = f"{path}: ignore is {ignored!r:.60}"
        raise DataError(problem, fix="write a list of values, such as [255], or []")

    both = next((value for value in ignored if value in values), None)
    if both is not None:
        name = names[values.index(both)]
        problem = f"{path}: the value {both} is {name!r} and is ignored"
        raise DataError(problem, fix="take it out of ignore, or out of names")
    return tuple(sorted(ignored))


def _words(synonyms: Any, names: tuple[str, ...], path: Path) -> tuple[tuple[str, ...], ...] | None:
    """Words to ask for, of each label; None without synonyms."""
    if not isinstance(synonyms, dict):
        raise DataError(
            f"{path}: synonyms is {synonyms!r:.60}", fix='write {"tree": ["tree", "bush"]}'
        )
    for name, words in synonyms.items():
        if name not in names:
            raise unknown_name(f"class in the synonyms of {path}:", name, names)
        is_filled = isinstance(words, list) and bool(words)
        if not is_filled or not all(isinstance(word, str) and word.strip() for word in words):
            raise DataError(
                f"{path}: the synonyms of {name!r} are {words!r:.60}",
                fix="write a list of words, which replaces the name",
            )

    if not synonyms:
        return None
    return tuple(tuple(word.strip() for word in synonyms.get(name, [name])) for name in names)
