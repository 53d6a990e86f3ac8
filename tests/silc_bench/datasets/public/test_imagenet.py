"""The ImageNet family: six layouts give the same data, and a label never means another class.

Of ObjectNet ImageNet's 113 classes, by the mappings that its labels were numbered by.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from silc_bench.datasets.dataset import ImageDataset
from silc_bench.datasets.public.imagenet import class_names, wnids
from silc_bench.datasets.public.load import load
from silc_bench.errors import DataError, UserError

WNIDS = wnids("imagenet1k")
LABELS = np.random.default_rng(0).permutation(1000).tolist()  # of image 1, 2, ... 1000
NAMES = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 1001)]
# set -> where the folders of its classes lie, and their names in label order
OTHERS = {
    "imagenet_v2": ("imagenetv2-matched-frequency-format-val", range(1000)),
    "imagenet_a": ("imagenet-a", wnids("imagenet_a")),
    "imagenet_r": ("imagenet-r", wnids("imagenet_r")),
    "imagenet_sketch": ("imagenet-sketch/sketch", WNIDS),
}


@pytest.fixture(autouse=True)
def _small(small):
    for name, (_, classes) in OTHERS.items():
        small(name, test=len(classes))
    small("imagenet1k", test=1000)
    small("objectnet", test=113)


def package(name):
    """Folder of an installed package, which is not imported: that takes seconds."""
    return Path(importlib.util.find_spec(name).origin).parent


def images(make, with_folders=False):
    return [
        (f"{WNIDS[label]}/{name}.JPEG" if with_folders else f"{name}.JPEG", make.image(label))
        for name, label in zip(NAMES, LABELS, strict=True)
    ]


def kaggle_csv():
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["ImageId", "PredictionString"])
    for name, label in reversed([*zip(NAMES, LABELS, strict=True)]):
        rows.writerow((name, f"{WNIDS[label]} 85 1 499 272 "))
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def devkit():
    """The devkit's numbers are no order of wnids: here they run backwards.

    With inner nodes above 1,000.
    """
    from scipy.io import savemat

    rows = [(1000 - label, wnid, 0) for label, wnid in enumerate(WNIDS)] + [(1001, "n00001740", 3)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    truth = "".join(f"{1000 - label}\n" for label in LABELS).encode()
    folder = "ILSVRC2012_devkit_t12/data"
    return [
        (f"{folder}/meta.mat", meta.getvalue()),
        (f"{folder}/ILSVRC2012_validation_ground_truth.txt", truth),
    ]


@pytest.fixture(scope="module")
def layouts(make, tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    make.tree(root / "torchvision/imagenet/val", images(make, with_folders=True))
    make.tree(root / "kaggle/ILSVRC/Data/CLS-LOC/val", images(make))
    (root / "kaggle/LOC_val_solution.csv").write_bytes(kaggle_csv())
    make.tar(root / "tar/ILSVRC2012_img_val.tar", images(make))
    make.tree(root / "tar", devkit())
    make.tar(root / "wnid_tar/imagenet-1k/val/val.tar", images(make, with_folders=True))
    make.tree(root / "synsets/ImageNet/val", images(make))
    synsets = "\n".join(WNIDS[label] for label in LABELS)
    (root / "synsets/ImageNet/synset_labels.txt").write_text(synsets)
    for shard in range(11):  # "10.tar" comes after "9.tar"
        labels = range(1000)[shard * 91 : (shard + 1) * 91]
        make.shard(root / f"wds/wds_imagenet1k/test/{shard}.tar", labels)
    (root / "wds/wds_imagenet1k/test/nshards.txt").write_text("11\n")
    (root / "wds/wds_imagenet1k/classnames.txt").write_text("\n".join(class_names("imagenet1k")))
    return root


# ---- classes ----


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet_a", "imagenet_r"])
def test_the_lists_of_classes_are_timms(name):
    file = package("timm") / f"data/_info/{name.removesuffix('1k')}_synsets.txt"
    assert list(wnids(name)) == file.read_text().split()
    name_of = dict(zip(WNIDS, class_names("imagenet1k"), strict=True))
    assert class_names(name) == tuple(name_of[wnid] for wnid in wnids(name))


def test_the_names_are_open_clips():
    tree = ast.parse((package("open_clip") / "zero_shot_metadata.py").read_text(encoding="utf-8"))
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert class_names("imagenet1k") == ast.literal_eval(lists["IMAGENET_CLASSNAMES"])


def check_labels(make, data, count):
    """Each image shows its label, and the labels are 0 to count - 1."""
    assert data.labels.tolist() == list(range(count))
    for label in (*range(0, count, 37), count - 1):
        assert make.label_of(data.image(label)) == label


@pytest.mark.parametrize("layout", ["torchvision", "kaggle", "tar", "wnid_tar", "synsets", "wds"])
def test_every_layout_is_the_same_data(make, layouts, layout):
    data = load("imagenet1k", "test", layouts / layout)
    assert isinstance(data, ImageDataset)
    check_labels(make, data, 1000)
    assert data.class_names == class_names("imagenet1k")
    torchvision = load("imagenet1k", "test", layouts / "torchvision")
    assert data.fingerprint == torchvision.fingerprint


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_sets(make, tmp_path, name):
    """V2's folders are numbers, not strings; two hundred classes keep their own names."""
    folder, classes = OTHERS[name]
    files = []
    for label, own in enumerate(classes):
        file = f"{folder}/{own}/{label * 7919 % 1000:04x}_x _ y_0.86.jpeg"
        files.append((file, make.image(label)))
    make.tree(tmp_path / "folders", [*files, (f"{folder}/README.txt", b"about")])
    make.tar(tmp_path / f"tar/{folder.partition('/')[0]}.tar", files)
    make.shard(tmp_path / f"wds/wds_{name}/test/0.tar", range(len(classes)))

    sets = [load(name, "test", tmp_path / layout) for layout in ("folders", "tar", "wds")]
    for data in sets:
        check_labels(make, data, len(classes))
        assert data.class_names == class_names(name)
    assert len({data.fingerprint for data in sets}) == 1


