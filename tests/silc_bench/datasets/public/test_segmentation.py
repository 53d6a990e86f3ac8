"""Sets with masks: every layout is the same data; what is no mask is refused by name.

Each label is its class.
"""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from silc_bench.datasets.check import check
from silc_bench.datasets.dataset import ImageDataset, ignore_of
from silc_bench.datasets.public.counts import EXPECTED
from silc_bench.datasets.public.find import NotFoundError, find
from silc_bench.datasets.public.load import load
from silc_bench.datasets.public.mask_sets import COCO_STUFF_IDS, SETS, mask_names, rule_of
from silc_bench.errors import DataError, UserError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")
STEMS = ("a2", "a10", "b")  # in the order that is scored
SEGMENTED = [name for name in SETS if name != "coco_object"]

# (set, images, masks, list, how values are stored); {s} is the split's folder, {n} the image
VOC, CONTEXT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
ADE, FULL, CITY = (
    "ADEChallengeData2016",
    "ADE20K_2021_17_01",
    "cityscapes/leftImg8bit/{s}/ulm/{n}_leftImg8bit.png",
)
STUFF = "coco_stuff164k/images/{s}/{n}.jpg"


def devkit(name, home, masks="SegmentationClass", listed="Segmentation"):
    return (
        name,
        f"{home}/JPEGImages/{{n}}.jpg",
        f"{home}/{masks}/{{n}}.png",
        f"{home}/ImageSets/{listed}/{{s}}.txt",
        "labels",
    )


LAYOUTS = [
    devkit("voc21", VOC),
    devkit("voc21", "voc2012"),
    devkit("voc21", f"pascal_voc/{VOC}"),
    devkit("voc20", VOC),
    devkit("pc60", CONTEXT, "SegmentationClassContext", "SegmentationContext"),
    devkit("pc59", "pascal_context", "SegmentationClassContext", "SegmentationContext"),
    (
        "ade20k150",
        f"{ADE}/images/{{s}}/{{n}}.jpg",
        f"{ADE}/annotations/{{s}}/{{n}}.png",
        "",
        "labels",
    ),
    (
        "ade20k150",
        f"ade/{ADE}/images/{{s}}/{{n}}.jpg",
        f"ade/{ADE}/annotations/{{s}}/{{n}}.png",
        "",
        "labels",
    ),
    (
        "ade20k847",
        f"{FULL}/images_detectron2/{{s}}/{{n}}.jpg",
        f"{FULL}/annotations_detectron2/{{s}}/{{n}}.tif",
        "",
        "labels",
    ),
    ("cityscapes", CITY, "cityscapes/gtFine/{s}/ulm/{n}_gtFine_labelTrainIds.png", "", "labels"),
    ("cityscapes", CITY, "cityscapes/gtFine/{s}/ulm/{n}_gtFine_labelIds.png", "", "ids"),
    ("cocostuff", STUFF, "coco_stuff164k/annotations/{s}/{n}_labelTrainIds.png", "", "labels"),
    ("cocostuff", STUFF, "coco_stuff164k/annotations/{s}/{n}.png", "", "ids"),
    ("cocostuff", "coco/{s}/{n}.jpg", "coco/stuffthingmaps/{s}/{n}.png", "", "ids"),
    ("camvid", "CamVid/{s}/{n}.png", "CamVid/{s}annot/{n}.png", "", "labels"),
    ("camvid", "camvid/CamVid/{s}/{n}.png", "camvid/CamVid/{s}annot/{n}.png", "", "labels"),
]
MINI = ("camvid_mini", "camvid/{s}/{n}.png", "camvid/{s}annot/{n}.png", "", "labels")
FOLDERS = {
    "ade20k150": ("validation", "training"),
    "ade20k847": ("validation", "training"),
    "cocostuff": ("val2017", "train2017"),
}


@pytest.fixture(autouse=True)
def _three_images(monkeypatch):
    for (name, split), known in list(EXPECTED.items()):
        if name in SETS:
            monkeypatch.setitem(EXPECTED, (name, split), replace(known, images=3, content=""))


