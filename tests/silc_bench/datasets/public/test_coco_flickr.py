"""COCO and Flickr30k: Karpathy's split, five captions a picture, every picture there."""

from __future__ import annotations

import json

import pytest

from silc_bench.datasets.public.counts import EXPECTED, Expected
from silc_bench.datasets.public.load import load
from silc_bench.errors import DataError, UserError


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name in ("coco", "flickr30k"):
        monkeypatch.setitem(EXPECTED, (name, "test"), Expected(3, captions=5))


def rows(num_captions=(5, 7, 5), **changes):
    images = [
        {
            "filepath": "val2014",
            "filename": f"{i}.jpg",
            "split": "test",
            "sentences": [{"raw": f" picture {i}, caption {j} "} for j in range(count)],
            **changes,
        }
        for i, count in enumerate(num_captions)
    ]
    train = {"filepath": "train2014", "filename": "99.jpg", "split": "restval", "sentences": []}
    return [train, *images]


def write(root, images, name="dataset_coco.json"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


@pytest.mark.parametrize("folder", ["val2014", "images/val2014", "images", ""])
def test_coco(make, tmp_path, folder):
    make.tree(
        write(tmp_path / "coco", rows()) / folder, [(f"{i}.jpg", make.image(i)) for i in range(3)]
    )
    data = load("coco", "test", tmp_path)
    assert [len(own) for own in data.captions] == [5, 5, 5]
    assert data.captions[1][0] == "picture 1, caption 0"
    assert data.labels is None
    assert [make.label_of(data.image(i)) for i in range(3)] == [0, 1, 2]
    assert load("coco", "test", tmp_path, limit=2).captions == data.captions[:2]


@pytest.mark.parametrize("place", ["flickr30k", "caption_datasets", "."])
def test_flickr_and_its_list_elsewhere(make, tmp_path, place):
    write(tmp_path / place, rows((5, 5, 5)), "dataset_flickr30k.json")
    make.tree(
        tmp_path / "flickr30k/flickr30k-images", [(f"{i}.jpg", make.image(i)) for i in range(3)]
    )
    assert len(load("flickr30k", "test", tmp_path)) == 3


def test_clip_benchmarks_shards_are_the_same_data(make, tmp_path):
    make.tree(
        write(tmp_path / "a/coco", rows()) / "val2014",
        [(f"{i}.jpg", make.image(i)) for i in range(3)],
    )
    members = []
    for i, count in enumerate((5, 7, 5)):
        text = "\n".join(f"picture {i}, caption {j}" for j in range(count))
        members += [(f"s{i:07d}.jpg", make.image(i)), (f"s{i:07d}.txt", text.encode())]
    make.tar(tmp_path / "b/wds_mscoco_captions/test/0.tar", members)
    assert (
        load("coco", "test", tmp_path / "b").fingerprint
        == load("coco", "test", tmp_path / "a").fingerprint
    )


# ---- refused ----


def refused(root, sentence, name="coco"):
    with pytest.raises(UserError, match=sentence):
        load(name, "test", root, limit=1)


def test_missing_images(make, tmp_path):
    write(tmp_path / "coco", rows())
    refused(tmp_path, r"none of the 3 pictures of .*dataset_coco\.json is there; put 0\.jpg")
    make.tree(tmp_path / "coco/val2014", [("1.jpg", make.image(1))])
    refused(tmp_path, r"2 of the 3 pictures of coco test are missing, such as .*val2014/0\.jpg")


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (rows((5, 4, 5)), "1.jpg has 4 captions, and every picture of coco has 5"),
        (rows((5, 5)), "2 pictures .* and the set has 3; fetch what is missing"),
        (rows((5, 5, 5)) + rows((5,)), "lists 0.jpg twice"),
        (rows(split="val"), "no picture of the split 'test'"),
        (rows(filename="../0.jpg"), "not Karpathy's list"),
        (rows(sentences=[{"raw": 1}]), "not Karpathy's list"),
        ([{"file_name": "0.jpg"}], "not Karpathy's list: KeyError: 'split'"),
    ],
)
def test_a_list_that_does_not_fit(make, tmp_path, images, sentence):
    make.tree(
        write(tmp_path / "coco", images) / "val2014",
        [(f"{i}.jpg", make.image(i)) for i in range(3)],
    )
    refused(tmp_path, sentence)


def test_no_json(make, tmp_path):
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/annotations/dataset_coco.json").write_text("{")
    refused(tmp_path, "not Karpathy's list: JSONDecodeError")


def test_cocos_own_captions_are_not_the_split(make, tmp_path):
    make.tree(
        tmp_path / "coco",
        [("val2014/1.jpg", make.image(1)), ("annotations/captions_val2014.json", b"{}")],
    )
    with pytest.raises(
        DataError, match=r"no coco test data: .*dataset_coco\.json \(Karpathy's split\)"
    ):
        load("coco", "test", tmp_path)
    make.tree(tmp_path / "coco", [("test/1.jpg", make.image(1))])
    refused(tmp_path, r"pictures and no captions; put Karpathy's dataset_coco\.json into")


def test_empty_captions_in_shards(make, tmp_path):
    make.tar(tmp_path / "coco/test/0.tar", [("0.jpg", make.image(0)), ("0.txt", b" \n")])
    refused(tmp_path, "has an empty caption")
    make.tar(tmp_path / "coco/test/0.tar", [("0.jpg", make.image(0)), ("0.cls", b"1")])
    refused(tmp_path, r"and a caption \(.txt\); it has .jpg, .cls")
