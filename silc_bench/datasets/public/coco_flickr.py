"""COCO captions and Flickr30k in the split of Karpathy and Fei-Fei (2015): 5,000 and 1,000 test
pictures, five captions each.

The split is the file of it, ``dataset_coco.json`` or ``dataset_flickr30k.json``: no rule gives its
pictures, so COCO's own ``captions_val2014.json`` alone is not enough. A few COCO pictures have six
or seven captions: the first five are taken, as everybody does, so that 25,000 captions compete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from silc_bench.datasets.image_set import Found, Picture
from silc_bench.datasets.layouts import read_captioned, shards_in
from silc_bench.datasets.public.counts import EXPECTED
from silc_bench.datasets.public.find import Site
from silc_bench.errors import DataError

_FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images", "Images", "val2014")


def read_karpathy(name: str, split: str, site: Site) -> Found:
    """Pictures of "coco" or "flickr30k" with their first five captions. Raises DataError: a broken
    list, missing pictures.
    """
    if site.kind == "json":
        pictures, layout = _from_list(name, split, site), f"{site.path.name} and pictures"
    elif site.kind == "shards":
        pictures, layout = read_captioned(shards_in(site.path)), "webdataset shards"
    else:
        file = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}[name]
        raise DataError(
            f"{site.path} holds pictures and no captions", f"put Karpathy's {file} into {site.base}"
        )
    return _first_captions(pictures, EXPECTED[name, split].captions, site, layout)


def _first_captions(pictures: Iterable[Picture], count: int, site: Site, layout: str) -> Found:
    pictures = list(pictures)
    longer = sum(len(picture.captions) > count for picture in pictures)
    notes = (
        [f"{longer} pictures have more than {count} captions: their first {count} are taken"]
        if longer
        else []
    )
    return Found(
        [replace(picture, captions=picture.captions[:count]) for picture in pictures],
        site.path,
        layout,
        notes=notes,
    )


def _from_list(name: str, split: str, site: Site) -> list[Picture]:
    rows = _rows(site.path, split)
    if not rows:
        raise DataError(
            f"{site.path} has no picture of the split {split!r}", "fetch Karpathy's file again"
        )
    folder = _folder_of(rows, site)
    pictures, missing, seen = [], [], set()
    for row in rows:
        path = folder / row["filename"]
        if row["filename"] in seen:
            raise DataError(
                f"{site.path} lists {row['filename']} twice", "fetch Karpathy's file again"
            )
        seen.add(row["filename"])
        if not path.is_file():
            missing.append(path)
            continue
        captions = tuple(sentence["raw"].strip() for sentence in row["sentences"])
        pictures.append(Picture(path, (0, path.stat().st_size), str(path), captions=captions))
    if missing:
        problem = f"{len(missing):,} of the {len(rows):,} pictures of {name} {split} are missing, such as {missing[0]}"
        raise DataError(problem, f"put them all into {folder}")
    return pictures


def _rows(path: Path, split: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = [row for row in content["images"] if row["split"] == split]
        for row in rows:
            is_plain = (
                isinstance(row["filename"], str) and Path(row["filename"]).name == row["filename"]
            )
            if not is_plain or not all(
                isinstance(sentence["raw"], str) for sentence in row["sentences"]
            ):
                raise ValueError(f"an entry has the file name {row['filename']!r:.60}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{path} is not Karpathy's list: {type(error).__name__}: {error}"
        raise DataError(
            problem, "its entries are {filename, split, sentences: [{raw}]}; fetch the file again"
        ) from error
    return rows


def _folder_of(rows: list[dict[str, Any]], site: Site) -> Path:
    """Where the first picture that is there lies; the others must lie there too."""
    own = str(rows[0].get("filepath", ""))
    own_folders = [own, f"images/{own}"] if own and Path(own).name == own else []
    folders = [
        base / folder
        for base in (site.base, site.path.parent)
        for folder in (*own_folders, *_FOLDERS)
    ]
    for row in rows:
        for folder in folders:
            if (folder / row["filename"]).is_file():
                return folder
    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise DataError(
        f"none of the {len(rows):,} pictures of {site.path} is there",
        f"put {rows[0]['filename']} and the others into one of {looked}",
    )
