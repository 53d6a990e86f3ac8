"""What each sample scored, kept: round trips, size, and every file that is not its record's."""

from __future__ import annotations

import json
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from silc_bench.errors import UserError
from silc_bench.results import outcomes
from silc_bench.results.protocol import Protocol
from silc_bench.results.record import Record, load_all, save
from silc_bench.system import archives
from silc_bench.task import Scores

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


def make(metrics, *, n=N, revision="0123456789abcdef", limit=None):
    main = next(iter(metrics))
    model = SimpleNamespace(
        name="a:student",
        revision=revision,
        num_params=7,
        image_size=64,
        image_protocol={},
        text_protocol={},
    )
    task = SimpleNamespace(
        name="made/up",
        version=1,
        group="zero-shot",
        main_metric=main,
        requires=frozenset(),
        protocol=dict,
    )
    data = SimpleNamespace(name="made", split="test", fingerprint="0" * 16)
    scores = Scores({name: float(value) for name, value in metrics.items()}, {}, n, chance=0.1)
    return Record.create(
        model,
        task,
        data,
        scores,
        Protocol.of(model, task, "fp32"),
        model_source="x",
        device="cpu",
        limit=limit,
        seconds=1,
    )


@pytest.mark.parametrize("kind", CASES)
def test_what_is_kept_comes_back_and_gives_the_metrics(kind, tmp_path):
    arrays, metrics = CASES[kind]
    record = make(metrics)
    outcomes.save(outcomes.pack(arrays, record), record, tmp_path)
    path = save(record, tmp_path)
    assert [file.name for file in sorted(path.parent.iterdir())] == [
        f"up.{record.key}.json",
        f"up.{record.key}.outcomes.npz",
    ]
    again = outcomes.load(record, tmp_path)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(again[name], array)
        assert again[name].dtype == bool if array.dtype == bool else again[name].dtype.kind == "u"
    for metric, value in metrics.items():
        parts = outcomes.per_image(again, metric)
        if "median" in metric:
            assert parts is None
        else:
            assert len(parts.counts) == N
            assert parts.statistic(parts.counts.sum(axis=0)[None])[0] == pytest.approx(
                value, abs=1e-12
            )
    assert load_all(tmp_path) == [record], "the leaderboard reads records and nothing else"


def test_hits_have_a_bitmap_where_an_image_is_hit_or_missed():
    arrays = CASES["retrieval"][0]
    assert np.array_equal(
        outcomes.per_image(arrays, "text_retrieval_recall@5").hits, RANKS[:, None] < 5
    )
    assert outcomes.per_image(arrays, "image_retrieval_recall@5").hits is None, (
        "captions of a picture are not independent"
    )
    assert outcomes.per_image(CASES["few-shot"][0], "acc1_1shot").hits.shape == (N, 3)
    assert outcomes.per_image(CASES["classification"][0], "acc5") is None


def test_it_is_small():
    for hits, most in (
        (np.random.default_rng(1).random(50_000) < 0.5, 7_000),
        (np.ones(50_000, bool), 1_000),
    ):
        record = make({"acc1": hits.mean()}, n=50_000)
        assert len(outcomes.pack({"acc1": hits}, record)) < most
    ranks = np.random.default_rng(2).integers(0, 25_000, 5_000)
    record = make({"text_retrieval_recall@1": (ranks < 1).mean()}, n=5_000)
    assert len(outcomes.pack({"text_retrieval_rank": ranks}, record)) < 2 * 5_000 + 1_000


def test_the_same_outcomes_are_the_same_bytes():
    arrays, metrics = CASES["segmentation"]
    assert outcomes.pack(arrays, make(metrics)) == outcomes.pack(arrays, make(metrics))


def test_without_outcomes_nothing_is_written_and_older_ones_go(tmp_path):
    arrays, metrics = CASES["classification"]
    record = make(metrics)
    assert outcomes.load(record, tmp_path) is None
    outcomes.save(outcomes.pack({}, record), record, tmp_path)
    assert not list(tmp_path.rglob("*"))
    outcomes.save(outcomes.pack(arrays, record), record, tmp_path)
    outcomes.save(outcomes.pack({}, record), record, tmp_path)
    assert outcomes.load(record, tmp_path) is None


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    arrays, metrics = CASES["classification"]
    record = make(metrics)
    outcomes.save(outcomes.pack(arrays, record), record, tmp_path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        outcomes.save(b"new", record, tmp_path)
    assert np.array_equal(outcomes.load(record, tmp_path)["acc1"], HITS)
    assert len(list(outcomes.path_of(record, tmp_path).parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"acc1": HITS[:-1]}, r"'acc1' must be bool, \[60\].*got bool \[59\]"),
        ({"acc1": HITS.astype(int)}, "'acc1' must be bool"),
        ({"acc1": ~HITS}, "acc1 is 0.* by them and 0.* by the record"),
        ({"acc9": HITS}, "'acc9' names no metric"),
        ({"labels": LABELS - 1}, "none negative"),
        ({"labels": LABELS[1:]}, "'labels' must be"),
        ({"text_retrieval_rank": RANKS / 2}, "must hold integers"),
        ({"image_retrieval_rank": ASKED}, "must name a picture for each"),
        (
            {"image_retrieval_rank": ASKED, "image_retrieval_picture": IMAGE + 1},
            "must name each of 60 pictures",
        ),
        ({"areas": AREAS[:, :2]}, r"'areas' must be \[60, 3, classes\]"),
        (
            {"foreground_areas": np.zeros((N, 2), int)},
            r"'foreground_areas' must be \[60, 2\], the whole 1 or more",
        ),
    ],
)
def test_what_a_task_must_not_hand_over(arrays, message):
    with pytest.raises(ValueError, match=message):
        outcomes.pack(arrays, make({"acc1": HITS.mean()}))


