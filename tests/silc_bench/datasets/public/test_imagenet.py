"""The ImageNet family: six layouts give the same data, and a label never means another class."""

from __future__ import annotations

import ast
import csv
import hashlib
import importlib.util
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from silc_bench.datasets.dataset import ImageDataset
from silc_bench.datasets.files.folders import listing
from silc_bench.datasets.public import counts as expected
from silc_bench.datasets.public.counts import EXPECTED, Expected, checked_order
from silc_bench.datasets.public.imagenet import class_names, wnids
from silc_bench.datasets.public.load import load
from silc_bench.errors import DataError, UserError

WNIDS = wnids("imagenet1k")
LABELS = np.random.default_rng(0).permutation(1000)  # of image 1, 2, ... 1000
NAMES = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 1001)]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name in ("imagenet1k", "imagenet_v2", "imagenet_sketch"):
        monkeypatch.setitem(EXPECTED, (name, "test"), Expected(1000, classes=1000, per_class=1))
    for name in ("imagenet_a", "imagenet_r"):
        monkeypatch.setitem(EXPECTED, (name, "test"), Expected(200, classes=200))


def package(name):
    """Folder of an installed package, which is not imported: that takes seconds."""
    return Path(importlib.util.find_spec(name).origin).parent


def by_wnid(make):
    return [
        (f"{WNIDS[label]}/{name}.JPEG", make.image(label))
        for name, label in zip(NAMES, LABELS, strict=True)
    ]


def flat(make):
    return [(f"{name}.JPEG", make.image(label)) for name, label in zip(NAMES, LABELS, strict=True)]


def kaggle_csv():
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["ImageId", "PredictionString"])
    rows.writerows(
        (name, f"{WNIDS[label]} 85 1 499 272 ")
        for name, label in reversed(list(zip(NAMES, LABELS, strict=True)))
    )
    return text.getvalue().encode()


def devkit(to):
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
    make.tree(root / "torchvision/imagenet/val", by_wnid(make))
    make.tree(root / "kaggle/ILSVRC/Data/CLS-LOC/val", flat(make))
    (root / "kaggle/LOC_val_solution.csv").write_bytes(b"\xef\xbb\xbf" + kaggle_csv())
    make.tar(root / "tar/ILSVRC2012_img_val.tar", flat(make))
    make.tree(root / "tar", devkit(root))
    make.tar(root / "wnid_tar/imagenet-1k/val/val.tar", by_wnid(make))
    shutil.copytree(root / "kaggle/ILSVRC/Data/CLS-LOC/val", root / "synsets/ImageNet/val")
    (root / "synsets/ImageNet/synset_labels.txt").write_text(
        "\n".join(WNIDS[label] for label in LABELS)
    )
    for shard in range(11):  # "10.tar" comes after "9.tar"
        make.shard(
            root / f"wds/wds_imagenet1k/test/{shard}.tar",
            range(1000)[shard * 91 : (shard + 1) * 91],
        )
    (root / "wds/wds_imagenet1k/test/nshards.txt").write_text("11\n")
    (root / "wds/wds_imagenet1k/classnames.txt").write_text("\n".join(class_names("imagenet1k")))
    return root


def test_the_lists_of_classes_are_timms():
    for name, file in (
        ("imagenet1k", "imagenet"),
        ("imagenet_a", "imagenet_a"),
        ("imagenet_r", "imagenet_r"),
    ):
        theirs = (package("timm") / f"data/_info/{file}_synsets.txt").read_text().split()
        assert list(wnids(name)) == theirs
    assert wnids("imagenet_sketch") == WNIDS
    assert class_names("imagenet1k")[:2] == ("tench", "goldfish")
    assert len(class_names("imagenet_r")) == len(class_names("imagenet_a")) == 200
    assert class_names("imagenet_r")[0] == "goldfish"


