"""The public datasets by name, read and checked: ``load("imagenet_v2", "test", Path("/data"))``.

Where a set is not whole there is a sentence and no score.

Flow: find the place -> list it -> count it against what the set has -> take ``limit`` images of
the whole -> fingerprint. A dataset more is an entry in ``ENTRIES`` of a file in this folder, an old
one or a new one: each file is asked for its entries.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from silc_bench.datasets import public
from silc_bench.datasets.image_set import ImageFiles, ImageSplit, known_fingerprint
from silc_bench.datasets.public.find import Expected, PublicSet, Site, find
from silc_bench.errors import DataError, unknown_name
from silc_bench.later import np


def _entries() -> Iterator[PublicSet]:
    for module in pkgutil.iter_modules(public.__path__, f"{public.__name__}."):
        yield from getattr(importlib.import_module(module.name), "ENTRIES", ())


SETS = {entry.name: entry for entry in _entries()}


def load(name: str, split: str, data_root: Path | None, limit: int | None = None) -> ImageFiles:
    """A split of a named set, or ``limit`` images of it; each of them is read and hashed.

    The set must be there as a whole, also where a limit is given.

    Raises:
        UserError: it is not found, not readable, not whole, or labelled in another order.
    """
    return find_set(name, split, data_root, limit).hashed()


def find_set(name: str, split: str, data_root: Path | None, limit: int | None = None) -> ImageFiles:
    """The same, read and hashed only when its fingerprint is asked for."""
    found = read(name, split, find_site(name, split, data_root))
    return ImageFiles(name, split, found, limit)


def find_site(name: str, split: str, data_root: Path | None, is_the_set: bool = False) -> Site:
    """The one place that holds a split, as ``find.find`` finds it.

    Raises:
        UserError: an unknown name, or what ``find.find`` raises.
    """
    if name not in SETS:
        raise unknown_name("dataset", name, SETS)
    return find(SETS[name], split, data_root, is_the_set)


def read(name: str, split: str, site: Site) -> ImageSplit:
    """The whole split at a place, counted. Raises UserError as ``load`` does."""
    known = SETS[name]
    found = known.read(known, split, site)

    # before any limit: a part of a set with a hole would be another part
    _check_counts(known, split, found)
    return found


def _check_counts(known: PublicSet, split: str, found: ImageSplit) -> None:
    """Refuse a set that is not whole, before any image is encoded.

    Raises:
        DataError: fewer or more images than the set has, a class with too few, an image with too
            few captions.
    """
    expected = known.splits[split]
    here = len(found.images)
    title = f"{known.name} {split}"

    # a part with a wrong number of images would be scored and compared as if it were the set;
    # it is hashed only where the number fits, because that reads all of them
    size, content = expected.part
    is_counted = here > 0 and here in (expected.images, expected.also)
    wrong_class = _worst_class(found, expected)
    problem = ""
    if not is_counted and not (here == size and _content(found, title) == content):
        problem = (
            f"{here:,} images ({found.layout}), and the set has {expected.images:,}{wrong_class}"
        )
        fix = "fetch what is missing" if here < expected.images else "remove what is no part of it"
    elif is_counted and wrong_class:
        problem = f"{here:,} images, but not of the right classes{wrong_class}"
        fix = "fetch the set again"
    elif expected.content and _content(found, title) != expected.content:
        # a part that somebody chose: another choice of as many images has the same count
        problem = f"{here:,} images, but not those of this part of the set"
        fix = "fetch the part again"
    if problem:
        own = "captions:FILE"
        if expected.classes:
            own = "folder:PATH, wds:PATTERN"
        if known.layouts:
            own = "seg:IMAGES,MASKS,CLASSES.json"
        raise DataError(
            problem,
            about=f"{title} in {found.folder}",
            fix=f"{fix}; a part of your own is scored under its own name with --tasks {own}",
        )

    for image in found.images:
        if len(image.captions) < expected.captions:
            raise DataError(
                f"{len(image.captions)} captions, and every image of {known.name} has"
                f" {expected.captions}",
                about=image.where,
                fix="fetch the file of captions again",
            )


def _content(found: ImageSplit, title: str) -> str:
    return known_fingerprint(found.names, found.images, title)


def _worst_class(found: ImageSplit, expected: Expected) -> str:
    """The end of a sentence: how many classes have a wrong count, and the first of them.

    Empty where none has.
    """
    labels = [image.label for image in found.images if image.label is not None]
    counts = np.bincount(np.array(labels, np.int64), minlength=expected.classes)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        name = found.class_names[empty[0]]
        return f"; {len(empty)} of {expected.classes} classes have none, such as {name!r}"

    wrong = np.flatnonzero(counts != expected.per_class) if expected.per_class else empty
    if not len(wrong):
        return ""
    name = found.class_names[wrong[0]]
    count = counts[wrong[0]]
    return f"; {len(wrong)} classes do not have {expected.per_class}, such as {name!r} with {count}"
