"""What each sample scored, kept: round trips, size, and every file that is not its record's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made import record_of
from refusals import refused

from silc_bench.errors import DataError
from silc_bench.results import outcomes
from silc_bench.results.folders import read
from silc_bench.results.record import save
from silc_bench.system import archives

N = 60
RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], [30, 20, 10])
HITS = RNG.random(N) < 0.6
RANKS = RNG.integers(0, 40, N)
IMAGE = np.repeat(np.arange(N), 3)  # three captions each
ASKED = RNG.integers(0, 40, len(IMAGE))
BOTH = RNG.integers(1, 2000, (N, 4))
AREAS = np.stack([BOTH, BOTH + 9, BOTH + 50], axis=1)
ARRAYS = {
    "acc1": HITS,
    "labels": LABELS,
    "acc1_1shot": np.stack([HITS, ~HITS, HITS], axis=1),
    "text_retrieval_rank": RANKS,
    "image_retrieval_rank": ASKED,
    "image_retrieval_picture": IMAGE,
    "areas": AREAS,
    "boundary_areas": AREAS // 2,
    "foreground_areas": AREAS[:, :2, 0],
    "patch_recall@1": np.stack([BOTH // 9, BOTH], axis=1),
}
SUMS, HALVED = AREAS.sum(axis=0), (AREAS // 2).sum(axis=0)
METRICS = {  # pack refuses what does not follow from the arrays
    "acc1": HITS.mean(),
    "acc1_1shot": (2 * HITS.sum() + (~HITS).sum()) / (3 * N),
    "mean_per_class_recall": np.mean([HITS[label == LABELS].mean() for label in range(3)]),
    "text_retrieval_recall@1": (RANKS < 1).mean(),
    "text_retrieval_recall@10": (RANKS < 10).mean(),
    "image_retrieval_recall@5": (ASKED < 5).mean(),
    "mIoU": np.mean(SUMS[0] / (SUMS[1] + SUMS[2] - SUMS[0])),
    "pixel_accuracy": SUMS[0].sum() / SUMS[2].sum(),
    "mean_class_accuracy": np.mean(SUMS[0] / SUMS[2]),
    "boundary_mIoU": np.mean(HALVED[0] / (HALVED[1] + HALVED[2] - HALVED[0])),
    "foreground_iou": (AREAS[:, 0, 0] / AREAS[:, 1, 0]).mean(),
    "patch_recall@1": ((BOTH // 9).sum(axis=0) / BOTH.sum(axis=0)).mean(),
    "text_retrieval_median_rank": np.median(RANKS) + 1,
}
RECORD = record_of("a", {"acc1": HITS.mean()}, n=N)


def test_what_is_kept_comes_back_and_gives_the_metrics(tmp_path):
    record = record_of("a", METRICS, n=N)
    packed = outcomes.pack(ARRAYS, record)
    assert packed == outcomes.pack(ARRAYS, record), "the same bytes"
    outcomes.save(packed, record, tmp_path)
    path = save(record, tmp_path)
    assert {path, outcomes.path_of(record, tmp_path)} == set(path.parent.iterdir())

    again = outcomes.load(record, tmp_path)
    assert again.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(again[name], array)
        assert again[name].dtype.kind == ("b" if array.dtype == bool else "u")
    by_image = {metric: outcomes.per_image(again, metric) for metric in METRICS}
    assert by_image.pop("text_retrieval_median_rank") is None
    assert all(len(parts.counts) == N for parts in by_image.values())
    assert read([tmp_path]).records == [record], "the leaderboard reads records and nothing else"


def test_hits_have_a_bitmap_where_an_image_is_hit_or_missed():
    hits = outcomes.per_image(ARRAYS, "text_retrieval_recall@5").hits
    assert np.array_equal(hits, RANKS[:, None] < 5)
    # captions of an image are not independent
    assert outcomes.per_image(ARRAYS, "image_retrieval_recall@5").hits is None
    assert outcomes.per_image(ARRAYS, "acc1_1shot").hits.shape == (N, 3)
    assert outcomes.per_image(ARRAYS, "acc5") is None


def test_it_is_small():
    hits = RNG.random(50_000) < 0.5
    record = record_of("a", hits.mean(), n=50_000)
    assert len(outcomes.pack({"acc1": hits}, record)) < 7_000


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
        ("foreground_areas", np.zeros((N, 2), int), {}),
        ("patch_recall@1", AREAS[:, ::-2], {}),
        ("patch_recall@1", AREAS, {}),
        ("patch_recall@1", AREAS[:, :2] > 1, {}),
    ],
)
def test_what_a_task_must_not_hand_over(name, array, others):
    record = record_of("a", {"acc1": HITS.mean(), "patch_recall@1": 0.5}, n=N)
    arrays = others if array is None else {name: array, **others}
    with pytest.raises(ValueError, match=name):
        outcomes.pack(arrays, record)


# ---- files that do not belong, or are damaged ----


@pytest.fixture
def path(tmp_path):
    """Of the outcomes of RECORD."""
    outcomes.save(outcomes.pack({"acc1": HITS}, RECORD), RECORD, tmp_path)
    return outcomes.path_of(RECORD, tmp_path)


def is_refused(record, folder, is_kept=False):
    with refused(outcomes.path_of(record, folder), kind=DataError, is_kept=is_kept) as caught:
        outcomes.load(record, folder)
    return caught.value.problem


def test_without_outcomes_nothing_is_written_and_older_ones_go(path, tmp_path):
    assert outcomes.pack({}, RECORD) == b""
    outcomes.save(b"", RECORD, tmp_path)
    assert not path.exists()
    assert outcomes.load(RECORD, tmp_path) is None


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, acc1=np.packbits(HITS), **arrays)
    return buffer.getvalue()


def stating(schema=outcomes.SCHEMA_VERSION, acc1=HITS, **changes):
    """A whole archive that does not say what RECORD says."""
    header = {"revision": RECORD.model.revision, "key": RECORD.key, "bits": {"acc1": [N]}}
    return archives.pack(schema, header | changes, {"acc1": np.packbits(acc1)})


FOREIGN = {
    "no header": npz(),
    "a pickle, which is never read": npz(header=np.array([{"a": 1}], dtype=object)),
    "older": stating(schema="outcomes/1"),
    "another key": stating(key="0" * 8),
    "other hits": stating(acc1=~HITS),
    **{f"bits {bits}": stating(bits={"acc1": bits}) for bits in ([N + 8], ["x"], [-N])},
    "no bits": stating(bits={}),
    "bits are no table": stating(bits=3),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_the_records(path, tmp_path, content):
    path.write_bytes(content)
    is_refused(RECORD, tmp_path)


def test_an_enormous_array_is_not_unpacked(path, tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "MAX_BYTES", 1 << 16)
    arrays = {"acc1": np.zeros(1 << 16, np.uint8)}
    path.write_bytes(archives.pack(outcomes.SCHEMA_VERSION, {}, arrays, is_compressed=True))
    assert path.stat().st_size < 2000
    assert "claims 65," in is_refused(RECORD, tmp_path)


def test_outcomes_of_another_record_are_refused(path, tmp_path):
    other = record_of("a", HITS.mean(), n=N, limit=N)
    outcomes.path_of(other, tmp_path).write_bytes(path.read_bytes())
    weights = record_of("a", HITS.mean(), n=N, revision=RECORD.model.revision[:8] + "f" * 8)
    changed = record_of("a", HITS.mean() + 1 / N, n=N)
    assert weights.key == changed.key == RECORD.key
    for wrong in (other, weights, changed):
        is_refused(wrong, tmp_path)