def test_the_names_are_open_clips():
    tree = ast.parse((package("open_clip") / "zero_shot_metadata.py").read_text(encoding="utf-8"))
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert class_names("imagenet1k") == ast.literal_eval(lists["IMAGENET_CLASSNAMES"])


def test_a_list_of_names_in_another_order_is_refused():
    for title in expected.LABEL_ORDER:
        with pytest.raises(DataError, match="not the one that labels are numbered by"):
            checked_order(title, ("a", "b"))
    assert (
        expected.LABEL_ORDER["imagenet wnids"]
        == hashlib.sha256("\n".join(WNIDS).encode()).hexdigest()
    )


def test_the_real_counts(monkeypatch):
    monkeypatch.undo()
    known = {
        name: one for (name, split), one in EXPECTED.items() if split == "test" and not one.labels
    }
    counts = {name: (one.classes, one.images) for name, one in known.items()}
    assert counts == {
        "imagenet1k": (1000, 50_000),
        "imagenet_v2": (1000, 10_000),
        "imagenet_a": (200, 7_500),
        "imagenet_r": (200, 30_000),
        "imagenet_sketch": (1000, 50_889),
        "objectnet": (113, 18_574),
        "cifar10": (10, 10_000),
        "cifar100": (100, 10_000),
        "coco": (0, 5_000),
        "flickr30k": (0, 1_000),
    }


@pytest.mark.parametrize("layout", ["torchvision", "kaggle", "tar", "wnid_tar", "synsets", "wds"])
def test_every_layout_is_the_same_data(make, layouts, layout):
    data = load("imagenet1k", "test", layouts / layout)
    assert isinstance(data, ImageDataset)
    assert [make.label_of(data.image(i)) for i in range(0, 1000, 37)] == data.labels[::37].tolist()
    np.testing.assert_array_equal(data.labels, np.arange(1000))
    assert data.class_names == class_names("imagenet1k")
    part = load("imagenet1k", "test", layouts / layout, limit=100)
    np.testing.assert_array_equal(part.labels, np.arange(0, 1000, 10))
    one = load("imagenet1k", "test", layouts / "torchvision")
    assert data.fingerprint == one.fingerprint != part.fingerprint


@pytest.mark.parametrize("packed", [False, True])
def test_v2_folders_are_numbers_not_strings(make, tmp_path, packed):
    files = [
        (
            f"imagenetv2-matched-frequency-format-val/{label}/{label * 7919 % 1000:04x}.jpeg",
            make.image(label),
        )
        for label in range(1000)
    ]
    if packed:
        make.tar(tmp_path / "imagenetv2-matched-frequency.tar", files)
    else:
        make.tree(tmp_path, files)
    data = load("imagenet_v2", "test", tmp_path)
    assert (
        [make.label_of(data.image(i)) for i in (0, 1, 2, 10, 999)]
        == data.labels[[0, 1, 2, 10, 999]].tolist()
        == [0, 1, 2, 10, 999]
    )


def test_v2_shards_numbered_in_string_order_are_refused(make, tmp_path):
    make.shard(tmp_path / "imagenetv2/test/0.tar", range(1000))
    (tmp_path / "imagenetv2/classnames.txt").write_text("\n".join(sorted(map(str, range(1000)))))
    with pytest.raises(DataError, match="sorted as strings"):
        load("imagenet_v2", "test", tmp_path)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_two_hundred_classes_keep_their_own_names(make, tmp_path, name):
    own = wnids(name)
    folder = tmp_path / name.replace("_", "-")
    make.tree(
        folder, [(f"{wnid}/0.000116_x _ y_0.86.jpg", make.image(i)) for i, wnid in enumerate(own)]
    )
    (folder / "README.txt").write_text("about")
    data = load(name, "test", tmp_path)
    assert (
        [make.label_of(data.image(i)) for i in range(200)]
        == data.labels.tolist()
        == list(range(200))
    )
    assert data.class_names[3] == class_names("imagenet1k")[WNIDS.index(own[3])]
    shutil.rmtree(folder)
    make.tar(
        tmp_path / f"{name.replace('_', '-')}.tar",
        [(f"{name}/{wnid}/0.00_a.b_.jpg", make.image(i)) for i, wnid in enumerate(own)],
    )
    assert load(name, "test", tmp_path).fingerprint == data.fingerprint


