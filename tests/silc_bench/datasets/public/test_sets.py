"""The table of public sets: their counts, their classes, the tasks that measure them."""

from __future__ import annotations

import pytest
from refusals import refused

from silc_bench.datasets.public.cifar import CIFAR10_NAMES, CLASS_NAMES
from silc_bench.datasets.public.find import NotFoundError, checked_order
from silc_bench.datasets.public.load import SETS, load
from silc_bench.datasets.public.mask_sets import mask_names
from silc_bench.errors import DataError, UserError

# classes of images or pixels, images to be tested on, and to learn from
COUNTS = {
    "imagenet1k": (1000, 50_000, 1_281_167),
    "imagenet_v2": (1000, 10_000),
    "imagenet_a": (200, 7_500),
    "imagenet_r": (200, 30_000),
    "imagenet_sketch": (1000, 50_889),
    "objectnet": (113, 18_574),
    "cifar10": (10, 10_000, 50_000),
    "cifar100": (100, 10_000, 50_000),
    "coco": (0, 5_000),
    "flickr30k": (0, 1_000),
    "voc21": (21, 1_449, 1_464),
    "voc20": (20, 1_449, 1_464),
    "pc60": (60, 5_104, 4_996),
    "pc59": (59, 5_104, 4_996),
    "ade20k150": (150, 2_000, 20_210),
    "ade20k847": (847, 2_000, 25_574),
    "cityscapes": (19, 500, 2_975),
    "cocostuff": (171, 5_000, 118_287),
    "coco_object": (81, 5_000),
    "camvid": (11, 233, 367),
    "camvid_mini": (11, 20, 46),
}
# sha256 of the lines, one a label in order: CIFAR's in the sets' own files with "_" as a space,
# the others' in the sources that mask_sets.py names
ORDER = {
    "cifar10": "bb3914949cecedee6d1257f7f5fdb8f43fa3b2c8095fd1763161caf1b873fe59",
    "cifar100": "60ae3a3ac1355fcfec19c0ea3cb5fde15203ecf3b537cabcf6d5d54688ee9a4d",
    "voc21": "301e5e4e2a9a7ab6bfd6c7e2b1d381d4dd465ddedf787b4b4ed802b3366deb6c",
    "pc60": "e29ff1a0eaea71eb3e090f0ff6abdbcc592fa17f74b4a17ecc6d33c5a9daea4e",
    "ade20k150": "f9dbd8a75a0722c971d8c82db76dc205e06cb422d98153f4e5bbf90408ef5438",
    "ade20k847": "ee311c5f3b780a16a58f40726927f6c41149860a5fca6c1116ea1dca129efd8b",
    "cityscapes": "5995d02d6c574d515fa02371c8c2b5367f55cba8a732fed0567427c093f95adf",
    "cocostuff": "8ea44449837dceb30923012b201fe0152adc612160d0d040c9cfcd77e95f6801",
    "coco_object": "1f17b53017e442257cad2025ab981ddeb28d048af00dcac8ae810bc25a6a9a77",
    "camvid": "97a8b28971b6f83cf8181955e4f98f58c3596d92fd170af6a011d24f281f36cc",
}


def test_counts():
    counts = {}
    for name, known in SETS.items():
        test = known.splits["test"]
        classes = len(mask_names(name)) if known.layouts else test.classes
        images = [known.splits[split].images for split in sorted(known.splits)]
        counts[name] = (classes, *images)
    assert counts == COUNTS


def test_labels_are_numbered_by_these_names():
    names = {"cifar10": CIFAR10_NAMES, "cifar100": CLASS_NAMES}
    names |= {name: mask_names(name) for name in ORDER if name not in names}
    for name, sha256 in ORDER.items():
        assert checked_order(name, names[name], sha256, "", "") == names[name]
    with refused(about="builder.py", kind=DataError):
        checked_order("names", names["cifar10"][::-1], ORDER["cifar10"], "builder.py", "reinstall")


def test_what_is_asked_for_must_exist():
    with pytest.raises(UserError, match="cifar10"):
        load("cifar11", "test", None)
    with refused("cifar10"):
        load("cifar10", "tests", None)
    with refused("cifar10", NotFoundError):
        load("cifar10", "test", None)


@pytest.mark.parametrize(
    ("archive", "name", "line"),
    [
        ("imagenet-r.tar.gz", "imagenet_r", "tar xf {tmp}/imagenet-r.tar.gz -C {tmp}"),
        ("objectnet-1.0.zip", "objectnet", "unzip {tmp}/objectnet-1.0.zip -d {tmp}"),
    ],
)
def test_an_archive_is_to_be_unpacked(tmp_path, refuses, archive, name, line):
    (tmp_path / archive).write_bytes(b"")
    error = refuses(name, tmp_path, tmp_path / name, kind=NotFoundError)
    assert error.fix.endswith(line.format(tmp=tmp_path))


# ---- a set more is one file ----
