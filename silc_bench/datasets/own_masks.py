"""The user's own pictures with masks: ``seg:IMAGES,MASKS,CLASSES.json``.

    seg:town/images,town/masks,town/classes.json      each picture has the mask of its name: images/a/1.jpg, masks/a/1.png
    IMAGES/test, IMAGES/train, MASKS/test ...          with a train/ folder in both, what is learned too

CLASSES.json is a list of names in label order, or an object:

    {"names": ["background", "road", "tree"],   of the values 0, 1, 2 in the masks; or {"7": "road", "8": "tree"}: of these
     "background": true,                         whether the first is all that no name says; it is when called background
     "ignore": [255],                            values of pixels that are not scored; else 255, or 65535 from 255 classes on
     "synonyms": {"tree": ["tree", "bush"]}}     words to ask for instead of the name
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.datasets import IGNORE
from silc_bench.datasets.files import split_folders
from silc_bench.datasets.masks import MOST_IN_8_BITS, MaskRule, check_names
from silc_bench.datasets.picture_set import DataError, Found, PictureSet
from silc_bench.datasets.segmentation import found_of, read_pairs
from silc_bench.errors import UserError, unknown_name

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
        """Folders of pictures: "test" and, where there is one, "train". Raises UserError for what is not there."""
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
                raise DataError(f"{folder} holds pictures, and {self.masks / folder.name} is missing", "put their masks there")
        return found

    def load(self, split: str, limit: int | None = None) -> PictureSet:
        """ "test" or "train". Raises UserError for whatever is wrong with the data."""
        return PictureSet(self.name, split, self.read(split), limit).hashed()

    def read(self, split: str) -> Found:
        folder = self.splits()[split]
        masks = self.masks if folder == self.images else self.masks / folder.name
        rule = read_classes(self.classes).rule
        return found_of(read_pairs(folder, masks, rule), folder, f"pictures, masks of the same names in {masks},", rule)


def read_classes(path: Path) -> Classes:
    """CLASSES.json. Raises UserError for what it does not say, or says wrongly, naming the field."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}", 'write a list of names, such as ["road", "tree"]') from error
    fields: dict[str, Any] = {"names": content} if isinstance(content, list) else content
    if not isinstance(fields, dict):
        raise DataError(f"{path} holds a {type(fields).__name__}", "write a list of names, or an object with a field names")
    for field in fields:
        if field not in FIELDS:
            raise unknown_name(f"field of {path}:", field, FIELDS)
    names, stored = _names(fields.get("names"), path)
    background = fields.get("background", names[0] == "background")
    if not isinstance(background, bool):
        raise DataError(
            f"{path}: background is {background!r}", "write true where the first name is all that no name says, or false"
        )
    ignored = _ignored(fields.get("ignore"), names, stored, path)
    fix = f"name the value in {path}, or list it there under ignore"
    shown = ", ".join(map(str, ignored)) or "nothing"
    rule = MaskRule(names, background, stored, ignored, f"values {shown}" if ignored else shown, fix)
    return Classes(rule, _words(fields.get("synonyms", {}), names, path))


def _names(names: Any, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names in label order, and the values of their pixels where those are not 0, 1, 2 ..."""
    stored: tuple[int, ...] = ()
    if isinstance(names, dict):
        wrong = [value for value in names if not (value.isdecimal() and int(value) < IGNORE_16)]
        if wrong:
            raise DataError(f"{path} names the value {wrong[0]!r}", "a mask holds numbers from 0 to 65534")
        stored = tuple(sorted(map(int, names)))
        if len(set(stored)) != len(names):
            raise DataError(f"{path} names a value twice", "write each number in one way")
        named = {int(value): name for value, name in names.items()}
        names = [named[value] for value in stored]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fix = 'write ["road", "tree"] in the order of the values 0, 1 ..., or {"7": "road", "8": "tree"}'
        raise DataError(f"{path} has no names", fix)
    return check_names(names, str(path)), stored


def _ignored(ignored: Any, names: tuple[str, ...], stored: tuple[int, ...], path: Path) -> tuple[int, ...]:
    values = stored or tuple(range(len(names)))
    if ignored is None:
        usual = IGNORE if len(names) <= MOST_IN_8_BITS else IGNORE_16
        return (usual,) if usual not in values else ()
    if not isinstance(ignored, list) or not all(isinstance(value, int) and 0 <= value <= IGNORE_16 for value in ignored):
        raise DataError(f"{path}: ignore is {ignored!r:.60}", "write a list of values, such as [255], or []")
    both = next((value for value in ignored if value in values), None)
    if both is not None:
        named = names[values.index(both)]
        raise DataError(f"{path}: the value {both} is {named!r} and is ignored", "take it out of ignore, or out of names")
    return tuple(sorted(ignored))


def _words(synonyms: Any, names: tuple[str, ...], path: Path) -> tuple[tuple[str, ...], ...] | None:
    if not isinstance(synonyms, dict):
        raise DataError(f"{path}: synonyms is {synonyms!r:.60}", 'write {"tree": ["tree", "bush"]}')
    for name, words in synonyms.items():
        if name not in names:
            raise unknown_name(f"class in the synonyms of {path}:", name, names)
        if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise DataError(
                f"{path}: the synonyms of {name!r} are {words!r:.60}", "write a list of words, which replaces the name"
            )
    if not synonyms:
        return None
    return tuple(tuple(word.strip() for word in synonyms.get(name, [name])) for name in names)