# ---- refused ----


@pytest.fixture
def val(make, layouts, tmp_path):
    shutil.copytree(layouts / "torchvision/imagenet", tmp_path / "imagenet", copy_function=os.link)
    return tmp_path / "imagenet/val"


def refused(val, sentence, name="imagenet1k"):
    with pytest.raises(UserError, match=sentence) as caught:
        load(name, "test", val.parent.parent, limit=5)
    return caught.value


def test_a_missing_class_folder(val):
    shutil.rmtree(val / WNIDS[17])
    refused(val, f"lacks 1 of the 1000 class folders, such as '{WNIDS[17]}'")


def test_an_empty_class_folder_is_too_few_images(val):
    next((val / WNIDS[17]).iterdir()).unlink()
    refused(
        val,
        (
            r"999 pictures \(class folders\), and the set has 1,000; 1 of 1000 classes have none, "
            r"such as 'jay'"
        ),
    )


def test_one_image_too_many(val, make):
    (val / WNIDS[0] / "copy of it.JPEG").write_bytes(make.image(0))
    refused(
        val,
        (
            "1,001 pictures .* the set has 1,000; 1 classes do not have 1, "
            "such as 'tench' with 2; remove"
        ),
    )


def test_the_right_number_of_the_wrong_classes(val):
    next((val / WNIDS[1]).iterdir()).rename(val / WNIDS[0] / "moved.JPEG")
    refused(
        val,
        (
            "1,000 pictures, but not of the right classes; 1 of 1000 classes have none, "
            "such as 'goldfish'"
        ),
    )


def test_a_folder_that_is_no_class(val):
    (val / "n99999999").mkdir()
    refused(val, "unknown class folder in .* 'n99999999'")


def test_numbered_folders_have_no_meaning_in_imagenet1k(make, tmp_path):
    make.tree(
        tmp_path / "imagenet/val", [(f"{label}/a.jpeg", make.image(label)) for label in range(3)]
    )
    refused(
        tmp_path / "imagenet/val",
        "numbered .* no class of imagenet1k; name them as the set does, such as 'n01440764'",
    )


def test_numbered_twice(make, tmp_path):
    make.tree(tmp_path / "imagenetv2", [("7/a.jpeg", make.image(7)), ("007/a.jpeg", make.image(7))])
    refused(tmp_path / "imagenetv2/x", "two folders for one class: '007' and '7'", "imagenet_v2")


def test_stray_files_are_skipped_and_said(val, make):
    before = load("imagenet1k", "test", val.parent.parent).fingerprint
    make.tree(
        val,
        [
            (".DS_Store", b"x"),
            (f"{WNIDS[3]}/Thumbs.db", b"x"),
            (f"{WNIDS[3]}/._a.JPEG", b"x"),
            ("__MACOSX/a/b.JPEG", b"x"),
            (f"{WNIDS[4]}/notes.md", b"x"),
        ],
    )
    assert load("imagenet1k", "test", val.parent.parent).fingerprint == before
    assert listing(val).notes() == [
        "skipped stray files of the system: 1 .DS_Store, 1 ._*, 1 Thumbs.db, 1 __MACOSX",
        f"skipped 1 files that are no pictures, such as {WNIDS[4]}/notes.md",
    ]


