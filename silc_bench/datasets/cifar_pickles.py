"""CIFAR's original python files, read by an unpickler that knows arrays, bytes and nothing else: no code in them is run."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.datasets.picture_set import DataError, Picture

_FILES = {
    ("cifar10", "train"): tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("cifar10", "test"): ("test_batch",),
    ("cifar100", "train"): ("train",),
    ("cifar100", "test"): ("test",),
}
_KEYS = {"cifar10": ("batches.meta", b"label_names", b"labels"), "cifar100": ("meta", b"fine_label_names", b"fine_labels")}


def read_pickles(name: str, split: str, folder: Path, class_names: tuple[str, ...]) -> list[Picture]:
    """The pictures of a split in the order of its files, each with raw pixels [32, 32, 3].

    Raises:
        DataError: a file is missing, broken, or holds something else than arrays; the names in ``meta`` are in another order.
    """
    meta, names_key, labels_key = _KEYS[name]
    theirs = [_text(item).replace("_", " ") for item in _read(folder / meta).get(names_key, ())]
    if theirs != list(class_names):
        raise DataError(f"{folder / meta} does not list the classes of {name} in their order", _fix(name))
    pictures: list[Picture] = []
    for file in _FILES[name, split]:
        content = _read(folder / file)
        pixels, labels = content.get(b"data"), content.get(labels_key)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
            raise DataError(f"{folder / file} holds no array of 3,072 bytes a picture", _fix(name))
        if not isinstance(labels, list) or len(labels) != len(pixels):
            raise DataError(f"{folder / file} holds {len(pixels)} pictures and not as many labels", _fix(name))
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            where = f"{folder / file}:{index}"
            if not isinstance(label, int) or not 0 <= label < len(class_names):
                raise DataError(f"{where} has the label {label!r}; {name} has 0 to {len(class_names) - 1}", _fix(name))
            pictures.append(Picture(folder / file, (0, image.nbytes), where, label, pixels=image))
    return pictures


def _fix(name: str) -> str:
    return f"fetch {name.replace('cifar', 'cifar-')}-python.tar.gz again and unpack it"


def _read(path: Path) -> dict[bytes, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", "unpack the whole archive") from error
    except pickle.UnpicklingError as error:
        raise DataError(f"{path} is refused: {error}", "fetch the archive again from its source") from error
    # what the unpickler's machine and numpy raise on bytes that are no pickle of arrays
    except (ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, MemoryError, OverflowError) as error:
        raise DataError(f"{path} is not a readable pickle: {error}", "fetch the archive again from its source") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}, not CIFAR's dictionary", "fetch the archive again from its source"
        )
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _text(item: Any) -> str:
    return item.decode("utf-8", errors="replace") if isinstance(item, bytes) else str(item)


def _bytes_of(text: str, encoding: str = "latin1") -> bytes:
    """In place of ``_codecs.encode``, by which python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1") if isinstance(text, str) else bytes(text)


class _ArraysOnly(pickle.Unpickler):
    """Names that a pickle of plain arrays refers to, each mapped to what it may be here; any other name is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _number_dtype
        if (module, name) == ("_codecs", "encode"):
            return _bytes_of
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and a pickle of arrays needs no such thing")


def _empty_array(kind: type, shape: tuple[int, ...], dtype: bytes | str) -> np.ndarray:
    """What numpy's ``_reconstruct`` gives: an array of nothing, which the state that follows fills."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"it asks for an array of the class {kind!r}")
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _number_dtype(code: bytes | str, *rest: Any) -> np.dtype:
    if _text(code) != "u1":
        raise pickle.UnpicklingError(f"it holds an array of {_text(code)[:20]!r}, not of bytes")
    return np.dtype("u1", copy=True)  # a copy, for the state that follows is written into it