def folder(name, split):
    first, second = FOLDERS.get(name, ("test" if name == "camvid" else "val", "train"))
    return first if split == "test" else second


def encoded(array, kind="PNG", mode=None, palette=False, **options):
    image = Image.fromarray(array) if mode is None else Image.fromarray(array, mode)
    if palette:
        image.putpalette(
            [value for i in range(256) for value in (i * 37 % 256, i * 91 % 256, 255 - i)]
        )
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(index, height, width):
    return encoded(
        np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
    )


def sample(name, index):
    """Picture and its labels [H, W]; the first pixel is not scored where the set has such."""
    rule = rule_of(name, "labels")
    height, width = 30 + index, 31 + 2 * index
    labels = np.random.default_rng(index).integers(0, len(rule.names), (height, width))
    labels = labels.astype(np.uint8 if len(rule.names) <= 254 else np.uint16)
    if rule.ignored:
        labels[0, 0] = ignore_of(labels)
    return photo(index, height, width), labels


def stored(name, values, labels):
    rule = rule_of(name, values)
    table = np.full(
        np.iinfo(labels.dtype).max + 1, rule.ignored[0] if rule.ignored else 0, labels.dtype
    )
    table[: len(rule.names)] = rule.values
    return table[labels]


def write(root, layout, make, split="test", stems=STEMS):
    name, images, masks, listed, values = layout
    files = []
    for index, stem in enumerate(stems):
        picture, labels = sample(name, index)
        kind = "TIFF" if masks.endswith(".tif") else "PNG"
        mask = encoded(
            stored(name, values, labels), kind, palette=kind == "PNG" and name.startswith("voc")
        )
        files += [
            (path.format(s=folder(name, split), n=stem), data)
            for path, data in ((images, picture), (masks, mask))
        ]
    if listed:
        files.append((listed.format(s=folder(name, split)), "\n".join(stems).encode() + b"\n"))
    make.tree(root, files)
    return root


@pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda layout: f"{layout[0]}:{layout[2].split('/')[0]}:{layout[4]}"
)
def test_every_layout_is_the_same_data(make, tmp_path, layout):
    name = layout[0]
    one = load(name, "test", write(tmp_path / "one", layout, make))
    other = load(
        name,
        "test",
        write(tmp_path / "other", next(known for known in LAYOUTS if known[0] == name), make),
    )
    assert isinstance(one, ImageDataset)
    assert one.fingerprint == other.fingerprint
    for index in range(3):
        _, labels = sample(name, index)
        np.testing.assert_array_equal(one.mask(index), labels)
        assert one.mask(index).dtype == labels.dtype
        assert one.image(index).size == labels.shape[::-1]
    assert one.mask_names == mask_names(name)
    assert one.has_background == (one.mask_names[0] == "background")
    assert one.labels is None
    part = load(name, "test", tmp_path / "one", limit=1)
    assert len(part) == 1
    assert part.fingerprint != one.fingerprint


@pytest.mark.parametrize("name", SEGMENTED)
def test_the_train_split_too(make, tmp_path, name):
    layout = next(known for known in [*LAYOUTS, MINI] if known[0] == name)
    with pytest.raises(NotFoundError, match=f"no {name} train data: looked in .* needed: "):
        load(name, "train", write(tmp_path, layout, make))
    assert len(load(name, "train", write(tmp_path, layout, make, "train"))) == 3


