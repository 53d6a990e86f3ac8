"""Images with a mask each: the named sets of ``mask_sets``, and any two folders of the same names.

Flow: ``read_segmentation("cityscapes", "test", site)`` -> images matched with masks by their
names -> Found. Masks are decoded when they are hashed or scored, not here.

COCO-Object has no masks in files. They are drawn from the outlines in
``instances_val2017.json``, 80 things on a background (value 0): ``read_instances(path, folder,
rule)`` -> images whose masks are drawn when somebody asks for them; nothing is written anywhere.
Objects are drawn by pycocotools, larger ones first, so that what lies on something larger stays
to be seen. Crowds (``iscrowd``) are not scored where no object is drawn on them. Images without
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
from silc_bench.datasets.files.folders import FILE_EXTENSIONS, by_number, is_stray
from silc_bench.datasets.image_set import ImageFile, ImageSplit
from silc_bench.datasets.masks import MASK_EXTENSIONS, MaskFile, MaskRule
from silc_bench.datasets.public.find import Site
from silc_bench.datasets.public.mask_sets import MaskLayout, rule_of
from silc_bench.errors import DataError, UserError


def read_segmentation(name: str, split: str, site: Site) -> ImageSplit:
    """Images and masks of a named set.

    Raises:
        DataError: some are missing, or a list names what is not there.
    """
    layout = site.layout
    assert layout is not None, site
    rule = rule_of(name, layout.values)
    folder = _images_of(site.base, layout, site.path)

    how = f"{layout.masks}/*{layout.mask_end}"
    if site.path.is_file():
        how = layout.masks
        pictures = read_instances(site.path, folder, rule)
    elif layout.listed:
        pictures = _listed(site.base / layout.listed, folder, site.path, layout, rule)
    else:
        image_ends = (layout.image_end,)
        mask_ends = (layout.mask_end,)
        pictures = _matched(folder, site.path, image_ends, mask_ends, rule, layout.skipped)

    images = f"{folder.relative_to(site.base)}/*{layout.image_end}"
    return found_of(pictures, site.base, f"{images} with {how}", rule)


def read_pairs(images: Path, masks: Path, rule: MaskRule) -> list[ImageFile]:
    """Images below ``images``, each with the mask of its name below ``masks``.

    The endings may differ.

    Raises:
        DataError: none, an image without a mask, a mask without an image, or two of one name.
    """
    image_ends = tuple(f".{end}" for end in FILE_EXTENSIONS)
    mask_ends = tuple(f".{end}" for end in MASK_EXTENSIONS)
    return _matched(images, masks, image_ends, mask_ends, rule)


def found_of(pictures: list[ImageFile], folder: Path, layout: str, rule: MaskRule) -> ImageSplit:
    """What a reader of masks gives back; their rule says what the labels are called."""
    return ImageSplit(
        pictures,
        folder,
        layout,
        mask_names=rule.names,
        has_background=rule.has_background,
        mask_policy=rule.policy(),
    )


def _images_of(base: Path, layout: MaskLayout, masks: Path) -> Path:
    """The folder of the images; ``masks`` for the message alone."""
    folders = [base / name for name in layout.images]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        looked = " and ".join(map(str, folders))
        problem = f"{masks} is there, and its pictures are not: looked in {looked}"
        raise DataError(problem, fix="fetch the set's pictures too")
    return folder


def _listed(
    listed: Path, images: Path, masks: Path, layout: MaskLayout, rule: MaskRule
) -> list[ImageFile]:
    """In the order of the list."""
    stems = listed.read_text(encoding="utf-8").split()
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"{listed} lists {twice} twice", fix="fetch the list again")

    image_paths = [images / f"{stem}{layout.image_end}" for stem in stems]
    mask_paths = [masks / f"{stem}{layout.mask_end}" for stem in stems]
    for kind, paths in (("pictures", image_paths), ("masks", mask_paths)):
        missing = [path for path in paths if not path.is_file()]
        if missing:
            problem = (
                f"{len(missing):,} of the {len(stems):,} {kind} that {listed} lists are missing,"
                f" such as {missing[0]}"
            )
            raise DataError(problem, fix=f"fetch the set's {kind} again")

    pairs = zip(image_paths, mask_paths, strict=True)
    return [_image(image, mask, rule) for image, mask in pairs]


def _matched(
    images: Path,
    masks: Path,
    image_ends: Collection[str],
    mask_ends: Collection[str],
    rule: MaskRule,
    skipped: str = "",
) -> list[ImageFile]:
    """By their names, "9" before "10"; ``skipped`` is the end of files that are no masks."""
    image_of = _by_stem(images, image_ends)
    mask_of = _by_stem(masks, mask_ends, skipped)
    if not image_of:
        fix = f"a picture ends with {' or '.join(image_ends)}"
        raise DataError(f"{images} holds no pictures", fix=fix)

    # neither side may have more: what is left out would change the score in silence
    without = sorted(set(image_of) - set(mask_of), key=by_number)
    if without:
        wanted = masks / f"{without[0]}{next(iter(mask_ends))}"
        problem = (
            f"{len(without):,} of {len(image_of):,} pictures in {images} have no mask,"
            f" such as {image_of[without[0]].name}"
        )
        fix = f"its mask would be {wanted}: add the masks, or take these pictures out"
        raise DataError(problem, fix=fix)

    alone = sorted(set(mask_of) - set(image_of), key=by_number)
    if alone:
        problem = (
            f"{len(alone):,} of {len(mask_of):,} masks in {masks} have no picture,"
            f" such as {mask_of[alone[0]].name}"
        )
        raise DataError(problem, fix=f"add the pictures to {images}, or take these masks out")
    return [_image(image_of[stem], mask_of[stem], rule) for stem in sorted(image_of, key=by_number)]


def _by_stem(folder: Path, ends: Collection[str], skipped: str = "") -> dict[str, Path]:
    """Files below a folder by their name in it without the ending."""
    path_of: dict[str, Path] = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        end = next((end for end in ends if name.lower().endswith(end.lower())), None)
        if end is None or (skipped and name.endswith(skipped)):
            continue

        # 1.jpg and 1.png: nobody says which of them the mask belongs to
        stem = name[: -len(end)]
        if stem in path_of:
            problem = f"{folder} holds {path_of[stem].name} and {path.name}"
            raise DataError(problem, fix="two files of one name: keep one of them")
        path_of[stem] = path
    return path_of


def _walk(folder: Path) -> Iterator[Path]:
    for parent, names, files in os.walk(folder, followlinks=True):
        # os.walk enters what is left in its list
        names[:] = [name for name in names if not is_stray(name)]
        yield from (Path(parent, name) for name in files if not is_stray(name))


def _image(path: Path, mask: Path, rule: MaskRule) -> ImageFile:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        problem = f"{path} is a link to a file that is gone"
        raise DataError(problem, fix="restore the file or remove the link") from error
    return ImageFile(path, (0, size), str(path), mask=MaskFile(mask, rule))


# ---- masks that are drawn from outlines ----

FETCH_AGAIN = "fetch annotations_trainval2017.zip again"


@dataclass(frozen=True, slots=True)
class DrawnMask:
    """One image's objects; ``labels`` of its pixels are drawn anew each time."""

    path: Path
    rule: MaskRule
    number: int  # of the image
    height: int
    width: int
    # (label, is crowd, area, polygons or run lengths)
    outlines: tuple[tuple[int, bool, float, Any], ...]

    @property
    def where(self) -> str:
        return f"{self.path}: image {self.number}"

    def labels(self) -> np.ndarray:
        """[H, W] uint8. Raises DataError for an outline that pycocotools cannot draw."""
        coco = _pycocotools()
        labels = np.zeros((self.height, self.width), np.uint8)

        # crowds first, then the larger ones first: what is drawn later lies on top
        ordered = sorted(self.outlines, key=lambda drawn: (not drawn[1], -drawn[2]))
        for label, is_crowd, _, outline in ordered:
            if not _can_be_drawn(outline, self.height, self.width):
                raise DataError(
                    f"{self.where} has an outline that cannot be drawn in"
                    f" {self.width} x {self.height} pixels: {str(outline)[:60]}",
                    fix=FETCH_AGAIN,
                )

            # polygons, run lengths as numbers, or run lengths already packed into a string
            runs = outline
            if isinstance(outline, list):
                runs = coco.merge(coco.frPyObjects(outline, self.height, self.width))
            elif isinstance(outline["counts"], list):
                runs = coco.frPyObjects(outline, self.height, self.width)
            inside = coco.decode([runs])[:, :, 0].astype(bool)
            labels[inside] = IGNORE if is_crowd else label
        return labels


