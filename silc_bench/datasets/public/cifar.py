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

import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from silc_bench.datasets.files.folders import listing
from silc_bench.datasets.image_set import ImageFile, ImageSplit
from silc_bench.datasets.layouts import read_class_folders, read_labelled
from silc_bench.datasets.public.find import Expected, PublicSet, Site, check_names, tars_of
from silc_bench.errors import DataError, first_line
from silc_bench.later import np

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
CLASS_NAMES = tuple(_FINE_LABELS.split(","))
CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def read_cifar(known: PublicSet, split: str, site: Site) -> ImageSplit:
    """Images and labels of "cifar10" or "cifar100".

    Raises:
        UserError: classes in another order, a sample without image or label, a damaged shard.
    """
    names = CIFAR10_NAMES if known.name == "cifar10" else CLASS_NAMES
    if site.kind == "pickles":
        images = _read_pickles(known.name, split, site.path, names)
        return ImageSplit(images, site.path, "python pickles", names)

    # a list of names lies beside the folders of the splits
    notes: list[str] = []
    folder = site.path.parent if site.path != site.base else site.path
    for path in (folder / "classnames.json", folder / "classnames.txt"):
        if path.exists():
            notes += check_names(path, names, _normalise)

    layout = "webdataset shards"
    if site.kind == "shards":
        images = read_labelled(tars_of(site, split), len(names), with_captions=True)
    else:
        layout = "class folders"
        labels = {text: label for label, text in enumerate(names)}
        content = listing(site.path)
        images, skipped = read_class_folders(content, labels, known.name, _normalise)
        notes += skipped
    return ImageSplit(images, site.path, layout, names, notes=notes)


def _normalise(name: str) -> str:
    return name.strip().lower().replace("_", " ")


# ---- the original python files ----

# of each split; CIFAR-100 has one of the split's name
_FILES = {
    ("cifar10", "train"): tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("cifar10", "test"): ("test_batch",),
}
# the file of the names, and the keys of names and labels
_KEYS = {
    "cifar10": ("batches.meta", b"label_names", b"labels"),
    "cifar100": ("meta", b"fine_label_names", b"fine_labels"),
}
AGAIN = "fetch the archive again and unpack all of it"


def _read_pickles(
    name: str, split: str, folder: Path, class_names: tuple[str, ...]
) -> list[ImageFile]:
    """The images of a split in the order of its files, each with raw pixels [32, 32, 3].

    Raises:
        DataError: a file is missing, broken, or holds something else than arrays; the names in
            ``meta`` are in another order.
    """
    meta, names_key, labels_key = _KEYS[name]
    theirs = [_normalise(_text(item)) for item in _read(folder / meta).get(names_key, ())]
    if theirs != list(class_names):
        problem = f"does not list the classes of {name} in their order"
        raise DataError(problem, about=folder / meta, fix=AGAIN)

    images: list[ImageFile] = []
    for file in _FILES.get((name, split), (split,)):
        path = folder / file
        batch, labels = _read_batch(path, labels_key)
        for index, (image, label) in enumerate(zip(batch, labels, strict=True)):
            where = f"{path}:{index}"
            if not isinstance(label, int) or not 0 <= label < len(class_names):
                problem = f"has the label {label!r}, and {name} has 0 to {len(class_names) - 1}"
                raise DataError(problem, about=where, fix=AGAIN)
            images.append(ImageFile(path, (0, image.nbytes), where, label, pixels=image))
    return images


def _read_batch(path: Path, labels_key: bytes) -> tuple[np.ndarray, list[Any]]:
    """Images [N, 32, 32, 3] uint8 and their N labels, as they stand in one file."""
    content = _read(path)
    pixels: Any = content.get(b"data")
    labels: Any = content.get(labels_key)
    is_bytes = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not is_bytes or pixels.shape[1:] != (3072,):
        raise DataError("holds no array of 3,072 bytes an image", about=path, fix=AGAIN)
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise DataError(f"holds {len(pixels)} images and not as many labels", about=path, fix=AGAIN)

    # stored plane by plane: all red values of an image, then the green ones, then the blue ones
    planes = pixels.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


# what the unpickler's machine, numpy and the file system raise on what is no pickle of arrays
_BROKEN_PICKLE = (
    *(pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, EOFError),
    *(AttributeError, MemoryError, OverflowError, OSError),
)


def _read(path: Path) -> dict[bytes, Any]:
    """The dictionary in a pickle, its keys as bytes."""
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _BROKEN_PICKLE as error:
        problem = f"cannot be read as a pickle of arrays: {first_line(error)}"
        raise DataError(problem, about=path, fix=AGAIN) from error

    if not isinstance(content, dict):
        problem = f"holds a {type(content).__name__}, not CIFAR's dictionary"
        raise DataError(problem, about=path, fix=AGAIN)
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
        asked = f"{module}.{name}"
        harmless = _harmless()
        if asked not in harmless:
            problem = f"it asks for {asked}, and a pickle of arrays needs no such thing"
            raise pickle.UnpicklingError(problem)
        return harmless[asked]


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


@functools.cache
def _harmless() -> dict[str, Callable[..., Any]]:
    return {
        # numpy 2 moved its core; the files of 2009 ask for the old place
        "numpy.core.multiarray._reconstruct": _empty_array,
        "numpy._core.multiarray._reconstruct": _empty_array,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": _number_dtype,
        "_codecs.encode": _bytes_of,
    }


# ---- the two sets ----

_FAMILIES = ("zeroshot", "fewshot", "fewshot_logistic", "linear", "knn")
_FOLDERS = {"train": ("train",), "test": ("test", "val")}


def _entry(number: int, archive: str, names: tuple[str, ...], **splits: Expected) -> PublicSet:
    name = f"cifar{number}"
    return PublicSet(
        name,
        (*names, f"{name}python"),
        splits,
        f"{name}/{{split}}/*.tar (webdataset: .png and .cls),"
        f" {name}/{{split}}/<class name>/*.png, or {archive}/",
        read_cifar,
        {split: (*folders, archive, "") for split, folders in _FOLDERS.items()},
        _FAMILIES,
        f"openai_{name}",
    )


ENTRIES = (
    _entry(
        *(10, "cifar-10-batches-py", ("cifar10batchespy",)),
        train=Expected(50_000, classes=10, per_class=5_000),
        test=Expected(10_000, classes=10, per_class=1_000),
    ),
    _entry(
        *(100, "cifar-100-python", ()),
        train=Expected(50_000, classes=100, per_class=500, part=(25_000, "409010c8a1340970")),
        test=Expected(10_000, classes=100, per_class=100, part=(2_000, "e81073476a0c5283")),
    ),
)