def test_the_real_counts(monkeypatch):
    monkeypatch.undo()
    counts = {
        name: [EXPECTED[name, split].images for split in sorted(SETS[name].splits)] for name in SETS
    }
    assert counts == {
        "voc21": [1_449, 1_464],
        "voc20": [1_449, 1_464],
        "pc60": [5_104, 4_996],
        "pc59": [5_104, 4_996],
        "ade20k150": [2_000, 20_210],
        "ade20k847": [2_000, 25_574],
        "cityscapes": [500, 2_975],
        "cocostuff": [5_000, 118_287],
        "coco_object": [5_000],
        "camvid": [233, 367],
        "camvid_mini": [20, 46],
    }
    assert {name: len(mask_names(name)) for name in SETS} == {
        name: EXPECTED[name, "test"].labels for name in SETS
    }
    assert [EXPECTED[name, "test"].labels for name in SETS] == [
        21,
        20,
        60,
        59,
        150,
        847,
        19,
        171,
        81,
        11,
        11,
    ]
    assert mask_names("voc20") == mask_names("voc21")[1:]
    assert mask_names("pc59") == mask_names("pc60")[1:]
    assert mask_names("cocostuff")[:80] == mask_names("coco_object")[1:]


def test_ids_of_the_sets_by_hand():
    """cityscapesScripts' labels.py and the 91 categories of COCO, a few of them."""
    city = dict(
        zip(rule_of("cityscapes", "ids").names, rule_of("cityscapes", "ids").values, strict=True)
    )
    assert (
        city["road"],
        city["sky"],
        city["person"],
        city["car"],
        city["train"],
        city["bicycle"],
    ) == (7, 23, 24, 26, 31, 33)
    stuff = dict(zip(mask_names("cocostuff"), COCO_STUFF_IDS, strict=True))
    assert (stuff["person"], stuff["stop sign"], stuff["toothbrush"], stuff["banner"]) == (
        0,
        12,
        89,
        91,
    )
    assert stuff["wood"] == 181
    assert len(set(COCO_STUFF_IDS)) == 171
    ade = dict(zip(mask_names("ade20k150"), rule_of("ade20k150", "labels").values, strict=True))
    assert (ade["wall"], ade["flag"]) == (1, 150)


def test_the_background_is_a_class_or_is_not_scored(make, tmp_path):
    root = write(tmp_path, LAYOUTS[0], make)
    with_background, without = load("voc21", "test", root), load("voc20", "test", root)
    labels = with_background.mask(0).astype(int)
    np.testing.assert_array_equal(
        without.mask(0), np.where((labels == 0) | (labels == 255), 255, labels - 1)
    )
    assert with_background.mask_policy == {
        "background": "label 0",
        "not_scored": "borders of objects (255)",
    }
    assert without.mask_policy == {
        "background": "none",
        "not_scored": "background (0) and borders of objects (255)",
    }


def test_the_fingerprint_covers_images_masks_and_names(make, tmp_path):
    layout = LAYOUTS[0]
    before = load("voc21", "test", write(tmp_path, layout, make)).fingerprint
    mask = tmp_path / layout[2].format(n="b")
    kept = mask.read_bytes()
    _, labels = sample("voc21", 2)
    labels[5, 5] = (labels[5, 5] + 1) % 20
    mask.write_bytes(encoded(labels))
    assert load("voc21", "test", tmp_path).fingerprint != before
    mask.write_bytes(kept)
    assert load("voc21", "test", tmp_path).fingerprint == before
    (tmp_path / layout[1].format(n="b")).write_bytes(photo(9, *labels.shape))
    assert load("voc21", "test", tmp_path).fingerprint != before
    assert (
        load("voc20", "test", tmp_path).fingerprint != load("voc21", "test", tmp_path).fingerprint
    )


# ---- what is wrong ----

CAMVID = next(layout for layout in LAYOUTS if layout[0] == "camvid")


@pytest.fixture
def camvid(make, tmp_path):
    """Folder of the masks of a small CamVid in the root ``.parent.parent``."""
    write(tmp_path, CAMVID, make)
    return tmp_path / "CamVid/testannot"


