"""The whole flow on a small fake model: what is measured, skipped, refused, saved."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from given import Means, measured
from PIL import Image
from refusals import refused

from silc_bench.datasets.dataset import is_cut
from silc_bench.errors import DataError, RunError, UserError
from silc_bench.evaluation.evaluate import check_supported
from silc_bench.results import outcomes
from silc_bench.results import record as results
from silc_bench.results.folders import read
from silc_bench.task import Scores, Task
from silc_bench.tasks.classification.knn import Knn
from silc_bench.tasks.selection import select
from silc_bench.tasks.sources import places, shapes


def run(model, patterns, folder, **settings):
    return measured(model, select(patterns), folder, **{"limit": 40, **settings})


def names_in(folder, ending):
    return sorted(path.name.split(".")[0] for path in folder.rglob(f"*.{ending}"))


def test_records_are_written_and_known_ones_are_not_measured_again(tmp_path):
    tasks = ["shapes/zeroshot", "shapes/knn"]
    first_model, again, seen = Means(), Means(), []
    first, second = (
        run(model, tasks, tmp_path, on_result=lambda record, is_new: seen.append(is_new))
        for model in (first_model, again)
    )
    assert [record.task.name for record in first] == ["shapes/knn", "shapes/zeroshot"]
    assert first_model.images == 80, "40 training and 40 test images, each once for both tasks"
    distinct = {len(text) * 100 + text.count("e") for text in first_model.asked}
    assert first_model.texts == len(distinct), "what the model reads alike is encoded once"
    assert all(record.limit == 40 and record.n == 40 for record in first)
    assert names_in(tmp_path, "json") == ["knn", "zeroshot"]
    assert second == first
    assert (again.images, again.texts) == (0, 0)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("change", [{"limit": 39}, {"precision": "bf16"}])
def test_another_limit_or_precision_is_another_measurement(tmp_path, change):
    for settings in ({}, change):
        run(Means(), ["shapes/zeroshot"], tmp_path, **settings)
    assert names_in(tmp_path, "json") == ["zeroshot", "zeroshot"]


@pytest.fixture
def pets(tmp_path):
    """Five images to score and four to learn from, of two classes; one is in both splits."""
    for name, red in (("test/a/0", 0), ("test/a/1", 9), ("test/b/0", 99), ("test/b/1", 120)):
        _write(tmp_path / f"pets/{name}.png", red)
        _write(tmp_path / f"pets/{name.replace('test', 'train')}.png", red + 1)
    _write(tmp_path / "pets/test/b/2.png", 121)
    (tmp_path / "pets/test/b/3.heic").write_bytes(b"")
    return tmp_path / "pets"


def _write(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)


@pytest.mark.parametrize(("limit", "kept"), [(4, 4), (5, None), (6, None), (None, None)])
def test_a_limit_that_leaves_nothing_out_is_none(tmp_path, pets, limit, kept):
    (pets / "train").rename(tmp_path / "train")
    (record,) = run(Means(), [f"folder:{pets}"], tmp_path / "results", limit=limit)
    assert (record.limit, record.n) == (kept, kept or 5)
    model = Means()
    run(model, [f"folder:{pets}"], tmp_path / "results", limit=None)
    assert bool(model.images) == (kept is not None), "a measurement of the whole is known"


@pytest.mark.parametrize(("limit", "is_less"), [(7, True), (8, False), (9, False)])
def test_scenes_say_whether_a_limit_leaves_any_out(limit, is_less):
    for scenes in (shapes("test", 8), places("test", 8)):
        data = scenes(None, limit)
        assert is_cut(data) == is_less
        assert is_cut(data.part([1, 0, 2]))
        assert data.part(range(len(data))) is data


def test_what_was_passed_over_and_what_both_splits_hold_is_said(tmp_path, pets, capsys):
    words = [f"folder:{pets}#zeroshot", f"folder:{pets}#linear"]
    learned, asked = run(Means(), words, tmp_path / "results", limit=None)
    skipped, shared = capsys.readouterr().err.splitlines()
    assert list(learned.notes)[:2] == [skipped, shared]
    assert skipped in asked.notes
    assert skipped.startswith("pets test: skipped 1 ")
    assert skipped.endswith("b/3.heic")
    assert shared.startswith("pets: 1 of the 5 ")
    assert f"{pets}/test/b/2.png is {pets}/train/b/1.png" in shared


def test_existing_overwrite_and_error(tmp_path):
    (first,) = run(Means(), ["shapes/zeroshot"], tmp_path)
    model = Means()
    with refused(tmp_path):
        run(model, ["shapes/zeroshot", "shapes/knn"], tmp_path, existing="error")
    assert model.images == 0, "refused before any work"
    (second,) = run(model, ["shapes/zeroshot"], tmp_path, existing="overwrite")
    assert model.images == 40
    assert second.metrics == first.metrics
    assert names_in(tmp_path, "json") == ["zeroshot"]


def test_what_another_folder_holds_is_not_measured_again(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    (first,) = run(Means(), ["shapes/zeroshot"], one)
    model = Means()
    assert run(model, ["shapes/zeroshot"], other, known_in=[one]) == [first]
    assert (model.images, other.exists()) == (0, False)
    run(model, ["shapes/zeroshot"], other, known_in=[one], existing="overwrite")
    assert names_in(other, "json") == ["zeroshot"]

    # a damaged record is in the way wherever it lies
    first.path(one).write_text("{")
    with refused(first.path(one), kind=DataError, is_kept=False):
        run(Means(), ["shapes/zeroshot"], tmp_path / "new", known_in=[one])


def test_what_the_probe_learned_from_is_part_of_the_key(tmp_path):
    first, second = (
        measured(Means(), [Knn(name="shapes/knn", sources=sources)], tmp_path)[0]
        for sources in (
            {"train": shapes("train", count), "test": shapes("test", 30)} for count in (50, 60)
        )
    )
    assert len(read([tmp_path]).records) == 2
    assert first.dataset == second.dataset


@pytest.mark.parametrize(
    ("settings", "about"),
    [({"batch_size": 0}, "--batch-size"), ({"feature_point": "poold"}, "--feature-point")],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path, settings, about):
    model = Means()
    with refused(about):
        run(model, ["shapes/zeroshot", "shapes/knn"], tmp_path, **settings)
    assert model.images == 0
    assert not list(tmp_path.iterdir())


def test_what_a_model_lacks_is_refused_and_text_beside_another_feature_point():
    knn, retrieval, dense = select(["shapes/knn", "shapes/retrieval", "shapes/segmentation_linear"])
    vision = SimpleNamespace(name="x", feature_points={"pooled": 3})
    vision.preprocess = vision.encode_image = len
    check_supported(vision, knn)
    check_supported(Means(), knn, "mean_patch")
    for model, task, point in (
        (vision, retrieval, "pooled"),
        (vision, dense, "pooled"),
        (Means(), retrieval, "mean_patch"),
    ):
        with refused(task.name):
            check_supported(model, task, point)


class Broken(Task):
    """A task that fails while it is scored, or gives ``outcome``."""

    name, version, group, main_metric = "shapes/broken", 1, "zero-shot", "acc1"
    requires = frozenset({"image"})

    def __init__(self, outcome):
        self.load = select(["shapes/zeroshot"])[0].load
        self.outcome = outcome

    def protocol(self):
        return {}

    def score(self, features):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


WRONG = Scores({"acc1": 0.5}, {}, n=20, chance=0.5, outcomes={"acc1": np.zeros(20, bool)})


@pytest.mark.parametrize(
    ("outcome", "kind", "says"),
    [
        (ZeroDivisionError("deep inside"), RunError, "ZeroDivisionError: deep inside"),
        (UserError("image 7 is damaged"), UserError, "image 7 is damaged"),
        (WRONG, RunError, "acc1 is 0.000000"),
        (Scores({"acc1": float("nan")}, {}, n=1, chance=0.5), UserError, "acc1"),
    ],
    ids=["a bug", "the input", "samples that do not give the score", "no number"],
)
def test_a_failing_task_costs_only_itself(tmp_path, outcome, kind, says):
    is_ours = not isinstance(outcome, Scores)  # else jsonschema says what is wrong
    with refused("1 of 2 tasks", kind=kind, is_kept=is_ours) as caught:
        tasks = [Broken(outcome), *select(["shapes/zeroshot"])]
        measured(Means(), tasks, tmp_path, limit=20)
    assert "shapes/broken" in caught.value.problem
    assert says in caught.value.problem
    assert names_in(tmp_path, "json") == names_in(tmp_path, "npz") == ["zeroshot"]


def test_interruption_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measured(Means(), [Broken(KeyboardInterrupt())], tmp_path, limit=20)


def test_what_each_sample_scored_lies_beside_the_record_and_comes_first(tmp_path, monkeypatch):
    (record,) = run(Means(), ["shapes/zeroshot"], tmp_path)
    kept = outcomes.load(record, tmp_path)
    assert kept["acc1"].mean() == record.metrics["acc1"]
    assert list(tmp_path.rglob("*.npz")) == [outcomes.path_of(record, tmp_path)]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(Means(), ["shapes/knn"], tmp_path)
    assert names_in(tmp_path, "npz") == ["knn", "zeroshot"]
    assert names_in(tmp_path, "json") == ["zeroshot"], "no record without its samples"


def test_one_sample_has_no_standard_error_and_the_record_says_so(tmp_path):
    (record,) = run(Means(), ["shapes/zeroshot"], tmp_path, limit=1)
    assert record.stderr == {}
    assert any("one sample" in note for note in record.notes)
    (record,) = run(Means(), ["shapes/zeroshot"], tmp_path, limit=2)
    assert "acc1" in record.stderr


def test_texts_that_the_model_cuts_are_counted_in_the_record(tmp_path):
    class Short(Means):
        def __init__(self):
            super().__init__()
            self.text_protocol = {"length": 4}

        def token_lengths(self, texts):
            return [len(text.split()) for text in texts]

    (record,) = run(Short(), ["shapes/zeroshot"], tmp_path)
    assert any("of 256 texts are cut at 4 tokens" in note for note in record.notes)
    (record,) = run(Means(), ["shapes/zeroshot"], tmp_path / "whole")
    assert record.notes == [note for note in record.notes if "cut" not in note]
