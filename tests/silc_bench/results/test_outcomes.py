"""What each sample scored, kept: round trips, size, and every file that is not its record's."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
import pytest
from refusals import refused

from silc_bench.errors import DataError
from silc_bench.results import outcomes
from silc_bench.results.record import load_all, save
from silc_bench.system import archives

N = 60
RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], [30, 20, 10])
HITS = RNG.random(N) < 0.6
RANKS = RNG.integers(0, 40, N)
IMAGE = np.repeat(np.arange(N), 3)  # three captions each
ASKED = RNG.integers(0, 40, len(IMAGE))
INTERSECTION = RNG.integers(1, 2000, (N, 4))
AREAS = np.stack([INTERSECTION, INTERSECTION + 9, INTERSECTION + 50], axis=1)
HALVED = (AREAS // 2).sum(axis=0)

CASES = {
    "classification": (
        {"acc1": HITS, "labels": LABELS},
        {
            "acc1": HITS.mean(),
            "mean_per_class_recall": np.mean([HITS[label == LABELS].mean() for label in range(3)]),
        },
    ),
    "few-shot": (
        {"acc1_1shot": np.stack([HITS, ~HITS, HITS], axis=1)},
        {"acc1_1shot": (2 * HITS.sum() + (~HITS).sum()) / (3 * N)},
    ),
    "retrieval": (
        {
            "text_retrieval_rank": RANKS,
            "image_retrieval_rank": ASKED,
            "image_retrieval_picture": IMAGE,
        },
        {
            "text_retrieval_recall@1": (RANKS < 1).mean(),
            "text_retrieval_recall@10": (RANKS < 10).mean(),
            "image_retrieval_recall@5": (ASKED < 5).mean(),
            "text_retrieval_median_rank": np.median(RANKS) + 1,
        },
    ),
    "segmentation": (
        {"areas": AREAS, "boundary_areas": AREAS // 2},
        {
            "mIoU": np.mean(AREAS[:, 0].sum(0) / (AREAS[:, 1] + AREAS[:, 2] - AREAS[:, 0]).sum(0)),
            "pixel_accuracy": AREAS[:, 0].sum() / AREAS[:, 2].sum(),
            "mean_class_accuracy": np.mean(AREAS[:, 0].sum(0) / AREAS[:, 2].sum(0)),
            "boundary_mIoU": np.mean(HALVED[0] / (HALVED[1] + HALVED[2] - HALVED[0])),
        },
    ),
    "discovery": (
        {"foreground_areas": AREAS[:, :2, 0]},
        {"foreground_iou": (AREAS[:, 0, 0] / AREAS[:, 1, 0]).mean()},
    ),
    "correspondence": (
        {
            f"patch_recall@{k}": np.stack([INTERSECTION // 9 * k, INTERSECTION], axis=1)
            for k in (1, 5)
        },
        {
            f"patch_recall@{k}": ((INTERSECTION // 9 * k).sum(0) / INTERSECTION.sum(0)).mean()
            for k in (1, 5)
        },
    ),
}


@pytest.fixture
def make(make):
    return lambda metrics, **fields: make(metrics, **{"n": N, **fields})


@pytest.mark.parametrize("kind", CASES)
def test_what_is_kept_comes_back_and_gives_the_metrics(kind, make, tmp_path):
    arrays, metrics = CASES[kind]
    record = make(metrics)
    packed = outcomes.pack(arrays, record)
    assert packed == outcomes.pack(arrays, record), "the same bytes"
    outcomes.save(packed, record, tmp_path)
    path = save(record, tmp_path)
    assert {path, outcomes.path_of(record, tmp_path)} == set(path.parent.iterdir())

    again = outcomes.load(record, tmp_path)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(again[name], array)
        assert again[name].dtype == bool if array.dtype == bool else again[name].dtype.kind == "u"
    for metric, value in metrics.items():
        parts = outcomes.per_image(again, metric)
        if "median" in metric:
            assert parts is None
            continue
        assert len(parts.counts) == N
        total = parts.statistic(parts.counts.sum(axis=0)[None])[0]
        assert total == pytest.approx(value, abs=1e-12)
    assert load_all(tmp_path) == [record], "the leaderboard reads records and nothing else"


def test_hits_have_a_bitmap_where_an_image_is_hit_or_missed():
    arrays = CASES["retrieval"][0]
    hits = outcomes.per_image(arrays, "text_retrieval_recall@5").hits
    assert np.array_equal(hits, RANKS[:, None] < 5)
    # captions of an image are not independent
    assert outcomes.per_image(arrays, "image_retrieval_recall@5").hits is None
    assert outcomes.per_image(CASES["few-shot"][0], "acc1_1shot").hits.shape == (N, 3)
    assert outcomes.per_image(CASES["classification"][0], "acc5") is None


def test_it_is_small(make):
    hits = np.random.default_rng(1).random(50_000) < 0.5
    record = make({"acc1": hits.mean()}, n=50_000)
    assert len(outcomes.pack({"acc1": hits}, record)) < 7_000


def test_without_outcomes_nothing_is_written_and_older_ones_go(kept):
    record, path, folder = kept
    assert outcomes.pack({}, record) == b""
    outcomes.save(b"", record, folder)
    assert not path.exists()
    assert outcomes.load(record, folder) is None


def test_a_failing_write_leaves_the_old_file(kept, monkeypatch):
    record, path, folder = kept

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        outcomes.save(b"new", record, folder)
    assert np.array_equal(outcomes.load(record, folder)["acc1"], HITS)
    assert list(path.parent.iterdir()) == [path]


SHARES = np.zeros((N, 2), int)


@pytest.mark.parametrize(
    ("name", "array", "others"),
    [
        ("acc1", HITS[:-1], {}),
        ("acc1", HITS.astype(int), {}),
        ("acc1", ~HITS, {}),
        ("acc9", HITS, {}),
        ("labels", LABELS - 1, {}),
        ("labels", LABELS[1:], {}),
        ("text_retrieval_rank", RANKS / 2, {}),
        ("image_retrieval_picture", None, {"image_retrieval_rank": ASKED}),
        ("image_retrieval_picture", IMAGE + 1, {"image_retrieval_rank": ASKED}),
        ("areas", AREAS[:, :2], {}),
        ("foreground_areas", SHARES, {}),
        ("patch_recall@1", AREAS[:, ::-2], {}),
        ("patch_recall@1", AREAS, {}),
        ("patch_recall@1", AREAS[1:, :2], {}),
        ("patch_recall@1", AREAS[:, :2] > 1, {}),
        ("patch_recall@1", AREAS[:, :2, 0], {}),
    ],
)
def test_what_a_task_must_not_hand_over(name, array, others, make):
    record = make({"acc1": HITS.mean(), "patch_recall@1": 0.5})
    arrays = others if array is None else {name: array, **others}
    with pytest.raises(ValueError, match=name):
        outcomes.pack(arrays, record)


# ---- files that do not belong, or are damaged ----


@pytest.fixture
def kept(make, tmp_path):
    arrays, metrics = CASES["classification"]
    record = make(metrics)
    outcomes.save(outcomes.pack(arrays, record), record, tmp_path)
    return record, outcomes.path_of(record, tmp_path), tmp_path


def is_refused(record, folder, is_kept=True):
    with refused(outcomes.path_of(record, folder), kind=DataError, is_kept=is_kept) as caught:
        outcomes.load(record, folder)
    return caught.value.problem


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as plain:
        plain.writestr(name, content)
    return buffer.getvalue()


HEADER = json.dumps({"schema": outcomes.SCHEMA_VERSION, "bits": {}}).encode()
PICKLE = np.array([{"a": 1}], dtype=object)  # which is never read


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"not a zip",
        b"\x93NUMPY" + b"x" * 40,
        zipped("header", "text"),
        npz(acc1=np.packbits(HITS)),
        npz(header=np.frombuffer(HEADER, np.uint8), acc1=np.packbits(HITS)),
        npz(header=PICKLE, acc1=np.packbits(HITS)),
    ],
    ids=["empty", "cut", "text", "an array", "no array", "no header", "no list", "a pickle"],
)
def test_a_file_that_is_not_ours(kept, content):
    record, path, folder = kept
    path.write_bytes(content)
    is_refused(record, folder, is_kept=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "outcomes/1"},
        {"key": "0" * 8},
        {"bits": {"acc1": [N + 8]}},
        {"bits": {"acc1": ["x"]}},
        {"bits": {"acc1": [-N]}},
        {"bits": {}},
        {"bits": 3},
        {"acc1": np.packbits(~HITS)},
    ],
    ids=str,
)
def test_a_whole_archive_that_does_not_say_what_the_record_says(kept, changes):
    record, path, folder = kept
    fields = {"schema": outcomes.SCHEMA_VERSION, "acc1": np.packbits(HITS)}
    fields |= {"revision": record.model.revision, "key": record.key, "bits": {"acc1": [N]}}
    fields |= changes
    arrays = {"acc1": fields.pop("acc1")}
    path.write_bytes(archives.pack(fields.pop("schema"), fields, arrays))
    is_refused(record, folder, is_kept=False)


def test_an_enormous_array_is_not_unpacked(kept, monkeypatch):
    record, path, folder = kept
    monkeypatch.setattr(outcomes, "MAX_BYTES", 1 << 16)
    arrays = {"acc1": np.zeros(1 << 16, np.uint8)}
    path.write_bytes(archives.pack(outcomes.SCHEMA_VERSION, {}, arrays, is_compressed=True))
    assert path.stat().st_size < 2000
    assert "claims 65," in is_refused(record, folder)


def test_outcomes_of_another_record_are_refused(kept, make):
    record, path, folder = kept
    metrics = record.metrics
    other = make(metrics, limit=N)
    outcomes.path_of(other, folder).write_bytes(path.read_bytes())
    weights = make(metrics, revision="01234567" + "f" * 8)
    changed = make({**metrics, "acc1": metrics["acc1"] + 1 / N})
    assert weights.key == changed.key == record.key
    for wrong in (other, weights, changed):
        is_refused(wrong, folder)
