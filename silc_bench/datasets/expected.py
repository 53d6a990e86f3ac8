"""How many classes and pictures each named set has, and the order of its labels: checked before anything is encoded.

Sources of the counts: ILSVRC 2012 (Russakovsky et al., 2015); ImageNet-V2 matched frequency (Recht et al., 2019); -A
(Hendrycks et al., 2021); -R (Hendrycks et al., 2021); -Sketch (Wang et al., 2019: 50 queries a class, 50,889 pictures
released); ObjectNet (Barbu et al., 2019: the 113 classes that ImageNet has too); CIFAR (Krizhevsky, 2009); COCO and Flickr30k
in the split of Karpathy and Fei-Fei (2015).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from silc_bench.datasets.picture_set import DataError, Found, fingerprint


@dataclass(frozen=True)
class Expected:
    pictures: int
    classes: int = 0
    per_class: int = 0  # pictures of each class, 0 where that differs
    captions: int = 0  # a picture


EXPECTED = {
    ("imagenet1k", "train"): Expected(1_281_167, classes=1000),
    ("imagenet1k", "test"): Expected(
        50_000, classes=1000, per_class=50
    ),  # ILSVRC's validation part, as nobody has its test labels
    ("imagenet_v2", "test"): Expected(10_000, classes=1000, per_class=10),
    ("imagenet_a", "test"): Expected(7_500, classes=200),
    ("imagenet_r", "test"): Expected(30_000, classes=200),
    ("imagenet_sketch", "test"): Expected(50_889, classes=1000),
    ("objectnet", "test"): Expected(18_574, classes=113),
    ("cifar10", "train"): Expected(50_000, classes=10, per_class=5_000),
    ("cifar10", "test"): Expected(10_000, classes=10, per_class=1_000),
    ("cifar100", "train"): Expected(50_000, classes=100, per_class=500),
    ("cifar100", "test"): Expected(10_000, classes=100, per_class=100),
    ("coco", "test"): Expected(5_000, captions=5),
    ("flickr30k", "test"): Expected(1_000, captions=5),
}

# Published parts of a set that are scored as they are, known by their content: {(name, split): {pictures: fingerprint}}.
PARTS = {
    ("cifar100", "test"): {2_000: "e81073476a0c5283"},
    ("cifar100", "train"): {25_000: "409010c8a1340970"},
}

# sha256 of the lines, one a label in order. ImageNet: clip_benchmark/datasets (builder.py, en_classnames.json of version
# 1.6.2; the names are OpenAI's, as in open_clip); CIFAR: the names in the sets' own files, "_" as a space.
LABEL_ORDER = {
    "imagenet wnids": "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
    "imagenet_a wnids": "f6aa4b23244554d9b864fd715ae20048f6a9686388911b2dfbf1ada01bf0f520",
    "imagenet_r wnids": "e19a59d84e3746fafd34d2ccf6ae604a44e9a0500a596f343c878a89e30ce624",
    "imagenet names": "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60",
    "cifar10 names": "bb3914949cecedee6d1257f7f5fdb8f43fa3b2c8095fd1763161caf1b873fe59",
    "cifar100 names": "60ae3a3ac1355fcfec19c0ea3cb5fde15203ecf3b537cabcf6d5d54688ee9a4d",
}


@cache
def checked_order(title: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The same names. Raises DataError when they are not the list that the labels were numbered by."""
    if hashlib.sha256("\n".join(names).encode()).hexdigest() != LABEL_ORDER[title]:
        fix = "install the version that constraints.txt names: pip install clip-benchmark==1.6.2"
        raise DataError(f"the list of {title} is not the one that labels are numbered by ({len(names)} names)", fix)
    return names


def check_counts(name: str, split: str, found: Found) -> None:
    """Refuse a set that is not whole, before any picture is encoded.

    Raises:
        DataError: fewer or more pictures than the set has, a class with too few, a picture with too few captions.
    """
    expected = EXPECTED[name, split]
    here, wanted = len(found.pictures), expected.pictures
    if here != wanted and not _is_known_part(name, split, found):
        fault = f"{name} {split} in {found.folder}: {here:,} pictures ({found.layout}), and the set has {wanted:,}"
        if expected.classes:
            fault += _worst_class(found, expected)
        fix = "fetch what is missing" if here < wanted else "remove what does not belong to the set"
        own = "folder:PATH, wds:PATTERN" if expected.classes else "captions:FILE"
        raise DataError(fault, f"{fix}; a part of your own is scored under its own name with --tasks {own}")
    if here == wanted and expected.classes:
        counts = _counts(found, expected.classes)
        if (counts == 0).any() or (expected.per_class and (counts != expected.per_class).any()):
            fault = f"{name} {split} in {found.folder} has {here:,} pictures, but not of the right classes"
            raise DataError(fault + _worst_class(found, expected), "fetch the set again")
    few = next((picture for picture in found.pictures if len(picture.captions) < expected.captions), None)
    if few is not None:
        fault = f"{few.where} has {len(few.captions)} captions, and every picture of {name} has {expected.captions}"
        raise DataError(fault, "fetch the file of captions again")


def _is_known_part(name: str, split: str, found: Found) -> bool:
    known = PARTS.get((name, split), {}).get(len(found.pictures))
    return known is not None and fingerprint(found.class_names, found.pictures, f"{name} {split}") == known


def _counts(found: Found, num_classes: int) -> np.ndarray:
    labels: Sequence[int] = [picture.label for picture in found.pictures if picture.label is not None]
    return np.bincount(np.array(labels, np.int64), minlength=num_classes)


def _worst_class(found: Found, expected: Expected) -> str:
    counts = _counts(found, expected.classes)
    without = np.flatnonzero(counts == 0)
    if len(without):
        return f"; {len(without)} of {expected.classes} classes have none, such as {found.class_names[without[0]]!r}"
    if not expected.per_class:
        return ""
    off = np.flatnonzero(counts != expected.per_class)
    first = off[0]
    return f"; {len(off)} classes do not have {expected.per_class}, such as {found.class_names[first]!r} with {counts[first]}"