# ---- refused: folders ----


@pytest.fixture
def val(make, layouts, tmp_path):
    shutil.copytree(layouts / "torchvision/imagenet", tmp_path / "imagenet", copy_function=os.link)
    return tmp_path / "imagenet/val"


def first_of(val, label):
    return next((val / WNIDS[label]).iterdir())


def number(val):
    for label, folder in enumerate(sorted(val.iterdir())):
        folder.rename(val / str(label))


WRONG_FOLDERS = {
    "an empty class": ("999", lambda val: first_of(val, 17).unlink()),
    "one too many": ("1,001", lambda val: shutil.copy(first_of(val, 1), val / WNIDS[0])),
    "wrong class": ("goldfish", lambda val: first_of(val, 1).rename(val / WNIDS[0] / "a.JPEG")),
    "missing": (WNIDS[17], lambda val: shutil.rmtree(val / WNIDS[17])),
    "unknown": ("n99999999", lambda val: (val / "n99999999").mkdir()),
    "numbered": ("'0'", number),
}


@pytest.mark.parametrize("case", WRONG_FOLDERS)
def test_wrong_class_folders(val, refuses, case):
    word, change = WRONG_FOLDERS[case]
    change(val)
    kind = UserError if case == "unknown" else DataError
    assert word in refuses("imagenet1k", val.parents[1], val, kind=kind).problem


def test_two_folders_of_one_number(make, tmp_path, refuses):
    files = [(f"imagenet_v2/{folder}/a.jpeg", make.image(7)) for folder in ("7", "007")]
    refuses("imagenet_v2", make.tree(tmp_path, files), "imagenet_v2")


# ---- refused: flat images ----


