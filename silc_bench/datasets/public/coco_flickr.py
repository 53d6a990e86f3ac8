"""COCO captions and Flickr30k in the split of Karpathy and Fei-Fei (2015).

They have 5,000 and 1,000 test images, five captions each. The split is the file of it,
``dataset_coco.json`` or ``dataset_flickr30k.json``: no rule gives its images, so COCO's own
``captions_val2014.json`` alone is not enough. A few COCO images have six or seven captions: the
first five are taken, as everybody does, so that 25,000 captions compete.

Flow: ``read_karpathy("coco", "test", site)`` -> Found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from silc_bench.datasets.image_set import ImageFile, ImageSplit
from silc_bench.datasets.layouts import read_captioned, shards_in
from silc_bench.datasets.public.counts import EXPECTED
from silc_bench.datasets.public.find import Site
from silc_bench.errors import DataError

_FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images", "Images", "val2014")


def read_karpathy(name: str, split: str, site: Site) -> ImageSplit:
    """Images of "coco" or "flickr30k" with their first five captions.

    Raises:
        DataError: a broken list, or missing images.
    """
    if site.kind == "json":
        images = _from_list(name, split, site)
        layout = f"{site.path.name} and pictures"
    elif site.kind == "shards":
        images = read_captioned(shards_in(site.path))
        layout = "webdataset shards"
    else:
        file = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}[name]
        problem = f"{site.path} holds pictures and no captions"
        raise DataError(problem, fix=f"put Karpathy's {file} into {site.base}")
    return _first_captions(images, EXPECTED[name, split].captions, site, layout)


def _first_captions(images: Sequence[ImageFile], count: int, site: Site, layout: str) -> ImageSplit:
    """The images with their first ``count`` captions, and a note where some had more."""
    num_longer = sum(len(image.captions) > count for image in images)
    notes = []
    if num_longer:
        notes.append(
            f"{num_longer} pictures have more than {count} captions: their first {count} are taken"
        )
    shortened = [replace(image, captions=image.captions[:count]) for image in images]
    return ImageSplit(shortened, site.path, layout, notes=notes)


def _from_list(name: str, split: str, site: Site) -> list[ImageFile]:
    """Images in the order of the list."""
    rows = _rows(site.path, split)
    if not rows:
        problem = f"{site.path} has no picture of the split {split!r}"
        raise DataError(problem, fix="fetch Karpathy's file again")

    folder = _folder_of(rows, site)
    images, missing = [], []
    seen = set()
    for row in rows:
        # two entries of one image would compete with each other's captions
        file_name = row["filename"]
        if file_name in seen:
            problem = f"{site.path} lists {file_name} twice"
            raise DataError(problem, fix="fetch Karpathy's file again")
        seen.add(file_name)

        path = folder / file_name
        if not path.is_file():
            missing.append(path)
            continue
        captions = tuple(sentence["raw"].strip() for sentence in row["sentences"])
        images.append(ImageFile(path, (0, path.stat().st_size), str(path), captions=captions))

    if missing:
        problem = (
            f"{len(missing):,} of the {len(rows):,} pictures of {name} {split} are missing,"
            f" such as {missing[0]}"
        )
        raise DataError(problem, fix=f"put them all into {folder}")
    return images


def _rows(path: Path, split: str) -> list[dict[str, Any]]:
    """The entries of a split, each with a plain file name and captions that are text."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = [row for row in content["images"] if row["split"] == split]
        for row in rows:
            # a name with folders in it could lead anywhere on the disk
            name = row["filename"]
            is_plain = isinstance(name, str) and Path(name).name == name
            is_text = is_plain and all(
                isinstance(sentence["raw"], str) for sentence in row["sentences"]
            )
            if not is_text:
                raise ValueError(f"an entry has the file name {name!r:.60}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{path} is not Karpathy's list: {type(error).__name__}: {error}"
        fix = "its entries are {filename, split, sentences: [{raw}]}; fetch the file again"
        raise DataError(problem, fix=fix) from error
    return rows


def _folder_of(rows: list[dict[str, Any]], site: Site) -> Path:
    """Where the first image that is there lies; the others must lie there too."""
    # COCO's entries name their folder, as in "val2014"
    own_folder = str(rows[0].get("filepath", ""))
    names = list(_FOLDERS)
    if own_folder and Path(own_folder).name == own_folder:
        names = [own_folder, f"images/{own_folder}", *names]
    folders = [base / name for base in (site.base, site.path.parent) for name in names]

    for row in rows:
        for folder in folders:
            if (folder / row["filename"]).is_file():
                return folder

    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise DataError(
        f"none of the {len(rows):,} pictures of {site.path} is there",
        fix=f"put {rows[0]['filename']} and the others into one of {looked}",
    )
