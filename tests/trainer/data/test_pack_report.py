"""Own images -> shards -> what a look at them says; and the page of a run."""

import json
import os
from contextlib import contextmanager

import pytest
from refusals import refused

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import DataError, UserError
from silc_bench.system.checksums import sealed
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.pack import look, pack
from silc_bench.trainer.monitor.report import GROUPS, MEANINGS, write_report

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
    count, num_shards, damage = pack(photos, tmp_path / "shards", per_shard=4)
    assert (count, num_shards) == (6, 2)
    assert damage.counts == {
        "image without a text": 1,
        "corrupt image": 1,
        "image of another format than JPEG, PNG and WebP": 1,
    }
    stream = source(tmp_path / "shards" / "*.tar")
    assert sorted(numbers(take(stream, 1, 0, 6))) == list(range(6))
    assert stream.damage.total == 0
    packed = b"".join(path.read_bytes() for path in (tmp_path / "shards").iterdir())
    assert all(encoded(n) in packed for n in range(6))
    again = pack(photos, tmp_path / "again", per_shard=4)
    assert again[:2] == (6, 2)
    assert packed == b"".join(path.read_bytes() for path in (tmp_path / "again").iterdir()), (
        "the same shards each time"
    )


def test_images_whose_names_are_no_utf8_are_packed(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for suffix, data in ((b".png", encoded(1)), (b".txt", b"number 1")):
        (folder / os.fsdecode(b"\xff" + suffix)).write_bytes(data)
    count, _, damage = pack(folder, tmp_path / "shards")
    assert (count, damage.total) == (1, 0)


def test_a_bar_counts_each_image_broken_ones_too(photos, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def bar(is_shown, title, total):
        seen.append([is_shown, total, 0])
        yield lambda count: seen[-1].__setitem__(2, seen[-1][2] + count)

    monkeypatch.setattr("silc_bench.trainer.data.pack.progress_bar", bar)
    pack(photos, tmp_path / "shards", progress=True)
    look(DataConfig(source=str(photos), decode_size=16), 5, progress=True)
    assert seen == [[True, 8, 8], [True, 5, 5]]


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
    for n in range(9):
        (photos / f"{n}.png").write_bytes(b"broken")
    (photos / "8.bmp").unlink()
    with refused(photos, DataError, is_kept=False):
        pack(photos, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "shards"]


def test_a_look_says_what_training_would_see(photos):
    found = look(DataConfig(source=str(photos), decode_size=10_000), 100)
    assert found["pairs"] == 8
    assert found["quantiles"]["width"] == [12, 12, 12, 12, 12]
    assert found["quantiles"]["words of a caption"][0] == 2
    assert found["damage"] == {"image without a text": 1, "corrupt image": 1}


def test_a_look_at_generated_scenes_does_not_draw_them_as_large_as_images_may_be():
    found = look(DataConfig(source="shapes", decode_size=10_000), 3)
    assert found["quantiles"]["width"] == [512] * 5


def test_what_is_not_there_is_not_a_list_of_another_kind(tmp_path):
    with refused(tmp_path / "nowhere"):
        pack(tmp_path / "nowhere", tmp_path / "shards")


def test_the_page_has_a_curve_of_each_number_and_asks_the_net_for_nothing(tmp_path):
    rows = [
        {"step": step, "loss": 1 / step, "teacher_entropy": 0.5, "<b>own": 1.0}
        for step in range(1, 9)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 9, "lo')
    (tmp_path / "probes.jsonl").write_text(json.dumps({"step": 4, "probe/shapes/knn": 0.25}) + "\n")
    page = write_report(tmp_path).read_text()
    for words in ("teacher_entropy", "probe/shapes/knn", "steps 1 to 8", "&lt;b&gt;own"):
        assert words in page
    assert page.count("<polyline") == 4
    assert "<b>own" not in page
    assert "http" not in page
    assert "src=" not in page


def test_a_page_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"log\.jsonl"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step"',
        b"5",
        b'{"loss": 1.0}',
        b'{"step": 2, "loss": "x"}',
        b'{"step": "2"}',
        b"\xff\xfe",
        b'{"step": 2, "loss": [1]}',
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    row = b'{"step": 1, "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_bytes(row + line + b"\n" + row)
    with pytest.raises(UserError, match=r"log\.jsonl:2"):
        write_report(tmp_path)


def test_numbers_that_are_not_finite_leave_the_rest_of_their_curve(tmp_path):
    rows = [
        {"step": step, "loss": value}
        for step, value in enumerate((2.0, float("inf"), 1.0, float("nan")))
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = write_report(tmp_path).read_text()
    assert 'points="0.00,5.00 100.00,95.00"' in page
    assert "1 to 2, steps 0 to 2" in page
    assert "<span>nan</span>" in page


def test_a_single_row_is_a_dot(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 7, "loss": 2.5}')
    page = write_report(tmp_path).read_text()
    assert 'points="50,50 50,50"' in page
    assert "stroke-linecap:round" in page, "without round ends a line of no length is not drawn"


def test_the_page_does_without_a_checkpoints_damaged_words(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 7, "loss": 2.5}')
    (tmp_path / "checkpoints").mkdir()
    whole = json.dumps(sealed({"score": 0.5, "config": {"preset": "b16", "objective": "silc"}}))
    for step, words in (
        (5, whole),
        (6, '{"score": 0.'),
        (7, "3"),
        (8, whole.replace("0.5", "0.6")),
    ):
        (tmp_path / "checkpoints" / f"step_{step}.json").write_text(words)
    page = write_report(tmp_path).read_text()
    assert "best checkpoint: step_5" in page
    assert "<h1>b16-silc</h1>" in page


def test_the_page_begins_with_what_the_run_said(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 7, "loss": 2.5}')
    assert "What the run said" not in write_report(tmp_path).read_text()
    notes = [
        {"step": 1, "note": "step 1: <b>one</b>"},
        {"step": 1, "note": "step 1: <b>one</b>"},
        {"step": 2, "note": "two"},
    ]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, notes)) + '\n{"step": 3, "no')
    page = write_report(tmp_path).read_text()
    assert "<ul><li>step 1: &lt;b&gt;one&lt;/b&gt;</li><li>two</li></ul>" in page
    assert page.index("What the run said") < page.index("Losses")


def test_a_name_of_any_bytes_is_damage_that_can_be_said():
    damage = Damage()
    damage.add("corrupt image", os.fsdecode(b"photos/\xff.jpg"))
    assert damage.summary().encode() == rb"1 damaged: 1 corrupt image (first: photos/\udcff.jpg)"


def test_a_folder_in_the_place_of_the_page_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 7, "loss": 2.5}')
    with pytest.raises(UserError, match=str(tmp_path)):
        write_report(tmp_path, tmp_path)


def test_every_number_of_a_group_that_needs_words_has_them():
    """But for the gradients' parts, whose names say it."""
    named = {
        name for names in GROUPS.values() for name in names if not name.startswith("gradient_norm_")
    }
    assert named == set(MEANINGS)