def test_flat_images_without_labels(make, layouts, tmp_path, refuses):
    val = tmp_path / "imagenet/val"
    make.tree(val, images(make)[:3])
    refuses("imagenet1k", tmp_path, val)
    shutil.copy(layouts / "kaggle/LOC_val_solution.csv", tmp_path / "imagenet")
    refuses("imagenet1k", tmp_path, f"imagenet1k test in {val}")
    (val / "mine.JPEG").write_bytes(make.image(0))
    refuses("imagenet1k", tmp_path, "LOC_val_solution.csv")


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n",
        "ImageId,PredictionString\nx,n1\nx,n1\n",
        f"ImageId,PredictionString\n{NAMES[0]},n00000000 1 2\n",
        f"ImageId,PredictionString\n{NAMES[0]}\n",
    ],
    ids=["columns", "twice", "unknown", "empty"],
)
def test_a_broken_list_of_labels(make, tmp_path, refuses, text):
    make.tree(tmp_path / "imagenet/val", images(make)[:1])
    (tmp_path / "imagenet/LOC_val_solution.csv").write_text(text)
    refuses("imagenet1k", tmp_path, "LOC_val_solution.csv")


@pytest.mark.parametrize("truth", [None, b"1\n1001\n"], ids=["missing", "an inner node"])
def test_a_devkit_without_its_list_of_classes(make, tmp_path, refuses, truth):
    make.tar(tmp_path / "ILSVRC2012_img_val.tar", images(make))
    meta, (name, _) = devkit()
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    make.tar(path, [meta, *([(name, truth)] if truth else [])])
    refuses("imagenet1k", tmp_path, path)


# ---- refused: shards ----


@pytest.fixture
def shards(layouts, tmp_path):
    return Path(shutil.copytree(layouts / "wds/wds_imagenet1k", tmp_path / "wds_imagenet1k"))


def test_a_missing_shard(shards, refuses):
    (shards / "test/5.tar").unlink()
    refuses("imagenet1k", shards.parent, "nshards.txt")


def test_class_names_of_another_order(shards, refuses):
    names = list(class_names("imagenet1k"))
    path = shards / "classnames.txt"
    path.write_text("\n".join([*names[:5], "something else", *names[6:]]))
    load("imagenet1k", "test", shards.parent)
    swapped = [names[1], names[0], *names[2:]]
    for other in (swapped, names[:10], [f"thing {i}" for i in range(1000)]):
        path.write_text("\n".join(other))
        refuses("imagenet1k", shards.parent, path)


def test_the_same_set_in_two_places(val, shards, refuses):
    error = refuses("imagenet1k", shards.parent, "imagenet1k test")
    assert str(val) in error.problem
    assert str(shards / "test") in error.problem


# ---- ObjectNet ----

# mappings/ of ObjectNet 1.0, as in mlfoundations/wise-ft, src/datasets/objectnet_metadata
WORDS = """
    alarm_clock backpack banana band_aid basket beer_bottle bench bicycle binder_closed bottle_cap
    bread_loaf broom bucket butchers_knife can_opener candle cellphone chair clothes_hamper
    coffee_french_press combination_lock computer_mouse desk_lamp doormat dress dress_shoe_men drill
    drinking_cup drying_rack_for_dishes envelope fan frying_pan full_sized_towel hair_dryer hammer
    hand_towel_or_rag helmet iron_for_clothes jeans keyboard ladle lampshade laptop_open lemon
    letter_opener lighter lipstick match measuring_cup microwave mixing_salad_bowl monitor mug
    nail_fastener necklace orange padlock paintbrush paper_towel pen pill_bottle pillow pitcher
    plastic_bag plate plunger pop_can portable_heater printer remote_control ruler running_shoe
    safety_pin salt_shaker sandal screw shovel skirt sleeping_bag soap_dispenser sock soup_bowl
    spatula speaker still_camera strainer stuffed_animal suit_jacket sunglasses sweater
    swimming_trunks t-shirt teapot tennis_racket tie toaster toilet_paper_roll trash_bin tray tv
    umbrella vacuum_cleaner vase wallet watch water_bottle weight_exercise weight_scale wheel
    whistle wine_bottle winter_glove wok
"""
OBJECTS = WORDS.split()
OTHER_NAMES = {
    "binder_closed": "Binder (closed)",
    "butchers_knife": "Butcher's knife",
    "coffee_french_press": "Coffee/French press",
    "dress_shoe_men": "Dress shoe (men)",
    "drying_rack_for_dishes": "Drying rack for plates",
    "full_sized_towel": "Bath towel",
    "hand_towel_or_rag": "Dishrag or hand towel",
    "iron_for_clothes": "Iron (for clothes)",
    "laptop_open": "Laptop (open)",
    "mixing_salad_bowl": "Mixing / Salad Bowl",
    "nail_fastener": "Nail (fastener)",
    "weight_exercise": "Weight (exercise)",
}
NAME_OF = {
    folder: OTHER_NAMES.get(folder, folder.replace("_", " ").capitalize()) for folder in OBJECTS
}
OBJECT_NAMES = [NAME_OF[folder].lower() for folder in OBJECTS]