def refused(masks, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        load("camvid", "test", masks.parent.parent)
    return caught.value


def test_a_value_outside_the_list(camvid):
    _, labels = sample("camvid", 1)
    stored_labels = np.where(labels == 255, 11, labels).astype(np.uint8)
    stored_labels[3, 4] = stored_labels[3, 5] = 12
    stored_labels[9, 9] = 200
    (camvid / "a10.png").write_bytes(encoded(stored_labels))
    what = (
        r"a10.png has the value 12 \(and 1 other values\) in 2 pixels: "
        r"the 11 classes have the values 0 to 10, and 11 is not"
    )
    refused(camvid, what)


def test_masks_that_are_numbered_in_another_way(make, tmp_path):
    """Context as detectron2 has it is not taken for mmsegmentation's.

    The former has 255 for the background and classes from 0.
    """
    layout = next(layout for layout in LAYOUTS if layout[0] == "pc60")
    write(tmp_path, layout, make)
    mask = tmp_path / layout[2].format(n="b")
    values = np.asarray(Image.open(mask)).astype(int)
    mask.write_bytes(encoded(np.where(values == 0, 255, values - 1).astype(np.uint8)))
    for name in ("pc60", "pc59"):
        with pytest.raises(DataError, match=r"b.png has the value 255 .* pixels"):
            load(name, "test", tmp_path)


def test_a_mask_of_another_size(camvid):
    _, labels = sample("camvid", 1)
    (camvid / "a10.png").write_bytes(encoded(np.zeros((31, 34), np.uint8)))
    assert labels.shape == (31, 33)
    refused(
        camvid,
        (
            r"a10.png is 34 x 31 pixels, and its picture .*a10.png 33 x 31; "
            r"a mask says .* save it at the picture's size"
        ),
    )
    (camvid / "a10.png").write_bytes(encoded(np.zeros((33, 31), np.uint8)))
    refused(camvid, "is 31 x 33 pixels, and its picture .* 33 x 31")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            lambda labels: encoded(np.stack([labels] * 3, axis=-1)),
            r"has colours \(RGB\), and a mask has one number a pixel",
        ),
        (lambda labels: encoded(np.stack([labels] * 4, axis=-1)), r"has colours \(RGBA\)"),
        (
            lambda labels: encoded(np.stack([labels] * 2, axis=-1), mode="LA"),
            "has an alpha channel",
        ),
        (
            lambda labels: encoded(labels, "JPEG"),
            "is a JPEG file, which does not keep values as they were",
        ),
        (lambda labels: encoded(labels, "WEBP"), "is a WEBP file"),
        (
            lambda labels: encoded(labels, "TIFF", tiffinfo={262: 0}),
            r"is stored inverted \(white is 0\)",
        ),
        (lambda labels: encoded(labels)[:60], "a10.png is damaged"),
        (lambda labels: b"", "a10.png is damaged: cannot identify"),
        (
            lambda labels: encoded(labels.astype(np.int32) + 70_000, "TIFF"),
            "has values from 70000 to 70010, beyond 16 bits",
        ),
        (lambda labels: encoded(labels.astype(np.uint16) * 257), r"has the value 257 \("),
    ],
)
def test_what_is_no_mask(camvid, data, sentence):
    _, labels = sample("camvid", 1)
    labels[0, 0] = 0
    (camvid / "a10.png").write_bytes(data(labels))
    refused(camvid, sentence)


def bits(labels, depth):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width = labels.shape
    spread = np.unpackbits(labels[..., None], axis=-1)[..., 8 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(spread, axis=1))
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        lambda labels: encoded(labels.astype(np.uint16)),
        lambda labels: encoded(labels.astype(np.uint16), "TIFF"),
        lambda labels: encoded(labels, palette=True),
        lambda labels: encoded(labels, "BMP"),
        lambda labels: bits(labels, 4),
    ],
    ids=["16 bits", "16 bits TIFF", "palette", "BMP", "4 bits"],
)
def test_the_same_labels_stored_otherwise_are_the_same_data(camvid, data):
    root = camvid.parent.parent
    before = load("camvid", "test", root)
    values = np.where(sample("camvid", 1)[1] == 255, 11, sample("camvid", 1)[1]).astype(np.uint8)
    (camvid / "a10.png").write_bytes(data(values))
    after = load("camvid", "test", root)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.mask(1), before.mask(1))


