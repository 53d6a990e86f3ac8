"""Fingerprints are remembered for files in exactly the state they were read in, and no others."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from silc_bench.datasets import image_set as fingerprints
from silc_bench.datasets.check import check
from silc_bench.datasets.image_set import notes_on, remembered
from silc_bench.datasets.own_data import parse
from silc_bench.errors import DataError
from silc_bench.system.cache import Store


@pytest.fixture
def pets(make, tmp_path):
    names = ("a/0", "a/1", "b/0", "b/1")
    files = [(f"{name}.png", make.image(number)) for number, name in enumerate(names)]
    return make.tree(tmp_path / "pets", files)


@pytest.fixture
def read(monkeypatch):
    """The images that are read."""
    read, tracked = [], fingerprints.tracked
    monkeypatch.setattr(
        fingerprints, "tracked", lambda images, *rest: read.extend(images) or tracked(images, *rest)
    )
    return read


@pytest.fixture
def hashed(monkeypatch, tmp_path, read):
    """Fingerprint of a word, as a command makes it, and how many images were read for it.

    All files count as settled.
    """
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    store = Store(tmp_path / "cache")

    def made(word, kept_in=store):
        read.clear()
        with remembered(kept_in):
            fingerprint = parse(word).load("test").fingerprint
        return fingerprint, len(read)

    return made


def test_files_are_read_once(hashed, make, pets, town):
    make.shard(pets / "0.tar", [0, 1, 1])
    (pets / "classnames.txt").write_text("a\nb")
    for word, count in ((f"folder:{pets}", 4), (f"wds:{pets}/0.tar", 3), (town(), 2)):
        first, again, never = hashed(word), hashed(word), hashed(word, None)
        assert first == never == (first[0], count)
        assert again == (first[0], 0)


def test_findings_are_remembered_too(monkeypatch, tmp_path, town, make, read):
    """Every count with its first place, and which classes there are, without reading a file."""
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    word = town({"names": ["sky", "road", "tree", "sea"], "ignore": [255]})
    nothing = make.encoded(np.full((9, 9), 255, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3
    upside_down = make.encoded(np.zeros((9, 9, 3), np.uint8), "JPEG", exif=exif)
    make.tree(tmp_path, [("masks/deep/b.png", nothing), ("images/deep/b.jpg", upside_down)])

    seen = []
    for _ in range(2):
        read.clear()
        with remembered(Store(tmp_path / "cache")):
            data = parse(word).load("test")
            seen.append((data.findings, data.notes, data.fingerprint))
    assert not read
    assert seen[0] == seen[1]
    findings, notes, _ = seen[0]
    assert findings.turned == findings.unlabelled == fingerprints.Tally(1, 1)
    assert findings.has_ignored
    assert findings.is_present == (True, True, True, False)
    assert [note.split(": ")[1][:2] for note in notes] == ["1 ", "1 ", "1 "]


def rewrite(path):
    """As many other bytes, under the old time."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace_by_another(path):
    """Another file moved into its place: other content under the old name, size and time."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    rewrite(other)
    os.replace(other, path)


CHANGES = {
    "other bytes under the old time": rewrite,
    "another file in its place": replace_by_another,
    "touched": lambda path: os.utime(path),
    "removed": lambda path: path.unlink(),
    "another name": lambda path: path.rename(path.with_name("z.png")),
    "one image more": lambda path: shutil.copy(path, path.with_name("2.png")),
    "another class": lambda path: path.rename(path.parent.parent / "b/9.png"),
    "other names of the classes": lambda path: (path.parent.parent / "classnames.txt").write_text(
        "x\ny"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(hashed, pets, change):
    word = f"folder:{pets}"
    before, _ = hashed(word)
    CHANGES[change](pets / "a/1.png")
    after, num_read = hashed(word)
    assert num_read >= 3, "all that is there is read again"
    assert after == hashed(word, None)[0]
    assert (after == before) == (change in ("touched", "another name"))


@pytest.mark.parametrize("change", ["other bytes", "touched", "another rule"])
def test_a_change_of_a_mask_is_noticed(hashed, town, tmp_path, make, change):
    word = town()
    before, _ = hashed(word)
    mask = tmp_path / "masks/a.png"
    if change == "another rule":
        town({"names": ["sky", "road", "tree"], "ignore": [7]})
    elif change == "touched":
        os.utime(mask)
    else:
        mask.write_bytes(make.encoded(make.mask(0)[::-1]))
    after, num_read = hashed(word)
    assert num_read == 2
    assert (after == before) == (change != "other bytes")

    mask.write_bytes(make.encoded(make.mask(0) + 7))
    with refused("masks/a.png", DataError):
        hashed(word)


def test_files_that_changed_a_moment_ago_are_not_remembered(hashed, pets, monkeypatch):
    monkeypatch.setattr(fingerprints, "SETTLED", 3600.0)
    word = f"folder:{pets}"
    assert [hashed(word)[1] for _ in range(2)] == [4, 4]


def test_what_changes_while_it_is_read_is_not_remembered(hashed, pets, monkeypatch):
    word, real = f"folder:{pets}", fingerprints.look_through

    def interrupted(*args):
        found = real(*args)
        rewrite(pets / "a/0.png")
        return found

    monkeypatch.setattr(fingerprints, "look_through", interrupted)
    hashed(word)
    monkeypatch.setattr(fingerprints, "look_through", real)
    assert hashed(word)[1] == 4


def test_a_file_that_is_gone_is_named(pets):
    data = parse(f"folder:{pets}").load("test")
    (pets / "b/1.png").unlink()
    with remembered(Store(pets.parent / "cache")), refused(pets / "b/1.png"):
        _ = data.fingerprint


def test_data_check_always_reads(hashed, pets, read, tmp_path):
    first, _ = hashed(f"folder:{pets}")
    read.clear()
    with remembered(Store(tmp_path / "cache")):
        report = check(f"folder:{pets}")
    assert report.found[-1].endswith(first)
    assert len(read) == 4


def test_what_both_splits_hold_is_looked_for_once(make, tmp_path, monkeypatch):
    """Of equal size are all of them, equal are two."""
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    for split, numbers in (("train", (1, 2, 3)), ("test", (4, 3, 2, 5))):
        for name in "ab":
            files = [(f"{split}/{name}/{n}.png", make.image(n)) for n in numbers if name == "a"]
            make.tree(tmp_path / "pets", [*files, (f"{split}/b/{split}.png", make.image(9))])
    store = Store(tmp_path / "cache")
    looked = []
    real = fingerprints._twins
    monkeypatch.setattr(fingerprints, "_twins", lambda *both: looked.append(both) or real(*both))

    def notes():
        own = parse(f"folder:{tmp_path}/pets")
        with remembered(store):
            return notes_on({split: own.load(split) for split in ("test", "train")})

    (note,) = first = notes()
    assert (
        f": 3 of the 5 images that are scored are learned from too, the first: {tmp_path}" in note
    )
    assert notes() == first
    assert len(looked) == 1
    make.tree(tmp_path / "pets", [("train/a/7.png", make.image(4))])
    assert ": 4 of the 5 " in notes()[0]
