"""ObjectNet (Barbu et al., 2019): its 113 classes that ImageNet has too, by the mappings that come
with the data.

``mappings/folder_to_objectnet_label.json`` names each folder,
``mappings/objectnet_to_imagenet_1k.json`` lists the names that ImageNet knows. As in clip_benchmark
the labels are those folders in sorted order, the class names ObjectNet's own in lower case, and all
113 compete, not ImageNet's 1,000; the red border of one pixel stays on the pictures. Whatever gives
the names, they must be the list whose hash is committed (`expected.LABEL_ORDER`).
"""

from __future__ import annotations

import json
from pathlib import Path

from silc_bench.datasets.files.folders import Listing, listing
from silc_bench.datasets.image_set import Found
from silc_bench.datasets.layouts import read_class_folders, read_labelled, read_names, shards_in
from silc_bench.datasets.public.counts import EXPECTED, checked_order
from silc_bench.datasets.public.find import Site
from silc_bench.errors import DataError

FOLDERS, OVERLAP = "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json"


def read_objectnet(name: str, split: str, site: Site) -> Found:
    """Raises DataError without the mappings, or where they do not fit the folders."""
    num_classes = EXPECTED[name, split].classes
    if site.kind in ("shards", "tar"):
        paths = [site.path] if site.kind == "tar" else shards_in(site.path)
        names_file = site.base / "classnames.txt"
        if not names_file.exists():
            raise DataError(
                f"{names_file} is missing: shards hold numbers only",
                "fetch the set's classnames.txt too",
            )
        fix = f"fetch the set's {names_file} again"
        names = checked_order(
            "objectnet names", tuple(text.lower() for text in read_names(names_file)), fix
        )
        return Found(read_labelled(paths, num_classes), site.path, "webdataset shards", names)
    name_of = _overlapping(site)
    class_names = tuple(name_of[folder].lower() for folder in sorted(name_of))
    checked_order("objectnet names", class_names, f"fetch the mappings/ beside {site.path} again")
    everything = listing(site.path)
    mine = [file for file in everything.files if file.name.split("/")[0] in name_of]
    labels = {folder: label for label, folder in enumerate(sorted(name_of))}
    part = Listing(
        site.path,
        mine,
        [folder for folder in everything.folders if folder in name_of],
        everything.stray,
        everything.other,
    )
    pictures, notes = read_class_folders(part, labels, name)
    notes.append(
        f"left {len(everything.files) - len(mine):,} pictures of classes that ImageNet does not have"
    )
    return Found(pictures, site.path, "class folders", class_names, notes=notes)


def _overlapping(site: Site) -> dict[str, str]:
    """ObjectNet's name of each folder whose class ImageNet has."""
    places = [
        site.path.parent / "mappings",
        site.base / "mappings",
        site.base / "objectnet-1.0/mappings",
        site.path.parent,
        site.base,
    ]
    place = next(
        (place for place in places if (place / FOLDERS).is_file() and (place / OVERLAP).is_file()),
        None,
    )
    if place is None:
        raise DataError(
            f"no {FOLDERS} and {OVERLAP} near {site.path}",
            "copy the folder mappings/ of objectnet-1.0.zip beside images/",
        )
    folders, overlap = _read(place / FOLDERS), _read(place / OVERLAP)
    folder_of = {label: folder for folder, label in folders.items()}
    missing = sorted(set(overlap) - set(folder_of))
    if missing:
        raise DataError(
            f"{place / FOLDERS} has no folder for {missing[0]!r}", "fetch the set's mappings/ again"
        )
    return {folder_of[label]: label for label in overlap}


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not JSON: {error}", "fetch the set's mappings/ again"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(value, str) for value in content.values()
    ):
        raise DataError(f"{path} is no mapping of names", "fetch the set's mappings/ again")
    return content
