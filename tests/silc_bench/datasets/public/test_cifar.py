"""CIFAR-100 from both layouts: the same data, the same fingerprint.

Anything doubtful is refused with a sentence.
"""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from silc_bench.datasets.dataset import ImageDataset
from silc_bench.datasets.public.cifar import CLASS_NAMES, load_cifar100
from silc_bench.errors import UserError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 2 * value, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for index, sample in enumerate(samples):
            for extension, data in sample.items():
                header = tarfile.TarInfo(f"{path.stem}-{index:04d}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def labelled(labels: list[int], caption: str | None = "a photo of a {}.") -> list[dict[str, bytes]]:
    samples = [{"png": picture(label), "cls": str(label).encode()} for label in labels]
    if caption is not None:
        for sample, label in zip(samples, labels, strict=True):
            sample["txt"] = caption.format(CLASS_NAMES[label]).encode()
    return samples


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "cifar100/test/000.tar", labelled([3, 99, 0]))
    write_shard(tmp_path / "cifar100/test/001.tar", labelled([47]))
    return tmp_path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for label, name in enumerate(CLASS_NAMES):
        folder = root / "cifar100/train" / name.replace(" ", "_")
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(picture(label))
        (folder / "notes.txt").write_text("not a picture")
    return root


def test_class_names_are_the_hundred_in_alphabetical_order():
    assert len(set(CLASS_NAMES)) == 100
    underscored = [name.replace(" ", "_") for name in CLASS_NAMES]
    assert underscored == sorted(underscored)


def test_shards_become_a_dataset(shards):
    data = load_cifar100(shards, "test")
    assert isinstance(data, ImageDataset)
    assert (data.name, data.split, len(data)) == ("cifar100", "test", 4)
    np.testing.assert_array_equal(data.labels, [3, 99, 0, 47])
    assert data.labels.dtype == np.int64
    assert data.captions == [(f"a photo of a {CLASS_NAMES[label]}.",) for label in (3, 99, 0, 47)]
    assert data.image(1).mode == "RGB"
    assert data.image(1).getpixel((0, 0)) == (99, 198, 156)
    assert data.mask_names == ()
    with pytest.raises(ValueError, match="no masks"):
        data.mask(0)


def test_the_root_may_be_the_folder_of_the_set(shards):
    direct = load_cifar100(shards / "cifar100", "test")
    assert direct.fingerprint == load_cifar100(shards, "test").fingerprint


def test_folders_become_a_dataset_with_the_fingerprint_of_equal_shards(folders, tmp_path):
    data = load_cifar100(folders, "train")
    np.testing.assert_array_equal(data.labels, np.arange(100))
    assert data.captions is None
    assert data.image(42).getpixel((0, 0)) == (42, 84, 213)
    write_shard(tmp_path / "cifar100/train/a.tar", labelled(list(range(100)), caption=None))
    assert load_cifar100(tmp_path, "train").fingerprint == data.fingerprint


def test_limit_takes_evenly_spread_samples(folders):
    np.testing.assert_array_equal(load_cifar100(folders, "train", limit=4).labels, [0, 25, 50, 75])
    assert len(load_cifar100(folders, "train", limit=1000)) == 100
    with pytest.raises(UserError, match="limit of 0"):
        load_cifar100(folders, "train", limit=0)


@pytest.mark.parametrize(
    "samples",
    [
        labelled([3, 99, 1]),
        labelled([99, 3, 0]),
        labelled([3, 99]),
        labelled([3, 99, 0], caption=None),
        labelled([3, 99, 0], caption="a {}"),
        [*labelled([3, 99]), {"png": picture(1), "cls": b"0", "txt": b"a photo of a apple."}],
    ],
)
def test_fingerprint_follows_labels_order_images_and_captions(shards, tmp_path, samples):
    (shards / "cifar100/test/001.tar").unlink()
    before = load_cifar100(shards, "test").fingerprint
    write_shard(tmp_path / "other/cifar100/test/a.tar", samples)
    assert load_cifar100(tmp_path / "other", "test").fingerprint != before
    write_shard(tmp_path / "same/cifar100/test/renamed.tar", labelled([3, 99, 0]))
    assert load_cifar100(tmp_path / "same", "test").fingerprint == before


# ---- refused ----


def test_nothing_found_says_where_it_looked_and_what_fits(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError) as caught:
        load_cifar100(tmp_path, "test")
    for part in (str(tmp_path / "cifar100" / "test"), "*.tar", "<class name>/*.png"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match="--data-root"):
        load_cifar100(None, "test")
    with pytest.raises(UserError, match="did you mean test"):
        load_cifar100(tmp_path, "tests")


