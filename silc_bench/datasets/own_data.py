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
                                               without this field: where it is called background,
                                               Background, _background_ or __background__
     "ignore": [255],                          values of pixels that are not scored; else 255,
                                               or 65535 from 255 classes on
     "synonyms": {"tree": ["tree", "bush"]}}   words to ask for instead of the name

Flow: ``parse("folder:/data/pets")`` -> ``OwnData`` or ``OwnMasks`` -> ``.load("test")`` ->
ImageFiles.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.files.folders import (
    TEST,
    TRAIN,
    by_number,
    listing,
    split_folders,
    subfolders,
    unused_splits,
)
from silc_bench.datasets.files.images import SAVE_AS
from silc_bench.datasets.files.shards import expand, names_shards
from silc_bench.datasets.image_set import ImageFiles, ImageSplit
from silc_bench.datasets.layouts import (
    LIST_ENDINGS,
    has_member,
    read_captioned,
    read_captions_file,
    read_class_folders,
    read_json,
    read_labelled,
    read_names,
    shards_in,
)
from silc_bench.datasets.masks import MOST_IN_8_BITS, MaskRule, check_names
from silc_bench.datasets.public.segmentation import read_pairs
from silc_bench.errors import DataError, UserError, unknown_name

KINDS = ("folder", "captions", "wds", "seg")
NAME_LISTS = ("classnames.json", "classnames.txt")
TEMPLATES = "zeroshot_classification_templates.txt"

# of a set's name: a file system takes 255 bytes, and a record's folder is called so
LONGEST_NAME = 100
_HASHED = re.compile(r"\+[0-9a-f]{8}$")

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
                fix = "give a folder that holds a folder a class"
                raise UserError("no such folder", about=self.path, fix=fix)
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
            images, notes = read_captions_file(self.path)
            layout = f"list of captions {self.path.suffix}"
            return _upright(ImageSplit(images, self.path, layout, notes=notes))
        found = self._from_folders(split) if self.kind == "folder" else self._from_shards(split)

        # test/ goes before val/: whoever has both hears which is read
        unused = unused_splits(self.path, self.splits().values()) if self.path.is_dir() else []
        if unused and split == "test" and found.folder != self.path:
            found.notes.append(f"{found.folder.name}/ is scored, and {unused[0]}/ is not read")
        return _upright(found)

    def _from_folders(self, split: str) -> ImageSplit:
        places = self.splits()
        listings = {role: listing(path) for role, path in places.items()}

        # what is learned sets the classes: both splits must number them alike
        folders = listings["train" if "train" in places else "test"].folders
        if len(folders) < 2:
            problem = f"it holds {len(folders)} class folders, and two are needed"
            fix = "put the images of each class into a folder of its own"
            raise DataError(problem, about=self.path, fix=fix)

        # Kaggle's test images have no classes
        scored = listings["test"]
        if not scored.folders:
            problem = f"it holds {len(scored.files):,} images and no class folders"
            fix = "put the images of each class into a folder of its own"
            unused = unused_splits(self.path, places.values())
            if unused:
                fix = f"move it out of {self.path}, so that {unused[0]}/ is scored in its place"
            raise DataError(problem, about=scored.path, fix=fix)
        is_numbered = all(name.isdecimal() for name in folders)
        ordered = sorted(folders, key=by_number if is_numbered else None)
        labels = {folder: label for label, folder in enumerate(ordered)}

        # a class to learn may have nothing to score: its folder counts as there, and empty
        mine = listings[split]
        absent = sorted(set(labels) - set(mine.folders)) if split == "test" else []
        other = [name for name in mine.other if name not in (*NAME_LISTS, TEMPLATES)]
        mine = replace(mine, folders=[*mine.folders, *absent], other=other)
        images, notes = read_class_folders(mine, labels, self.word)

        # any other empty class is a mistake, such as a folder that was not filled
        labels_here = {image.label for image in images}
        for folder, label in labels.items():
            if label not in labels_here and folder not in absent:
                fix = "fill the class or remove its folder"
                problem = "it holds no image"
                unread = [name for name in mine.unread if name.startswith(f"{folder}/")]
                if unread:
                    problem += f" that is read, and {len(unread)} others, such as {unread[0]}"
                    fix = f"save them {SAVE_AS}"
                raise DataError(problem, about=mine.path / folder, fix=fix)
        if absent:
            notes.append(
                f"{len(absent)} classes to learn are not scored:"
                f" {absent[0]} has no images in {mine.path}"
            )

        names = self._names(ordered, notes)
        found = ImageSplit(
            images,
            mine.path,
            "class folders",
            names or tuple(map(_words_of, ordered)),
            self.templates(),
            notes,
        )
        return found if names is None else replace(found, class_folders=tuple(ordered))

    def _shards(self, split: str) -> list[Path]:
        path = self.splits()[split]
        shards = shards_in(path) if path.is_dir() else expand(self.where)
        if not shards:
            fix = f"give wds:PATTERN, such as 'wds:{path}/{{000..009}}.tar'"
            raise DataError("it holds no *.tar", about=path, fix=fix)
        return shards

    def _from_shards(self, split: str) -> ImageSplit:
        shards = self._shards(split)
        names: tuple[str, ...] = ()
        if not self.has_labels():
            images = read_captioned(shards)
            layout = "webdataset shards with captions"
        else:
            names = self._names(None, []) or ()
            if not names:
                problem = "the labels are numbers, and there are no names for them"
                fix = (
                    "write the names of the classes in label order, one a line,"
                    " into classnames.txt beside the shards"
                )
                raise DataError(problem, about=self.where, fix=fix)
            images = read_labelled(shards, len(names))
            layout = "webdataset shards with labels"

        if not images:
            fix = "write samples: an image with a .cls or a .txt of the same name"
            raise DataError("the shards hold no sample", about=self.where, fix=fix)
        return ImageSplit(images, shards[0].parent, layout, names, self.templates())

    def _homes(self) -> list[Path]:
        """Folders in which lists beside the data may lie."""
        if not self.path.is_dir():
            file = self.path if self.kind == "captions" else expand(self.where)[0]
            return [file.parent, file.parent.parent]
        # the folder of a split was given: the lists lie beside it
        if self.path.name.lower() in (*TRAIN, *TEST):
            return [self.path, self.path.parent]
        return [self.path]

    def _names(self, folders: list[str] | None, notes: list[str]) -> tuple[str, ...] | None:
        """Names that lie beside the data; which folder has which is noted where a list says it."""
        for home in self._homes():
            for path in (home / name for name in NAME_LISTS):
                if path.is_file():
                    return _names_from(path, folders, notes)
        return None