@pytest.fixture
def objectnet(make, tmp_path):
    """As the archive unpacks: images of all classes, of which one is none of ImageNet's."""
    folders = [*OBJECTS, "air_freshener"]
    images = [(f"images/{name}/0.png", make.image(i)) for i, name in enumerate(folders)]
    make.tree(tmp_path / "objectnet-1.0", images)
    write_mappings(tmp_path, NAME_OF, sorted(NAME_OF.values()))
    return tmp_path


def write_mappings(root, name_of, overlap):
    mappings = root / "objectnet-1.0/mappings"
    mappings.mkdir(exist_ok=True)
    name_of = {**name_of, "air_freshener": "Air freshener"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(name_of))
    overlap = dict.fromkeys(overlap, "x")
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap))
    return mappings


def test_objectnets_classes_are_those_of_the_mappings(make, objectnet, refuses):
    data = load("objectnet", "test", objectnet)
    assert list(data.class_names) == OBJECT_NAMES
    assert data.class_names[32] == "bath towel", "in the order of the folders: full_sized_towel"
    check_labels(make, data, 113)
    shutil.rmtree(objectnet / "objectnet-1.0/images/banana")
    refuses("objectnet", objectnet, objectnet / "objectnet-1.0/images")


@pytest.mark.parametrize(
    ("changed", "left_out"),
    [({}, "Wok"), ({"wok": "Pan"}, ""), ({"wok": "Banana", "banana": "Wok"}, "")],
    ids=["one less", "another name", "swapped"],
)
def test_other_mappings_are_refused(objectnet, refuses, changed, left_out):
    name_of = NAME_OF | changed
    write_mappings(objectnet, name_of, set(name_of.values()) - {left_out})
    refuses("objectnet", objectnet, objectnet / "objectnet-1.0/images")


def test_mappings_that_are_none(objectnet, refuses):
    mappings = write_mappings(objectnet, NAME_OF, ["Unicorn"])
    refuses("objectnet", objectnet, mappings / "folder_to_objectnet_label.json")
    (mappings / "objectnet_to_imagenet_1k.json").write_text("[1]")
    refuses("objectnet", objectnet, "objectnet_to_imagenet_1k.json")
    shutil.rmtree(mappings)
    refuses("objectnet", objectnet, objectnet / "objectnet-1.0/images")


def test_objectnets_shards_bring_their_own_list_of_names(make, tmp_path, refuses):
    make.shard(tmp_path / "wds_objectnet/test/0.tar", range(113))
    path = tmp_path / "wds_objectnet/classnames.txt"
    refuses("objectnet", tmp_path, path)
    path.write_text("\n".join(OBJECT_NAMES))
    assert list(load("objectnet", "test", tmp_path).class_names) == OBJECT_NAMES
    path.write_text("\n".join(OBJECT_NAMES[::-1]))
    refuses("objectnet", tmp_path, path)
