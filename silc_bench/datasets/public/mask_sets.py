"""Named sets with masks: their classes, what mask values mean, and where images and masks lie.

``SETS["cityscapes"]`` -> the folders that are Cityscapes by their name, and for each split the
layouts in which people have it: the set's own and mmsegmentation's
(docs/en/user_guides/2_dataset_prepare.md). The first layout whose masks are there counts.

Names: mmsegmentation 1.2 (mmseg/datasets), which SCLIP, TCL and their followers ask for; ADE20K's
847 as MaskFormer and CAT-Seg list them (datasets/ade847.json); CamVid's eleven as SegNet numbers
them. All stand in mask_names.json, whose lists are hashed in ``counts.LABEL_ORDER``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from silc_bench.datasets.masks import MaskRule
from silc_bench.datasets.public.counts import checked_order


@dataclass(frozen=True)
class MaskLayout:
    """One way in which a split lies in its set's folder.

    A mask is named like its image, but for the ends.
    """

    images: tuple[str, ...]  # folders in which its images may lie
    masks: str  # folder of its masks, or the file that they are drawn from
    mask_end: str = ".png"
    image_end: str = ".jpg"
    listed: str = ""  # the file that lists the split's images; else it is all in the folder
    values: str = "labels"  # how masks are numbered: a key of ``rule_of``
    skipped: str = ""  # end of files that converters lay beside its masks
    not_beside: str = ""  # a folder that only another set has


@dataclass(frozen=True)
class MaskSet:
    """How a named set with masks may lie."""

    names: tuple[str, ...]  # of its folder, without punctuation, as in ``find.Known``
    inner: tuple[str, ...]  # folders in it in which everything below may lie; "" is itself
    splits: dict[str, tuple[MaskLayout, ...]]
    needed: str  # the layouts, for messages
    # what may lie there instead, and the line that makes masks of it
    hints: tuple[tuple[str, str], ...] = ()


def mask_names(name: str) -> tuple[str, ...]:
    """Names of labels 0..C-1 of a named set."""
    listed_as = {"voc20": "voc21", "pc59": "pc60", "camvid_mini": "camvid"}.get(name, name)
    names = checked_order(f"{listed_as} masks", _asset()[listed_as])

    # these two leave the background out, which stands first in the list
    return names[1:] if name in ("voc20", "pc59") else names


def rule_of(name: str, values: str) -> MaskRule:
    """How the masks of a named set are numbered.

    ``values``: "labels", or as the set was published ("ids").
    """
    names = mask_names(name)
    if name == "voc21":
        return MaskRule(names, has_background=True, not_scored="borders of objects (255)")
    if name == "voc20":
        not_scored = "background (0) and borders of objects (255)"
        return MaskRule(names, stored=_from_one(20), ignored=(0, 255), not_scored=not_scored)

    # 255 occurs in masks that are numbered otherwise, and those are refused
    if name == "pc60":
        return MaskRule(names, has_background=True, ignored=(), not_scored="nothing")
    if name == "pc59":
        return MaskRule(names, stored=_from_one(59), ignored=(0,), not_scored="background (0)")

    if name == "ade20k150":
        not_scored = "pixels of other things (0)"
        return MaskRule(names, stored=_from_one(150), ignored=(0,), not_scored=not_scored)
    if name == "ade20k847":
        return MaskRule(names, ignored=(65535,), not_scored="pixels of other things (65535)")

    if name == "cityscapes":
        rule = MaskRule(names, not_scored="classes that the benchmark leaves out")
        others = tuple(sorted({*range(34), 255} - set(CITYSCAPES_IDS)))
        return replace(rule, stored=CITYSCAPES_IDS, ignored=others) if values == "ids" else rule

    if name == "cocostuff":
        rule = MaskRule(names, not_scored="unlabelled (255)")
        return replace(rule, stored=COCO_STUFF_IDS) if values == "ids" else rule
    if name == "coco_object":
        return MaskRule(names, has_background=True, not_scored="crowds")

    assert name in ("camvid", "camvid_mini"), name
    return MaskRule(names, ignored=(11,), not_scored="unlabelled (11)")


# cityscapesScripts, helpers/labels.py: the ids of the 19 classes in the order of their train ids
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# COCO's category ids less one, which its pixel maps hold: 1 to 182 without the eleven that no
# image has
_NEVER = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCO_STUFF_IDS = tuple(number - 1 for number in range(1, 183) if number not in _NEVER)


def _from_one(count: int) -> tuple[int, ...]:
    """Value v is label v - 1: mmsegmentation's ``reduce_zero_label``."""
    return tuple(range(1, count + 1))


