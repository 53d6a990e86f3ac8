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
    splits: dict[str, Expected],
    needed: str,
    layouts: dict[str, tuple[MaskLayout, ...]],
    inner: tuple[str, ...] = ("",),
    hints: dict[str, str] | None = None,
    is_learned: bool = True,
) -> PublicSet:
    """A set whose families follow from its rule, and from whether tasks learn from it."""
    families = ["segmentation_zeroshot", "correspondence"]
    if _RULES[name].has_background:
        families.append("discovery")
    if is_learned:
        families += [f"segmentation_{probe}" for probe in ("linear", "sgd", "knn")]
    return PublicSet(
        name,
        names,
        splits,
        needed,
        _read,
        families=tuple(families),
        prompts="openai80",
        layouts=layouts,
        inner=inner,
        hints=hints or {},
    )


def _counts(test: int, train: int) -> dict[str, Expected]:
    return {"test": Expected(test), "train": Expected(train)}


def _voc(name: str) -> PublicSet:
    def layout(split: str) -> tuple[MaskLayout]:
        listed = f"ImageSets/Segmentation/{split}.txt"
        return (MaskLayout(("JPEGImages",), "SegmentationClass", listed=listed),)

    return _entry(
        name,
        ("voc21", "voc20", "voc", "voc2012", "pascalvoc", "pascalvoc2012", "vocdevkit"),
        # val is the test split: the labels of VOC's and Context's own are not public
        _counts(1_449, 1_464),
        "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}",
        {"test": layout("val"), "train": layout("train")},
        ("", "VOC2012", "VOCdevkit/VOC2012"),
    )


def _context(name: str) -> PublicSet:
    def layout(split: str) -> tuple[MaskLayout]:
        listed = f"ImageSets/SegmentationContext/{split}.txt"
        return (MaskLayout(("JPEGImages",), "SegmentationClassContext", listed=listed),)

    return _entry(
        name,
        ("pc60", "pc59", "pascalcontext", "context", "voc2010", "vocdevkit"),
        # with mmsegmentation's converter; also: as the paper counts them
        {"test": Expected(5_104, also=5_105), "train": Expected(4_996, also=4_998)},
        "VOCdevkit/VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext}",
        {"test": layout("val"), "train": layout("train")},
        ("", "VOC2010", "VOCdevkit/VOC2010"),
        {
            "trainval_merged.json": "make masks of trainval_merged.json with mmsegmentation's"
            " tools/dataset_converters/pascal_context.py VOCdevkit"
            " VOCdevkit/VOC2010/trainval_merged.json"
        },
    )


def _ade(split: str, folder: str = "", mask_end: str = ".png") -> tuple[MaskLayout]:
    return (MaskLayout((f"images{folder}/{split}",), f"annotations{folder}/{split}", mask_end),)


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


def _camvid(split: str, not_beside: str = "") -> tuple[MaskLayout]:
    layout = MaskLayout((split,), f"{split}annot", image_end=".png", not_beside=not_beside)
    return (layout,)


_COCO = ("coco", "coco2017", "mscoco", "mscoco2017")
ENTRIES = (
    _voc("voc21"),
    _voc("voc20"),
    _context("pc60"),
    _context("pc59"),
    _entry(
        "ade20k150",
        ("adechallengedata2016", "ade20k", "ade"),
        _counts(2_000, 20_210),
        "ADEChallengeData2016/{images,annotations}/{validation,training}",
        {"test": _ade("validation"), "train": _ade("training")},
        ("", "ADEChallengeData2016"),
    ),
    _entry(
        "ade20k847",
        ("ade20k20211701", "ade20kfull", "ade20k", "ade"),
        _counts(2_000, 25_574),
        "ADE20K_2021_17_01/{images,annotations}_detectron2/{validation,training},"
        " as MaskFormer makes them: 16-bit .tif",
        {
            "test": _ade("validation", "_detectron2", ".tif"),
            "train": _ade("training", "_detectron2", ".tif"),
        },
        ("", "ADE20K_2021_17_01"),
        {
            "index_ade20k.pkl": "the set's own masks are in colours: make numbers of them with"
            " MaskFormer's prepare_ade20k_full_sem_seg.py"
        },
        # asked for in words; nobody learns it from frozen features
        is_learned=False,
    ),
    _entry(
        "cityscapes",
        (),
        _counts(500, 2_975),
        "cityscapes/leftImg8bit/{val,train}/<city>/*_leftImg8bit.png with"
        " cityscapes/gtFine/{val,train}/<city>/*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png",
        {"test": _cityscapes("val"), "train": _cityscapes("train")},
    ),
    _entry(
        "cocostuff",
        ("cocostuff164k", *_COCO),
        _counts(5_000, 118_287),
        "coco/{val2017,train2017}/*.jpg with coco/stuffthingmaps/{val2017,train2017}/*.png,"
        " or mmsegmentation's coco_stuff164k/{images,annotations}/{val2017,train2017}",
        {"test": _stuff("val2017"), "train": _stuff("train2017")},
    ),
    _entry(
        "coco_object",
        _COCO,
        {"test": Expected(5_000)},
        "coco/val2017/*.jpg with coco/annotations/instances_val2017.json",
        {
            "test": (
                MaskLayout(("val2017", "images/val2017"), "annotations/instances_val2017.json"),
            )
        },
        is_learned=False,
    ),
    _entry(
        "camvid",
        ("camvid11",),
        _counts(233, 367),
        "CamVid/{train,test}/*.png with CamVid/{train,test}annot/*.png, as SegNet has them",
        {"test": _camvid("test"), "train": _camvid("train")},
        ("", "CamVid"),
    ),
    _entry(
        "camvid_mini",
        ("camvid",),
        {
            "test": Expected(20, content="48dd8d4c3e1ecee5"),
            "train": Expected(46, content="4e31f079867da654"),
        },
        "camvid/{train,val}/*.png with camvid/{train,val}annot/*.png and no camvid/test",
        # beside a test/ it is the whole CamVid, whose val is another part
        {"test": _camvid("val", "test"), "train": _camvid("train", "test")},
    ),
)
