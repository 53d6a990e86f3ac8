"""CIFAR's original files, and CIFAR-10: read without running anything, and counted.

With the classes in their order.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from silc_bench.datasets.public.cifar import CIFAR10_NAMES, CLASS_NAMES
from silc_bench.datasets.public.counts import EXPECTED, Expected
from silc_bench.datasets.public.load import load
from silc_bench.errors import DataError, UserError

RNG = np.random.default_rng(0)
BATCH = {
    b"data": RNG.integers(0, 256, (10, 3072), dtype=np.uint8),
    b"labels": [3, 1, 4, 0, 5, 9, 2, 6, 7, 8],
}
META = {b"label_names": [name.encode() for name in CIFAR10_NAMES]}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(EXPECTED, ("cifar10", "test"), Expected(10, classes=10, per_class=1))
    monkeypatch.setitem(EXPECTED, ("cifar10", "train"), Expected(50, classes=10, per_class=5))
    monkeypatch.setitem(EXPECTED, ("cifar100", "test"), Expected(100, classes=100, per_class=1))


def write(root, protocol=2, batch=BATCH, meta=META):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return root


@pytest.mark.parametrize("protocol", range(5))
def test_python_files(tmp_path, protocol):
    data = load("cifar10", "test", write(tmp_path, protocol))
    assert data.labels.tolist() == BATCH[b"labels"]
    assert data.class_names == CIFAR10_NAMES
    for index, row in enumerate(BATCH[b"data"]):
        np.testing.assert_array_equal(
            np.asarray(data.image(index)), row.reshape(3, 32, 32).transpose(1, 2, 0)
        )
    train = load("cifar10", "train", tmp_path / "cifar-10-batches-py")
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
    state = (
        b"(K\x01K\x0aM\x00\x0c\x86"
        + dtype
        + b"\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in BATCH[b"labels"]) + b"e"
    write(tmp_path)
    path = tmp_path / "cifar-10-batches-py/test_batch"
    before = load("cifar10", "test", tmp_path).fingerprint
    path.write_bytes(b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + labels + b"u.")
    assert load("cifar10", "test", tmp_path).fingerprint == before


def test_cifar100s_fine_labels(tmp_path):
    folder = tmp_path / "cifar100/cifar-100-python"
    folder.mkdir(parents=True)
    batch = {
        b"data": np.zeros((100, 3072), np.uint8),
        b"coarse_labels": [0] * 100,
        b"fine_labels": list(range(100)),
    }
    (folder / "test").write_bytes(pickle.dumps(batch, 2))
    (folder / "train").write_bytes(pickle.dumps(batch, 2))
    (folder / "meta").write_bytes(
        pickle.dumps({"fine_label_names": [name.replace(" ", "_") for name in CLASS_NAMES]}, 2)
    )
    assert load("cifar100", "test", tmp_path).labels.tolist() == list(range(100))


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
def test_nothing_but_arrays_of_bytes_is_read(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(evil, 2))
    with pytest.raises(DataError, match="is refused"):
        load("cifar10", "test", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({b"data": BATCH[b"data"]}, "10 pictures and not as many labels"),
        ({**BATCH, b"labels": [1]}, "10 pictures and not as many labels"),
        ({**BATCH, b"labels": [10] * 10}, "has the label 10; cifar10 has 0 to 9"),
        ({**BATCH, b"labels": ["1"] * 10}, "has the label"),
        (
            {**BATCH, b"labels": [0] * 10},
            "not of the right classes; 9 of 10 classes have none, such as 'automobile'",
        ),
        ({**BATCH, b"data": BATCH[b"data"][:, :3000]}, "no array of 3,072 bytes"),
        ({**BATCH, b"data": BATCH[b"data"].tobytes()}, "no array of 3,072 bytes"),
        ([1], "holds a list"),
    ],
)
def test_other_contents(tmp_path, batch, sentence):
    with pytest.raises(DataError, match=sentence):
        load("cifar10", "test", write(tmp_path, batch=batch))


def test_broken_and_missing_files(tmp_path):
    write(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    whole = path.read_bytes()
    for content in (b"", whole[:1000], b"\x80\x02garbage", b"version https://git-lfs"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data_batch_3 is (refused|not a readable pickle)"):
            load("cifar10", "train", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing; unpack the whole archive"):
        load("cifar10", "train", tmp_path)
    with pytest.raises(DataError, match=r"batches\.meta does not list the classes"):
        load("cifar10", "test", write(tmp_path, meta={b"label_names": [b"bird", b"cat"]}))


def test_the_other_layouts(make, tmp_path):
    make.tree(
        tmp_path / "folders/cifar-10/test",
        [(f"{name}/0.png", make.image(i)) for i, name in enumerate(CIFAR10_NAMES)],
    )
    make.shard(tmp_path / "shards/wds_vtab-cifar10/test/0.tar", range(10))
    make.shard(tmp_path / "nested/wds/vtab/cifar10/test/0.tar", range(10))
    for shard in (10, 9, 2):  # parts of 2, of 5 and of 3 images
        make.shard(
            tmp_path / f"flat/cifar10/cifar10-test-{shard}.tar",
            {2: range(3), 9: range(3, 8), 10: range(8, 10)}[shard],
        )
    (tmp_path / "flat/cifar10/._cifar10-test-0.tar").write_bytes(b"left by a Mac")
    make.shard(tmp_path / "flat/cifar10/cifar10-train-000.tar", [*range(10)] * 5)
    sets = [
        load("cifar10", "test", tmp_path / layout)
        for layout in ("folders", "shards", "nested", "flat")
    ]
    assert len({data.fingerprint for data in sets}) == 1
    assert len(load("cifar10", "train", tmp_path / "flat")) == 50


def test_fewer_images_than_promised_are_no_set(make, tmp_path):
    make.shard(tmp_path / "cifar10/test/0.tar", range(9))
    with pytest.raises(
        UserError,
        match=(
            r"9 pictures .webdataset shards., and the set has 10; 1 of 10 classes have none, "
            r"such as 'truck'"
        ),
    ):
        load("cifar10", "test", tmp_path, limit=2)
    (tmp_path / "cifar10/classnames.txt").write_text("\n".join(reversed(CIFAR10_NAMES)))
    with pytest.raises(UserError, match="class 0 is 'truck', in CIFAR-10 it is 'airplane'"):
        load("cifar10", "test", tmp_path)


def test_what_a_worker_raises_arrives_as_what_it_was():
    """Torch makes the error of a data worker again from its message alone."""
    error = DataError("the picture is damaged", fix="get it again")
    again = type(error)(f"Caught in worker: {error}")
    assert "the picture is damaged; get it again" in str(again)
