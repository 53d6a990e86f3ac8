"""Every named set as ``silc-bench data check`` meets it: ready, and untouched.

The layouts that ask for more than this are in ``public``.
"""

from __future__ import annotations

import pytest

from silc_bench.datasets.check import check
from silc_bench.datasets.public.cifar import CIFAR10_NAMES, CLASS_NAMES
from silc_bench.datasets.public.find import Expected
from silc_bench.datasets.public.imagenet import class_names, wnids
from silc_bench.datasets.public.load import SETS

SIZES = {
    **dict.fromkeys(
        ("imagenet1k", "imagenet_v2", "imagenet_sketch"), Expected(1000, classes=1000, per_class=1)
    ),
    **dict.fromkeys(("imagenet_a", "imagenet_r"), Expected(200, classes=200)),
    "cifar10": Expected(10, classes=10, per_class=1),
    "cifar100": Expected(100, classes=100, per_class=1),
    **dict.fromkeys(("coco", "flickr30k"), Expected(3, captions=5)),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name, size in SIZES.items():
        monkeypatch.setitem(SETS[name].splits, "test", size)
    monkeypatch.setitem(SETS["cifar10"].splits, "train", Expected(50, classes=10, per_class=5))
    monkeypatch.setitem(SETS["cifar100"].splits, "train", Expected(100, classes=100, per_class=1))


def by_wnid(make, root, folder, name="imagenet1k"):
    make.tree(
        root / folder, [(f"{wnid}/a.JPEG", make.image(i)) for i, wnid in enumerate(wnids(name))]
    )


def shards(make, root, folder, count, names=None):
    make.shard(root / folder / "test/0.tar", range(count // 2))
    make.shard(root / folder / "test/1.tar", range(count // 2, count))
    (root / folder / "test/nshards.txt").write_text("2")
    if names:
        (root / folder / "classnames.txt").write_text("\n".join(names))


def tar_of_folders(make, root, name, archive):
    make.tar(
        root / archive,
        [(f"{name}/{wnid}/a.jpg", make.image(i)) for i, wnid in enumerate(wnids(name))],
    )


def folders(make, root, folder, names):
    make.tree(
        root / folder,
        [(f"{name.replace(' ', '_')}/a.png", make.image(i)) for i, name in enumerate(names)],
    )


def captioned(make, root, folder):
    members = []
    for i in range(3):
        words = "\n".join(f"caption {j} of {i}" for j in range(5)).encode()
        members += [(f"s{i}.jpg", make.image(i)), (f"s{i}.txt", words)]
    make.tar(root / folder / "test/0.tar", members)


LAYOUTS = {
    "imagenet1k by wnid": lambda m, r: by_wnid(m, r, "imagenet1k/val"),
    "imagenet1k shards": lambda m, r: shards(
        m, r, "wds_imagenet1k", 1000, class_names("imagenet1k")
    ),
    "imagenet_v2 shards": lambda m, r: shards(m, r, "wds_imagenetv2", 1000),
    "imagenet_a folders": lambda m, r: by_wnid(m, r, "imagenet-a", "imagenet_a"),
    "imagenet_a tar": lambda m, r: tar_of_folders(m, r, "imagenet_a", "imagenet-a.tar"),
    "imagenet_a shards": lambda m, r: shards(m, r, "wds_imagenet-a", 200),
    "imagenet_r folders": lambda m, r: by_wnid(m, r, "imagenet-r", "imagenet_r"),
    "imagenet_r tar": lambda m, r: tar_of_folders(m, r, "imagenet_r", "imagenet-r.tar"),
    "imagenet_sketch folders": lambda m, r: by_wnid(m, r, "imagenet-sketch/sketch"),
    "imagenet_sketch shards": lambda m, r: shards(m, r, "wds_imagenet_sketch", 1000),
    "cifar10 folders": lambda m, r: folders(m, r, "cifar10/test", CIFAR10_NAMES),
    "cifar10 shards": lambda m, r: shards(m, r, "wds_vtab-cifar10", 10, CIFAR10_NAMES),
    "cifar10 shards, deeper": lambda m, r: shards(m, r, "wds/vtab/cifar10", 10, CIFAR10_NAMES),
    "cifar100 folders": lambda m, r: folders(m, r, "cifar100/test", CLASS_NAMES),
    "cifar100 shards": lambda m, r: shards(m, r, "cifar100", 100, CLASS_NAMES),
    "coco shards": lambda m, r: captioned(m, r, "wds_mscoco_captions"),
    "flickr30k shards": lambda m, r: captioned(m, r, "wds_flickr30k"),
}


def contents(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_ready_to_be_measured(make, tmp_path, layout):
    LAYOUTS[layout](make, tmp_path)
    before = contents(tmp_path)
    name = layout.split()[0]
    report = check(name, tmp_path)
    assert not report.problems, report.problems
    size = SIZES[name]
    classes = f"{size.classes:,} classes"
    contents_of = classes if size.classes else f"{5 * size.images} captions (5 to 5 an image)"
    counted = f"  {size.images:,} images, {contents_of}"
    line = next(line for line in report.found if line.startswith(counted))
    assert "as many as the set has" in line
    assert contents(tmp_path) == before, "it writes nothing into the data"


def test_every_named_set_of_images_is_here():
    without_masks = {name for name, known in SETS.items() if not known.layouts}
    assert without_masks - {"objectnet"} == set(SIZES)  # ObjectNet's layouts: test_imagenet.py
    assert {layout.split()[0] for layout in LAYOUTS} == set(SIZES)