@pytest.mark.parametrize(
    "array", [AREAS[:, ::-2], AREAS, AREAS[1:, :2], AREAS[:, :2] > 1, AREAS[:, :2, 0]]
)
def test_what_correspondence_must_not_hand_over(array):
    with pytest.raises(
        ValueError,
        match=r"'patch_recall@1' must hold counts, \[60, 2, classes\], no more hits than asked for",
    ):
        outcomes.pack({"patch_recall@1": array}, make({"patch_recall@1": 0.5}))


# ---- files that do not belong, or are damaged ----


@pytest.fixture
def kept(tmp_path):
    arrays, metrics = CASES["classification"]
    record = make(metrics)
    outcomes.save(outcomes.pack(arrays, record), record, tmp_path)
    return record, outcomes.path_of(record, tmp_path), tmp_path


def refusal(record, folder):
    with pytest.raises(UserError) as caught:
        outcomes.load(record, folder)
    assert str(caught.value).startswith(f"{outcomes.path_of(record, folder)}: ")
    assert "measure made/up again" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"\x93NUMPY" + b"x" * 40])
def test_a_file_that_is_no_archive(kept, content):
    record, path, folder = kept
    path.write_bytes(content)
    assert "cannot be read" in refusal(record, folder)


def archive(record, arrays, schema=outcomes.SCHEMA_VERSION, **changes):
    """A file that is whole, whatever it says."""
    fields = {
        "revision": record.model.revision,
        "key": record.key,
        "bits": {"acc1": [N]},
        **changes,
    }
    return archives.pack(schema, fields, arrays)


@pytest.mark.parametrize(
    ("changes", "acc1", "message"),
    [
        ({"schema": "outcomes/1"}, np.packbits(HITS), "not a 'outcomes/2' file"),
        ({"key": "0" * 8}, np.packbits(HITS), "not to the record beside it"),
        ({"bits": {"acc1": [N + 8]}}, np.packbits(HITS), "cannot hold"),
        ({"bits": {"acc1": ["x"]}}, np.packbits(HITS), "cannot be read"),
        ({"bits": {"acc1": [-N]}}, np.packbits(HITS), "cannot"),
        ({"bits": {}}, np.packbits(HITS), "must be bool"),
        ({"bits": 3}, np.packbits(HITS), "cannot be read"),
        ({}, np.packbits(~HITS), "by the record"),
    ],
)
def test_an_archive_that_is_not_ours(kept, changes, acc1, message):
    record, path, folder = kept
    path.write_bytes(archive(record, {"acc1": acc1}, **changes))
    assert message in refusal(record, folder)


def test_a_file_of_numpy_alone_is_not_ours(kept):
    """It has no list of its parts; objects in it are pickles, which are never read."""
    record, path, folder = kept
    words = np.frombuffer(
        json.dumps({"schema": outcomes.SCHEMA_VERSION, "bits": {}}).encode(), np.uint8
    )
    np.savez(path, header=words, acc1=np.packbits(HITS))
    assert "does not say which parts belong to it" in refusal(record, folder)
    np.savez(path, header=np.array([{"a": 1}], dtype=object), acc1=np.packbits(HITS))
    assert "allow_pickle" in refusal(record, folder)
    np.savez(path, acc1=np.packbits(HITS))
    assert "header" in refusal(record, folder)


def test_members_that_are_no_arrays_or_enormous(kept, monkeypatch):
    record, path, folder = kept
    with zipfile.ZipFile(path, "w") as plain:
        plain.writestr("header", "text")
    refusal(record, folder)
    monkeypatch.setattr(outcomes, "MAX_BYTES", 1 << 16)
    path.write_bytes(
        archives.pack(
            outcomes.SCHEMA_VERSION, {}, {"acc1": np.zeros(1 << 16, np.uint8)}, is_compressed=True
        )
    )
    assert path.stat().st_size < 2000
    assert "claims 65," in refusal(record, folder)


def test_outcomes_of_another_record_are_refused(kept):
    _, path, folder = kept
    other = make(CASES["classification"][1], limit=N)
    outcomes.path_of(other, folder).write_bytes(path.read_bytes())
    assert "not to the record beside it" in refusal(other, folder)
    weights = make(CASES["classification"][1], revision="01234567" + "f" * 8)
    assert "belongs to revision 0123456789abcdef" in refusal(weights, folder)


def test_a_record_that_was_replaced_alone_no_longer_fits(kept):
    record, _, folder = kept
    changed = make(
        {
            "acc1": HITS.mean() + 1 / N,
            "mean_per_class_recall": record.metrics["mean_per_class_recall"],
        }
    )
    assert changed.key == record.key
    assert "acc1 is" in refusal(changed, folder)
