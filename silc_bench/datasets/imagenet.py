"""The ImageNet family: ImageNet-1k, V2, A, R and Sketch, from every layout in which people keep them.

Flow: ``places.find`` names the place -> class folders, shards, a tar of pictures or a flat folder are read -> pictures in label
order, within a class by file name, so that the same files give the same fingerprint in any layout.

V2's folders are the labels themselves, "0" to "999": read as numbers. Sorted as strings ("0", "1", "10") they would name 990
classes wrongly, which is how the score of a good model becomes 0.1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from silc_bench.datasets.class_folders import read_class_folders
from silc_bench.datasets.files import listing
from silc_bench.datasets.imagenet_classes import class_names, wnids
from silc_bench.datasets.imagenet_val import read_flat
from silc_bench.datasets.labelled_shards import has_member, read_labelled, read_names, shards_in
from silc_bench.datasets.picture_set import DataError, Found, Picture
from silc_bench.datasets.places import Site, split_tars


def read_imagenet(name: str, split: str, site: Site) -> Found:
    """Pictures and labels of "imagenet1k", "imagenet_v2", "imagenet_a", "imagenet_r" or "imagenet_sketch".

    Raises:
        DataError, UserError: what lies there is not the set; says what to do.
    """
    if site.kind in ("shards", "tar"):
        paths = [site.path] if site.kind == "tar" else split_tars(site, split) or shards_in(site.path)
        if has_member(paths, "cls"):
            pictures, notes = read_labelled(paths, len(wnids(name))), _check_names(name, site)
            return _found(name, site, "webdataset shards", pictures, notes)
        if len(paths) > 1:
            raise DataError(
                f"{paths[0]}: the first sample has no label (.cls)", f"write shards of {name} with a .cls beside each .jpg"
            )
        return _from_listing(name, site, paths[0])
    return _from_listing(name, site, site.path)


def _from_listing(name: str, site: Site, path: Path) -> Found:
    found = listing(path)
    if not found.files:
        problem = f"{path} holds no pictures" + (
            f" but {len(found.other)} other files, such as {found.other[0]}" if found.other else ""
        )
        raise DataError(problem, "unpack the archives in it, one folder a class")
    if all("/" not in file.name for file in found.files):
        pictures, layout = read_flat(found, site.base)
        return _found(name, site, layout, pictures, found.notes())
    if name == "imagenet_v2" and all(key.isdecimal() for key in found.folders or [file.folder for file in found.files]):
        labels = {str(label): label for label in range(1000)}
        pictures, notes = read_class_folders(found, labels, name, normalise=lambda key: str(int(key)))
    else:
        pictures, notes = read_class_folders(found, {wnid: i for i, wnid in enumerate(wnids(name))}, name)
    return _found(name, site, "class folders" if path.is_dir() else "tar of class folders", pictures, notes)


def _found(name: str, site: Site, layout: str, pictures: Sequence[Picture], notes: list[str]) -> Found:
    ordered = sorted(pictures, key=lambda picture: picture.label or 0)  # stable: by file name within a class
    return Found(ordered, site.path, layout, class_names(name), notes=notes)


def _check_names(name: str, site: Site) -> list[str]:
    """Where a list of names lies beside shards, no label may bear another class's name. Wordings differ and are only noted."""
    path = next((path for path in (site.base / "classnames.txt", site.path / "classnames.txt") if path.exists()), None)
    if path is None:
        return []
    theirs, ours = [text.lower() for text in read_names(path)], [text.lower() for text in class_names(name)]
    fix = f"number the labels of {name} by their wnids in sorted order and write the shards again"
    if len(theirs) != len(ours):
        raise DataError(f"{path} names {len(theirs)} classes, {name} has {len(ours)}", fix)
    if theirs == sorted(map(str, range(len(ours)))):
        raise DataError(
            f"{path} lists the numbers of the classes sorted as strings: 1, 10, 100 ... so the labels are wrong", fix
        )
    other = [label for label, text in enumerate(theirs) if text != ours[label]]
    swapped = next((label for label in other if theirs[label] in ours), None)
    if swapped is not None:
        raise DataError(f"{path}: class {swapped} is {theirs[swapped]!r}, in {name} it is {ours[swapped]!r}", fix)
    if len(other) > len(ours) // 2:
        raise DataError(
            f"{path} knows only {len(ours) - len(other)} of the {len(ours)} names of {name}, so no order can be checked", fix
        )
    return [f"{path.name} words {len(other)} names differently; OpenAI's are used"] if other else []
