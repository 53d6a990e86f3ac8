"""Pictures with a mask each: the named sets of ``mask_sets``, and any folder of pictures beside a
folder of masks.

Flow: ``read_segmentation("cityscapes", "test", site)`` -> pictures matched with masks by their
names -> Found. Masks are decoded when they are hashed or scored, not here.

COCO-Object: masks drawn from the outlines in ``instances_val2017.json``, 80 things on a background
(value 0).

Flow: ``read_instances(path, folder, rule)`` -> pictures whose masks are drawn when asked for;
nothing is written anywhere.

Objects are drawn by pycocotools, larger ones first, so that what lies on something larger stays to
be seen. Crowds (``iscrowd``) are not scored where no object is drawn on them. Pictures without
objects count too: they are background. The masks that GroupViT's converter makes of COCO-Stuff's
pixel maps are others: there the maps say what lies on top.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.files.folders import PICTURE_EXTENSIONS, by_number, is_stray
from silc_bench.datasets.image_set import Found, Picture
from silc_bench.datasets.masks import MASK_EXTENSIONS, MaskFile, MaskRule
from silc_bench.datasets.public.find import Site
from silc_bench.datasets.public.mask_sets import MaskLayout, rule_of
from silc_bench.errors import DataError, UserError


def read_segmentation(name: str, split: str, site: Site) -> Found:
    """Pictures and masks of a named set. Raises DataError: some are missing, or a list names what
    is not there.
    """
    layout = site.layout
    assert layout is not None, site
    rule = rule_of(name, layout.values)
    folder = _images_of(site.base, layout, site.path)
    if site.path.is_file():
        pictures = read_instances(site.path, folder, rule)
    elif layout.listed:
        pictures = _listed(site.base / layout.listed, folder, site.path, layout, rule)
    else:
        pictures = _matched(
            folder, site.path, (layout.image_end,), (layout.mask_end,), rule, layout.skipped
        )
    how = f"{layout.masks}{'' if site.path.is_file() else f'/*{layout.mask_end}'}"
    return found_of(
        pictures, site.base, f"{folder.relative_to(site.base)}/*{layout.image_end} with {how}", rule
    )


def read_pairs(images: Path, masks: Path, rule: MaskRule) -> list[Picture]:
    """Pictures below ``images``, each with the mask below ``masks`` that has the same name but for
    the ending.

    Raises:
        DataError: none, a picture without a mask, a mask without a picture, or two of one name.
    """
    ends = tuple(f".{end}" for end in PICTURE_EXTENSIONS)
    return _matched(images, masks, ends, tuple(f".{end}" for end in MASK_EXTENSIONS), rule)


def found_of(pictures: list[Picture], folder: Path, layout: str, rule: MaskRule) -> Found:
    return Found(
        pictures,
        folder,
        layout,
        mask_names=rule.names,
        has_background=rule.has_background,
        mask_policy=rule.policy(),
    )


def _images_of(base: Path, layout: MaskLayout, masks: Path) -> Path:
    folder = next((base / name for name in layout.images if (base / name).is_dir()), None)
    if folder is None:
        looked = " and ".join(str(base / name) for name in layout.images)
        raise DataError(
            f"{masks} is there, and its pictures are not: looked in {looked}",
            "fetch the set's pictures too",
        )
    return folder


def _listed(
    listed: Path, images: Path, masks: Path, layout: MaskLayout, rule: MaskRule
) -> list[Picture]:
    """In the order of the list."""
    stems = listed.read_text(encoding="utf-8").split()
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"{listed} lists {twice} twice", "fetch the list again")
    pairs = [
        (images / f"{stem}{layout.image_end}", masks / f"{stem}{layout.mask_end}") for stem in stems
    ]
    for kind, paths in (
        ("pictures", [pair[0] for pair in pairs]),
        ("masks", [pair[1] for pair in pairs]),
    ):
        missing = [path for path in paths if not path.is_file()]
        if missing:
            problem = f"{len(missing):,} of the {len(stems):,} {kind} that {listed} lists are missing, such as {missing[0]}"
            raise DataError(problem, f"fetch the set's {kind} again")
    return [_picture(picture, mask, rule) for picture, mask in pairs]


def _matched(
    images: Path,
    masks: Path,
    image_ends: Collection[str],
    mask_ends: Collection[str],
    rule: MaskRule,
    skipped: str = "",
) -> list[Picture]:
    """By their names, "9" before "10"."""
    pictures, labels = _by_stem(images, image_ends), _by_stem(masks, mask_ends, skipped)
    if not pictures:
        raise DataError(
            f"{images} holds no pictures", f"a picture ends with {' or '.join(image_ends)}"
        )
    without = sorted(set(pictures) - set(labels), key=by_number)
    if without:
        wanted = masks / f"{without[0]}{next(iter(mask_ends))}"
        problem = f"{len(without):,} of {len(pictures):,} pictures in {images} have no mask, such as {pictures[without[0]].name}"
        raise DataError(
            problem, f"its mask would be {wanted}: add the masks, or take these pictures out"
        )
    alone = sorted(set(labels) - set(pictures), key=by_number)
    if alone:
        problem = f"{len(alone):,} of {len(labels):,} masks in {masks} have no picture, such as {labels[alone[0]].name}"
        raise DataError(problem, f"add the pictures to {images}, or take these masks out")
    return [
        _picture(pictures[stem], labels[stem], rule) for stem in sorted(pictures, key=by_number)
    ]


def _by_stem(folder: Path, ends: Collection[str], skipped: str = "") -> dict[str, Path]:
    """Files below a folder by their name in it without the ending."""
    found: dict[str, Path] = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        end = next((end for end in ends if name.lower().endswith(end.lower())), None)
        if end is None or (skipped and name.endswith(skipped)):
            continue
        stem = name[: -len(end)]
        if stem in found:
            raise DataError(
                f"{folder} holds {found[stem].name} and {path.name}",
                "two files of one name: keep one of them",
            )
        found[stem] = path
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for parent, names, files in os.walk(folder, followlinks=True):
        names[:] = [name for name in names if not is_stray(name)]
        yield from (Path(parent, name) for name in files if not is_stray(name))


def _picture(path: Path, mask: Path, rule: MaskRule) -> Picture:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is a link to a file that is gone", "restore the file or remove the link"
        ) from error
    return Picture(path, (0, size), str(path), mask=MaskFile(mask, rule))


FETCH_AGAIN = "fetch annotations_trainval2017.zip again"


@dataclass(frozen=True, slots=True)
class DrawnMask:
    """One picture's objects; ``labels`` of its pixels are drawn anew each time."""

    path: Path
    rule: MaskRule
    number: int  # of the picture
    height: int
    width: int
    outlines: tuple[
        tuple[int, bool, float, Any], ...
    ]  # (label, is crowd, area, polygons or run lengths)

    @property
    def where(self) -> str:
        return f"{self.path}: image {self.number}"

    def labels(self) -> np.ndarray:
        """[H, W] uint8. Raises DataError for an outline that pycocotools cannot draw."""
        coco = _pycocotools()
        labels = np.zeros((self.height, self.width), np.uint8)
        for label, is_crowd, _, outline in sorted(
            self.outlines, key=lambda one: (not one[1], -one[2])
        ):
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
        DataError: no COCO file of instances, other categories than COCO's 80, pictures that are not
        in ``folder``. UserError: pycocotools is not installed.
    """
    _pycocotools()
    try:
        content = json.loads(path.read_bytes())
        images = {
            image["id"]: (image["file_name"], int(image["height"]), int(image["width"]))
            for image in content["images"]
        }
        categories = {category["id"]: category["name"] for category in content["categories"]}
        outlines: dict[int, list[tuple[int, bool, float, Any]]] = {number: [] for number in images}
        label_of = {number: label for label, number in enumerate(sorted(categories), start=1)}
        for one in content["annotations"]:
            outline = (
                label_of[one["category_id"]],
                bool(one.get("iscrowd")),
                float(one["area"]),
                one["segmentation"],
            )
            outlines[one["image_id"]].append(outline)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no COCO file of instances: {type(error).__name__} {error}", FETCH_AGAIN
        ) from error
    names = tuple(categories[number] for number in sorted(categories))
    if names != rule.names[1:]:
        raise DataError(
            f"{path} has other categories than COCO's 80: {_first_other(names, rule.names[1:])}",
            FETCH_AGAIN,
        )
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
    """Polygons of three corners and more, or run lengths that fill the picture: pycocotools takes
    more, and reads beyond it.
    """
    if isinstance(outline, list):
        return bool(outline) and all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and _are_numbers(polygon)
            for polygon in outline
        )
    if not isinstance(outline, dict) or outline.get("size") != [height, width]:
        return False
    counts = outline.get("counts")
    if isinstance(counts, list):
        return (
            _are_numbers(counts) and min(counts, default=0) >= 0 and sum(counts) == height * width
        )
    return isinstance(counts, str)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _first_other(names: Sequence[str], expected: Sequence[str]) -> str:
    if len(names) != len(expected):
        return f"{len(names)} of them"
    return next(
        f"{name!r} where {wanted!r} belongs"
        for name, wanted in zip(names, expected, strict=True)
        if name != wanted
    )


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            'coco_object is drawn by pycocotools, which is not installed: pip install "silc-bench[coco]"'
        ) from error
    return mask
