"""Own images -> shards -> what a look at them says."""

import json
import os
import re
import shutil
import tarfile
from contextlib import contextmanager

import numpy as np
import pytest
from commands import SETS, succeed
from PIL import Image
from refusals import refused

from silc_bench.errors import DataError
from silc_bench.trainer.config.config import DataConfig, TextConfig
from silc_bench.trainer.data.pack import TEST, TRAIN, _near, look, pack, share_of

from pairs import encoded, numbers, source, take, texts_of  # isort: skip

pytestmark = pytest.mark.broad


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(7):
        (folder / f"{n}.png").write_bytes(encoded(n))
        (folder / f"{n}.txt").write_text(f"number {n}\n")
    (folder / "6.png").write_bytes(b"no image")
    (folder / "7.png").write_bytes(encoded(7))
    (folder / "8.bmp").write_bytes(encoded(8, kind="BMP"))
    (folder / "8.txt").write_text("number 8")
    return folder


def test_packed_images_are_those_of_the_folder_byte_for_byte(photos, tmp_path):
    contents = []
    for name in ("shards", "the same again"):
        packed = pack(photos, tmp_path / name, per_shard=4)
        assert (packed.pairs, packed.shards) == ({"": 7}, {"": 2})
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1]
    assert all(encoded(n) in b"".join(contents[0]) for n in range(6))
    assert packed.damage.counts == {"image without a text": 1, "corrupt image": 1}
    stream = source(tmp_path / "shards" / "*.tar")
    assert sorted(numbers(take(stream, 1, 0, 7))) == [*range(6), 8]


