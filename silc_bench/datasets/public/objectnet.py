"""ObjectNet (Barbu et al., 2019): the 113 of its classes that ImageNet has too.

The mappings that come with the data say which those are:
``mappings/folder_to_objectnet_label.json`` names each folder,
``mappings/objectnet_to_imagenet_1k.json`` lists the names that ImageNet knows. As in
clip_benchmark the labels are those folders in sorted order, the class names ObjectNet's own in
lower case, and all 113 compete, not ImageNet's 1,000. The red border of one pixel stays on the
images. Whatever gives the names, they must be the list whose hash is committed
(`counts.LABEL_ORDER`).
"""

from __future__ import annotations

import json
from pathlib import Path

from silc_bench.datasets.files.folders import Listing, listing
from silc_bench.datasets.image_set import ImageSplit
from silc_bench.datasets.layouts import read_class_folders, read_labelled, read_names, shards_in
from silc_bench.datasets.public.counts import EXPECTED, checked_order
from silc_bench.datasets.public.find import Site
from silc_bench.errors import DataError

FOLDERS, OVERLAP = "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json"


def read_objectnet(name: str, split: str, site: Site) -> ImageSplit:
    """Images and labels from shards, or from ObjectNet's own folders.

    Raises:
        DataError: the mappings are missing, or do not fit the folders.
    """
    if site.kind in ("shards", "tar"):
        return _from_shards(EXPECTED[name, split].classes, site)

    name_of = _overlapping(site)
    folders = sorted(name_of)
    class_names = tuple(name_of[folder].lower() for folder in folders)
    checked_order("objectnet names", class_names, f"fetch the mappings/ beside {site.path} again")

    # of all 313 classes only the 113 are listed, so that the others are no unknown folders
    everything = listing(site.path)
    files = [file for file in everything.files if file.name.split("/")[0] in name_of]
    folders_here = [folder for folder in everything.folders if folder in name_of]
    part = Listing(site.path, files, folders_here, everything.stray, everything.other)

    labels = {folder: label for label, folder in enumerate(folders)}
    images, notes = read_class_folders(part, labels, name)
    num_left = len(everything.files) - len(files)
    notes.append(f"left {num_left:,} pictures of classes that ImageNet does not have")
    return ImageSplit(images, site.path, "class folders", class_names, notes=notes)


def _from_shards(num_classes: int, site: Site) -> ImageSplit:
    paths = [site.path] if site.kind == "tar" else shards_in(site.path)

    # the numbers mean ObjectNet's classes only where the list beside them says so
    names_file = site.base / "classnames.txt"
    if not names_file.exists():
        raise DataError(
            f"{names_file} is missing: shards hold numbers only",
            fix="fetch the set's classnames.txt too",
        )
    names = tuple(text.lower() for text in read_names(names_file))
    names = checked_order("objectnet names", names, f"fetch the set's {names_file} again")
    return ImageSplit(read_labelled(paths, num_classes), site.path, "webdataset shards", names)


def _overlapping(site: Site) -> dict[str, str]:
    """ObjectNet's name of each folder whose class ImageNet has."""
    places = [
        site.path.parent / "mappings",
        site.base / "mappings",
        site.base / "objectnet-1.0/mappings",
        site.path.parent,
        site.base,
    ]
    for place in places:
        if (place / FOLDERS).is_file() and (place / OVERLAP).is_file():
            break
    else:
        raise DataError(
            f"no {FOLDERS} and {OVERLAP} near {site.path}",
            fix="copy the folder mappings/ of objectnet-1.0.zip beside images/",
        )

    folders = _read(place / FOLDERS)
    overlap = _read(place / OVERLAP)
    folder_of = {label: folder for folder, label in folders.items()}
    missing = sorted(set(overlap) - set(folder_of))
    if missing:
        problem = f"{place / FOLDERS} has no folder for {missing[0]!r}"
        raise DataError(problem, fix="fetch the set's mappings/ again")
    return {folder_of[label]: label for label in overlap}


def _read(path: Path) -> dict[str, str]:
    fix = "fetch the set's mappings/ again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}", fix=fix) from error

    is_mapping = isinstance(content, dict)
    if not is_mapping or not all(isinstance(value, str) for value in content.values()):
        raise DataError(f"{path} is no mapping of names", fix=fix)
    return content
