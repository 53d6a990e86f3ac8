"""CIFAR-10 and CIFAR-100: all layouts are the same data, pickles run nothing, doubt is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from silc_bench.datasets.dataset import ImageDataset
from silc_bench.datasets.image_set import ImageFiles
from silc_bench.datasets.public.cifar import CIFAR10_NAMES, CLASS_NAMES
from silc_bench.datasets.public.find import NotFoundError
from silc_bench.datasets.public.load import SETS, find_site, load

REAL = os.environ.get("SILC_BENCH_TEST_DATA")
PICKLES = "cifar-10-batches-py"
BATCH = {
    b"data": np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8),
    b"labels": [3, 1, 4, 0, 5, 9, 2, 6, 7, 8],
}
META = {b"label_names": [name.encode() for name in CIFAR10_NAMES]}


@pytest.fixture(autouse=True)
def _small(small):
    small("cifar10", test=10, train=50)
    small("cifar100", test=100, train=100)


def uncounted(root, split="test", limit=None):
    """CIFAR-100, however much of it is there."""
    known = SETS["cifar100"]
    found = known.read(known, split, find_site("cifar100", split, root))
    return ImageFiles("cifar100", split, found, limit)


# ---- shards and folders ----


@pytest.fixture
def shards(make, tmp_path):
    make.shard(tmp_path / "cifar100/test/000.tar", [3, 99, 0], "a photo of {}.")
    make.shard(tmp_path / "cifar100/test/001.tar", [47], "a photo of {}.")
    return tmp_path


@pytest.fixture
def folders(make, tmp_path):
    names = [name.replace(" ", "_") for name in CLASS_NAMES]
    files = [(f"{name}/0.png", make.image(label)) for label, name in enumerate(names)]
    files.append(("apple/notes.txt", b"not an image"))
    make.tree(tmp_path / "folders/cifar100/train", files)
    return tmp_path / "folders"


def test_shards_become_a_dataset(make, shards):
    data = uncounted(shards)
    assert isinstance(data, ImageDataset)
    assert (data.name, data.split, len(data), data.mask_names) == ("cifar100", "test", 4, ())
    assert data.labels.dtype == np.int64
    labels = [make.label_of(data.image(i)) for i in range(4)]
    assert data.labels.tolist() == labels == [3, 99, 0, 47]
    assert data.captions == [(f"a photo of {label}.",) for label in labels]
    direct = uncounted(shards / "cifar100")
    assert direct.fingerprint == data.fingerprint, "the root may be the folder of the set"


def test_folders_are_the_same_data_as_shards(make, folders, tmp_path):
    data = uncounted(folders, "train")
    assert data.labels.tolist() == list(range(100))
    assert data.captions is None
    make.shard(tmp_path / "cifar100/train/a.tar", range(100))
    assert uncounted(tmp_path, "train").fingerprint == data.fingerprint
    assert uncounted(folders, "train", limit=4).labels.tolist() == [0, 25, 50, 75]


def test_fingerprint_follows_labels_order_images_and_captions(make, tmp_path):
    last = [("z.png", make.image(1)), ("z.cls", b"0"), ("z.txt", b"a 0")]
    samples = [
        ([3, 99, 0], "a {}"),
        ([3, 99, 1], "a {}"),  # label
        ([99, 3, 0], "a {}"),  # order
        ([3, 99], "a {}"),
        ([3, 99], "a {}", last),  # image
        ([3, 99, 0], ""),
        ([3, 99, 0], "an {}"),
    ]
    fingerprints = []
    for number, sample in enumerate([*samples, samples[0]]):
        make.shard(tmp_path / f"{number}/cifar100/test/{number}.tar", *sample)
        fingerprints.append(uncounted(tmp_path / str(number)).fingerprint)
    assert fingerprints[-1] == fingerprints[0], "the name of the file does not count"
    assert len(set(fingerprints)) == len(samples)


def test_shards_deep_down_and_of_all_splits_in_one_folder(make, tmp_path):
    make.shard(tmp_path / "nested/wds/vtab/cifar10/test/0.tar", range(10))
    for shard, labels in ((10, range(8, 10)), (9, range(3, 8)), (2, range(3))):
        make.shard(tmp_path / f"flat/cifar10/cifar10-test-{shard}.tar", labels)
    (tmp_path / "flat/cifar10/._cifar10-test-0.tar").write_bytes(b"left by a Mac")
    make.shard(tmp_path / "flat/cifar10/cifar10-train-000.tar", [*range(10)] * 5)
    for layout in ("nested", "flat"):
        assert load("cifar10", "test", tmp_path / layout).labels.tolist() == [*range(10)]
    assert len(load("cifar10", "train", tmp_path / "flat")) == 50


# ---- what is refused of them ----


def test_what_lies_under_another_root_is_no_cifar(make, tmp_path, refuses):
    """It would be counted, and blamed, as CIFAR-100."""
    make.shard(tmp_path / "test/0.tar", [5])
    make.tree(tmp_path, [("train/cats/0.png", b""), ("meta", b"")])
    for split in ("train", "test"):
        where = tmp_path / "cifar100" / split
        error = refuses("cifar100", tmp_path, where, split, NotFoundError)
        assert f"cifar100/{split}/*.tar" in error.fix


@pytest.mark.parametrize(
    "label", [b"100", b"-1", b"apple", pytest.param(b"9" * 5000, id="label3"), b"1"]
)
def test_samples_that_are_refused(make, tmp_path, label):
    """The last one has no caption, where the others have one."""
    last = [("z.png", make.image(1)), ("z.cls", label)]
    make.shard(tmp_path / "cifar100/test/0.tar", [5], "{}", last)
    with refused("0.tar:z"):
        uncounted(tmp_path)


@pytest.mark.parametrize(
    ("file", "written"), [("classnames.json", json.dumps), ("classnames.txt", "\n".join)]
)
def test_class_names_in_another_order_are_refused(shards, refuses, file, written):
    path = shards / "cifar100" / file
    path.write_text(written(CLASS_NAMES))
    uncounted(shards)
    path.write_text(written(CLASS_NAMES[::-1]))
    refuses("cifar100", shards, path)


def test_no_image(make, tmp_path, refuses):
    make.shard(tmp_path / "cifar10/test/0.tar", [])
    refuses("cifar10", tmp_path, "cifar10 test")


# ---- the original pickles ----


def write_pickles(root, protocol=2, batch=BATCH, meta=META):
    folder = root / PICKLES
    folder.mkdir(exist_ok=True)
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return root


@pytest.mark.parametrize("protocol", range(5))
def test_python_files(tmp_path, protocol):
    data = load("cifar10", "test", write_pickles(tmp_path, protocol))
    assert data.labels.tolist() == BATCH[b"labels"]
    assert data.class_names == CIFAR10_NAMES
    for index, row in enumerate(BATCH[b"data"]):
        expected = row.reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(data.image(index)), expected)
    train = load("cifar10", "train", tmp_path / PICKLES)
    assert len(train) == 50
    assert train.fingerprint != data.fingerprint == load("cifar10", "test", tmp_path).fingerprint


def test_python_files_of_python_2(tmp_path):
    """Python 2 wrote the originals, where bytes are strings: protocol 2 with BINSTRING."""
    raw = BATCH[b"data"].tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    size = len(raw).to_bytes(4, "little")
    state = b"(K\x01K\x0aM\x00\x0c\x86" + dtype + b"\x89T" + size + raw + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in BATCH[b"labels"]) + b"e"
    before = load("cifar10", "test", write_pickles(tmp_path)).fingerprint
    content = b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + labels + b"u."
    (tmp_path / PICKLES / "test_batch").write_bytes(content)
    assert load("cifar10", "test", tmp_path).fingerprint == before


def test_cifar100s_fine_labels(make, tmp_path):
    batch = {
        b"data": np.zeros((100, 3072), np.uint8),
        b"coarse_labels": [0] * 100,
        b"fine_labels": [*range(100)],
    }
    meta = {"fine_label_names": [name.replace(" ", "_") for name in CLASS_NAMES]}
    files = [("test", pickle.dumps(batch, 2)), ("meta", pickle.dumps(meta, 2))]
    make.tree(tmp_path / "cifar100/cifar-100-python", files)
    assert load("cifar100", "test", tmp_path).labels.tolist() == batch[b"fine_labels"]


class Evil:
    def __init__(self, *command):
        self.command = command

    def __reduce__(self):
        return self.command


@pytest.mark.parametrize(
    "evil",
    [
        Evil(eval, ("open('ran', 'w')",)),
        Evil(getattr, ("text", "upper")),
        Evil(np.frombuffer, (b"",)),
        {b"data": np.array([eval], object)},
        {b"data": np.array(["a"])},
        {b"data": np.ma.array([1])},
        np.float64(1),
    ],
    ids=["eval", "getattr", "function", "objects", "text", "subclass", "scalar"],
)
def test_nothing_but_arrays_of_bytes_is_read(tmp_path, monkeypatch, refuses, evil):
    monkeypatch.chdir(tmp_path)
    path = write_pickles(tmp_path) / PICKLES / "test_batch"
    path.write_bytes(pickle.dumps(evil, 2))
    error = refuses("cifar10", tmp_path, path, is_kept=False)
    assert "UnpicklingError" in error.problem, "refused before it ran"
    assert not (tmp_path / "ran").exists()


BATCHES = {
    "no labels": {b"data": BATCH[b"data"]},
    "few": BATCH | {b"labels": [1]},
    "large": BATCH | {b"labels": [10] * 10},
    "text": BATCH | {b"labels": ["1"] * 10},
    "one class": BATCH | {b"labels": [0] * 10},
    "short": BATCH | {b"data": BATCH[b"data"][:, :3000]},
    "bytes": BATCH | {b"data": BATCH[b"data"].tobytes()},
    "list": [1],
}


@pytest.mark.parametrize("case", BATCHES)
def test_other_contents(tmp_path, refuses, case):
    about = {"one class": "cifar10 test"}.get(case, "test_batch")
    refuses("cifar10", write_pickles(tmp_path, batch=BATCHES[case]), about)


@pytest.mark.parametrize("content", [b"", BATCH[b"data"][:100], b"\x80\x02x", b"version 1", None])
def test_a_broken_or_missing_file(tmp_path, refuses, content):
    path = write_pickles(tmp_path) / PICKLES / "data_batch_3"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refuses("cifar10", tmp_path, path, "train", is_kept=False)


def test_other_classes(tmp_path, refuses):
    meta = {b"label_names": META[b"label_names"][::-1]}
    refuses("cifar10", write_pickles(tmp_path, meta=meta), "batches.meta")


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_real_photographs(monkeypatch):
    monkeypatch.undo()
    data = load("cifar100", "test", Path(REAL))
    assert len(data) == 2000, "the published part"
    assert data.image(1999).size == (32, 32)
    assert len(np.unique(data.labels)) == 100
    for label, (caption,) in zip(data.labels, data.captions, strict=True):
        article = "an" if caption.startswith("a photo of an ") else "a"
        assert caption == f"a photo of {article} {CLASS_NAMES[label]}."