@pytest.mark.parametrize("depth", [1, 2])
def test_few_bits_hold_few_classes(camvid, depth):
    labels = np.random.default_rng(0).integers(0, 1 << depth, (31, 33), dtype=np.uint8)
    (camvid / "a10.png").write_bytes(bits(labels, depth))
    np.testing.assert_array_equal(load("camvid", "test", camvid.parent.parent).mask(1), labels)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20_000), (7, 20_000), (20_000, 3)])
def test_images_of_odd_sizes(camvid, height, width):
    labels = np.random.default_rng(0).integers(0, 11, (height, width), dtype=np.uint8)
    (camvid / "a10.png").write_bytes(encoded(labels))
    (camvid.parent / "test/a10.png").write_bytes(photo(1, height, width))
    data = load("camvid", "test", camvid.parent.parent)
    np.testing.assert_array_equal(data.mask(1), labels)
    assert data.image(1).size == (width, height)


def test_a_mask_that_claims_too_much(camvid, monkeypatch):
    monkeypatch.setattr("silc_bench.datasets.masks.MAX_PIXELS", 1000)
    refused(camvid, "a10.png claims 33 x 31 pixels")


def test_a_missing_mask_and_one_too_many(camvid, make):
    (camvid / "a10.png").rename(camvid / "a11.png")
    refused(
        camvid,
        (
            r"1 of 3 pictures in .* have no mask, such as a10.png; "
            r"its mask would be .*testannot/a10.png"
        ),
    )
    make.tree(camvid.parent, [("test/a11.png", photo(1, 31, 33))])
    (camvid.parent / "test/a10.png").unlink()
    load("camvid", "test", camvid.parent.parent)
    (camvid / "a12.png").write_bytes(b"")
    refused(camvid, r"1 of 4 masks in .* have no picture, such as a12.png")


def test_fewer_images_than_the_set_has(camvid):
    for name in ("test/b.png", "testannot/b.png"):
        (camvid.parent / name).unlink()
    refused(
        camvid,
        (
            r"camvid test in .*: 2 pictures \(test/\*.png with testannot/\*.png\), "
            r"and the set has 3; fetch .* --tasks seg:"
        ),
    )


def test_context_goes_round_in_two_sizes(make, tmp_path, monkeypatch):
    layout = next(known for known in LAYOUTS if known[0] == "pc60")
    monkeypatch.setitem(
        EXPECTED, ("pc60", "test"), replace(EXPECTED["pc60", "test"], images=2, also=3)
    )
    assert len(load("pc60", "test", write(tmp_path, layout, make))) == 3
    monkeypatch.setitem(
        EXPECTED, ("pc60", "test"), replace(EXPECTED["pc60", "test"], images=2, also=4)
    )
    with pytest.raises(DataError, match=r"3 pictures .* and the set has 2"):
        load("pc60", "test", tmp_path)


def test_masks_without_images(camvid):
    (camvid.parent / "test").rename(camvid.parent / "tset")
    refused(
        camvid,
        (
            "testannot is there, and its pictures are not: looked in .*CamVid/test; "
            "fetch the set's pictures too"
        ),
    )


def test_system_files_are_passed_over(camvid, make):
    before = load("camvid", "test", camvid.parent.parent).fingerprint
    make.tree(
        camvid, [(".DS_Store", b"x"), ("._a.png", b"x"), ("Thumbs.db", b"x"), ("readme.txt", b"x")]
    )
    assert load("camvid", "test", camvid.parent.parent).fingerprint == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a2\na10\na10\n", "lists a10 twice"),
        (
            "a2\nb\nc\n",
            "1 of the 3 pictures that .*val.txt lists are missing, such as .*JPEGImages/c.jpg",
        ),
        (
            None,
            (
                "no voc21 test data: looked in .*ImageSets/Segmentation/val.txt; needed: "
                "VOCdevkit/VOC2012/"
            ),
        ),
    ],
)
def test_a_list_that_is_wrong(make, tmp_path, text, sentence):
    listed = write(tmp_path, LAYOUTS[0], make) / f"{VOC}/ImageSets/Segmentation/val.txt"
    listed.unlink() if text is None else listed.write_text(text)
    with pytest.raises(DataError, match=sentence):
        load("voc21", "test", tmp_path)