def name_of(where: str) -> str:
    """The last part of a path that says something, in letters that a record's name may have."""
    # a part with a wildcard or braces names many files, and none of them, unless it is there
    stems = []
    place = Path("/")
    for part in Path(where).expanduser().absolute().parts[1:]:
        place /= part
        if not set(part) & set("*?[{") or place.exists():
            is_file = Path(part).suffix.lower() in (*LIST_ENDINGS, ".tar")
            stems.append(Path(part).stem if is_file else part)
    last = stems[-1] if stems else "own"
    stem = next((stem for stem in reversed(stems) if stem.lower() not in _SAYS_NOTHING), last)
    stem = unicodedata.normalize("NFC", stem)  # a disk may hold an accent in either of two forms

    # "+" is a space: "a b" and "a_b" stay two names
    name = re.sub(r"[^A-Za-z0-9_. -]+", "_", stem).lstrip("_. -").replace(" ", "+")
    is_whole = name.replace("+", " ") == stem and len(name) <= LONGEST_NAME
    if is_whole and not _HASHED.search(name):
        return name

    # Letters were lost: of "猫" and of "犬" nothing would stay. A hash of them all keeps two names
    # apart.
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[:LONGEST_NAME] or 'own'}+{digest[:8]}"


def _names_from(path: Path, folders: list[str] | None, notes: list[str]) -> tuple[str, ...]:
    """Class names of a list, in the order of ``folders`` where there are any."""
    if path.suffix == ".json" and folders is not None:
        content = read_json(path, "write {folder: name}, or a list in label order")
        if isinstance(content, dict):
            lacking = [folder for folder in folders if not isinstance(content.get(folder), str)]
            if lacking:
                problem = f"it has no name for the folder {lacking[0]!r}"
                raise DataError(problem, about=path, fix="add the name")
            return tuple(content[folder] for folder in folders)

    names = tuple(read_names(path))
    if folders is None:
        return names
    if len(names) != len(folders):
        problem = f"it names {len(names)} classes, and there are {len(folders)} folders"
        raise DataError(problem, about=path, fix="name each folder's class")
    _check_order(path, names, folders)
    notes.append(
        f"{path.name} names the folders in their order, from {folders[0]!r} as {names[0]!r}"
        f" to {folders[-1]!r} as {names[-1]!r}"
    )
    return names


