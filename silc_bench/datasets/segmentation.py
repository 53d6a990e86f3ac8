"""Pictures with a mask each: the named sets of ``mask_sets``, and any folder of pictures beside a folder of masks.

Flow: ``read_segmentation("cityscapes", "test", site)`` -> pictures matched with masks by their names -> Found. Masks are
decoded when they are hashed or scored, not here.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from silc_bench.datasets.coco_instances import read_instances
from silc_bench.datasets.files import PICTURE_EXTENSIONS, by_number, is_stray
from silc_bench.datasets.mask_sets import MaskLayout, rule_of
from silc_bench.datasets.masks import MASK_EXTENSIONS, MaskFile, MaskRule
from silc_bench.datasets.picture_set import DataError, Found, Picture
from silc_bench.datasets.places import Site


def read_segmentation(name: str, split: str, site: Site) -> Found:
    """Pictures and masks of a named set. Raises DataError: some are missing, or a list names what is not there."""
    layout = site.layout
    assert layout is not None, site
    rule = rule_of(name, layout.values)
    folder = _images_of(site.base, layout, site.path)
    if site.path.is_file():
        pictures = read_instances(site.path, folder, rule)
    elif layout.listed:
        pictures = _listed(site.base / layout.listed, folder, site.path, layout, rule)
    else:
        pictures = _matched(folder, site.path, (layout.image_end,), (layout.mask_end,), rule, layout.skipped)
    how = f"{layout.masks}{'' if site.path.is_file() else f'/*{layout.mask_end}'}"
    return found_of(pictures, site.base, f"{folder.relative_to(site.base)}/*{layout.image_end} with {how}", rule)


def read_pairs(images: Path, masks: Path, rule: MaskRule) -> list[Picture]:
    """Pictures below ``images``, each with the mask below ``masks`` that has the same name but for the ending.

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
        raise DataError(f"{masks} is there, and its pictures are not: looked in {looked}", "fetch the set's pictures too")
    return folder


def _listed(listed: Path, images: Path, masks: Path, layout: MaskLayout, rule: MaskRule) -> list[Picture]:
    """In the order of the list."""
    stems = listed.read_text(encoding="utf-8").split()
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"{listed} lists {twice} twice", "fetch the list again")
    pairs = [(images / f"{stem}{layout.image_end}", masks / f"{stem}{layout.mask_end}") for stem in stems]
    for kind, paths in (("pictures", [pair[0] for pair in pairs]), ("masks", [pair[1] for pair in pairs])):
        missing = [path for path in paths if not path.is_file()]
        if missing:
            problem = f"{len(missing):,} of the {len(stems):,} {kind} that {listed} lists are missing, such as {missing[0]}"
            raise DataError(problem, f"fetch the set's {kind} again")
    return [_picture(picture, mask, rule) for picture, mask in pairs]


def _matched(
    images: Path, masks: Path, image_ends: Collection[str], mask_ends: Collection[str], rule: MaskRule, skipped: str = ""
) -> list[Picture]:
    """By their names, "9" before "10"."""
    pictures, labels = _by_stem(images, image_ends), _by_stem(masks, mask_ends, skipped)
    if not pictures:
        raise DataError(f"{images} holds no pictures", f"a picture ends with {' or '.join(image_ends)}")
    without = sorted(set(pictures) - set(labels), key=by_number)
    if without:
        wanted = masks / f"{without[0]}{next(iter(mask_ends))}"
        problem = (
            f"{len(without):,} of {len(pictures):,} pictures in {images} have no mask, such as {pictures[without[0]].name}"
        )
        raise DataError(problem, f"its mask would be {wanted}: add the masks, or take these pictures out")
    alone = sorted(set(labels) - set(pictures), key=by_number)
    if alone:
        problem = f"{len(alone):,} of {len(labels):,} masks in {masks} have no picture, such as {labels[alone[0]].name}"
        raise DataError(problem, f"add the pictures to {images}, or take these masks out")
    return [_picture(pictures[stem], labels[stem], rule) for stem in sorted(pictures, key=by_number)]


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
            raise DataError(f"{folder} holds {found[stem].name} and {path.name}", "two files of one name: keep one of them")
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
        raise DataError(f"{path} is a link to a file that is gone", "restore the file or remove the link") from error
    return Picture(path, (0, size), str(path), mask=MaskFile(mask, rule))