def read_instances(path: Path, folder: Path, rule: MaskRule) -> list[ImageFile]:
    """All images that the file lists, by their number.

    Raises:
        DataError: no COCO file of instances, other categories than COCO's 80, images that are not
            in ``folder``.
        UserError: pycocotools is not installed.
    """
    _pycocotools()
    try:
        content = json.loads(path.read_bytes())
        images = {
            image["id"]: (image["file_name"], int(image["height"]), int(image["width"]))
            for image in content["images"]
        }
        categories = {category["id"]: category["name"] for category in content["categories"]}

        # COCO's ids have gaps; labels count the categories in their order, 0 is background
        label_of = {number: label for label, number in enumerate(sorted(categories), start=1)}
        outlines: dict[int, list[tuple[int, bool, float, Any]]] = {number: [] for number in images}
        for annotation in content["annotations"]:
            label = label_of[annotation["category_id"]]
            is_crowd = bool(annotation.get("iscrowd"))
            area = float(annotation["area"])
            outline = (label, is_crowd, area, annotation["segmentation"])
            outlines[annotation["image_id"]].append(outline)
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path} is no COCO file of instances: {type(error).__name__} {error}"
        raise DataError(problem, fix=FETCH_AGAIN) from error

    names = tuple(categories[number] for number in sorted(categories))
    if names != rule.names[1:]:
        other = _first_other(names, rule.names[1:])
        raise DataError(f"{path} has other categories than COCO's 80: {other}", fix=FETCH_AGAIN)

    pictures, missing = [], []
    for number, (name, height, width) in sorted(images.items()):
        image = folder / name
        if not image.is_file():
            missing.append(image)
            continue
        mask = DrawnMask(path, rule, number, height, width, tuple(outlines[number]))
        pictures.append(ImageFile(image, (0, image.stat().st_size), str(image), mask=mask))

    if missing:
        problem = (
            f"{len(missing):,} of the {len(images):,} pictures of {path} are missing,"
            f" such as {missing[0]}"
        )
        raise DataError(problem, fix="unpack val2017.zip again")
    return pictures


def _can_be_drawn(outline: Any, height: int, width: int) -> bool:
    """Whether it is polygons of three corners and more, or run lengths that fill the image.

    pycocotools takes more, and reads beyond the end of its memory.
    """
    if isinstance(outline, list):
        return bool(outline) and all(_is_polygon(polygon) for polygon in outline)

    if not isinstance(outline, dict) or outline.get("size") != [height, width]:
        return False
    counts = outline.get("counts")
    if isinstance(counts, list):
        is_plain = _are_numbers(counts) and min(counts, default=0) >= 0
        return is_plain and sum(counts) == height * width
    return isinstance(counts, str)


def _is_polygon(polygon: Any) -> bool:
    """Whether it is x, y, x, y, ... of three corners or more."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    return _are_numbers(polygon)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _first_other(names: Sequence[str], expected: Sequence[str]) -> str:
    if len(names) != len(expected):
        return f"{len(names)} of them"
    pairs = zip(names, expected, strict=True)
    return next(f"{name!r} where {other!r} belongs" for name, other in pairs if name != other)


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "coco_object is drawn by pycocotools, which is not installed:"
            ' pip install "silc-bench[coco]"'
        ) from error
    return mask