def _check_order(path: Path, names: tuple[str, ...], folders: list[str]) -> None:
    """Refuse a list that may have been written in another order than that of the folders.

    Raises:
        DataError: orders in which people list these folders differ, or a name of the list is that
            of a folder at another place.
    """
    mapping = f"write classnames.json beside the data: {{{folders[0]!r}: NAME, ...}}"
    fix = mapping.replace("'", '"') + ", a name each folder"

    # where all folders are numbers, they count as numbers
    orders = {"as letters": folders, "by their numbers": sorted(folders, key=by_number)}
    orders["without regard to case"] = sorted(folders, key=str.lower)
    if not all(folder.isdecimal() for folder in folders):
        for how, order in orders.items():
            if order != folders:
                place = next(i for i, folder in enumerate(folders) if order[i] != folder)
                problem = (
                    f"it has an order, and the folders have two: sorted {how},"
                    f" {order[place]!r} stands where {folders[place]!r} does otherwise"
                )
                raise DataError(problem, about=path, fix=fix)

    place_of = {_plain(folder): place for place, folder in enumerate(folders)}
    for place, name in enumerate(names):
        own_place = place_of.get(_plain(name), place)
        if own_place != place:
            problem = (
                f"its name {place + 1} is {name!r}, and folder {place + 1} is"
                f" {folders[place]!r}: {folders[own_place]!r} is folder {own_place + 1}"
            )
            raise DataError(problem, about=path, fix=fix)


def _words_of(folder: str) -> str:
    return folder.replace("_", " ")


def _plain(name: str) -> str:
    return _words_of(name).strip().lower()


def _upright(split: ImageSplit) -> ImageSplit:
    """The user's own images are turned as every viewer shows them."""
    images = [replace(image, is_upright=True) for image in split.images]
    return replace(split, images=images)


def parse(word: str) -> OwnData | OwnMasks | None:
    """The set that a word such as "folder:/data/pets" names, None for other words.

    Raises:
        UserError: an empty path, or not three of them after "seg:".
    """
    kind, colon, where = word.partition(":")
    if not colon or kind not in KINDS:
        return None

    if kind == "seg":
        images, masks, classes = _three_paths(where, word)
        return OwnMasks(images, masks, classes, name_of(str(images)))

    if not where:
        what = "FILE" if kind == "captions" else "PATH"
        raise UserError("it names no data", about=word, fix=f"write {kind}:{what}")
    return OwnData(kind, where)


def is_there(word: str) -> bool:
    """Whether the files that such a word names are there; False for other words."""
    try:
        own = parse(word)
    except UserError:
        return False
    if isinstance(own, OwnMasks):
        return all(path.exists() for path in (own.images, own.masks, own.classes))
    if own is None:
        return False
    return names_shards(own.where) if own.kind == "wds" else own.path.exists()


def _three_paths(where: str, word: str) -> list[Path]:
    """Of "IMAGES,MASKS,CLASSES.json"; a path that is there may hold commas."""
    parts = [part for part in where.split(",") if part.strip()]
    splits = [(first, second) for second in range(2, len(parts)) for first in range(1, second)]
    for first, second in splits:
        groups = (parts[:first], parts[first:second], parts[second:])
        paths = [Path(",".join(group).strip()).expanduser() for group in groups]
        if len(parts) == 3 or all(path.exists() for path in paths):
            return paths

    problem = f"it names {len(parts)} of three paths"
    fix = "write seg:IMAGES,MASKS,CLASSES.json"
    if len(parts) > 3:
        problem = "no three paths that it may name are there"
        fix += "; a path with a comma counts only where it is there"
    raise UserError(problem, about=word, fix=fix)


