"""COCO and Flickr30k: Karpathy's split, five captions an image, every image there."""

from __future__ import annotations

import json

import pytest

from silc_bench.datasets.public.find import NotFoundError
from silc_bench.datasets.public.load import load
from silc_bench.errors import UserError


@pytest.fixture(autouse=True)
def _small(small):
    small("coco", test=3)
    small("flickr30k", test=3)


@pytest.fixture
def images(make):
    return [(f"{i}.jpg", make.image(i)) for i in range(3)]


def caption(image, number):
    return f"image {image}, caption {number}"


def rows(num_captions=(5, 7, 5), **changes):
    """One of another split, then as many as there are numbers of captions."""
    listed = [{"filepath": "train2014", "filename": "9.jpg", "split": "restval", "sentences": []}]
    for i, count in enumerate(num_captions):
        sentences = [{"raw": f" {caption(i, j)} "} for j in range(count)]
        row = {"filepath": "val2014", "filename": f"{i}.jpg", "split": "test"}
        listed.append({**row, "sentences": sentences, **changes})
    return listed


def write(root, images, name="dataset_coco.json"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


@pytest.mark.parametrize("folder", ["val2014", "images/val2014", "images", ""])
def test_coco(make, tmp_path, images, folder):
    make.tree(write(tmp_path / "coco", rows()) / folder, images)
    data = load("coco", "test", tmp_path)
    assert [len(captions) for captions in data.captions] == [5, 5, 5]
    assert data.captions[1][0] == caption(1, 0)
    assert data.labels is None
    assert [make.label_of(data.image(i)) for i in range(3)] == [0, 1, 2]
    assert load("coco", "test", tmp_path, limit=2).captions == data.captions[:2]


@pytest.mark.parametrize("place", ["flickr30k", "caption_datasets", "."])
def test_flickr_and_its_list_elsewhere(make, tmp_path, images, place):
    write(tmp_path / place, rows((5, 5, 5)), "dataset_flickr30k.json")
    make.tree(tmp_path / "flickr30k/flickr30k-images", images)
    assert len(load("flickr30k", "test", tmp_path)) == 3


def test_clip_benchmarks_shards_are_the_same_data(make, tmp_path, images):
    make.tree(write(tmp_path / "a/coco", rows()) / "val2014", images)
    members = []
    for (name, data), count in zip(images, (5, 7, 5), strict=True):
        text = "\n".join(caption(name[0], j) for j in range(count))
        members += [(name, data), (f"{name[0]}.txt", text.encode())]
    make.tar(tmp_path / "b/wds_mscoco_captions/test/0.tar", members)
    fingerprints = {load("coco", "test", tmp_path / root).fingerprint for root in "ab"}
    assert len(fingerprints) == 1


# ---- refused ----


@pytest.mark.parametrize(
    ("listed", "about"),
    [
        (rows((5, 4, 5)), "1.jpg"),
        (rows((5, 5)), "coco test"),
        (rows((5, 5, 5)) + rows((5,)), "dataset_coco.json"),
        (rows((5, 5, 5, 5)), "dataset_coco.json"),
        (rows(split="val"), "dataset_coco.json"),
        (rows(filename="../0.jpg"), "dataset_coco.json"),
        (rows(sentences=[{"raw": 1}]), "dataset_coco.json"),
        ([{"file_name": "0.jpg"}], "dataset_coco.json"),
    ],
    ids=["captions", "short", "twice", "image", "no split", "outside", "no text", "no Karpathy"],
)
def test_a_list_that_does_not_fit(make, tmp_path, images, refuses, listed, about):
    make.tree(write(tmp_path / "coco", listed) / "val2014", images)
    refuses("coco", tmp_path, about)


def test_no_images_and_no_json(tmp_path, refuses):
    write(tmp_path / "coco/annotations", rows())
    refuses("coco", tmp_path, "dataset_coco.json")
    (tmp_path / "coco/annotations/dataset_coco.json").write_text("{")
    refuses("coco", tmp_path, "dataset_coco.json", is_kept=False)


def test_cocos_own_captions_are_not_the_split(make, tmp_path, images, refuses):
    make.tree(tmp_path / "coco", [*images, ("annotations/captions_val2014.json", b"{}")])
    error = refuses("coco", tmp_path, "coco", kind=NotFoundError)
    assert "dataset_coco.json" in error.fix
    make.tree(tmp_path / "coco/test", images)
    error = refuses("coco", tmp_path, tmp_path / "coco/test")
    assert "dataset_coco.json" in error.fix


@pytest.mark.parametrize("member", [("0.txt", b" \n"), ("0.cls", b"1")])
def test_no_captions_in_shards(make, tmp_path, images, member):
    make.tar(tmp_path / "coco/test/0.tar", [images[0], member])
    with pytest.raises(UserError, match=r"0\.tar:0"):
        load("coco", "test", tmp_path)