def test_images_whose_names_are_no_utf8_are_packed(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in ((b"\xff", encoded(1)), (b"\xfe", b"broken")):
        (folder / os.fsdecode(name + b".png")).write_bytes(image)
        (folder / os.fsdecode(name + b".txt")).write_text("number 1")
    packed = pack(folder, tmp_path / "shards")
    assert packed.pairs == {"": 1}
    where = rf"{folder}/\udcfe.png"
    assert packed.damage.summary() == f"1 damaged: 1 corrupt image (first: {where})"


def test_a_bar_counts_each_image_broken_ones_too(photos, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def bar(is_shown, title, total):
        seen.append((is_shown, total))
        yield seen.append

    monkeypatch.setattr("silc_bench.trainer.data.pack.progress_bar", bar)
    pack(photos, tmp_path / "shards", progress=True)
    look(DataConfig(source=str(photos), decode_size=16), 5, TextConfig(), progress=True)
    assert seen == [(True, 8), *[1] * 8, (True, 5), *[1] * 5]


def test_several_captions_and_columns_are_kept(photos, tmp_path):
    rows = [
        {"file": "0.png", "captions": ["a  red\nthing", "b"], "score": 0.5},
        {"file": "1.png", "captions": ["c"], "score": 0.1},
    ]
    (photos / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pack(photos / "list.jsonl", tmp_path / "shards")
    texts = texts_of(tmp_path / "shards", 20, filters="score>0.3 width=12")
    assert set(texts) == {"a red thing", "b"}


def test_nothing_is_overwritten_and_nothing_left_of_a_failure(photos, tmp_path):
    pack(photos, tmp_path / "shards")
    with refused(tmp_path / "shards"):
        pack(photos, tmp_path / "shards")
    for image in photos.glob("*.[pb]*"):
        image.write_bytes(b"broken")
    with refused(photos, DataError, is_kept=False):
        pack(photos, tmp_path / "other")
    with refused(tmp_path / "nowhere"):
        pack(tmp_path / "nowhere", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "shards"]


def test_a_look_says_what_training_would_see(photos):
    seen = look(DataConfig(source=str(photos), decode_size=10_000), 100, TextConfig())
    assert seen["pairs"] == 8
    assert seen["quantiles"]["width"] == [12] * 5
    assert seen["quantiles"]["words of a caption"] == [2] * 5
    assert seen["damage"] == {"image without a text": 1, "corrupt image": 1}


def test_a_look_at_generated_scenes_does_not_draw_them_as_large_as_images_may_be():
    seen = look(DataConfig(source="shapes", decode_size=10_000), 3, TextConfig())
    assert seen["quantiles"]["width"] == [512] * 5


# ---- what is held out ----


def noise(seed, size=(96, 72)):
    """An image of coarse noise, which survives being made smaller."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def photo(folder, name, image, **options):
    folder.mkdir(exist_ok=True)
    image.save(folder / name, **options)
    (folder / name).with_suffix(".txt").write_text(name)


def captions_in(folder, begin):
    """Of all shards whose names begin so: a caption names its image."""
    names = set()
    for path in folder.glob(f"{begin}*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    names.add(tar.extractfile(member).read().decode())
    return names


@pytest.fixture
def hundred(tmp_path):
    for number in range(100):
        photo(tmp_path / "photos", f"{number}.png", noise(number))
    return tmp_path / "photos"


def test_copies_of_an_image_are_on_one_side_however_they_are_stored(hundred, tmp_path):
    """The same bytes; the same pixels as BMP; compressed, smaller: nearly the same."""
    for number in range(100):
        image = noise(number)
        shutil.copy(hundred / f"{number}.png", hundred / f"bytes-{number}.png")
        (hundred / f"bytes-{number}.txt").write_text(f"bytes-{number}.png")
        photo(hundred, f"pixels-{number}.bmp", image)
        photo(hundred, f"jpeg-{number}.jpg", image, quality=70)
        photo(hundred, f"small-{number}.png", image.resize((48, 36), Image.Resampling.BOX))
    packed = pack(hundred, tmp_path / "shards", test="30%")
    numbers = {}
    for begin in (TRAIN, TEST):
        names = captions_in(tmp_path / "shards", begin)
        assert len(names) == packed.pairs[begin]
        numbers[begin] = {re.search(r"\d+", name)[0] for name in names}
    assert not numbers[TRAIN] & numbers[TEST]
    assert sum(packed.pairs.values()) + packed.num_near == 500
    assert 10 < len(numbers[TEST]) < 50
    assert bool(packed.first_near) == bool(packed.num_near)


def test_no_image_changes_sides_when_there_are_more(hundred, tmp_path):
    pack(hundred, tmp_path / "few", test="20%")
    for number in range(100, 160):
        photo(hundred, f"{number}.png", noise(number))
    pack(hundred, tmp_path / "more", test="20%")
    pack(hundred, tmp_path / "again", test="20%", per_shard=50)
    few, more, again = (
        [captions_in(tmp_path / name, begin) for begin in (TRAIN, TEST)]
        for name in ("few", "more", "again")
    )
    assert more == again
    assert few[0] < more[0]
    assert few[1] < more[1]


def test_an_image_for_testing_that_is_near_one_for_training_is_left_out():
    is_near = _near([0xFF << 50, 0xFFFF])
    assert is_near(0xFF << 50 | 0x7F)
    assert not is_near(0xFF << 50 | 0xFF)
    assert not is_near(0)
    assert not _near([])(0)


@pytest.mark.parametrize(
    ("test", "share"),
    [("10%", 0.1), (" 12.5% ", 0.125), ("70", 0.1), ("1", 0.00143), ("699", 0.999)],
)
def test_a_share_is_a_percentage_or_a_number_of_images(test, share):
    assert share_of(test, 700) == pytest.approx(share)


@pytest.mark.parametrize("test", ["0", "0%", "100%", "700", "-1", "nan%", "0.1", "ten", "%"])
def test_what_is_no_share_is_refused(test):
    with refused(about=f"--test {test}"):
        share_of(test, 700)


@pytest.mark.parametrize(("share", "side"), [("0.001%", "testing"), ("99.999%", "training")])
def test_a_side_without_an_image_is_refused_and_leaves_nothing(hundred, tmp_path, share, side):
    with refused(about=f"--test {share}") as caught:
        pack(hundred, tmp_path / "shards", test=share)
    assert side in caught.value.problem
    assert not (tmp_path / "shards").exists()


def test_the_lines_that_pack_prints_work_on_its_shards(hundred, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
    (hundred / "100.png").write_bytes(b"broken")
    (hundred / "100.txt").write_text("broken")
    said = succeed(f"data pack '{hundred}' 'my shards' --test 30").splitlines()
    assert said[0].endswith(" pairs for training in 1 shard to my shards")
    assert "1 corrupt image" in said[2]
    assert said[3].endswith("--test 29.7%")
    stats, train, evaluate = (line.split("silc-bench ")[1] for line in said[-3:])
    assert "nothing is damaged" in succeed(stats)
    ended = succeed(f"{train} --device cpu {SETS} --set views.local_size=8 --samples 8")
    assert ended.splitlines()[-1].endswith(evaluate)
    assert "retrieval" in succeed(f"{evaluate} --device cpu")