# ---- images with masks ----

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
        for path, content in ((self.images, "images"), (self.masks, "masks")):
            if not path.is_dir():
                fix = f"give the folder of the {content}"
                raise UserError("no such folder", about=path, fix=fix)
        if not self.classes.is_file():
            fix = "give a file that names the classes, as docs/datasets.md says"
            raise UserError("no such file", about=self.classes, fix=fix)

        folders = split_folders(self.images)
        for folder in folders.values():
            masks = self._masks_of(folder)
            if not masks.is_dir():
                problem = f"the folder is missing, and {folder} holds images"
                raise DataError(problem, about=masks, fix="put their masks there")
        return folders

    def load(self, split: str, limit: int | None = None) -> ImageFiles:
        """The split "test" or "train". Raises UserError for whatever is wrong with the data."""
        data = ImageFiles(self.name, split, self.read(split), limit).hashed()
        self._check_ignored(data)
        self._check_labelled(data)
        return data

    def check(self) -> None:
        """Raise DataError where the masks say something else than CLASSES.json seems to mean."""
        for split in self.splits():
            self.load(split)

    def _check_labelled(self, data: ImageFiles) -> None:
        """Raise DataError where no pixel of any mask is scored."""
        if data.findings.unlabelled.count == len(data):
            problem = f"no pixel of its {len(data):,} masks is scored"
            ignored = ", ".join(map(str, data.content.rule.ignored)) or "nothing"
            fix = f"look whether {self.classes} names their values: {ignored} counts as not scored"
            raise DataError(problem, about=data.content.folder, fix=fix)

    def _check_ignored(self, data: ImageFiles) -> None:
        """Raise DataError where the usual value of pixels that are not scored looks like a class.

        Of masks stored as 0 and 255 with two names, 255 is the second class. It shows where one
        named class alone is in no mask of any split, and the value is in some, although nobody
        wrote that it is not scored.
        """
        rule = data.content.rule
        if not (rule.is_usual and data.findings.has_ignored and len(data.findings.absent)):
            return

        absent = set(range(len(rule.names)))
        for split in self.splits():
            found = ImageFiles(self.name, split, self.read(split)).findings
            absent &= set(found.absent)
        if len(absent) != 1:
            return

        (label,) = absent
        (value,) = rule.ignored
        problem = (
            f"the class {rule.names[label]!r} (value {rule.values[label]}) is in no mask, and the"
            f" value {value}, which counts as not scored, is in some"
        )
        values = dict(zip(map(str, rule.values), rule.names, strict=True))
        values.pop(str(rule.values[label]))
        values[str(value)] = rule.names[label]
        shown = json.dumps(dict(sorted(values.items(), key=lambda pair: int(pair[0]))))
        fix = (
            f'write {{"names": {shown}}} if {value} is that class,'
            f' or add "ignore": [{value}] to an object with the names if it is not'
        )
        raise DataError(problem, about=self.classes, fix=fix)

    def read(self, split: str) -> ImageSplit:
        """All images of a split with their masks, none of them decoded."""
        folder = self.splits()[split]
        masks = self._masks_of(folder)
        rule = read_classes(self.classes).rule
        layout = f"images, masks of the same names in {masks},"
        notes = listing(folder).notes()
        later = [name for name in rule.names[1:] if is_background(name)]
        if later and not rule.has_background:
            place = rule.names.index(later[0])
            notes.append(
                f"{later[0]!r} is label {place}, and so a class like the others: only label 0 can"
                " be what no class names"
            )
        pairs = read_pairs(folder, masks, rule)
        return _upright(ImageSplit(pairs, folder, layout, notes=notes, rule=rule))

    def _masks_of(self, folder: Path) -> Path:
        """The folder of the masks of a folder of images; its name may differ in its case."""
        if folder == self.images:
            return self.masks
        names = [name for name in subfolders(self.masks) if name.lower() == folder.name.lower()]
        name = folder.name if folder.name in names or not names else names[0]
        return self.masks / name


