"""Public sets with masks: their classes, what mask values mean, and where images and masks lie.

Layouts are the sets' own and mmsegmentation's (docs/en/user_guides/2_dataset_prepare.md).

Names: mmsegmentation 1.2 (mmseg/datasets), which SCLIP, TCL and their followers ask for; ADE20K's
847 as MaskFormer and CAT-Seg list them (datasets/ade847.json); CamVid's eleven as SegNet numbers
them. All stand in mask_names.json; a test holds the hashes of its lists.

Sources of the counts: Pascal VOC 2012's ImageSets/Segmentation; Pascal Context as mmsegmentation's
converter splits it; ADE20K as ADEChallengeData2016, and as MaskFormer splits the full set;
Cityscapes' fine annotations (Cordts et al., 2016); COCO 2017; CamVid as SegNet splits it
(Badrinarayanan et al., 2017).
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib.resources import files

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.image_set import ImageSplit
from silc_bench.datasets.masks import MaskRule
from silc_bench.datasets.public.find import Expected, MaskLayout, PublicSet, Site
from silc_bench.datasets.public.segmentation import read_segmentation


def mask_names(name: str) -> tuple[str, ...]:
    """Names of labels 0..C-1 of a public set."""
    listed_as = {"voc20": "voc21", "pc59": "pc60", "camvid_mini": "camvid"}.get(name, name)

    # these two leave the background out, which stands first in the list
    names = _asset()[listed_as]
    return names[1:] if name in ("voc20", "pc59") else names


@cache
def _asset() -> dict[str, tuple[str, ...]]:
    text = (files("silc_bench.datasets") / "mask_names.json").read_text(encoding="utf-8")
    return {name: tuple(names) for name, names in json.loads(text).items()}


def rule_of(name: str, values: str) -> MaskRule:
    """How the masks of a public set are numbered.

    ``values``: "labels", or as the set was published ("ids").
    """
    rule = replace(_RULES[name], names=mask_names(name))
    if values == "ids":
        stored, ignored = _IDS[name]
        rule = replace(rule, stored=stored, ignored=ignored)
    return rule


# cityscapesScripts, helpers/labels.py: the ids of the 19 classes in the order of their train ids
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# COCO's category ids less one, which its pixel maps hold: 1 to 182 without the eleven that no
# image has
_NEVER = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCO_STUFF_IDS = tuple(number - 1 for number in range(1, 183) if number not in _NEVER)


def _from_one(count: int, not_scored: str, *ignored: int) -> MaskRule:
    """Value v is label v - 1, and 0 is not scored: mmsegmentation's ``reduce_zero_label``."""
    stored = tuple(range(1, count + 1))
    return MaskRule((), stored=stored, ignored=(0, *ignored), not_scored=not_scored)


_BORDERS = "borders of objects (255)"
_CAMVID = MaskRule((), ignored=(11,), not_scored="unlabelled (11)")
_RULES = {  # without their names
    "voc21": MaskRule((), has_background=True, not_scored=_BORDERS),
    "voc20": _from_one(20, f"background (0) and {_BORDERS}", 255),
    # 255 occurs in masks that are numbered otherwise, and those are refused
    "pc60": MaskRule((), has_background=True, ignored=(), not_scored="nothing"),
    "pc59": _from_one(59, "background (0)"),
    "ade20k150": _from_one(150, "pixels of other things (0)"),
    "ade20k847": MaskRule((), ignored=(65535,), not_scored="pixels of other things (65535)"),
    "cityscapes": MaskRule((), not_scored="classes that the benchmark leaves out"),
    "cocostuff": MaskRule((), not_scored="unlabelled (255)"),
    "coco_object": MaskRule((), has_background=True, not_scored="crowds"),
    "camvid": _CAMVID,
    "camvid_mini": _CAMVID,
}
_IDS = {  # values of the classes, and of what is not scored
    "cityscapes": (CITYSCAPES_IDS, tuple(sorted({*range(34), IGNORE} - set(CITYSCAPES_IDS)))),
    "cocostuff": (COCO_STUFF_IDS, (IGNORE,)),
}


# ---- the sets ----


def _read(known: PublicSet, split: str, site: Site) -> ImageSplit:
    assert site.layout is not None, site
    rule = rule_of(known.name, site.layout.values)
    return read_segmentation(site.path, site.base, site.layout, rule)


def _entry(
    name: str,
    names: tuple[str, ...],
    counts: dict[str, Expected],
    folders: tuple[str, ...],
    layouts: tuple[MaskLayout, ...],
    needed: str,
    inner: tuple[str, ...] = ("",),
    is_learned: bool = True,
) -> PublicSet:
    """A set whose families follow from its rule, and from whether tasks learn from it.

    ``folders``: what the layouts call its splits, in the order of ``counts``.
    """
    families = ["segmentation_zeroshot", "correspondence"]
    if _RULES[name].has_background:
        families.append("discovery")
    if is_learned:
        families += [f"segmentation_{probe}" for probe in ("linear", "sgd", "knn")]
    return PublicSet(
        name,
        names,
        counts,
        needed,
        _read,
        {split: (folder,) for split, folder in zip(counts, folders, strict=True)},
        tuple(families),
        "openai80",
        layouts=layouts,
        inner=inner,
    )


def _counts(test: int, train: int) -> dict[str, Expected]:
    return {"test": Expected(test), "train": Expected(train)}


