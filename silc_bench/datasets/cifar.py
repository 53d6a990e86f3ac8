"""CIFAR-100 (Krizhevsky, 2009) from webdataset shards or from image folders, checked and fingerprinted.

Flow: find the split under the data root -> list samples -> take ``limit`` evenly spread ones -> read labels and captions and
hash everything. Layouts, each directly under the data root or in ``cifar100/`` there:

    {train,test}/*.tar                  members .png or .jpg, .cls (label 0..99), optional .txt (caption)
    {train,test}/<class name>/*.png     labels from the folder names

In an evaluation set damage is an error: a score over fewer samples than were promised is no score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from silc_bench.datasets import spread
from silc_bench.datasets.shards import (
    IMAGE_EXTENSIONS,
    DamagedImageError,
    Place,
    Sample,
    decode_image,
    index_shard,
    read_member,
)
from silc_bench.errors import UserError, unknown_name

SPLITS = ("train", "test")
# the dataset's fine labels in its own (alphabetical) order, with spaces for its underscores, as OpenAI's prompts have them
_FINE_LABELS = (
    "apple,aquarium fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,castle,"
    "caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,elephant,"
    "flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn mower,leopard,lion,lizard,lobster,man,"
    "maple tree,motorcycle,mountain,mouse,mushroom,oak tree,orange,orchid,otter,palm tree,pear,pickup truck,pine tree,"
    "plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,"
    "snail,snake,spider,squirrel,streetcar,sunflower,sweet pepper,table,tank,telephone,television,tiger,tractor,train,"
    "trout,tulip,turtle,wardrobe,whale,willow tree,wolf,woman,worm"
)
CLASS_NAMES = tuple(_FINE_LABELS.split(","))
LABELS = {str(label).encode(): label for label in range(len(CLASS_NAMES))}  # what a .cls member may hold


def load_cifar100(data_root: Path | None, split: str, limit: int | None = None) -> Cifar100:
    """The split "train" or "test"; ``limit`` takes that many samples, evenly spread.

    Raises:
        UserError: not found (says where it looked and which layouts fit), classes in another order, a sample without
            picture or label, or a damaged shard.
    """
    if split not in SPLITS:
        raise unknown_name("split of cifar100", split, SPLITS)
    if data_root is None:
        raise UserError(f"cifar100 is read from files: give --data-root DIR with {_layouts(split)}")
    folder = _find(Path(data_root), split)
    _check_class_order(folder)
    sources = list(_from_shards(folder) if any(folder.glob("*.tar")) else _from_folders(folder))
    if not sources:
        raise UserError(f"{folder} holds no samples; needed: {_layouts(split)}")
    return Cifar100(split, [sources[i] for i in spread(len(sources), limit)])


class Cifar100:
    """The samples as an ImageDataset; pictures stay in their files until asked for."""

    name = "cifar100"
    class_names = CLASS_NAMES
    mask_names: tuple[str, ...] = ()

    def __init__(self, split: str, sources: list[_Source]) -> None:
        self.split = split
        self._sources = sources
        self.labels = np.array([source.label for source in sources], np.int64)
        captioned = [source.caption for source in sources if source.caption is not None]
        if captioned and len(captioned) < len(sources):
            without = next(source for source in sources if source.caption is None)
            raise UserError(f"{len(captioned)} of {len(sources)} samples have a caption; {without.where} has none")
        self.captions = [(caption,) for caption in captioned] or None
        self.fingerprint = self._hash()

    def __len__(self) -> int:
        return len(self._sources)

    def image(self, index: int) -> Image.Image:
        """Raises UserError for a picture that cannot be decoded, naming it."""
        source = self._sources[index]
        try:
            return decode_image(read_member(source.path, source.place))
        except DamagedImageError as error:
            raise UserError(f"cifar100 {self.split} cannot be scored, {source.where} is damaged: {error}") from error

    def mask(self, index: int) -> np.ndarray:
        raise ValueError("cifar100 has no masks")

    def _hash(self) -> str:
        """Over class names, labels, captions and encoded pictures in order: the files' names and layout do not count."""
        digest = hashlib.sha256(json.dumps(CLASS_NAMES).encode())
        for source in self._sources:
            picture = read_member(source.path, source.place)
            digest.update(json.dumps([source.label, source.caption, len(picture)]).encode())
            digest.update(picture)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Source:
    path: Path
    place: Place  # of the picture in the file
    where: str  # for messages
    label: int
    caption: str | None


