"""How many classes and images each named set has, and the order of its labels.

Both are checked before anything is encoded.

Sources of the counts: ILSVRC 2012 (Russakovsky et al., 2015); ImageNet-V2 matched frequency (Recht
et al., 2019); -A (Hendrycks et al., 2021); -R (Hendrycks et al., 2021); -Sketch (Wang et al., 2019:
50 queries a class, 50,889 images released); ObjectNet (Barbu et al., 2019: the 113 classes that
ImageNet has too); CIFAR (Krizhevsky, 2009); COCO and Flickr30k in the split of Karpathy and Fei-Fei
(2015); Pascal VOC 2012's ImageSets/Segmentation; Pascal Context as mmsegmentation's converter
splits it; ADE20K as ADEChallengeData2016, and as MaskFormer splits the full set; Cityscapes' fine
annotations (Cordts et al., 2016); COCO 2017; CamVid as SegNet splits it (Badrinarayanan et al.,
2017).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from silc_bench.datasets.image_set import ImageSplit, known_fingerprint
from silc_bench.errors import DataError


@dataclass(frozen=True)
class Expected:
    """What a whole split has."""

    images: int  # images
    classes: int = 0
    per_class: int = 0  # images of each class, 0 where that differs
    captions: int = 0  # of each image
    labels: int = 0  # classes of the pixels
    content: str = ""  # fingerprint of a set that is known by its content alone
    also: int = 0  # images, where the set goes round in two sizes


EXPECTED = {
    ("imagenet1k", "train"): Expected(1_281_167, classes=1000),
    # ILSVRC's validation part, as nobody has its test labels
    ("imagenet1k", "test"): Expected(50_000, classes=1000, per_class=50),
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
    # of VOC and Context, val: their test labels are not public
    ("voc21", "test"): Expected(1_449, labels=21),
    ("voc21", "train"): Expected(1_464, labels=21),
    ("voc20", "test"): Expected(1_449, labels=20),
    ("voc20", "train"): Expected(1_464, labels=20),
    # with mmsegmentation's converter; also: as the paper counts them
    ("pc60", "test"): Expected(5_104, labels=60, also=5_105),
    ("pc60", "train"): Expected(4_996, labels=60, also=4_998),
    ("pc59", "test"): Expected(5_104, labels=59, also=5_105),
    ("pc59", "train"): Expected(4_996, labels=59, also=4_998),
    ("ade20k150", "test"): Expected(2_000, labels=150),
    ("ade20k150", "train"): Expected(20_210, labels=150),
    ("ade20k847", "test"): Expected(2_000, labels=847),
    ("ade20k847", "train"): Expected(25_574, labels=847),
    ("cityscapes", "test"): Expected(500, labels=19),
    ("cityscapes", "train"): Expected(2_975, labels=19),
    ("cocostuff", "test"): Expected(5_000, labels=171),
    ("cocostuff", "train"): Expected(118_287, labels=171),
    ("coco_object", "test"): Expected(5_000, labels=81),
    ("camvid", "test"): Expected(233, labels=11),
    ("camvid", "train"): Expected(367, labels=11),
    ("camvid_mini", "test"): Expected(20, labels=11, content="48dd8d4c3e1ecee5"),
    ("camvid_mini", "train"): Expected(46, labels=11, content="4e31f079867da654"),
}

# Published parts of a set that are scored as they are, known by their content:
# {(name, split): {number of images: fingerprint}}
PARTS = {
    ("cifar100", "test"): {2_000: "e81073476a0c5283"},
    ("cifar100", "train"): {25_000: "409010c8a1340970"},
}

# sha256 of the lines, one a label in order. ImageNet: clip_benchmark/datasets (builder.py,
# en_classnames.json of version 1.6.2; the names are OpenAI's, as in open_clip). CIFAR: the names
# in the sets' own files, "_" as a space. ObjectNet: the mappings of its release (as in
# mlfoundations/wise-ft, src/datasets/objectnet_metadata), in the order of the folders.
LABEL_ORDER = {
    "imagenet wnids": "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
    "imagenet_a wnids": "f6aa4b23244554d9b864fd715ae20048f6a9686388911b2dfbf1ada01bf0f520",
    "imagenet_r wnids": "e19a59d84e3746fafd34d2ccf6ae604a44e9a0500a596f343c878a89e30ce624",
    "imagenet names": "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60",
    "cifar10 names": "bb3914949cecedee6d1257f7f5fdb8f43fa3b2c8095fd1763161caf1b873fe59",
    "objectnet names": "6f31c7eebfd7cd1d19bf0640ec17f649e2b6bce48f13a142224bc0fa327e659e",
    "cifar100 names": "60ae3a3ac1355fcfec19c0ea3cb5fde15203ecf3b537cabcf6d5d54688ee9a4d",
    # of datasets/mask_names.json, whose sources stand in mask_sets.py
    "voc21 masks": "301e5e4e2a9a7ab6bfd6c7e2b1d381d4dd465ddedf787b4b4ed802b3366deb6c",
    "pc60 masks": "e29ff1a0eaea71eb3e090f0ff6abdbcc592fa17f74b4a17ecc6d33c5a9daea4e",
    "ade20k150 masks": "f9dbd8a75a0722c971d8c82db76dc205e06cb422d98153f4e5bbf90408ef5438",
    "ade20k847 masks": "ee311c5f3b780a16a58f40726927f6c41149860a5fca6c1116ea1dca129efd8b",
    "cityscapes masks": "5995d02d6c574d515fa02371c8c2b5367f55cba8a732fed0567427c093f95adf",
    "cocostuff masks": "8ea44449837dceb30923012b201fe0152adc612160d0d040c9cfcd77e95f6801",
    "coco_object masks": "1f17b53017e442257cad2025ab981ddeb28d048af00dcac8ae810bc25a6a9a77",
    "camvid masks": "97a8b28971b6f83cf8181955e4f98f58c3596d92fd170af6a011d24f281f36cc",
}


@cache
def checked_order(title: str, names: tuple[str, ...], fix: str = "") -> tuple[str, ...]:
    """The same names, once it is sure that they are the right ones.

    ``fix``: what to do where the names come from the user's data.

    Raises:
        DataError: they are not the list that the labels were numbered by.
    """
    if hashlib.sha256("\n".join(names).encode()).hexdigest() != LABEL_ORDER[title]:
        package = "silc-bench" if title.endswith(" masks") else "clip-benchmark==1.6.2"
        problem = (
            f"the list of {title} is not the one that labels are numbered by ({len(names)} names)"
        )
        raise DataError(
            problem, fix=fix or f"install it again: pip install --force-reinstall {package}"
        )
    return names


def check_counts(name: str, split: str, found: ImageSplit) -> None:
    """Refuse a set that is not whole, before any image is encoded.

    Raises:
        DataError: fewer or more images than the set has, a class with too few, an image with too
            few captions.
    """
    expected = EXPECTED[name, split]
    here = len(found.images)
    place = f"{name} {split} in {found.folder}"

    # a part with a wrong number of images would be scored and compared as if it were the set
    is_counted = here in (expected.images, expected.also)
    if not is_counted and not _is_known_part(name, split, found):
        problem = (
            f"{place}: {here:,} pictures ({found.layout}), and the set has {expected.images:,}"
        )
        kinds = "captions:FILE"
        if expected.classes:
            problem += _worst_class(found, expected)
            kinds = "folder:PATH, wds:PATTERN"
        if expected.labels:
            kinds = "seg:IMAGES,MASKS,CLASSES.json"

        # the fix names the way to score what lies there as a set of the user's own
        is_short = here < expected.images
        fix = "fetch what is missing" if is_short else "remove what does not belong to the set"
        raise DataError(
            problem,
            fix=f"{fix}; a part of your own is scored under its own name with --tasks {kinds}",
        )

    if here == expected.images and expected.classes:
        counts = _counts(found, expected.classes)
        is_uneven = bool(expected.per_class) and bool((counts != expected.per_class).any())
        if (counts == 0).any() or is_uneven:
            problem = f"{place} has {here:,} pictures, but not of the right classes"
            raise DataError(problem + _worst_class(found, expected), fix="fetch the set again")

    # a part that somebody chose: another choice of as many images has the same count
    if expected.content:
        content = known_fingerprint(found.names, found.images, f"{name} {split}")
        if content != expected.content:
            raise DataError(
                f"{place} has {here:,} pictures, but not those of this part of the set",
                fix="a part of your own is scored under its own name"
                " with --tasks seg:IMAGES,MASKS,CLASSES.json",
            )

    for image in found.images:
        if len(image.captions) < expected.captions:
            raise DataError(
                f"{image.where} has {len(image.captions)} captions,"
                f" and every picture of {name} has {expected.captions}",
                fix="fetch the file of captions again",
            )


def _is_known_part(name: str, split: str, found: ImageSplit) -> bool:
    content = PARTS.get((name, split), {}).get(len(found.images))
    if content is None:
        return False

    # hashed only where the number of images fits: that reads all of them
    return known_fingerprint(found.names, found.images, f"{name} {split}") == content


def _counts(found: ImageSplit, num_classes: int) -> np.ndarray:
    """[num_classes] images of each."""
    labels = [image.label for image in found.images if image.label is not None]
    return np.bincount(np.array(labels, np.int64), minlength=num_classes)


def _worst_class(found: ImageSplit, expected: Expected) -> str:
    """The end of a sentence: how many classes have a wrong count, and the first of them."""
    counts = _counts(found, expected.classes)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        name = found.class_names[empty[0]]
        return f"; {len(empty)} of {expected.classes} classes have none, such as {name!r}"
    if not expected.per_class:
        return ""

    wrong = np.flatnonzero(counts != expected.per_class)
    name = found.class_names[wrong[0]]
    return (
        f"; {len(wrong)} classes do not have {expected.per_class},"
        f" such as {name!r} with {counts[wrong[0]]}"
    )
