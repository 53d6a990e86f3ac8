"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from shards, image folders or the python files.

Layouts, each in ``cifar100/`` under the data root (which may itself be the folder of that name):

    {train,test}/*.tar                webdataset: .png or .jpg, .cls (label 0..99), optional .txt
    {train,test}/<class name>/*.png   labels from the folder names
    cifar-100-python/                 the original pickles

Images that are stored in another encoding are other content: PNG and pickles have different
fingerprints.

The pickles are read by an unpickler that knows arrays, bytes and nothing else: no code in them is
run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.datasets.files.folders import listing
from silc_bench.datasets.image_set import ImageFile, ImageFiles, ImageSplit
from silc_bench.datasets.layouts import read_class_folders, read_labelled, read_names, shards_in
from silc_bench.datasets.public.counts import checked_order
from silc_bench.datasets.public.find import Site, find, split_tars
from silc_bench.errors import DataError, UserError

# the fine labels in the dataset's own (alphabetical) order, with spaces for its underscores, as
# OpenAI's prompts have them
_FINE_LABELS = (
    "apple,aquarium fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,"
    "butterfly,camel,can,castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,"
    "couch,crab,crocodile,cup,dinosaur,dolphin,elephant,flatfish,forest,fox,girl,hamster,house,"
    "kangaroo,keyboard,lamp,lawn mower,leopard,lion,lizard,lobster,man,maple tree,motorcycle,"
    "mountain,mouse,mushroom,oak tree,orange,orchid,otter,palm tree,pear,pickup truck,"
    "pine tree,plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,"
    "shark,shrew,skunk,skyscraper,snail,snake,spider,squirrel,streetcar,sunflower,sweet pepper,"
    "table,tank,telephone,television,tiger,tractor,train,trout,tulip,turtle,wardrobe,whale,"
    "willow tree,wolf,woman,worm"
)
CLASS_NAMES = checked_order("cifar100 names", tuple(_FINE_LABELS.split(",")))
CIFAR10_NAMES = checked_order(
    "cifar10 names",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
_NAMES = {"cifar10": CIFAR10_NAMES, "cifar100": CLASS_NAMES}


def load_cifar100(data_root: Path | None, split: str, limit: int | None = None) -> ImageFiles:
    """Whatever part of the split "train" or "test" lies there; ``load.load`` asks for all of it.

    Raises:
        UserError: not found (says where it looked and which layouts fit), classes in another
            order, a sample without image or label, or a damaged shard.
    """
    site = find("cifar100", split, data_root)
    return ImageFiles("cifar100", split, read_cifar("cifar100", split, site), limit)


def read_cifar(name: str, split: str, site: Site) -> ImageSplit:
    """Images and labels of "cifar10" or "cifar100".

    Raises:
        UserError: as ``load_cifar100`` does.
    """
    names = _NAMES[name]
    if site.kind == "pickles":
        pictures = read_pickles(name, split, site.path, names)
        return ImageSplit(pictures, site.path, "python pickles", names)

    # a list of names lies beside the folders of the splits
    set_folder = site.path.parent if site.path != site.base else site.path
    _check_class_order(set_folder, name, names)

    notes: list[str] = []
    if site.kind == "shards":
        paths = split_tars(site, split) or shards_in(site.path)
        pictures = read_labelled(paths, len(names), with_captions=True)
        layout = "webdataset shards"
    else:
        labels = {text: label for label, text in enumerate(names)}
        pictures, notes = read_class_folders(listing(site.path), labels, name, _normalise)
        layout = "class folders"
    if not pictures:
        raise UserError(f"{site.path} holds no samples of {name}")
    return ImageSplit(pictures, site.path, layout, names, notes=notes)


def _check_class_order(folder: Path, name: str, names: tuple[str, ...]) -> None:
    """Raise where a list of names beside the data has another order than ours.

    Shards hold numbers only, and such a list says what the numbers mean.
    """
    title = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]
    for path in (folder / "classnames.json", folder / "classnames.txt"):
        if not path.exists():
            continue

        # the first difference tells more than two lengths
        theirs = read_names(path)
        for label, (our, their) in enumerate(zip(names, map(_normalise, theirs), strict=False)):
            if our != their:
                raise UserError(f"{path}: class {label} is {their!r}, in {title} it is {our!r}")
        if len(theirs) != len(names):
            raise UserError(f"{path} names {len(theirs)} classes, {title} has {len(names)}")


def _normalise(name: str) -> str:
    return name.strip().lower().replace("_", " ")


# ---- the original python files ----

_FILES = {
    ("cifar10", "train"): tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("cifar10", "test"): ("test_batch",),
    ("cifar100", "train"): ("train",),
    ("cifar100", "test"): ("test",),
}
# the file of the names, and the keys of names and labels
_KEYS = {
    "cifar10": ("batches.meta", b"label_names", b"labels"),
    "cifar100": ("meta", b"fine_label_names", b"fine_labels"),
}


def read_pickles(
    name: str, split: str, folder: Path, class_names: tuple[str, ...]
) -> list[ImageFile]:
    """The images of a split in the order of its files, each with raw pixels [32, 32, 3].

    Raises:
        DataError: a file is missing, broken, or holds something else than arrays; the names in
            ``meta`` are in another order.
    """
    meta, names_key, labels_key = _KEYS[name]
    names = [_text(item).replace("_", " ") for item in _read(folder / meta).get(names_key, ())]
    if names != list(class_names):
        problem = f"{folder / meta} does not list the classes of {name} in their order"
        raise DataError(problem, fix=_fix(name))

    pictures: list[ImageFile] = []
    for file in _FILES[name, split]:
        path = folder / file
        images, labels = _read_batch(path, labels_key, name)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            where = f"{path}:{index}"
            if not isinstance(label, int) or not 0 <= label < len(class_names):
                last = len(class_names) - 1
                problem = f"{where} has the label {label!r}; {name} has 0 to {last}"
                raise DataError(problem, fix=_fix(name))
            pictures.append(ImageFile(path, (0, image.nbytes), where, label, pixels=image))
    return pictures


def _read_batch(path: Path, labels_key: bytes, name: str) -> tuple[np.ndarray, list[Any]]:
    """Images [N, 32, 32, 3] uint8 and their N labels, as they stand in one file."""
    content = _read(path)
    pixels: Any = content.get(b"data")
    labels: Any = content.get(labels_key)
    is_bytes = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not is_bytes or pixels.shape[1:] != (3072,):
        raise DataError(f"{path} holds no array of 3,072 bytes a picture", fix=_fix(name))
    if not isinstance(labels, list) or len(labels) != len(pixels):
        problem = f"{path} holds {len(pixels)} pictures and not as many labels"
        raise DataError(problem, fix=_fix(name))

    # stored plane by plane: all red values of an image, then the green ones, then the blue ones
    planes = pixels.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _fix(name: str) -> str:
    return f"fetch {name.replace('cifar', 'cifar-')}-python.tar.gz again and unpack it"


# what the unpickler's machine and numpy raise on bytes that are no pickle of arrays
_BROKEN_PICKLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AttributeError,
    MemoryError,
    OverflowError,
)


def _read(path: Path) -> dict[bytes, Any]:
    """The dictionary in a pickle, its keys as bytes."""
    again = "fetch the archive again from its source"
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", fix="unpack the whole archive") from error
    except pickle.UnpicklingError as error:
        raise DataError(f"{path} is refused: {error}", fix=again) from error
    except _BROKEN_PICKLE as error:
        raise DataError(f"{path} is not a readable pickle: {error}", fix=again) from error

    if not isinstance(content, dict):
        problem = f"{path} holds a {type(content).__name__}, not CIFAR's dictionary"
        raise DataError(problem, fix=again)
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _text(item: Any) -> str:
    return item.decode("utf-8", errors="replace") if isinstance(item, bytes) else str(item)


def _bytes_of(text: str, encoding: str = "latin1") -> bytes:
    """In place of ``_codecs.encode``, by which python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1") if isinstance(text, str) else bytes(text)


class _ArraysOnly(pickle.Unpickler):
    """Knows the names that a pickle of plain arrays refers to; any other name is refused.

    To unpickle is to call what the names stand for, so each is mapped to something harmless.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        # numpy 2 moved its core; the files of 2009 ask for the old place
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _number_dtype
        if (module, name) == ("_codecs", "encode"):
            return _bytes_of
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, and a pickle of arrays needs no such thing"
        )


def _empty_array(kind: type, shape: tuple[int, ...], dtype: bytes | str) -> np.ndarray:
    """An array of nothing, as numpy's ``_reconstruct`` gives; the state that follows fills it."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"it asks for an array of the class {kind!r}")
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _number_dtype(code: bytes | str, *rest: Any) -> np.dtype:
    if _text(code) != "u1":
        raise pickle.UnpicklingError(f"it holds an array of {_text(code)[:20]!r}, not of bytes")

    # a copy, because the state that follows is written into it
    return np.dtype("u1", copy=True)
