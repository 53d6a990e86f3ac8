"""Sets with masks: every layout is the same data; what is no mask is refused by name.

Each label is its class.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from silc_bench.datasets.check import check
from silc_bench.datasets.dataset import ImageDataset, ignore_of
from silc_bench.datasets.public.find import NotFoundError
from silc_bench.datasets.public.load import SETS, load
from silc_bench.datasets.public.mask_sets import COCO_STUFF_IDS, mask_names, rule_of
from silc_bench.errors import DataError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")
STEMS = ("a2", "a10", "b")  # in the order that is scored
SEGMENTED = [name for name, known in SETS.items() if known.layouts and name != "coco_object"]

# (set, images, masks, list or how values are stored); {s} is the split's folder, {n} the image
VOC, CONTEXT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
ADE, FULL = "ADEChallengeData2016", "ADE20K_2021_17_01"
CITY_IMAGES = "cityscapes/leftImg8bit/{s}/ulm/{n}_leftImg8bit.png"
CITY_MASKS = "cityscapes/gtFine/{s}/ulm/{n}_gtFine_"
STUFF = "coco_stuff164k/images/{s}/{n}.jpg"


def devkit(name, home, suffix=""):
    images, masks = f"{home}/JPEGImages/{{n}}.jpg", f"{home}/SegmentationClass{suffix}/{{n}}.png"
    return name, images, masks, f"{home}/ImageSets/Segmentation{suffix}/{{s}}.txt"


LAYOUTS = [
    devkit("voc21", VOC),
    devkit("voc21", "voc2012"),
    devkit("voc20", VOC),
    devkit("pc60", CONTEXT, "Context"),
    devkit("pc59", "pascal_context", "Context"),
    ("ade20k150", f"{ADE}/images/{{s}}/{{n}}.jpg", f"{ADE}/annotations/{{s}}/{{n}}.png", ""),
    ("ade20k150", "ade/images/{s}/{n}.jpg", "ade/annotations/{s}/{n}.png", ""),
    (
        "ade20k847",
        f"{FULL}/images_detectron2/{{s}}/{{n}}.jpg",
        f"{FULL}/annotations_detectron2/{{s}}/{{n}}.tif",
        "",
    ),
    ("cityscapes", CITY_IMAGES, f"{CITY_MASKS}labelTrainIds.png", ""),
    ("cityscapes", CITY_IMAGES, f"{CITY_MASKS}labelIds.png", "ids"),
    ("cocostuff", STUFF, "coco_stuff164k/annotations/{s}/{n}_labelTrainIds.png", ""),
    ("cocostuff", STUFF, "coco_stuff164k/annotations/{s}/{n}.png", "ids"),
    ("cocostuff", "coco/{s}/{n}.jpg", "coco/stuffthingmaps/{s}/{n}.png", "ids"),
    ("camvid", "CamVid/{s}/{n}.png", "CamVid/{s}annot/{n}.png", ""),
]
MINI = ("camvid_mini", "camvid/{s}/{n}.png", "camvid/{s}annot/{n}.png", "")
FIRST = {layout[0]: layout for layout in reversed([*LAYOUTS, MINI])}
FOLDERS = {  # of test and train
    **dict.fromkeys(("ade20k150", "ade20k847"), ("validation", "training")),
    "cocostuff": ("val2017", "train2017"),
    "camvid": ("test", "train"),
}


@pytest.fixture(autouse=True)
def _three_images(small):
    for name in (*SEGMENTED, "coco_object"):
        small(name, **dict.fromkeys(SETS[name].splits, 3))


PALETTE = [i * factor % 256 for i in range(256) for factor in (37, 91, 255)]


@pytest.fixture(scope="module")
def write(make):
    """The function that writes three images and masks of a layout into a root."""

    def write_set(root, layout, split="test"):
        name, images, masks, more = layout
        folder = FOLDERS.get(name, ("val", "train"))[split == "train"]
        kind = "TIFF" if masks.endswith(".tif") else "PNG"
        palette = PALETTE if name.startswith("voc") else ()
        files = []
        for index, stem in enumerate(STEMS):
            labels = labels_of(name, index)
            stored = values_of(name, labels, "ids" if more == "ids" else "labels")
            files.append((images.format(s=folder, n=stem), make.encoded(photo(*labels.shape))))
            mask = make.encoded(stored, kind, palette=palette)
            files.append((masks.format(s=folder, n=stem), mask))
        if more.endswith(".txt"):
            files.append((more.format(s=folder), "\n".join(STEMS).encode() + b"\n"))
        return make.tree(root, files)

    return write_set


def photo(height, width):
    rng = np.random.default_rng(height)
    return rng.integers(0, 255, (height, width, 3), dtype=np.uint8)


def labels_of(name, index):
    """[H, W]; the first pixel is not scored where the set has such."""
    rule = rule_of(name, "labels")
    shape = (30 + index, 31 + 2 * index)
    labels = np.random.default_rng(index).integers(0, len(rule.names), shape)
    labels = labels.astype(np.uint8 if len(rule.names) <= 254 else np.uint16)
    if rule.ignored:
        labels[0, 0] = ignore_of(labels)
    return labels


def values_of(name, labels, values):
    rule = rule_of(name, values)
    ignored = rule.ignored[0] if rule.ignored else 0
    table = np.full(np.iinfo(labels.dtype).max + 1, ignored, labels.dtype)
    table[: len(rule.names)] = rule.values
    return table[labels]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0]}:{layout[2]}")
def test_every_layout_is_the_same_data(write, tmp_path, layout):
    name = layout[0]
    data = load(name, "test", write(tmp_path / "one", layout))
    assert isinstance(data, ImageDataset)
    for index in range(3):
        labels = labels_of(name, index)
        np.testing.assert_array_equal(data.mask(index), labels)
        assert data.mask(index).dtype == labels.dtype
        assert data.image(index).size == labels.shape[::-1]
    assert data.mask_names == mask_names(name)
    assert data.has_background == (data.mask_names[0] == "background")
    assert data.labels is None

    first = load(name, "test", write(tmp_path / "first", FIRST[name]))
    part = load(name, "test", tmp_path / "one", limit=1)
    assert len(part) == 1
    assert part.fingerprint != data.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", SEGMENTED)
def test_the_train_split_too(write, tmp_path, name, refuses):
    write(tmp_path, FIRST[name])
    refuses(name, tmp_path, tmp_path, "train", NotFoundError)
    assert len(load(name, "train", write(tmp_path, FIRST[name], "train"))) == 3


# cityscapesScripts' labels.py and the 91 categories of COCO, a few of them
IDS = {
    ("cityscapes", "ids"): "road 7, sky 23, person 24, car 26, train 31, bicycle 33",
    ("cocostuff", "ids"): "person 0, stop sign 12, toothbrush 89, banner 91, wood 181",
    ("ade20k150", "labels"): "wall 1, flag 150",
}


@pytest.mark.parametrize("numbered", IDS)
def test_ids_of_the_sets_by_hand(numbered):
    rule = rule_of(*numbered)
    ids = {f"{name} {value}" for name, value in zip(rule.names, rule.values, strict=True)}
    assert ids > set(IDS[numbered].split(", "))


def test_the_background_is_a_class_or_is_not_scored(write, tmp_path):
    root = write(tmp_path, LAYOUTS[0])
    voc21, voc20 = load("voc21", "test", root), load("voc20", "test", root)
    labels = voc21.mask(0).astype(int)
    expected = np.where((labels == 0) | (labels == 255), 255, labels - 1)
    np.testing.assert_array_equal(voc20.mask(0), expected)
    assert voc21.mask_policy["background"] == "label 0"
    assert "background (0)" in voc20.mask_policy["not_scored"]
    assert voc21.fingerprint != voc20.fingerprint


# ---- how masks are stored ----


@pytest.fixture
def camvid(write, tmp_path):
    """Folder of the masks of a small CamVid in the root ``tmp_path``."""
    return write(tmp_path, FIRST["camvid"]) / "CamVid/testannot"


def bits(labels, depth):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width = labels.shape
    spread = np.unpackbits(labels[..., None], axis=-1)[..., 8 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(spread, axis=1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("u2", {}), ("u2", {"kind": "TIFF"}), ("u1", {"palette": PALETTE}), ("u1", {"kind": "BMP"})],
)
def test_the_same_labels_stored_otherwise_are_the_same_data(make, camvid, tmp_path, dtype, options):
    before = load("camvid", "test", tmp_path).fingerprint
    values = np.asarray(Image.open(camvid / "a10.png")).astype(dtype)
    (camvid / "a10.png").write_bytes(make.encoded(values, **options))
    assert load("camvid", "test", tmp_path).fingerprint == before


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits(camvid, tmp_path, depth):
    labels = LABELS % 2**depth
    (camvid / "a10.png").write_bytes(bits(labels, depth))
    np.testing.assert_array_equal(load("camvid", "test", tmp_path).mask(1), labels)


LABELS = np.random.default_rng(0).integers(0, 11, (31, 33), dtype=np.uint8)
# what the error names -> values, and how they are encoded
NO_MASKS = {
    "RGB": (LABELS, {"mode": "RGB"}),
    "RGBA": (LABELS, {"mode": "RGBA"}),
    "alpha": (LABELS, {"mode": "LA"}),
    "JPEG": (LABELS, {"kind": "JPEG"}),
    "WEBP": (LABELS, {"kind": "WEBP"}),
    "inverted": (LABELS, {"kind": "TIFF", "tiffinfo": {262: 0}}),
    "70000": (LABELS + np.int32(70_000), {"kind": "TIFF"}),
    "257": (LABELS * np.uint16(257), {}),
    "12 (and 2 other": (np.where(LABELS < 3, LABELS + 12, LABELS), {}),
    "32 x 31": (LABELS[:, :-1], {}),
    "31 x 33": (LABELS.T.copy(), {}),
    "2,000": (np.zeros((2000, 2000), np.uint8), {}),
}


@pytest.mark.parametrize("words", NO_MASKS)
def test_what_is_no_mask(make, camvid, tmp_path, monkeypatch, words):
    monkeypatch.setattr("silc_bench.datasets.masks.MAX_PIXELS", 1_000_000)
    values, options = NO_MASKS[words]
    (camvid / "a10.png").write_bytes(make.encoded(values, **options))
    with refused("a10.png", DataError) as caught:
        load("camvid", "test", tmp_path)
    assert words in caught.value.problem


@pytest.mark.parametrize("size", [0, 60])
def test_a_damaged_mask(camvid, tmp_path, size):
    os.truncate(camvid / "a10.png", size)
    with refused("a10.png", DataError, is_kept=False):
        load("camvid", "test", tmp_path)


@pytest.mark.parametrize("name", ["pc60", "pc59"])
def test_masks_that_are_numbered_in_another_way(make, write, tmp_path, name):
    """Context as detectron2 has it is not taken for mmsegmentation's.

    The former has 255 for the background and classes from 0.
    """
    mask = write(tmp_path, FIRST["pc60"]) / FIRST["pc60"][2].format(n="b")
    mask.write_bytes(make.encoded(labels_of("pc60", 2) - 1))  # 0 becomes 255
    with refused("b.png", DataError) as caught:
        load(name, "test", tmp_path)
    assert " 255 " in caught.value.problem


# ---- what does not match ----


def unlink(*paths):
    for path in paths:
        path.unlink()


def link_to_nothing(root):
    (root / "testannot/c.png").write_bytes(b"")
    (root / "test/c.png").symlink_to("gone.png")


UNMATCHED = {
    "no mask": ("CamVid/test", lambda root: unlink(root / "testannot/a10.png")),
    "no image": ("CamVid/testannot", lambda root: unlink(root / "test/a10.png")),
    "fewer": ("camvid test in", lambda root: unlink(root / "test/b.png", root / "testannot/b.png")),
    "no folder": ("CamVid/testannot", lambda root: (root / "test").rename(root / "tset")),
    "no images": ("CamVid/test", lambda root: unlink(*(root / "test").iterdir())),
    "two of a name": ("CamVid/test", lambda root: (root / "test/b.PNG").write_bytes(b"")),
    "gone": ("CamVid/test/c.png", link_to_nothing),
}


@pytest.mark.parametrize("case", UNMATCHED)
def test_images_and_masks_that_do_not_match(camvid, tmp_path, refuses, case):
    about, change = UNMATCHED[case]
    change(camvid.parent)
    refuses("camvid", tmp_path, about)


def test_system_files_are_passed_over(camvid, make, tmp_path):
    before = load("camvid", "test", tmp_path).fingerprint
    names = (".DS_Store", "._a.png", "Thumbs.db", "readme.txt")
    make.tree(camvid, [(name, b"x") for name in names])
    assert load("camvid", "test", tmp_path).fingerprint == before


def test_context_goes_round_in_two_sizes(write, tmp_path, monkeypatch, refuses):
    write(tmp_path, FIRST["pc60"])
    splits = SETS["pc60"].splits
    monkeypatch.setitem(splits, "test", replace(splits["test"], images=2, also=3))
    assert len(load("pc60", "test", tmp_path)) == 3
    monkeypatch.setitem(splits, "test", replace(splits["test"], also=4))
    refuses("pc60", tmp_path, "pc60 test")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("a2\na10\na10\n", DataError), ("a2\nb\nc\n", DataError), (None, NotFoundError)],
    ids=["twice", "missing", "no list"],
)
def test_a_list_that_is_wrong(write, tmp_path, refuses, text, kind):
    listed = write(tmp_path, LAYOUTS[0]) / f"{VOC}/ImageSets/Segmentation/val.txt"
    listed.unlink() if text is None else listed.write_text(text)
    refuses("voc21", tmp_path, "ImageSets/Segmentation/val.txt", kind=kind)


@pytest.mark.parametrize(
    ("name", "script"),
    [("pc59", "pascal_context.py"), ("ade20k847", "prepare_ade20k_full_sem_seg.py")],
)
def test_what_to_run_where_there_are_no_masks_yet(tmp_path, refuses, name, script):
    assert script in refuses(name, tmp_path, tmp_path, kind=NotFoundError).fix


def test_one_folder_holds_stuff_and_what_converters_lay_beside_it(make, write, tmp_path):
    before = load("cocostuff", "test", write(tmp_path, LAYOUTS[12])).fingerprint
    files = [(f"{stem}_instanceTrainIds.png", b"x") for stem in STEMS]
    make.tree(tmp_path / "coco/stuffthingmaps/val2017", files)
    assert load("cocostuff", "test", tmp_path).fingerprint == before


# ---- the small CamVid ----


def test_a_part_of_camvid_is_known_by_its_content(write, tmp_path, monkeypatch, refuses):
    data = load("camvid_mini", "test", write(tmp_path, MINI))
    splits = SETS["camvid_mini"].splits
    monkeypatch.setitem(splits, "test", replace(splits["test"], content=data.fingerprint))
    assert len(load("camvid_mini", "test", tmp_path)) == 3
    monkeypatch.setitem(splits, "test", replace(splits["test"], content="0" * 16))
    refuses("camvid_mini", tmp_path, "camvid_mini test in")
    refuses("camvid", tmp_path, tmp_path, kind=NotFoundError)


def test_the_whole_of_camvid_is_not_the_part(write, tmp_path, refuses):
    write(tmp_path, MINI)
    write(tmp_path, ("camvid", *MINI[1:]))
    refuses("camvid_mini", tmp_path, tmp_path, kind=NotFoundError)
    assert len(load("camvid", "test", tmp_path)) == 3


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_the_real_part_of_camvid(monkeypatch):
    monkeypatch.undo()
    report = check("camvid_mini", Path(str(REAL)))
    assert not report.problems
    found = "\n".join(report.found)
    assert re.search(r"^  20 \w+, as many as the set has$", found, re.MULTILINE)
    assert re.search(r"46 masks of 11 classes; .* \(11\), 3\.3 % of the pixels", found)


# ---- drawn from outlines ----


def square(top, left, side):
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


@pytest.fixture
def instances(make, tmp_path):
    """A root in which image 9 has two objects, 4 an object on a crowd, and 139 nothing."""
    pytest.importorskip("pycocotools", reason="COCO's masks need the extra coco")
    sizes = {"height": 40, "width": 50}
    names = enumerate(mask_names("coco_object")[1:])
    crowd = {"size": [40, 50], "counts": [0, 400, 1600]}
    keys = ("image_id", "category_id", "iscrowd", "area", "segmentation")
    objects = [
        (9, 1, 0, 64.0, square(10, 10, 8)),
        (9, 90, 0, 400.0, square(4, 4, 20)),
        (4, 13, 0, 25.0, square(0, 0, 5)),
        (4, 1, 1, 400.0, crowd),
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", **sizes} for i in (9, 4, 139)],
        "categories": [{"id": COCO_STUFF_IDS[i] + 1, "name": name} for i, name in names],
        "annotations": [dict(zip(keys, values, strict=True)) for values in objects],
    }
    image = make.encoded(photo(40, 50))
    files = [(f"val2017/{number:012d}.jpg", image) for number in (4, 9, 139)]
    files.append(("annotations/instances_val2017.json", json.dumps(content).encode()))
    make.tree(tmp_path / "coco", files)
    return tmp_path


def contents(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_objects_are_drawn_the_smaller_ones_on_top(instances):
    before = contents(instances)
    data = load("coco_object", "test", instances)
    things, crowd = np.zeros((2, 40, 50), np.uint8)
    things[4:24, 4:24] = 80
    things[10:18, 10:18] = 1
    crowd[:, :10] = 255  # run lengths go down the columns
    crowd[:5, :5] = 12
    np.testing.assert_array_equal(data.mask(0), crowd)  # images 4, 9, 139
    np.testing.assert_array_equal(data.mask(1), things)
    assert not data.mask(2).any()
    assert data.mask_policy == {"background": "label 0", "not_scored": "crowds"}
    assert contents(instances) == before, "nothing is written into the data"

    (instances / "coco/images").mkdir()
    (instances / "coco/val2017").rename(instances / "coco/images/val2017")
    assert load("coco_object", "test", instances).fingerprint == data.fingerprint


INSTANCES = {
    "category": lambda content: content["categories"].pop(),
    "name": lambda content: content["categories"][3].update(name="moped"),
    "more": lambda content: content["categories"].append({"id": 91, "name": "moped"}),
    "no images": lambda content: content.pop("images"),
    "image": lambda content: content["images"][0].update(file_name="no.jpg"),
    "polygon": lambda content: content["annotations"][0].update(segmentation=[[1, 2]]),
    "none": lambda content: content["annotations"][0].update(segmentation=None),
    "crowd": lambda content: content["annotations"][3]["segmentation"]["counts"].append(9),
    "size": lambda content: content["images"][0].update(height=41),
}


@pytest.mark.parametrize("case", INSTANCES)
def test_instances_that_are_wrong(instances, case):
    path = instances / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    INSTANCES[case](content)
    path.write_text(json.dumps(content))
    image = {"polygon": ": image 9", "none": ": image 9", "crowd": ": image 4", "size": ": image 9"}
    with refused(f"{path}{image.get(case, '')}", DataError):
        load("coco_object", "test", instances)


# ---- silc-bench data check ----


def test_what_is_said_of_masks(make, camvid, tmp_path):
    report = check("camvid", tmp_path)
    assert not report.problems
    line = r"  3 masks of 11 classes; .*unlabelled \(11\), 0\.1 % of the pixels"
    assert re.fullmatch(line, report.found[-2])
    for path in camvid.iterdir():
        path.write_bytes(make.encoded(np.asarray(Image.open(path)) + 88))
    report = check("camvid", tmp_path)
    assert [problem.what[:6] for problem in report.problems] == ["3 of 3"]
    assert " decoded; " in report.found[-1], "what cannot be read is not hashed"