def test_flat_images_without_labels(make, layouts, tmp_path):
    make.tree(tmp_path / "imagenet/val", flat(make)[:3])
    refused(
        tmp_path / "imagenet/val", r"pictures without classes; put Kaggle's LOC_val_solution\.csv"
    )
    shutil.copy(layouts / "kaggle/LOC_val_solution.csv", tmp_path / "imagenet")
    refused(
        tmp_path / "imagenet/val",
        "3 pictures .flat, labels from LOC_val_solution.csv., and the set has 1,000",
    )
    (tmp_path / "imagenet/val/mine.JPEG").write_bytes(make.image(0))
    refused(tmp_path / "imagenet/val", "gives no class for mine.JPEG")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "has the columns"),
        ("ImageId,PredictionString\nx,n1\nx,n1\n", "lists x twice"),
        (f"ImageId,PredictionString\n{NAMES[0]},n00000000 1 2\n", "has 'n00000000' for"),
        (f"ImageId,PredictionString\n{NAMES[0]}\n", "has '' for"),
    ],
)
def test_a_broken_list_of_labels(make, tmp_path, text, sentence):
    make.tree(tmp_path / "imagenet/val", flat(make)[:1])
    (tmp_path / "imagenet/LOC_val_solution.csv").write_text(text)
    refused(tmp_path / "imagenet/val", sentence)


def test_a_devkit_without_its_list_of_classes(make, layouts, tmp_path):
    make.tar(tmp_path / "ILSVRC2012_img_val.tar", flat(make))
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(
            layouts / "tar/ILSVRC2012_devkit_t12/data/meta.mat",
            "ILSVRC2012_devkit_t12/data/meta.mat",
        )
    with pytest.raises(
        DataError, match="lacks ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth"
    ):
        load("imagenet1k", "test", tmp_path)


@pytest.fixture
def shards(layouts, tmp_path):
    shutil.copytree(layouts / "wds/wds_imagenet1k", tmp_path / "wds_imagenet1k")
    return tmp_path / "wds_imagenet1k"


def test_a_missing_shard(shards):
    (shards / "test/5.tar").unlink()
    refused(shards / "test", "nshards.txt promises 11 shards, and 10 are there")
    (shards / "test/nshards.txt").unlink()
    refused(shards / "test", "909 pictures .webdataset shards., and the set has 1,000")


def test_labels_outside(shards, make):
    make.shard(shards / "test/10.tar", [1000])
    refused(shards / "test", "has the label b'1000'; a label is a number from 0 to 999")


def test_swapped_class_names(shards):
    names = list(class_names("imagenet1k"))
    other = [*names[:5], "something else", *names[6:]]
    (shards / "classnames.txt").write_text("\n".join(other))
    load("imagenet1k", "test", shards.parent)
    (shards / "classnames.txt").write_text("\n".join([names[1], names[0], *names[2:]]))
    refused(shards / "test", "class 0 is 'goldfish', in imagenet1k it is 'tench'")
    (shards / "classnames.txt").write_text("\n".join(names[:10]))
    refused(shards / "test", "names 10 classes, imagenet1k has 1000")
    (shards / "classnames.txt").write_text("\n".join(f"thing {i}" for i in range(1000)))
    refused(shards / "test", "knows only 0 of the 1000 names")


def test_the_same_set_in_two_places(val, shards):
    with pytest.raises(DataError, match=r"there 2 times: .*imagenet/val and .*wds_imagenet1k/test"):
        load("imagenet1k", "test", val.parent.parent)


def test_an_archive_is_to_be_unpacked(tmp_path):
    for archive, name, line in (
        ("imagenet-r.tar.gz", "imagenet_r", "tar xf {tmp}/imagenet-r.tar.gz -C {tmp}"),
        ("objectnet-1.0.zip", "objectnet", "unzip {tmp}/objectnet-1.0.zip -d {tmp}"),
        ("cifar-10-python.tar.gz", "cifar10", "tar xf {tmp}/cifar-10-python.tar.gz -C {tmp}"),
    ):
        (tmp_path / archive).write_bytes(b"")
        with pytest.raises(DataError) as caught:
            load(name, "test", tmp_path)
        assert caught.value.fix == "unpack it first: " + line.format(tmp=tmp_path)
