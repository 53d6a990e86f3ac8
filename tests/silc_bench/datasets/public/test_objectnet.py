"""ObjectNet: ImageNet's 113 classes in it, by the mappings that its labels were numbered by."""

from __future__ import annotations

import json
import shutil

import pytest

from silc_bench.datasets.public.counts import EXPECTED, Expected, checked_order
from silc_bench.datasets.public.load import load
from silc_bench.errors import DataError

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
FOLDERS = WORDS.split()
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
    folder: OTHER_NAMES.get(folder, folder.replace("_", " ").capitalize()) for folder in FOLDERS
}
NAMES = [NAME_OF[folder].lower() for folder in FOLDERS]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(EXPECTED, ("objectnet", "test"), Expected(113, classes=113, per_class=1))


@pytest.fixture
def root(make, tmp_path):
    """As the archive unpacks: pictures of all classes, of which one is none of ImageNet's."""
    folders = [*FOLDERS, "air_freshener"]
    make.tree(
        tmp_path / "objectnet-1.0/images",
        [(f"{name}/0.png", make.image(i)) for i, name in enumerate(folders)],
    )
    write_mappings(tmp_path, NAME_OF, dict.fromkeys(sorted(NAME_OF.values()), "x"))
    return tmp_path


def write_mappings(root, name_of, overlap):
    mappings = root / "objectnet-1.0/mappings"
    mappings.mkdir(exist_ok=True)
    (mappings / "folder_to_objectnet_label.json").write_text(
        json.dumps({**name_of, "air_freshener": "Air freshener"})
    )
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap))


def test_the_classes_are_those_of_the_mappings(make, root):
    data = load("objectnet", "test", root)
    assert data.class_names == checked_order("objectnet names", tuple(NAMES))
    assert data.class_names[32] == "bath towel", "in the order of the folders: full_sized_towel"
    assert (
        [make.label_of(data.image(i)) for i in range(113)]
        == data.labels.tolist()
        == list(range(113))
    )


@pytest.mark.parametrize(
    "change", ["one class less", "one named otherwise", "two named as each other"]
)
def test_other_mappings_are_refused(root, change):
    name_of = dict(NAME_OF)
    if change == "one class less":
        overlap = [name for name in NAME_OF.values() if name != "Wok"]
    elif change == "one named otherwise":
        name_of["wok"] = "Pan"
        overlap = list(name_of.values())
    else:
        name_of["wok"], name_of["banana"] = name_of["banana"], name_of["wok"]
        overlap = list(name_of.values())
    write_mappings(root, name_of, dict.fromkeys(overlap, "x"))
    with pytest.raises(
        DataError,
        match=r"list of objectnet names is not the one .*fetch the mappings/ beside .*images again",
    ):
        load("objectnet", "test", root)


def test_shards_bring_their_own_list_of_names(make, tmp_path):
    make.shard(tmp_path / "wds_objectnet/test/0.tar", range(113))
    path = tmp_path / "wds_objectnet/classnames.txt"
    with pytest.raises(DataError, match=r"classnames\.txt is missing: shards hold numbers only"):
        load("objectnet", "test", tmp_path)
    path.write_text("\n".join(NAMES))
    assert list(load("objectnet", "test", tmp_path).class_names) == NAMES
    path.write_text("\n".join([NAMES[1], NAMES[0], *NAMES[2:]]))
    with pytest.raises(
        DataError,
        match=r"list of objectnet names is not the one .*fetch the set's .*classnames\.txt again",
    ):
        load("objectnet", "test", tmp_path)


def test_a_missing_folder_and_missing_mappings(root):
    shutil.rmtree(root / "objectnet-1.0/images/banana")
    with pytest.raises(DataError, match="lacks 1 of the 113 class folders, such as 'banana'"):
        load("objectnet", "test", root)
    shutil.rmtree(root / "objectnet-1.0/mappings")
    with pytest.raises(DataError, match="copy the folder mappings/"):
        load("objectnet", "test", root)
