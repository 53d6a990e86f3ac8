"""COCO and Flickr30k: Karpathy's split, five captions an image, every image there."""

from __future__ import annotations

import json

import pytest

from silc_bench.datasets.check import check
from silc_bench.datasets.public.find import NotFoundError
from silc_bench.datasets.public.load import load


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


@pytest.mark.parametrize("place", ["flickr30k", "caption_datasets", "."])
def test_flickr_and_its_list_elsewhere(make, tmp_path, images, place):
    write(tmp_path / place, rows((5, 5, 5)), "dataset_flickr30k.json")
    make.tree(tmp_path / "flickr30k/flickr30k-images", images)
    assert len(load("flickr30k", "test", tmp_path)) == 3


@pytest.mark.parametrize(
    ("name", "folder"), [("coco", "wds_mscoco_captions"), ("flickr30k", "wds_flickr30k")]
)
def test_clip_benchmarks_shards_are_the_same_data(make, tmp_path, images, name, folder):
    make.tree(write(tmp_path / f"a/{name}", rows(), f"dataset_{name}.json"), images)
    members = []
    for image, count in enumerate((5, 7, 5)):
        text = "\n".join(caption(image, j) for j in range(count))
        members += [images[image], (f"{image}.txt", text.encode())]
    make.tar(tmp_path / f"b/{folder}/test/0.tar", members)
    fingerprints = {load(name, "test", tmp_path / root).fingerprint for root in "ab"}
    assert len(fingerprints) == 1
    counts = "  3 images, 15 captions (5 to 5 an image), as many as the set has"
    assert counts in check(name, tmp_path / "b").found


# ---- refused ----


LISTS = {
    "captions": rows((5, 4, 5)),
    "short": rows((5, 5)),
    "twice": rows((5, 5, 5)) + rows((5,)),
    "image": rows((5, 5, 5, 5)),
    "no split": rows(split="val"),
    "outside": rows(filename="../0.jpg"),
    "no text": rows(sentences=[{"raw": 1}]),
    "no Karpathy": [{"file_name": "0.jpg"}],
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_does_not_fit(make, tmp_path, images, refuses, case):
    make.tree(write(tmp_path / "coco", LISTS[case]) / "val2014", images)
    about = {"captions": "1.jpg", "short": "coco test"}.get(case, "dataset_coco.json")
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
