"""Pictures in one folder a class, or a tar of such folders: labels from the folders' names, never from their place in a sort.

``read_class_folders(listing, {"n01440764": 0, ...}, "imagenet1k")`` -> pictures sorted by label, then by file name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from silc_bench.datasets.files import File, Listing
from silc_bench.datasets.picture_set import DataError, Picture
from silc_bench.errors import unknown_name


def read_class_folders(
    found: Listing, labels: Mapping[str, int], title: str, normalise: Callable[[str], str] = str
) -> tuple[list[Picture], list[str]]:
    """Pictures with labels, and notes on what was passed over.

    Args:
        labels: of each class, by the name of its folder after ``normalise``.

    Raises:
        DataError: a folder is missing, or two are one class. UserError: a folder is no class.
    """
    is_folder = found.path.is_dir()
    outside = [file for file in found.files if "/" not in file.name]
    by_key: dict[str, list[File]] = {key: [] for key in found.folders} if is_folder else {}
    for file in found.files:
        if "/" in file.name:
            by_key.setdefault(file.name.split("/")[0] if is_folder else file.folder, []).append(file)
    keys: dict[str, str] = {}
    for key in sorted(by_key):
        plain = normalise(key)
        if plain in keys:
            raise DataError(f"{found.path} has two folders for one class: {keys[plain]!r} and {key!r}", "keep one of them")
        keys[plain] = key
    _check_keys(found, keys, labels, title)
    pictures = [
        Picture(file.path, file.place, file.where, labels[plain])
        for plain in sorted(keys, key=labels.__getitem__)
        for file in by_key[keys[plain]]
    ]
    notes = found.notes()
    if outside:
        notes.append(f"skipped {len(outside)} pictures outside the class folders, such as {outside[0].name}")
    return pictures, notes


def _check_keys(found: Listing, keys: Mapping[str, str], labels: Mapping[str, int], title: str) -> None:
    unknown = sorted(set(keys) - set(labels))
    if unknown and all(key.isdecimal() for key in unknown):
        problem = (
            f"{found.path}: the class folders are numbered ({unknown[0]!r} ...), and a number alone is no class of {title}"
        )
        raise DataError(problem, f"name them as the set does, such as {next(iter(labels))!r}")
    if unknown:
        raise unknown_name(f"class folder in {found.path}", unknown[0], labels)
    missing = sorted(set(labels) - set(keys), key=labels.__getitem__)
    if missing:
        problem = f"{found.path} lacks {len(missing)} of the {len(labels)} class folders, such as {missing[0]!r}"
        raise DataError(problem, f"fetch {title} again, or the folders that are missing")