def _devkit(suffix: str = "") -> tuple[MaskLayout]:
    listed = f"ImageSets/Segmentation{suffix}/{{split}}.txt"
    return (MaskLayout(("JPEGImages",), f"SegmentationClass{suffix}", listed=listed),)


# val is the test split where the labels of the set's own are not public
_VAL = ("val", "train")
_VOC = ("voc21", "voc20", "voc", "voc2012", "pascalvoc", "pascalvoc2012", "vocdevkit")
_CONTEXT = ("pc60", "pc59", "pascalcontext", "context", "voc2010", "vocdevkit")
_COCO = ("coco", "coco2017", "mscoco", "mscoco2017")
_CITY = (("leftImg8bit/{split}",), "gtFine/{split}")
_STUFF = ("images/{split}", "{split}")
_CAMVID_MASKS = (("{split}",), "{split}annot", ".png", ".png")
ENTRIES = (
    *(
        _entry(
            name,
            _VOC,
            _counts(1_449, 1_464),
            _VAL,
            _devkit(),
            "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}",
            ("", "VOC2012", "VOCdevkit/VOC2012"),
        )
        for name in ("voc21", "voc20")
    ),
    *(
        _entry(
            name,
            _CONTEXT,
            # with mmsegmentation's converter; also: as the paper counts them
            {"test": Expected(5_104, also=5_105), "train": Expected(4_996, also=4_998)},
            _VAL,
            _devkit("Context"),
            "VOCdevkit/VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext};"
            " mmsegmentation's tools/dataset_converters/pascal_context.py VOCdevkit"
            " VOCdevkit/VOC2010/trainval_merged.json makes the masks",
            ("", "VOC2010", "VOCdevkit/VOC2010"),
        )
        for name in ("pc60", "pc59")
    ),
    _entry(
        "ade20k150",
        ("adechallengedata2016", "ade20k", "ade"),
        _counts(2_000, 20_210),
        ("validation", "training"),
        (MaskLayout(("images/{split}",), "annotations/{split}"),),
        "ADEChallengeData2016/{images,annotations}/{validation,training}",
        ("", "ADEChallengeData2016"),
    ),
    _entry(
        "ade20k847",
        ("ade20k20211701", "ade20kfull", "ade20k", "ade"),
        _counts(2_000, 25_574),
        ("validation", "training"),
        (
            MaskLayout(
                ("images_detectron2/{split}",), "annotations_detectron2/{split}", mask_end=".tif"
            ),
        ),
        "ADE20K_2021_17_01/{images,annotations}_detectron2/{validation,training},"
        " 16-bit .tif, which MaskFormer's prepare_ade20k_full_sem_seg.py makes of the set's own"
        " masks in colours",
        ("", "ADE20K_2021_17_01"),
        # asked for in words; nobody learns it from frozen features
        is_learned=False,
    ),
    _entry(
        "cityscapes",
        (),
        _counts(500, 2_975),
        _VAL,
        (
            MaskLayout(*_CITY, "_gtFine_labelTrainIds.png", "_leftImg8bit.png"),
            MaskLayout(*_CITY, "_gtFine_labelIds.png", "_leftImg8bit.png", values="ids"),
        ),
        "cityscapes/leftImg8bit/{val,train}/<city>/*_leftImg8bit.png with"
        " cityscapes/gtFine/{val,train}/<city>/*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png",
    ),
    _entry(
        "cocostuff",
        ("cocostuff164k", *_COCO),
        _counts(5_000, 118_287),
        ("val2017", "train2017"),
        # mmsegmentation's converter writes its numbers beside the published ids: its files count
        # first, and are no ids
        (
            MaskLayout(_STUFF, "annotations/{split}", "_labelTrainIds.png"),
            MaskLayout(_STUFF, "stuffthingmaps/{split}", "_labelTrainIds.png"),
            MaskLayout(_STUFF, "annotations/{split}", values="ids", skipped="TrainIds.png"),
            MaskLayout(_STUFF, "stuffthingmaps/{split}", values="ids", skipped="TrainIds.png"),
        ),
        "coco/{val2017,train2017}/*.jpg with coco/stuffthingmaps/{val2017,train2017}/*.png,"
        " or mmsegmentation's coco_stuff164k/{images,annotations}/{val2017,train2017}",
    ),
    _entry(
        "coco_object",
        _COCO,
        {"test": Expected(5_000)},
        ("val2017",),
        (MaskLayout(("{split}", "images/{split}"), "annotations/instances_{split}.json"),),
        "coco/val2017/*.jpg with coco/annotations/instances_val2017.json",
        is_learned=False,
    ),
    _entry(
        "camvid",
        ("camvid11",),
        _counts(233, 367),
        ("test", "train"),
        (MaskLayout(*_CAMVID_MASKS),),
        "CamVid/{train,test}/*.png with CamVid/{train,test}annot/*.png, as SegNet has them",
        ("", "CamVid"),
    ),
    _entry(
        "camvid_mini",
        ("camvid",),
        {
            "test": Expected(20, content="48dd8d4c3e1ecee5"),
            "train": Expected(46, content="4e31f079867da654"),
        },
        _VAL,
        # beside a test/ it is the whole CamVid, whose val is another part
        (MaskLayout(*_CAMVID_MASKS, not_beside="test"),),
        "camvid/{train,val}/*.png with camvid/{train,val}annot/*.png and no camvid/test",
    ),
)