def _layouts(split: str) -> str:
    return f"cifar100/{split}/*.tar (webdataset: .png and .cls) or cifar100/{split}/<class name>/*.png"


def _find(data_root: Path, split: str) -> Path:
    folders = (data_root / "cifar100" / split, data_root / split)
    for folder in folders:
        if folder.is_dir() and any(entry.suffix == ".tar" or entry.is_dir() for entry in folder.iterdir()):
            return folder
    looked = " and ".join(str(folder) for folder in folders)
    raise UserError(f"no cifar100 {split} data: looked in {looked}; needed: {_layouts(split)}")


def _check_class_order(folder: Path) -> None:
    """Shards hold numbers only; where a list of names lies beside them, it must be the order we name the numbers by."""
    for path in (folder.parent / "classnames.json", folder.parent / "classnames.txt"):
        if not path.exists():
            continue
        names = _read_names(path)
        for label, (ours, theirs) in enumerate(zip(CLASS_NAMES, map(_normalise, names), strict=False)):
            if ours != theirs:
                raise UserError(f"{path}: class {label} is {theirs!r}, in CIFAR-100 it is {ours!r}")
        if len(names) != len(CLASS_NAMES):
            raise UserError(f"{path} names {len(names)} classes, CIFAR-100 has {len(CLASS_NAMES)}")


def _read_names(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".txt":
        return text.splitlines()
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path} must hold a list of class names in label order")
    return names


def _normalise(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _from_shards(folder: Path) -> Iterator[_Source]:
    for path in sorted(folder.glob("*.tar")):
        shard = index_shard(path)
        if shard.damage.total:
            raise UserError(f"a damaged shard cannot be scored: {shard.damage.summary()}")
        for sample in shard.samples:
            yield _from_sample(path, sample)


def _from_sample(path: Path, sample: Sample) -> _Source:
    where = f"{path}:{sample.key}"
    picture = next((sample.members[ext] for ext in IMAGE_EXTENSIONS if ext in sample.members), None)
    if picture is None or "cls" not in sample.members:
        has = ", ".join(f".{ext}" for ext in sample.members)
        raise UserError(f"{where} needs a picture ({', '.join(IMAGE_EXTENSIONS)}) and a label (.cls); it has {has}")
    text = read_member(path, sample.members["cls"]).strip()
    label = LABELS.get(text)
    if label is None:
        raise UserError(f"{where} has the label {text[:20]!r}; a label is a number from 0 to {len(CLASS_NAMES) - 1}")
    caption = None
    if "txt" in sample.members:
        caption = read_member(path, sample.members["txt"]).decode("utf-8", errors="replace").strip()
    return _Source(path, picture, where, label, caption)


def _from_folders(folder: Path) -> Iterator[_Source]:
    classes = {_normalise(entry.name): entry for entry in folder.glob("[!.]*") if entry.is_dir()}
    unknown, missing = sorted(set(classes) - set(CLASS_NAMES)), sorted(set(CLASS_NAMES) - set(classes))
    if unknown:
        raise unknown_name(f"class folder in {folder}", unknown[0], CLASS_NAMES)
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the {len(CLASS_NAMES)} class folders, such as {missing[0]!r}")
    for label, name in enumerate(CLASS_NAMES):
        for path in sorted(classes[name].iterdir()):
            if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS:
                yield _Source(path, (0, path.stat().st_size), str(path), label, None)