def test_a_foreign_folder_named_test_is_no_cifar(tmp_path):
    """What lies under any other root is not ours: it would be counted, and blamed, as CIFAR-100."""
    write_shard(tmp_path / "test/0.tar", labelled([5]))
    (tmp_path / "train/cats").mkdir(parents=True)
    (tmp_path / "meta").write_bytes(b"")
    for split in ("train", "test"):
        with pytest.raises(UserError, match=f"no cifar100 {split} data"):
            load_cifar100(tmp_path, split)


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"png": picture(1)}, r"needs a picture .* and a label"),
        ({"cls": b"1"}, r"needs a picture"),
        ({"png": picture(1), "cls": b"100"}, "0 to 99"),
        ({"png": picture(1), "cls": b"-1"}, "0 to 99"),
        ({"png": picture(1), "cls": b"apple"}, "0 to 99"),
        ({"png": picture(1), "cls": "²".encode()}, "0 to 99"),
        ({"png": picture(1), "cls": b""}, "0 to 99"),
        ({"png": picture(1), "cls": b"9" * 5000}, "0 to 99"),
        ({"png": picture(1), "cls": b"1"}, "1 of 2 samples have a caption"),
    ],
)
def test_incomplete_samples_are_refused(tmp_path, sample, sentence):
    write_shard(tmp_path / "cifar100/test/0.tar", [*labelled([5]), sample])
    with pytest.raises(UserError, match=sentence):
        load_cifar100(tmp_path, "test")


def test_a_damaged_shard_is_no_evaluation_set(shards):
    path = shards / "cifar100/test/000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"damaged shard.*000\.tar"):
        load_cifar100(shards, "test")


def test_a_corrupt_image_is_named(tmp_path):
    samples = labelled([5, 6])
    samples[1]["png"] = samples[1]["png"][:40]
    write_shard(tmp_path / "cifar100/test/0.tar", samples)
    data = load_cifar100(tmp_path, "test")
    data.image(0)
    with pytest.raises(UserError, match=r"0\.tar:0-0001 is damaged: corrupt image"):
        data.image(1)


def test_an_empty_set_is_refused(tmp_path):
    write_shard(tmp_path / "cifar100/test/0.tar", [])
    with pytest.raises(UserError, match="no samples"):
        load_cifar100(tmp_path, "test")


def test_class_names_in_another_order_are_refused(shards):
    names = [name.replace(" ", "_") for name in CLASS_NAMES]
    path = shards / "cifar100/classnames.json"
    path.write_text(json.dumps(names))
    load_cifar100(shards, "test")
    path.write_text(json.dumps([names[1], names[0], *names[2:]]))
    with pytest.raises(UserError, match="class 0 is 'aquarium fish'"):
        load_cifar100(shards, "test")
    path.write_text(json.dumps(names[:20]))
    with pytest.raises(UserError, match="names 20 classes"):
        load_cifar100(shards, "test")
    for text in ("[", "{}", "[1, 2]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"classnames\.json"):
            load_cifar100(shards, "test")
    path.unlink()
    (shards / "cifar100/classnames.txt").write_text("\n".join(reversed(names)))
    with pytest.raises(UserError, match="class 0 is 'worm'"):
        load_cifar100(shards, "test")


def test_wrong_class_folders_are_refused(folders, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folders, root)
    train = root / "cifar100/train"
    (train / "bear").rename(train / "baer")
    with pytest.raises(UserError, match=r"'baer'; did you mean .*bear"):
        load_cifar100(root, "train")
    shutil.rmtree(train / "baer")
    with pytest.raises(UserError, match="lacks 1 of the 100 class folders, such as 'bear'"):
        load_cifar100(root, "train")


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_real_photographs():
    data = load_cifar100(Path(REAL), "test")
    assert len(data) == 2000
    assert data.image(1999).size == (32, 32)
    assert len(np.unique(data.labels)) == 100
    for label, (caption,) in zip(data.labels, data.captions, strict=True):
        assert caption in (
            f"a photo of a {CLASS_NAMES[label]}.",
            f"a photo of an {CLASS_NAMES[label]}.",
        )
    part = load_cifar100(Path(REAL), "test", limit=100)
    assert len(part) == 100
    assert part.fingerprint != data.fingerprint
    np.testing.assert_array_equal(part.labels, data.labels[::20])
