"""Own images -> shards -> what a look at them says."""

import json
import os
from contextlib import contextmanager

import pytest
from refusals import refused

from silc_bench.errors import DataError
from silc_bench.trainer.config.config import DataConfig, TextConfig
from silc_bench.trainer.data.pack import look, pack

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
        count, num_shards, damage = pack(photos, tmp_path / name, per_shard=4)
        assert (count, num_shards) == (7, 2)
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1]
    assert all(encoded(n) in b"".join(contents[0]) for n in range(6))
    assert damage.counts == {"image without a text": 1, "corrupt image": 1}
    stream = source(tmp_path / "shards" / "*.tar")
    assert sorted(numbers(take(stream, 1, 0, 7))) == [*range(6), 8]


def test_images_whose_names_are_no_utf8_are_packed(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in ((b"\xff", encoded(1)), (b"\xfe", b"broken")):
        (folder / os.fsdecode(name + b".png")).write_bytes(image)
        (folder / os.fsdecode(name + b".txt")).write_text("number 1")
    count, _, damage = pack(folder, tmp_path / "shards")
    assert count == 1
    where = rf"{folder}/\udcfe.png"
    assert damage.summary() == f"1 damaged: 1 corrupt image (first: {where})"


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
