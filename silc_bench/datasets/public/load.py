"""The named sets, read and checked: ``load("imagenet_v2", "test", Path("/data"))`` -> a PictureSet,
or a sentence and no score.

Flow: find the place -> list it -> count it against what the set has -> take ``limit`` pictures of
the whole -> fingerprint. A dataset more is a line in ``places.SETS`` (with masks: in
``mask_sets.SETS``), in ``expected.EXPECTED`` and in ``READERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from silc_bench.datasets.image_set import Found, PictureSet
from silc_bench.datasets.public.cifar import read_cifar
from silc_bench.datasets.public.coco_flickr import read_karpathy
from silc_bench.datasets.public.counts import EXPECTED, check_counts
from silc_bench.datasets.public.find import Site, find
from silc_bench.datasets.public.imagenet import read_imagenet
from silc_bench.datasets.public.mask_sets import SETS as MASK_SETS
from silc_bench.datasets.public.objectnet import read_objectnet
from silc_bench.datasets.public.segmentation import read_segmentation

READERS: dict[str, Callable[[str, str, Site], Found]] = {
    "imagenet1k": read_imagenet,
    "imagenet_v2": read_imagenet,
    "imagenet_a": read_imagenet,
    "imagenet_r": read_imagenet,
    "imagenet_sketch": read_imagenet,
    "objectnet": read_objectnet,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "coco": read_karpathy,
    "flickr30k": read_karpathy,
    **dict.fromkeys(MASK_SETS, read_segmentation),
}


def splits(name: str) -> tuple[str, ...]:
    """ "train" and "test", or "test" alone."""
    return tuple(split for known, split in EXPECTED if known == name)


def load(name: str, split: str, data_root: Path | None, limit: int | None = None) -> PictureSet:
    """A split of a named set, whole, or ``limit`` pictures of a set that is there in whole; every
    one of them read and hashed.

    Raises:
        UserError: it is not found, not readable, not whole, or labelled in another order.
    """
    return find_set(name, split, data_root, limit).hashed()


def find_set(name: str, split: str, data_root: Path | None, limit: int | None = None) -> PictureSet:
    """The same, read and hashed only when its fingerprint is asked for."""
    site = find(name, split, data_root)
    found = READERS[name](name, split, site)
    check_counts(name, split, found)
    return PictureSet(name, split, found, limit)
