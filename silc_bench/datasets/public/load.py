"""The named sets, read and checked: ``load("imagenet_v2", "test", Path("/data"))`` -> a PictureSet.

Where a set is not whole there is a sentence and no score.

Flow: find the place -> list it -> count it against what the set has -> take ``limit`` images of
the whole -> fingerprint. A dataset more is a line in ``find.SETS`` (with masks: in
``mask_sets.SETS``), in ``counts.EXPECTED`` and in ``READERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from silc_bench.datasets.image_set import ImageFiles, ImageSplit
from silc_bench.datasets.public.cifar import read_cifar
from silc_bench.datasets.public.coco_flickr import read_karpathy
from silc_bench.datasets.public.counts import EXPECTED, check_counts
from silc_bench.datasets.public.find import Site, find
from silc_bench.datasets.public.imagenet import read_imagenet
from silc_bench.datasets.public.mask_sets import SETS as MASK_SETS
from silc_bench.datasets.public.objectnet import read_objectnet
from silc_bench.datasets.public.segmentation import read_segmentation

# by name; a reader takes name, split and place
READERS: dict[str, Callable[[str, str, Site], ImageSplit]] = {
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
    """Those of a set: "train" and "test", or "test" alone."""
    return tuple(split for known, split in EXPECTED if known == name)


def load(name: str, split: str, data_root: Path | None, limit: int | None = None) -> ImageFiles:
    """A split of a named set, or ``limit`` images of it; each of them is read and hashed.

    The set must be there as a whole, also where a limit is given.

    Raises:
        UserError: it is not found, not readable, not whole, or labelled in another order.
    """
    return find_set(name, split, data_root, limit).hashed()


def find_set(name: str, split: str, data_root: Path | None, limit: int | None = None) -> ImageFiles:
    """The same, read and hashed only when its fingerprint is asked for."""
    site = find(name, split, data_root)
    found = READERS[name](name, split, site)

    # before the limit: a part of a set with a hole would be another part
    check_counts(name, split, found)
    return ImageFiles(name, split, found, limit)