def read_classes(path: Path) -> Classes:
    """CLASSES.json, read and checked.

    Raises:
        UserError: what it does not say, or says wrongly; names the field.
    """
    fix = 'write a list of names, such as ["road", "tree"], or an object with a field names'
    content = read_json(path, fix)
    fields: dict[str, Any] = {"names": content} if isinstance(content, list) else content
    if not isinstance(fields, dict):
        raise DataError(f"it holds a {type(fields).__name__}", about=path, fix=fix)
    for field in fields:
        if field not in FIELDS:
            raise unknown_name("field", field, FIELDS, about=path)

    names, stored = _names(fields.get("names"), path)
    has_background = fields.get("background", is_background(names[0]))
    if not isinstance(has_background, bool):
        fix = "write true where the first name is all that no name says, or false"
        raise _wrong("background", has_background, path, fix)

    ignored = _ignored(fields.get("ignore"), names, stored, path)
    not_scored = f"values {', '.join(map(str, ignored))}" if ignored else "nothing"
    fix = f"name the value in {path}, or list it there under ignore"
    is_usual = fields.get("ignore") is None and bool(ignored)
    rule = MaskRule(names, has_background, stored, ignored, not_scored, fix, is_usual)
    return Classes(rule, _words(fields.get("synonyms", {}), names, path))


def is_background(name: str) -> bool:
    """Whether a class is called so that it means all that no other class names.

    In any case, and between underscores as labelme writes it.
    """
    return name.strip("_ ").lower() == "background"


def _wrong(field: str, value: Any, path: Path, fix: str) -> DataError:
    return DataError(f"{field} is {value!r:.60}", about=path, fix=fix)


def _names(names: Any, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names in label order, and the values of their pixels where those are not 0, 1, 2 ..."""
    stored: tuple[int, ...] = ()
    if isinstance(names, dict):
        # 65535 is kept for pixels that are not scored
        wrong = [value for value in names if not (value.isdecimal() and int(value) < IGNORE_16)]
        if wrong:
            problem = f"it names the value {wrong[0]!r}, which no mask can hold"
            raise DataError(problem, about=path, fix="write values from 0 to 65534")

        # "7" and "07" are two keys of an object and one value of a mask
        name_of_value = {int(value): name for value, name in names.items()}
        stored = tuple(sorted(name_of_value))
        if len(stored) != len(names):
            raise DataError("it names a value twice", about=path, fix="write each value once")
        names = [name_of_value[value] for value in stored]

    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fix = (
            'write ["road", "tree"] in the order of the values 0, 1 ...,'
            ' or {"7": "road", "8": "tree"}'
        )
        raise _wrong("names", names, path, fix)
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
        raise _wrong("ignore", ignored, path, "write a list of values, such as [255], or []")

    both = next((value for value in ignored if value in values), None)
    if both is not None:
        name = names[values.index(both)]
        problem = f"the value {both} is {name!r} and is ignored"
        raise DataError(problem, about=path, fix="take it out of ignore, or out of names")
    return tuple(sorted(ignored))


def _words(synonyms: Any, names: tuple[str, ...], path: Path) -> tuple[tuple[str, ...], ...] | None:
    """Words to ask for, of each label; None without synonyms."""
    if not isinstance(synonyms, dict):
        raise _wrong("synonyms", synonyms, path, 'write {"tree": ["tree", "bush"]}')
    for name, words in synonyms.items():
        if name not in names:
            raise unknown_name("class in synonyms", name, names, about=path)
        is_filled = isinstance(words, list) and bool(words)
        if not is_filled or not all(isinstance(word, str) and word.strip() for word in words):
            fix = "write a list of words, which replaces the name"
            raise _wrong(f"the synonym of {name!r}", words, path, fix)

    if not synonyms:
        return None
    return tuple(tuple(word.strip() for word in synonyms.get(name, [name])) for name in names)