def test_what_to_run_where_there_are_no_masks_yet(make, tmp_path):
    make.tree(
        tmp_path,
        [(f"{CONTEXT}/trainval_merged.json", b"{}"), ("ADE20K_2021_17_01/index_ade20k.pkl", b"")],
    )
    for name, line in (
        ("pc59", r"tools/dataset_converters/pascal_context.py"),
        ("ade20k847", "prepare_ade20k_full_sem_seg.py"),
    ):
        with pytest.raises(NotFoundError, match=line):
            find(name, "test", tmp_path)


def test_one_folder_holds_stuff_and_what_converters_lay_beside_it(make, tmp_path):
    layout = next(known for known in LAYOUTS if known[2].startswith("coco/stuff"))
    before = load("cocostuff", "test", write(tmp_path, layout, make)).fingerprint
    make.tree(
        tmp_path / "coco/stuffthingmaps/val2017",
        [(f"{stem}_instanceTrainIds.png", b"x") for stem in STEMS],
    )
    assert load("cocostuff", "test", tmp_path).fingerprint == before


# ---- the small CamVid ----


def test_a_part_of_camvid_is_known_by_its_content(make, tmp_path, monkeypatch):
    write(tmp_path, MINI, make)
    found = load("camvid_mini", "test", tmp_path)
    known = replace(EXPECTED["camvid_mini", "test"], content=found.fingerprint)
    monkeypatch.setitem(EXPECTED, ("camvid_mini", "test"), known)
    assert load("camvid_mini", "test", tmp_path).fingerprint == found.fingerprint
    monkeypatch.setitem(EXPECTED, ("camvid_mini", "test"), replace(known, content="0" * 16))
    with pytest.raises(
        DataError, match=r"has 3 pictures, but not those of this part of the set; .* seg:"
    ):
        load("camvid_mini", "test", tmp_path)
    with pytest.raises(NotFoundError, match="no camvid test data"):
        load("camvid", "test", tmp_path)


def test_the_whole_of_camvid_is_not_the_part(make, tmp_path):
    write(tmp_path, MINI, make)
    write(tmp_path, ("camvid", "camvid/{s}/{n}.png", "camvid/{s}annot/{n}.png", "", "labels"), make)
    with pytest.raises(NotFoundError, match="no camvid_mini test data"):
        load("camvid_mini", "test", tmp_path)
    assert len(load("camvid", "test", tmp_path)) == 3


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_the_real_part_of_camvid(monkeypatch):
    monkeypatch.undo()
    report = check("camvid_mini", Path(str(REAL)))
    assert not report.problems
    assert "  20 pictures, as many as the set has" in report.found
    assert any(
        re.match(
            r"  46 masks of 11 classes; background: none; not scored: unlabelled \(11\), 3.3 %",
            line,
        )
        for line in report.found
    )


# ---- drawn from outlines ----


def square(top, left, side):
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


@pytest.fixture
def instances(make, tmp_path):
    pytest.importorskip("pycocotools", reason="COCO's masks need the extra coco")
    names = mask_names("coco_object")[1:]
    numbers = [
        number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    ]
    crowd = {"size": [40, 50], "counts": [0, 400, 1600]}
    content = {
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": 40, "width": 50}
            for number in (9, 4, 139)
        ],
        "categories": [
            {"id": number, "name": name} for number, name in zip(numbers, names, strict=True)
        ],
        "annotations": [
            {
                "image_id": 9,
                "category_id": 1,
                "iscrowd": 0,
                "area": 64.0,
                "segmentation": square(10, 10, 8),
            },
            {
                "image_id": 9,
                "category_id": 90,
                "iscrowd": 0,
                "area": 400.0,
                "segmentation": square(4, 4, 20),
            },
            {
                "image_id": 4,
                "category_id": 13,
                "iscrowd": 0,
                "area": 25.0,
                "segmentation": square(0, 0, 5),
            },
            {"image_id": 4, "category_id": 1, "iscrowd": 1, "area": 400.0, "segmentation": crowd},
        ],
    }
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(json.dumps(content))
    make.tree(
        tmp_path / "coco/val2017",
        [(f"{number:012d}.jpg", photo(number, 40, 50)) for number in (4, 9, 139)],
    )
    return tmp_path


