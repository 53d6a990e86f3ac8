"""COCO-Object: masks drawn from the outlines in ``instances_val2017.json``, 80 things on a background (value 0).

Flow: ``read_instances(path, folder, rule)`` -> pictures whose masks are drawn when asked for; nothing is written anywhere.

Objects are drawn by pycocotools, larger ones first, so that what lies on something larger stays to be seen. Crowds
(``iscrowd``) are not scored where no object is drawn on them. Pictures without objects count too: they are background.
The masks that GroupViT's converter makes of COCO-Stuff's pixel maps are others: there the maps say what lies on top.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.datasets import IGNORE
from silc_bench.datasets.masks import MaskRule
from silc_bench.datasets.picture_set import DataError, Picture
from silc_bench.errors import UserError

FETCH_AGAIN = "fetch annotations_trainval2017.zip again"


@dataclass(frozen=True, slots=True)
class DrawnMask:
    """One picture's objects; ``labels`` of its pixels are drawn anew each time."""

    path: Path
    rule: MaskRule
    number: int  # of the picture
    height: int
    width: int
    outlines: tuple[tuple[int, bool, float, Any], ...]  # (label, is crowd, area, polygons or run lengths)

    @property
    def where(self) -> str:
        return f"{self.path}: image {self.number}"

    def labels(self) -> np.ndarray:
        """[H, W] uint8. Raises DataError for an outline that pycocotools cannot draw."""
        coco = _pycocotools()
        labels = np.zeros((self.height, self.width), np.uint8)
        for label, is_crowd, _, outline in sorted(self.outlines, key=lambda one: (not one[1], -one[2])):
            if not _can_be_drawn(outline, self.height, self.width):
                problem = f"{self.where} has an outline that cannot be drawn in {self.width} x {self.height} pixels"
                raise DataError(f"{problem}: {str(outline)[:60]}", FETCH_AGAIN)
            runs = outline
            if isinstance(outline, list):
                runs = coco.merge(coco.frPyObjects(outline, self.height, self.width))
            elif isinstance(outline["counts"], list):
                runs = coco.frPyObjects(outline, self.height, self.width)
            labels[coco.decode([runs])[:, :, 0].astype(bool)] = IGNORE if is_crowd else label
        return labels


def read_instances(path: Path, folder: Path, rule: MaskRule) -> list[Picture]:
    """All pictures that the file lists, by their number.

    Raises:
        DataError: no COCO file of instances, other categories than COCO's 80, pictures that are not in ``folder``.
        UserError: pycocotools is not installed.
    """
    _pycocotools()
    try:
        content = json.loads(path.read_bytes())
        images = {image["id"]: (image["file_name"], int(image["height"]), int(image["width"])) for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        outlines: dict[int, list[tuple[int, bool, float, Any]]] = {number: [] for number in images}
        label_of = {number: label for label, number in enumerate(sorted(categories), start=1)}
        for one in content["annotations"]:
            outline = (label_of[one["category_id"]], bool(one.get("iscrowd")), float(one["area"]), one["segmentation"])
            outlines[one["image_id"]].append(outline)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no COCO file of instances: {type(error).__name__} {error}", FETCH_AGAIN) from error
    names = tuple(categories[number] for number in sorted(categories))
    if names != rule.names[1:]:
        raise DataError(f"{path} has other categories than COCO's 80: {_first_other(names, rule.names[1:])}", FETCH_AGAIN)
    pictures, missing = [], []
    for number, (name, height, width) in sorted(images.items()):
        picture = folder / name
        if not picture.is_file():
            missing.append(picture)
            continue
        mask = DrawnMask(path, rule, number, height, width, tuple(outlines[number]))
        pictures.append(Picture(picture, (0, picture.stat().st_size), str(picture), mask=mask))
    if missing:
        problem = f"{len(missing):,} of the {len(images):,} pictures of {path} are missing, such as {missing[0]}"
        raise DataError(problem, "unpack val2017.zip again")
    return pictures


def _can_be_drawn(outline: Any, height: int, width: int) -> bool:
    """Polygons of three corners and more, or run lengths that fill the picture: pycocotools takes more, and reads beyond it."""
    if isinstance(outline, list):
        return bool(outline) and all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and _are_numbers(polygon)
            for polygon in outline
        )
    if not isinstance(outline, dict) or outline.get("size") != [height, width]:
        return False
    counts = outline.get("counts")
    if isinstance(counts, list):
        return _are_numbers(counts) and min(counts, default=0) >= 0 and sum(counts) == height * width
    return isinstance(counts, str)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _first_other(names: Sequence[str], expected: Sequence[str]) -> str:
    if len(names) != len(expected):
        return f"{len(names)} of them"
    return next(f"{name!r} where {wanted!r} belongs" for name, wanted in zip(names, expected, strict=True) if name != wanted)


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            'coco_object is drawn by pycocotools, which is not installed: pip install "silc-bench[coco]"'
        ) from error
    return mask
