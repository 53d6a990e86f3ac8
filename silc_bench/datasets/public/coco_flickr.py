"""COCO captions and Flickr30k in the split of Karpathy and Fei-Fei (2015).

They have 5,000 and 1,000 test images, five captions each. The split is the file of it,
``dataset_coco.json`` or ``dataset_flickr30k.json``: no rule gives its images, so COCO's own
``captions_val2014.json`` alone is not enough. A few COCO images have six or seven captions: the
first five are taken, as everybody does, so that 25,000 captions compete.

Flow: ``read_karpathy(SETS["coco"], "test", site)`` -> ImageSplit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from silc_bench.datasets.image_set import ImageFile, ImageSplit, image_file
from silc_bench.datasets.layouts import read_captioned, shards_in
from silc_bench.datasets.public.find import Expected, PublicSet, Site, check_files
from silc_bench.errors import DataError, first_line
from silc_bench.system.terminal import counted

_FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images", "Images", "val2014")
AGAIN = "fetch Karpathy's file again"


def read_karpathy(known: PublicSet, split: str, site: Site) -> ImageSplit:
    """Images of "coco" or "flickr30k" with their first five captions.

    Raises:
        DataError: a broken list, or missing images.
    """
    if site.kind == "json":
        images = _from_list(split, site)
        layout = f"{site.path.name} and images"
    elif site.kind == "shards":
        images = read_captioned(shards_in(site.path))
        layout = "webdataset shards"
    else:
        fix = f"put Karpathy's {known.lists[0]} into {site.base}"
        raise DataError("holds images and no captions", about=site.path, fix=fix)

    # the first captions, and a note where some images had more
    count = known.splits[split].captions
    num_longer = sum(len(image.captions) > count for image in images)
    longer = counted(num_longer, "image has", "images have")
    note = f"{longer} more than {count} captions: the first {count} are taken"
    shortened = [replace(image, captions=image.captions[:count]) for image in images]
    return ImageSplit(shortened, site.path, layout, notes=[note] if num_longer else [])


def _from_list(split: str, site: Site) -> list[ImageFile]:
    """Images in the order of the list."""
    rows = _rows(site.path, split)
    if not rows:
        raise DataError(f"no image of the split {split!r}", about=site.path, fix=AGAIN)

    # two entries of one image would compete with each other's captions
    names = [row["filename"] for row in rows]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"lists {twice} twice", about=site.path, fix=AGAIN)

    folder = _folder_of(rows, names, site)
    paths = [folder / name for name in names]
    check_files(paths, "images", site.path, f"put them all into {folder}")

    images = []
    for path, row in zip(paths, rows, strict=True):
        captions = tuple(sentence["raw"].strip() for sentence in row["sentences"])
        images.append(image_file(path, captions=captions))
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
        fix = "its entries are {filename, split, sentences: [{raw}]}; " + AGAIN
        problem = f"is not Karpathy's list: {first_line(error)}"
        raise DataError(problem, about=path, fix=fix) from error
    return rows


def _folder_of(rows: list[dict[str, Any]], names: Sequence[str], site: Site) -> Path:
    """Where the first image that is there lies; the others must lie there too."""
    # COCO's entries name their folder, as in "val2014"
    own_folder = str(rows[0].get("filepath", ""))
    inner = list(_FOLDERS)
    if own_folder and Path(own_folder).name == own_folder:
        inner = [own_folder, f"images/{own_folder}", *inner]
    folders = [base / name for base in (site.base, site.path.parent) for name in inner]

    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return folder

    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise DataError(
        f"none of its {len(names):,} images is there",
        about=site.path,
        fix=f"put {names[0]} and the others into one of {looked}",
    )


def _entry(name: str, names: tuple[str, ...], images: str, test: Expected) -> PublicSet:
    file = f"dataset_{name}.json"
    return PublicSet(
        name,
        names,
        {"test": test},
        f"{name}/{file} (Karpathy's split) with {name}/{images}/*.jpg,"
        f" or {name}/test/*.tar (webdataset: .jpg and .txt)",
        read_karpathy,
        {"test": ("test",)},
        ("retrieval",),
        lists=(file,),
    )


ENTRIES = (
    _entry(
        "coco",
        ("mscoco", "coco2014", "mscococaptions", "cococaptions", "mscoco2014"),
        "val2014",
        Expected(5_000, captions=5),
    ),
    _entry("flickr30k", (), "flickr30k-images", Expected(1_000, captions=5)),
)