def change(root, edit):
    path = root / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_objects_are_drawn_the_smaller_ones_on_top(instances):
    before = sorted((path, path.stat().st_mtime_ns) for path in instances.rglob("*"))
    data = load("coco_object", "test", instances)
    crowd, things, nothing = (data.mask(index) for index in range(3))  # images 4, 9, 139
    expected = np.zeros((40, 50), np.uint8)
    expected[4:24, 4:24] = 80
    expected[10:18, 10:18] = 1
    np.testing.assert_array_equal(things, expected)
    expected = np.zeros((40, 50), np.uint8)
    expected[:, :10] = 255  # run lengths go down the columns
    expected[:5, :5] = 12
    np.testing.assert_array_equal(crowd, expected)
    assert not nothing.any()
    assert (data.has_background, data.mask_policy["not_scored"]) == (True, "crowds")
    assert sorted((path, path.stat().st_mtime_ns) for path in instances.rglob("*")) == before, (
        "nothing is written into the data"
    )


def test_the_images_folder_of_2017_may_lie_in_images(instances):
    before = load("coco_object", "test", instances).fingerprint
    (instances / "coco/images").mkdir()
    (instances / "coco/val2017").rename(instances / "coco/images/val2017")
    assert load("coco_object", "test", instances).fingerprint == before


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda content: content["categories"].pop(), "KeyError 90"),
        (
            lambda content: content["categories"][3].update(name="moped"),
            "'moped' where 'motorcycle' belongs",
        ),
        (lambda content: content.pop("images"), "no COCO file of instances: KeyError"),
        (
            lambda content: content["annotations"][0].update(segmentation=[[1, 2]]),
            "image 9 has an outline that cannot",
        ),
        (
            lambda content: content["annotations"][3]["segmentation"]["counts"].append(9),
            "image 4 has an outline that cannot",
        ),
        (
            lambda content: content["annotations"][0].update(segmentation=None),
            "image 9 has an outline that cannot",
        ),
        (
            lambda content: content["images"][0].update(file_name="no.jpg"),
            "1 of the 3 pictures .* missing, such as .*no.jpg",
        ),
        (
            lambda content: content["images"][0].update(height=41),
            "image 9 is 50 x 41 pixels, and its picture .* 50 x 40",
        ),
    ],
)
def test_instances_that_are_wrong(instances, edit, sentence):
    change(instances, edit)
    with pytest.raises(DataError, match=sentence):
        load("coco_object", "test", instances)


# ---- silc-bench data check ----


def test_what_is_said_of_masks(camvid):
    report = check("camvid", camvid.parent.parent)
    assert not report.problems
    assert (
        "  3 masks of 11 classes; background: none; not scored: unlabelled (11), "
        "0.1 % of the pixels"
    ) in report.found


def test_every_wrong_mask_is_counted(camvid):
    for stem in ("a2", "b"):
        (camvid / f"{stem}.png").write_bytes(encoded(np.full((30, 31), 99, np.uint8)))
    report = check("camvid", camvid.parent.parent)
    assert [problem.what.partition("; the first: ")[0] for problem in report.problems] == [
        "2 of 3 masks are wrong"
    ]
    assert "a2.png has the value 99 in 930 pixels" in report.problems[0].what
    assert not any("fingerprint" in line for line in report.found)


def test_classes_that_no_mask_shows_are_said(camvid):
    for index, stem in enumerate(STEMS):
        (camvid / f"{stem}.png").write_bytes(
            encoded(np.full((30 + index, 31 + 2 * index), index, np.uint8))
        )
    assert (
        "  8 of the classes are in no mask: road, pavement, tree, ..."
        in check("camvid", camvid.parent.parent).found
    )
