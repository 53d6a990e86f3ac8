"""Images with a mask each: those of a public set, and any two folders of the same names.

Flow: ``read_segmentation(masks, base, layout, rule)`` -> images matched with masks by their names
-> ImageSplit. Masks are decoded when they are hashed or scored, not here.

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
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.files.folders import FILE_EXTENSIONS, Listing, by_number, walk
from silc_bench.datasets.files.texts import read_text
from silc_bench.datasets.image_set import ImageFile, ImageSplit, image_file
from silc_bench.datasets.masks import MASK_EXTENSIONS, MaskFile, MaskRule
from silc_bench.datasets.public.find import MaskLayout, check_files
from silc_bench.errors import DataError, UserError, first_line
from silc_bench.later import np


def read_segmentation(masks: Path, base: Path, layout: MaskLayout, rule: MaskRule) -> ImageSplit:
    """Images and masks of a public set.

    Args:
        masks: their folder, or the file that they are drawn from.
        base: the set's folder, for ``layout``.

    Raises:
        DataError: some are missing, or a list names what is not there.
    """
    folders = [base / name for name in layout.images]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        problem = f"is there, and its images are not: looked in {' and '.join(map(str, folders))}"
        raise DataError(problem, about=masks, fix="fetch the set's images too")

    how = f"{layout.masks}/*{layout.mask_end}"
    if masks.is_file():
        how = layout.masks
        images = read_instances(masks, folder, rule)
    elif layout.listed:
        images = _listed(base / layout.listed, folder, masks, layout, rule)
    else:
        ends = ((layout.image_end,), (layout.mask_end,))
        images = _matched(folder, masks, *ends, rule, layout.skipped)
    where = f"{folder.relative_to(base)}/*{layout.image_end}"
    return ImageSplit(images, base, f"{where} with {how}", rule=rule)


def read_pairs(images: Path, masks: Path, rule: MaskRule) -> list[ImageFile]:
    """Images below ``images``, each with the mask of its name below ``masks``.

    The endings may differ.

    Raises:
        DataError: none, an image without a mask, a mask without an image, or two of one name.
    """
    image_ends = tuple(f".{end}" for end in FILE_EXTENSIONS)
    mask_ends = tuple(f".{end}" for end in MASK_EXTENSIONS)
    return _matched(images, masks, image_ends, mask_ends, rule)


def _listed(
    listed: Path, images: Path, masks: Path, layout: MaskLayout, rule: MaskRule
) -> list[ImageFile]:
    """In the order of the list."""
    stems = read_text(listed).split()
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"lists {twice} twice", about=listed, fix="fetch the list again")

    image_paths = [images / f"{stem}{layout.image_end}" for stem in stems]
    mask_paths = [masks / f"{stem}{layout.mask_end}" for stem in stems]
    for kind, paths in (("images", image_paths), ("masks", mask_paths)):
        check_files(paths, kind, listed, f"fetch the set's {kind} again")
    pairs = zip(image_paths, mask_paths, strict=True)
    return [image_file(image, mask=MaskFile(mask, rule)) for image, mask in pairs]


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
        fix = f"put images there, whose names end with {' or '.join(image_ends)}"
        raise DataError("holds no images", about=images, fix=fix)

    # neither side may have more: what is left out would change the score in silence
    sides = (
        ("image", images, image_of, next(iter(image_ends))),
        ("mask", masks, mask_of, next(iter(mask_ends))),
    )
    for (kind, folder, paths, _), (other, home, others, end) in (sides, sides[::-1]):
        alone = sorted(set(paths) - set(others), key=by_number)
        if alone:
            count = f"{len(alone):,} of its {len(paths):,} {kind}s"
            problem = f"{count} have no {other}, such as {paths[alone[0]].name}"
            fix = f"add {home / alone[0]}{end} and its like, or take these {kind}s out"
            raise DataError(problem, about=folder, fix=fix)

    stems = sorted(image_of, key=by_number)
    return [image_file(image_of[stem], mask=MaskFile(mask_of[stem], rule)) for stem in stems]


def _by_stem(folder: Path, ends: Collection[str], skipped: str = "") -> dict[str, Path]:
    """Files below a folder by their name in it without the ending."""
    path_of: dict[str, Path] = {}
    for file in walk(folder, Listing(folder)):
        name = file.name
        end = next((end for end in ends if name.lower().endswith(end.lower())), None)
        if end is None or (skipped and name.endswith(skipped)):
            continue

        # 1.jpg and 1.png: nobody says which of them the mask belongs to
        stem = name[: -len(end)]
        if stem in path_of:
            problem = f"holds {path_of[stem].name} and {file.path.name}, two files of one name"
            raise DataError(problem, about=folder, fix="keep one of them")
        path_of[stem] = file.path
    return path_of


# ---- masks that are drawn from outlines ----

AGAIN = "fetch annotations_trainval2017.zip again"


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
                size = f"{self.width} x {self.height} pixels"
                problem = f"has an outline that cannot be drawn in {size}: {str(outline)[:60]}"
                raise DataError(problem, about=self.where, fix=AGAIN)

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
        problem = f"is no COCO file of instances: {first_line(error)}"
        raise DataError(problem, about=path, fix=AGAIN) from error

    names = [categories[number] for number in sorted(categories)]
    other = [name for name, ours in zip(names, rule.names[1:], strict=False) if name != ours]
    if other or len(names) != len(rule.names) - 1:
        shown = f", the first is {other[0]!r}" if other else ""
        problem = f"its {len(names)} categories are not COCO's 80{shown}"
        raise DataError(problem, about=path, fix=AGAIN)

    listed = sorted(images.items())
    check_files(
        [folder / name for _, (name, *_) in listed], "images", path, "unpack val2017.zip again"
    )
    found = []
    for number, (name, height, width) in listed:
        mask = DrawnMask(path, rule, number, height, width, tuple(outlines[number]))
        found.append(image_file(folder / name, mask=mask))
    return found


def _can_be_drawn(outline: Any, height: int, width: int) -> bool:
    """Whether it is polygons of three corners and more, or run lengths that fill the image.

    pycocotools takes more, and reads beyond the end of its memory.
    """
    if isinstance(outline, list):
        return bool(outline) and all(map(_is_polygon, outline))
    if not isinstance(outline, dict) or outline.get("size") != [height, width]:
        return False

    counts: Any = outline.get("counts")
    is_plain = _are_numbers(counts) and min(counts, default=0) >= 0
    return isinstance(counts, str) or (is_plain and sum(counts) == height * width)


def _is_polygon(polygon: Any) -> bool:
    """Whether it is x, y, x, y, ... of three corners or more."""
    return _are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _are_numbers(values: Any) -> bool:
    is_list = isinstance(values, list)
    return is_list and all(isinstance(value, int | float) for value in values)


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "is drawn by pycocotools, which is not installed",
            about="coco_object",
            fix='pip install "silc-bench[coco]"',
        ) from error
    return mask