@cache
def _asset() -> dict[str, tuple[str, ...]]:
    text = (files("silc_bench.datasets") / "mask_names.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return {name: tuple(names) for name, names in content.items()}


# ---- layouts ----


def _voc(split: str) -> MaskLayout:
    listed = f"ImageSets/Segmentation/{split}.txt"
    return MaskLayout(("JPEGImages",), "SegmentationClass", listed=listed)


def _context(split: str) -> MaskLayout:
    listed = f"ImageSets/SegmentationContext/{split}.txt"
    return MaskLayout(("JPEGImages",), "SegmentationClassContext", listed=listed)


def _cityscapes(split: str) -> tuple[MaskLayout, ...]:
    images = (f"leftImg8bit/{split}",)
    masks = f"gtFine/{split}"
    image_end = "_leftImg8bit.png"
    return (
        MaskLayout(images, masks, "_gtFine_labelTrainIds.png", image_end),
        MaskLayout(images, masks, "_gtFine_labelIds.png", image_end, values="ids"),
    )


def _stuff(split: str) -> tuple[MaskLayout, ...]:
    images = (f"images/{split}", split)
    folders = (f"annotations/{split}", f"stuffthingmaps/{split}")

    # mmsegmentation's converter writes its numbers beside the published ids: its files count
    # first, and are no ids
    converted = [MaskLayout(images, folder, "_labelTrainIds.png") for folder in folders]
    published = [
        MaskLayout(images, folder, values="ids", skipped="TrainIds.png") for folder in folders
    ]
    return (*converted, *published)


def _ade847(split: str) -> MaskLayout:
    images = (f"images_detectron2/{split}",)
    return MaskLayout(images, f"annotations_detectron2/{split}", ".tif")


def _camvid_mini(split: str) -> MaskLayout:
    # beside a test/ it is the whole CamVid, whose val is another part
    return MaskLayout((split,), f"{split}annot", image_end=".png", not_beside="test")


_VOC = MaskSet(
    ("voc21", "voc20", "voc", "voc2012", "pascalvoc", "pascalvoc2012", "vocdevkit"),
    ("", "VOC2012", "VOCdevkit/VOC2012"),
    {"test": (_voc("val"),), "train": (_voc("train"),)},
    "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}",
)
_CONTEXT = MaskSet(
    ("pc60", "pc59", "pascalcontext", "context", "voc2010", "vocdevkit"),
    ("", "VOC2010", "VOCdevkit/VOC2010"),
    {"test": (_context("val"),), "train": (_context("train"),)},
    "VOCdevkit/VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext}",
    (
        (
            "trainval_merged.json",
            "make masks of trainval_merged.json with mmsegmentation's"
            " tools/dataset_converters/pascal_context.py VOCdevkit"
            " VOCdevkit/VOC2010/trainval_merged.json",
        ),
    ),
)
_COCO = ("coco", "coco2017", "mscoco", "mscoco2017")
SETS = {
    "voc21": _VOC,
    "voc20": _VOC,
    "pc60": _CONTEXT,
    "pc59": _CONTEXT,
    "ade20k150": MaskSet(
        ("ade20k150", "adechallengedata2016", "ade20k", "ade"),
        ("", "ADEChallengeData2016"),
        {
            "test": (MaskLayout(("images/validation",), "annotations/validation"),),
            "train": (MaskLayout(("images/training",), "annotations/training"),),
        },
        "ADEChallengeData2016/{images,annotations}/{validation,training}",
    ),
    "ade20k847": MaskSet(
        ("ade20k847", "ade20k20211701", "ade20kfull", "ade20k", "ade"),
        ("", "ADE20K_2021_17_01"),
        {"test": (_ade847("validation"),), "train": (_ade847("training"),)},
        "ADE20K_2021_17_01/{images,annotations}_detectron2/{validation,training},"
        " as MaskFormer makes them: 16-bit .tif",
        (
            (
                "index_ade20k.pkl",
                "the set's own masks are in colours: make numbers of them with MaskFormer's"
                " prepare_ade20k_full_sem_seg.py",
            ),
        ),
    ),
    "cityscapes": MaskSet(
        ("cityscapes",),
        ("",),
        {"test": _cityscapes("val"), "train": _cityscapes("train")},
        "cityscapes/leftImg8bit/{val,train}/<city>/*_leftImg8bit.png with"
        " cityscapes/gtFine/{val,train}/<city>/*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png",
    ),
    "cocostuff": MaskSet(
        ("cocostuff", "cocostuff164k", *_COCO),
        ("",),
        {"test": _stuff("val2017"), "train": _stuff("train2017")},
        "coco/{val2017,train2017}/*.jpg with coco/stuffthingmaps/{val2017,train2017}/*.png,"
        " or mmsegmentation's coco_stuff164k/{images,annotations}/{val2017,train2017}",
    ),
    "coco_object": MaskSet(
        ("cocoobject", *_COCO),
        ("",),
        {
            "test": (
                MaskLayout(("val2017", "images/val2017"), "annotations/instances_val2017.json"),
            )
        },
        "coco/val2017/*.jpg with coco/annotations/instances_val2017.json",
    ),
    "camvid": MaskSet(
        ("camvid", "camvid11"),
        ("", "CamVid"),
        {
            split: (MaskLayout((split,), f"{split}annot", image_end=".png"),)
            for split in ("test", "train")
        },
        "CamVid/{train,test}/*.png with CamVid/{train,test}annot/*.png, as SegNet has them",
    ),
    "camvid_mini": MaskSet(
        ("camvid", "camvidmini"),
        ("",),
        {"test": (_camvid_mini("val"),), "train": (_camvid_mini("train"),)},
        "camvid/{train,val}/*.png with camvid/{train,val}annot/*.png and no camvid/test",
    ),
}
